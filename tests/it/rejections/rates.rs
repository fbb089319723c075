//! Rate limit of events per client: deferred events, exempt events, metrics.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::fixture::Fixture;
use testkit::sse::SseClient;

/// Two events per second, with a burst of ten.
const REST: &str = "
  - path: /named/{id}
    client: \"{query.client}\"
    sources: [{ subjects: [\"orders.{id}.>\"] }]
    priority:
      - { subjects: [\"orders.*.alert\"], tier: critical }
      - { subjects: [\"orders.*.telemetry.>\"], tier: telemetry }
limits: { per_client: { events: { rate: 2, burst: 10 } } }
";

/// The witness has the address of the machine, and must not be limited.
const UNLIMITED: &str = "limits: { per_client: { events: { rate: 1000, burst: 100000 } } }";

async fn connect(fixture: &Fixture, client: &str) -> SseClient {
    let mut client = SseClient::get(fixture.sidestream.url(&format!("/named/1?client={client}")))
        .connect()
        .await;
    assert_eq!(client.status(), 200);
    client.positioned().await;
    client
}

#[tokio::test]
async fn events_above_the_rate_wait_in_the_window_and_are_not_lost() {
    let fixture = Fixture::start(REST).await;
    let publisher = fixture.nats.client().await;
    let (mut a, mut b) = (connect(&fixture, "a").await, connect(&fixture, "b").await);
    let began = Instant::now();
    for number in 0..14 {
        publisher
            .publish("orders.1.a", number.to_string().into())
            .await
            .unwrap();
    }
    let expected: Vec<String> = (0..14).map(|number| number.to_string()).collect();
    let first: Vec<String> = a
        .take(10)
        .await
        .into_iter()
        .map(|event| event.data)
        .collect();
    assert_eq!(first, expected[..10]);
    let burst = began.elapsed();
    let rest: Vec<String> = a
        .take(4)
        .await
        .into_iter()
        .map(|event| event.data)
        .collect();
    assert_eq!(rest, expected[10..]);
    let all = began.elapsed();
    assert!(
        all >= Duration::from_millis(1_500),
        "four events at two a second: {burst:?}, then {all:?}"
    );
    let of_b: Vec<String> = b
        .take(14)
        .await
        .into_iter()
        .map(|event| event.data)
        .collect();
    assert_eq!(of_b, expected, "each client has a bucket of its own");
    let throttled = fixture
        .sidestream
        .metric("sidestream_throttled_total", &[("limit", "events")])
        .await;
    assert!(throttled >= 2.0, "{throttled}");
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_slow_clients", &[])
            .await,
        0.0,
        "its socket took everything"
    );
    drop((a, b));
}

#[tokio::test]
async fn critical_events_and_those_before_them_are_not_delayed() {
    let fixture = Fixture::start(REST).await;
    let publisher = fixture.nats.client().await;
    let mut client = connect(&fixture, "a").await;
    let began = Instant::now();
    let subjects = [
        ("n", "orders.1.a", 30),
        ("t", "orders.1.telemetry.x", 5),
        ("m", "orders.1.a", 5),
        ("!", "orders.1.alert", 1),
    ];
    let mut expected = Vec::new();
    for (name, subject, count) in subjects {
        for number in 0..count {
            publisher
                .publish(subject, format!("{name}{number}").into())
                .await
                .unwrap();
            if name != "t" {
                expected.push(format!("{name}{number}"));
            }
        }
    }
    let mut received = Vec::new();
    let mut missed = 0;
    while received.len() < expected.len() {
        let event = client.next().await;
        if event.name == "sidestream.gap" {
            let data: Value = serde_json::from_str(&event.data).unwrap();
            assert_eq!(data["reason"], "slow", "{data}");
            assert_eq!(
                received.last().map(String::as_str),
                Some("n29"),
                "the gap is where events are missing"
            );
            missed += data["missed"].as_u64().unwrap();
        } else {
            received.push(event.data);
        }
    }
    assert_eq!((received, missed), (expected, 5));
    let took = began.elapsed();
    assert!(
        took < Duration::from_secs(10),
        "waiting for tokens would have taken thirteen seconds: {took:?}"
    );
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_shed_events_total", &[("tier", "telemetry")])
            .await,
        5.0
    );
    // Borrowed tokens are repaid before the next event.
    publisher
        .publish("orders.1.a", "later".into())
        .await
        .unwrap();
    assert!(
        client
            .next_within(Duration::from_millis(500))
            .await
            .is_none(),
        "ten are deferred at two per second"
    );
    assert_eq!(client.next().await.data, "later");
    drop(client);
}

#[tokio::test]
async fn a_rate_limit_that_is_not_reached_has_no_effect() {
    let fixture = Fixture::start(UNLIMITED).await;
    let publisher = fixture.nats.client().await;
    let mut client = SseClient::get(fixture.sidestream.url("/orders/1"))
        .connect()
        .await;
    client.positioned().await;
    for number in 0..2_000 {
        publisher
            .publish("orders.1.a", number.to_string().into())
            .await
            .unwrap();
    }
    for number in 0..2_000 {
        assert_eq!(client.next().await.data, number.to_string());
    }
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_throttled_total", &[])
            .await,
        0.0
    );
    drop(client);
    fixture.finish().await;
}
