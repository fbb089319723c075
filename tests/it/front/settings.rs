//! The documented proxy configurations with one client: latency, client address, failover.

use std::time::Duration;

use super::fixture::Fixture;
use testkit::front::Kind;
use testkit::nats::publish;
use testkit::sse::{End, SseClient};
use testkit::wait::{RECOVERY, eventually};

#[tokio::test]
async fn nginx_forwards_events_at_once_and_the_client_address() {
    serves(Kind::Nginx, End::Truncated).await;
}

#[tokio::test]
async fn nginx_with_http_1_0_forwards_events_at_once_and_the_client_address() {
    // With HTTP/1.0 the end of the connection is the end of the response: nginx cannot distinguish
    // a crash from a regular end.
    serves(Kind::NginxHttp10, End::Terminated).await;
}

#[tokio::test]
async fn haproxy_forwards_events_at_once_and_the_client_address() {
    serves(Kind::Haproxy, End::Truncated).await;
}

#[tokio::test]
async fn envoy_forwards_events_at_once_and_the_client_address() {
    serves(Kind::Envoy, End::Truncated).await;
}

#[tokio::test]
async fn caddy_forwards_events_at_once_and_the_client_address() {
    serves(Kind::Caddy, End::Truncated).await;
}

#[tokio::test]
#[ignore = "building Traefik takes minutes: `make test-long`"]
async fn traefik_forwards_events_at_once_and_the_client_address() {
    serves(Kind::Traefik, End::Truncated).await;
}

/// 5 s: the first heartbeat is sent after 7.5 s at the earliest, and a proxy would notice at the
/// next write that its client has gone.
const BEFORE_A_HEARTBEAT: Duration = Duration::from_secs(5);

/// `killed`: end of an event stream when its pod crashes.
async fn serves(kind: Kind, killed: End) {
    let mut fixture = Fixture::set(kind, "http://page.invalid").await;
    fixture.pods[1].sidestream.kill9();
    // The client is served, no matter which pod the proxy chooses first.
    for _ in 0..6 {
        let client = SseClient::get(fixture.front.url("/share/0"))
            .connect()
            .await;
        assert_eq!(client.status(), 200);
    }
    eventually(
        BEFORE_A_HEARTBEAT,
        "the pod knows that they have left",
        || async { fixture.streams().await == 0 },
    )
    .await;
    let mut client = SseClient::get(fixture.front.url("/share/0"))
        .header("X-Forwarded-For", "203.0.113.9")
        .connect()
        .await;
    // Envoy replaces a loopback address with the address of the machine, which no test can know.
    let address = if kind == Kind::Envoy {
        ""
    } else {
        "203.0.113.9"
    };
    eventually(RECOVERY, "the pod knows the client", || async {
        let connections = fixture.pods[0].sidestream.admin_json("/connections").await;
        let client = connections["connections"][0]["client"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        client != "127.0.0.1" && client.contains(address) && connections["total"] == 1
    })
    .await;
    // The response does not end: an event that does not arrive at once would never arrive.
    publish(
        &fixture.nats.jetstream().await,
        "a.0",
        ["a 0".to_owned(), "a 10".to_owned()],
    )
    .await;
    let first = client.next().await;
    assert_eq!(
        (first.data.as_str(), client.next().await.data.as_str()),
        ("a 0", "a 10")
    );

    // Without NATS no pod is ready, and each pod still serves from memory.
    let from = fixture.front.log_length();
    fixture.nats.kill9();
    eventually(RECOVERY, "the pod is not ready", || async {
        fixture.pods[0].sidestream.admin("/health/ready").await.0 == 503
    })
    .await;
    fixture.front.until_health_checked(0, false, from).await;
    let mut resumed = SseClient::get(fixture.front.url("/share/0"))
        .last_event_id(&first.id)
        .connect()
        .await;
    assert_eq!(resumed.status(), 200);
    assert_eq!(resumed.next().await.data, "a 10");

    fixture.pods[0].sidestream.kill9();
    assert_eq!(client.closed().await, killed);
    // Without any pod: no status that stops an EventSource permanently.
    let mut client = SseClient::get(fixture.front.url("/share/0"))
        .connect()
        .await;
    assert_eq!(
        (client.status(), client.header("content-type").as_deref()),
        (200, Some("text/event-stream"))
    );
    let close = client.next().await;
    assert_eq!(close.name, "sidestream.close");
    assert!(close.data.contains("overload"), "{close:?}");
    assert!(
        client
            .retry()
            .is_some_and(|retry| (2000..=5000).contains(&retry)),
        "{:?}",
        client.retry()
    );
}
