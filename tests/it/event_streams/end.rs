//! Graceful shutdown by SIGTERM: the end of event streams and of the process.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::reader::{Reader, Via};
use super::{Fixture, json, publish_numbers, sequence};
use testkit::h2_tap::{DATA, GOAWAY};
use testkit::http1;
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};

/// RFC 9113, 6.1.
const END_STREAM: u8 = 0x1;

const QUICK: &str =
    "drain: { accept_for: 500ms, spread: 300ms, timeout: 5s, retry: { min: 600ms, max: 900ms } }";

#[tokio::test]
async fn sigterm_ends_every_event_stream_in_order_and_the_process_with_0() {
    let mut fixture = Fixture::with_rest(QUICK).await;
    let mut readers = Vec::new();
    for via in Via::ALL {
        for path in ["/orders", "/both"] {
            let mut reader = fixture.open(via, path).await;
            let begun = sequence(&reader.positioned().await, 0);
            readers.push((via, begun, reader));
        }
    }
    // Events arrive until the end.
    let publishing = publish_numbers(&fixture.jetstream, "x", Duration::from_millis(2));
    fixture.sidestream.terminate();
    let mut clients = JoinSet::new();
    for (via, begun, mut reader) in readers {
        clients.spawn(async move {
            assert_drained(via, begun, &mut reader).await;
            reader
        });
    }
    clients.join_all().await;
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    publishing.abort();
    let stream = fixture.jetstream.get_stream("ORDERS").await.unwrap();
    assert_eq!(
        stream.cached_info().state.consumer_count,
        0,
        "NATS is left in order"
    );
}

/// Reads an event stream until a drain ends it. Asserts that no event is missing, that the close
/// event names the drain, and that the end is regular.
async fn assert_drained(via: Via, begun: u64, reader: &mut Reader) {
    let (mut events, end) = reader.read_to_end().await;
    assert_eq!(end, via.proper_end(), "{via:?}");
    let close = events.pop().unwrap();
    assert_eq!(
        (&*close.name, &json(&close.data)["reason"]),
        ("sidestream.close", &"drain".into())
    );
    let retry = json(&close.data)["retry"].as_u64().unwrap();
    assert!((600..=900).contains(&retry), "{retry}");
    assert_eq!(reader.retry(), Some(retry));
    let numbers: Vec<u64> = events
        .iter()
        .map(|event| event.data.parse().unwrap())
        .collect();
    let position = sequence(reader.last_event_id(), 0);
    assert_eq!(
        numbers,
        (begun + 1..=position).collect::<Vec<_>>(),
        "nothing that the position passes is missing"
    );
    let Some(connection) = reader.connection() else {
        return;
    };
    assert_eq!(connection.ended().await, "closed", "{via:?}");
    let frames = connection.frames();
    let at = |wanted: fn(u8, u8) -> bool| {
        frames
            .iter()
            .position(|frame| wanted(frame.kind, frame.flags))
            .unwrap()
    };
    let goaway = at(|kind, _| kind == GOAWAY);
    let ended = at(|kind, flags| kind == DATA && flags & END_STREAM != 0);
    assert!(
        goaway < ended,
        "the event stream ends only after GOAWAY: otherwise the client would reuse this connection"
    );
    assert!(
        !frames
            .iter()
            .any(|frame| frame.kind == DATA && frame.length == 0),
        "no empty frame: {frames:?}"
    );
}

#[tokio::test]
async fn a_draining_pod_accepts_new_clients_for_accept_for() {
    let drain = "drain: { accept_for: 5s, spread: 100ms, timeout: 9s }";
    let mut fixture = Fixture::with_rest(drain).await;
    // A pod that has had a connection may be in a load balancer, so it accepts for a while.
    assert_eq!(
        SseClient::get(fixture.sidestream.url("/none"))
            .connect()
            .await
            .status(),
        404
    );
    let begun = Instant::now();
    fixture.sidestream.terminate();
    eventually(DEADLINE, "readiness fails", || async {
        fixture.sidestream.admin("/health/ready").await.0 == 503
    })
    .await;
    assert_eq!(fixture.sidestream.admin("/health/live").await.0, 200);
    for via in Via::ALL {
        let mut reader = fixture.open(via, "/orders").await;
        assert_eq!(reader.status(), 200, "{via:?}");
        reader.positioned().await;
        fixture.publish("orders.1.x", "as before").await;
        assert_eq!(reader.next().await.data, "as before", "{via:?}");
    }
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "the machine is too slow for this test"
    );
    let url = fixture.sidestream.url("/orders");
    eventually(DEADLINE, "the port is closed", || async {
        SseClient::get(&url).try_connect().await.is_err()
    })
    .await;
    assert!(
        begun.elapsed() >= Duration::from_secs(5),
        "accept_for has passed"
    );
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
}

#[tokio::test]
async fn probes_are_answered_until_the_last_client_has_gone() {
    let drain = "drain: { accept_for: 100ms, spread: 1s, timeout: 5s }";
    let mut fixture = Fixture::with_rest(drain).await;
    let mut readers = Vec::new();
    for _ in 0..10 {
        readers.push(fixture.open(Via::H2, "/orders").await);
    }
    fixture.sidestream.terminate();
    eventually(
        DEADLINE,
        "some event streams have ended and some have not",
        || async {
            let health = fixture.sidestream.admin_json("/health").await;
            assert_eq!(fixture.sidestream.admin("/health/live").await.0, 200);
            health["drain"]["phase"] == "ending"
                && (1..9).contains(&health["drain"]["streams_left"].as_u64().unwrap())
        },
    )
    .await;
    let ended = fixture
        .sidestream
        .metric("sidestream_streams_closed_total", &[("reason", "drain")])
        .await;
    assert!(ended > 0.0);
    for reader in &mut readers {
        assert_eq!(
            reader.read_to_end().await.0.last().unwrap().name,
            "sidestream.close"
        );
    }
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
}

#[tokio::test]
async fn a_stalled_client_does_not_delay_the_shutdown() {
    let drain = "drain: { accept_for: 0s, spread: 100ms, timeout: 1s }";
    let mut fixture = Fixture::with_rest(drain).await;
    let (stalled, mut reading) = fixture.stalled_and_reading().await;
    let begun = Instant::now();
    fixture.sidestream.terminate();
    assert_eq!(reading.read_to_end().await.1, Via::Http11.proper_end());
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
    fixture
        .sidestream
        .until_message("event stream closed")
        .await;
    let cut = fixture
        .sidestream
        .log()
        .into_iter()
        .any(|line| line["reason"] == "cut");
    assert!(cut, "a truncated stream is reported");
    drop(stalled);
}

#[tokio::test]
async fn a_second_signal_ends_the_process_at_once() {
    let drain = "drain: { accept_for: 30s, spread: 1s, timeout: 40s }";
    let mut fixture = Fixture::with_rest(drain).await;
    let _client = fixture.open(Via::Http11, "/orders").await;
    fixture.sidestream.terminate();
    eventually(DEADLINE, "the drain has begun", || async {
        let ready = http1::get(&fixture.sidestream.url_admin("/health/ready"))
            .await
            .unwrap();
        ready.status == 503
    })
    .await;
    fixture.sidestream.terminate();
    let begun = Instant::now();
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
}
