//! Reconnects: on a new pod, in another framing, after a gap, and after the client was slow.

use std::time::Duration;

use async_nats::jetstream::stream;
use serde_json::Value;

use super::{Fixture, Via, create_stream, numbers};
use testkit::ndjson::Request;
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, within};

#[tokio::test]
async fn client_of_a_replaced_pod_resumes_without_loss_in_either_framing() {
    let mut fixture = Fixture::start().await;
    let mut published = 0u64;
    let mut received = Vec::new();
    let mut id = String::new();
    // The framing changes with every reconnect.
    for via in [Via::Http11, Via::H2, Via::Tls11, Via::TlsH2] {
        let mut reader = fixture.open(via, "/orders?user=1", &id).await;
        for _ in 0..5 {
            fixture.publish("orders.1.x", published.to_string()).await;
            published += 1;
        }
        received.extend(numbers(
            &reader.events(published as usize - received.len()).await,
        ));
        // Published and perhaps not received before the pod ends.
        for _ in 0..5 {
            fixture.publish("orders.1.x", published.to_string()).await;
            published += 1;
        }
        fixture.replace_sidestream().await;
        let (rest, end) = reader.read_to_end().await;
        let (close, events) = rest.split_last().unwrap();
        assert_eq!(
            (&close["control"], &close["reason"]),
            (&"close".into(), &"drain".into())
        );
        assert_eq!(end, via.proper_end());
        let events: Vec<Value> = events
            .iter()
            .filter(|line| line.get("control").is_none())
            .cloned()
            .collect();
        received.extend(numbers(&events));
        id = reader.last_event_id().to_owned();

        fixture.publish("orders.1.x", published.to_string()).await;
        published += 1;
        let request = SseClient::get(fixture.sidestream.url("/orders?user=1"));
        let mut sse = request.last_event_id(&id).connect().await;
        while (received.len() as u64) < published {
            let event = sse.next().await;
            if !event.name.starts_with("sidestream.") {
                received.push(event.data.parse().unwrap());
            }
        }
        id = sse.last_event_id().to_owned();
    }
    assert_eq!(received, (0..published).collect::<Vec<_>>());
}

#[tokio::test]
async fn client_receives_a_gap_where_events_expired_or_the_stream_was_recreated() {
    let fixture = Fixture::start().await;
    let mut reader = fixture.open(Via::Http11, "/orders?user=1", "").await;
    fixture.publish("orders.1.x", "1").await;
    let first = reader.events(1).await[0]["id"].as_str().unwrap().to_owned();
    let live = fixture.open(Via::Http11, "/orders?user=1", "").await;
    fixture.jetstream.delete_stream("ORDERS").await.unwrap();
    create_stream(&fixture.jetstream, stream::Config::default()).await;
    let mut readers = vec![live];
    // A client that is connected receives the gap once the pod follows the new stream.
    let (_, gap) = readers[0].until_control("gap").await;
    assert_eq!(gap["reason"], "recreated");
    for via in Via::ALL {
        readers.push(fixture.open(via, "/orders?user=1", &first).await);
    }
    for reader in &mut readers[1..] {
        let (_, gap) = reader.until_control("gap").await;
        assert_eq!(gap["reason"], "recreated");
        assert_eq!(
            (&gap["missed"], &gap["resume"]),
            (&Value::Null, &"live".into())
        );
        assert!(
            gap["id"].is_string(),
            "the client can resume after it: {gap}"
        );
    }
    fixture.publish("orders.1.x", "2").await;
    for reader in &mut readers {
        assert_eq!(numbers(&reader.events(1).await), [2]);
    }
}

#[tokio::test]
async fn client_below_the_retention_receives_a_gap_and_the_oldest_event() {
    let mut fixture = Fixture::start().await;
    let mut reader = fixture.open(Via::Http11, "/orders?user=1", "").await;
    for number in 1..=20u64 {
        fixture.publish("orders.1.x", number.to_string()).await;
    }
    let ids: Vec<Value> = reader.events(20).await;
    let stream = fixture.jetstream.get_stream("ORDERS").await.unwrap();
    stream.purge().sequence(11).await.unwrap();
    // A pod that starts now has nothing of the past in memory.
    fixture.replace_sidestream().await;
    for via in Via::ALL {
        let id = ids[4]["id"].as_str().unwrap();
        let mut resumed = fixture.open(via, "/orders?user=1", id).await;
        let (_, gap) = resumed.until_control("gap").await;
        assert_eq!(
            (&gap["reason"], &gap["resume"]),
            (&"expired".into(), &"oldest".into())
        );
        assert!(
            gap["id"].is_string(),
            "the client can resume after it: {gap}"
        );
        let expected: Vec<u64> = (11..=20).collect();
        assert_eq!(numbers(&resumed.events(10).await), expected, "{via:?}");
        // Without the route's `expired: gap`, a program receives a status.
        let mut rejected = fixture.open(via, "/named", id).await;
        assert_eq!(rejected.status(), 416);
        let error: Value = serde_json::from_str(&rejected.body().await).unwrap();
        assert_eq!(error["error"]["code"], "last_event_id_expired");
    }
}

#[tokio::test]
async fn slow_client_misses_telemetry_and_receives_gaps() {
    let fixture = Fixture::start().await;
    for via in [Via::Http11, Via::H2, Via::Tls11] {
        let url = fixture.url(via, "/orders?user=1");
        let request = Request {
            version: via.version(),
            tls: via.is_tls().then(|| fixture.tls(via)),
            receive_buffer: Some(4096),
            ..Request::new(&url)
        };
        let mut slow = request.send().await;
        assert_eq!(slow.status(), 200);
        let mut reading = fixture.open(Via::Http11, "/lines", "").await;
        let waiting = async || {
            let page = fixture.sidestream.admin_json("/connections").await;
            let connections = page["connections"].as_array().unwrap();
            let is_of_route = |one: &&Value| one["route"] == "/orders";
            let connection = connections.iter().find(is_of_route).unwrap();
            let is_slow = connection["slow"].as_bool().unwrap();
            (connection["lag"]["events"].as_u64().unwrap(), is_slow)
        };
        // Half of the route's `slow.lag` waits: telemetry is skipped, normal events are not. Events are
        // small, because shedding lasts for one turn of 32 KiB.
        let mut published = 0u64;
        let wide = "x".repeat(1000);
        within(DEADLINE * 2, "the client is slow and lags", async {
            loop {
                let (lag, is_slow) = waiting().await;
                if lag >= 100 && is_slow {
                    return;
                }
                if lag >= 100 {
                    // Its socket may still accept some of these events: it is not slow yet.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                for subject in ["orders.1.telemetry", "orders.1.normal"].repeat(10) {
                    fixture
                        .publish(subject, format!("{published} {wide}"))
                        .await;
                    published += 1;
                }
                // The pod has received them from NATS.
                reading.events(20).await;
            }
        })
        .await;
        fixture.publish("orders.1.normal", "last").await;
        let (mut missed, mut seen) = (0, Vec::new());
        loop {
            let line = slow.next().await;
            if line["control"] == "gap" {
                assert_eq!(
                    (&line["reason"], &line["resume"]),
                    (&"slow".into(), &"oldest".into())
                );
                missed += line["missed"].as_u64().unwrap();
            }
            let Some(data) = line["data"].as_str() else {
                continue;
            };
            if data == "last" {
                break;
            }
            let number: u64 = data.split(' ').next().unwrap().parse().unwrap();
            seen.push(number);
        }
        assert!(missed > 0, "{via:?}: telemetry was skipped");
        let total = seen.len() as u64 + missed;
        assert_eq!(total, published, "{via:?}: every event once or in a gap");
        let mut normal = (0..published).filter(|number| number % 2 == 1);
        assert!(normal.all(|number| seen.contains(&number)));
        drop(slow);
        let labels = [("route", "/orders"), ("framing", "ndjson")];
        fixture
            .sidestream
            .until_metric("sidestream_streams", &labels, |open| open == 0.0)
            .await;
    }
}
