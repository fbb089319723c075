//! Messages of an event stream, and its end.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;

use super::{Fixture, call_to};
use testkit::grpc::{Form, Message};
use testkit::sse::SseClient;
use testkit::wait::DEADLINE;

/// Message of every kind of payload.
const PAYLOADS: [&[u8]; 4] = [b"{\"a\":1}", b"", b"\xff\x00\xfe", b"a\nb\r\n"];

#[tokio::test]
async fn events_arrive_with_name_subject_and_unchanged_payload_over_every_transport() {
    let fixture = Fixture::start().await;
    let large = Bytes::from(vec![b'x'; 1024 * 1024 - 100]);
    let mut responses = Vec::new();
    for form in Form::ALL {
        for call in [
            fixture.call(form, "/orders", ""),
            fixture.tls_call(form, "/orders", ""),
        ] {
            let mut response = call.send().await;
            assert_eq!(response.status, 200);
            assert_eq!(response.header("content-type"), Some(form.content_type()));
            assert_eq!(response.header("x-accel-buffering"), Some("no"));
            assert_eq!(response.header("incremental"), Some("?1"));
            let open = response.next().await;
            assert_eq!((open.content, open.first()), ("open", Some(3000)));
            let position = response.next().await;
            assert_eq!(position.content, "position");
            assert!(!position.id.is_empty());
            responses.push(response);
        }
    }
    for payload in PAYLOADS {
        fixture.publish("orders.1.x", payload).await;
    }
    let mut headers = HeaderMap::new();
    headers.insert("Sidestream-Event", "created");
    let published = fixture
        .jetstream
        .publish_with_headers("orders.2.y", headers, large.clone());
    published.await.unwrap().await.unwrap();
    for response in &mut responses {
        let events = response.events(PAYLOADS.len() + 1).await;
        let (last, events) = events.split_last().unwrap();
        for (event, payload) in events.iter().zip(PAYLOADS) {
            assert_eq!(event.data(), payload);
            assert_eq!((&*event.name(), &*event.subject()), ("", "orders.1.x"));
        }
        assert_eq!((&*last.name(), &*last.subject()), ("created", "orders.2.y"));
        assert!(last.data() == large, "the payload is unchanged");
    }
    // Both forms have the label of the framing.
    let labels = |protocol| [("framing", "grpc_web"), ("protocol", protocol)];
    let pod = &fixture.sidestream;
    pod.until_metric("sidestream_streams", &labels("h2"), |count| count == 4.0)
        .await;
    pod.until_metric("sidestream_streams", &labels("http/1.1"), |count| {
        count == 2.0
    })
    .await;
    drop(responses);
    pod.until_metric("sidestream_streams", &labels("h2"), |count| count == 0.0)
        .await;
}

#[tokio::test]
async fn silence_has_empty_messages() {
    let fixture = Fixture::start().await;
    for form in Form::ALL {
        let mut response = fixture.open(form, "/orders").await;
        for _ in 0..2 {
            let heartbeat = response.next().await;
            assert_eq!((&*heartbeat.id, heartbeat.content), ("", ""));
        }
    }
}

#[tokio::test]
async fn client_of_several_sources_has_one_id() {
    let fixture = Fixture::start().await;
    let client = fixture.nats.client().await;
    for form in Form::ALL {
        let mut response = fixture.open(form, "/both").await;
        fixture.publish("orders.1", "1").await;
        let first = response.events(1).await.remove(0);
        client.publish("news.1", "2".into()).await.unwrap();
        let second = response.events(1).await.remove(0);
        assert_eq!((first.number(), second.number()), (1, 2));
        let mut resumed = fixture.call(form, "/both", &first.id).send().await;
        assert_eq!(resumed.events(1).await, [second]);
    }
}

/// Publishes numbers from `from` on.
async fn publish_numbers(fixture: &Fixture, numbers: std::ops::Range<u64>) {
    for number in numbers {
        fixture.publish("orders.1", number.to_string()).await;
    }
}

#[tokio::test]
async fn drain_ends_calls_with_unavailable_and_clients_resume_on_another_pod_without_loss() {
    let mut fixture = Fixture::start().await;
    let mut responses = Vec::new();
    for form in Form::ALL {
        responses.push((form, fixture.open(form, "/orders").await));
        // `close: abort` has no meaning for a call.
        responses.push((form, fixture.open(form, "/abort/1").await));
    }
    let next = fixture.pod().await;
    publish_numbers(&fixture, 0..20).await;
    fixture.sidestream.terminate();
    publish_numbers(&fixture, 20..30).await;
    let mut ends = Vec::new();
    for (form, response) in &mut responses {
        ends.push((*form, response.read_to_end().await));
    }
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    publish_numbers(&fixture, 30..40).await;
    for (index, (form, (messages, trailers))) in ends.into_iter().enumerate() {
        let (close, messages) = messages.split_last().unwrap();
        assert_eq!((close.content, &*close.reason()), ("close", "drain"));
        let retry = close.second().unwrap();
        assert!((600..900).contains(&retry), "{retry}");
        assert_eq!(trailers["grpc-status"], "14", "UNAVAILABLE");
        assert_eq!(trailers["grpc-message"], "the event stream ended: drain");
        assert_eq!(trailers["sidestream-code"], "drain");
        assert_eq!(trailers["grpc-retry-pushback-ms"], retry.to_string());
        if index % 2 == 1 {
            continue;
        }
        let events = messages.iter().filter(|message| message.content == "event");
        let mut numbers: Vec<u64> = events.map(Message::number).collect();
        let mut resumed = call_to(&next, form, "/orders", &close.id).send().await;
        let rest = resumed.events(40 - numbers.len()).await;
        numbers.extend(rest.iter().map(Message::number));
        assert_eq!(numbers, (0..40).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn position_of_one_framing_is_that_of_the_others() {
    let fixture = Fixture::start().await;
    publish_numbers(&fixture, 0..1).await;
    let mut sse = SseClient::get(fixture.sidestream.url("/orders"))
        .connect()
        .await;
    publish_numbers(&fixture, 1..4).await;
    let first = sse.until(|event| event.data == "1").await.pop().unwrap();
    for form in Form::ALL {
        let mut response = fixture.call(form, "/orders", &first.id).send().await;
        let event = response.events(1).await.remove(0);
        assert_eq!(event.number(), 2);
        // Also in the query of the path.
        let path = format!("/orders?last_event_id={}", event.id);
        let mut response = fixture.call(form, &path, "").send().await;
        assert_eq!(response.events(1).await[0].number(), 3);
    }
}

#[tokio::test]
async fn missing_events_are_a_gap() {
    let fixture = Fixture::start().await;
    for form in Form::ALL {
        let mut response = fixture.call(form, "/orders", "no-id").send().await;
        let gap = response.until("gap").await;
        assert_eq!((&*gap.reason(), gap.second()), ("invalid", None));
        assert!(!gap.id.is_empty());
    }
    let mut open = fixture.open(Form::Grpc, "/orders").await;
    publish_numbers(&fixture, 0..3).await;
    let first = open.events(1).await.remove(0);
    let stream = fixture.jetstream.get_stream("ORDERS").await.unwrap();
    stream.purge().await.unwrap();
    publish_numbers(&fixture, 3..4).await;
    // A pod that does not have the purged events in memory.
    let pod = fixture.pod().await;
    for form in Form::ALL {
        let mut response = call_to(&pod, form, "/orders", &first.id).send().await;
        let gap = response.until("gap").await;
        assert_eq!(gap.reason(), "expired");
        assert_eq!(response.events(1).await[0].number(), 3);
        let call = call_to(&pod, form, "/metadata", &first.id);
        let call = testkit::grpc::Call {
            headers: vec![("x-user", "1")],
            ..call
        };
        let (messages, trailers) = call.send().await.read_to_end().await;
        assert!(messages.is_empty());
        assert_eq!(trailers["grpc-status"], "11", "OUT_OF_RANGE");
        assert_eq!(trailers["sidestream-code"], "last_event_id_expired");
    }
}

#[tokio::test]
async fn finite_event_stream_ends_with_ok_and_a_client_that_has_everything_receives_ok_at_once() {
    let fixture = Fixture::start().await;
    publish_numbers(&fixture, 0..3).await;
    let mut headers = HeaderMap::new();
    headers.insert("Sidestream-End", "true");
    let end = fixture
        .jetstream
        .publish_with_headers("orders.1", headers, "3".into());
    end.await.unwrap().await.unwrap();
    for form in Form::ALL {
        let mut response = fixture.call(form, "/run", "").send().await;
        let (messages, trailers) = response.read_to_end().await;
        let (end, messages) = messages.split_last().unwrap();
        assert_eq!(end.content, "end");
        let events = messages.iter().filter(|message| message.content == "event");
        let numbers: Vec<u64> = events.map(Message::number).collect();
        assert_eq!(numbers, [0, 1, 2, 3]);
        assert_eq!(trailers.len(), 1, "{trailers:?}");
        assert_eq!(trailers["grpc-status"], "0");

        let mut returned = fixture.call(form, "/run", &end.id).send().await;
        let (messages, trailers) = returned.read_to_end().await;
        assert!(messages.is_empty(), "{messages:?}");
        assert_eq!(trailers["grpc-status"], "0");
    }
}

#[tokio::test]
async fn latest_state_precedes_the_changes() {
    let fixture = Fixture::start().await;
    for (subject, payload) in [("orders.a", "1"), ("orders.b", "2"), ("orders.a", "3")] {
        fixture.publish(subject, payload).await;
    }
    for form in Form::ALL {
        let mut response = fixture.call(form, "/state", "").send().await;
        response.until("snapshot").await;
        let mut state = Vec::new();
        let synced = loop {
            let message = response.next().await;
            if message.content == "synced" {
                break message;
            }
            assert_eq!(message.id, "", "the state has no position");
            state.push((message.subject(), message.number()));
        };
        assert!(!synced.id.is_empty());
        assert_eq!(state, [("orders.b".into(), 2), ("orders.a".into(), 3)]);
    }
}

#[tokio::test]
async fn max_age_and_the_deadline_of_the_client_end_a_call() {
    let fixture = Fixture::start().await;
    for form in Form::ALL {
        let mut aged = fixture.call(form, "/short", "").send().await;
        let (messages, trailers) = aged.read_to_end().await;
        assert_eq!(messages.last().unwrap().reason(), "age");
        assert_eq!(trailers["grpc-status"], "14");

        let call = testkit::grpc::Call {
            headers: vec![("grpc-timeout", "700m")],
            ..fixture.call(form, "/orders", "")
        };
        let began = tokio::time::Instant::now();
        let (messages, trailers) = call.send().await.read_to_end().await;
        let close = messages.last().unwrap();
        assert_eq!((close.content, &*close.reason()), ("close", "deadline"));
        assert!(!close.id.is_empty());
        assert_eq!(trailers["grpc-status"], "4", "DEADLINE_EXCEEDED");
        let elapsed = began.elapsed();
        assert!(elapsed >= Duration::from_millis(690), "{elapsed:?}");
    }
    let closed = [("route", "/orders"), ("reason", "deadline")];
    let pod = &fixture.sidestream;
    pod.until_metric("sidestream_streams_closed_total", &closed, |count| {
        count == 3.0
    })
    .await;
}
