//! Versions of payloads: each client receives the version that it asks for, converted once.

mod choice;
mod config;
mod framings;
mod state;

use async_nats::HeaderMap;
use async_nats::jetstream;
use serde_json::Value;

use testkit::nats::{self, Nats};
use testkit::ndjson::{Reader, Request};
use testkit::sidestream::{self, Sidestream};
use testkit::sse::SseClient;

/// A nats-server with the JetStream stream ORDERS, and a sidecar that serves it in two versions.
struct Fixture {
    sidestream: Sidestream,
    nats: Nats,
    jetstream: jetstream::Context,
}

const ROUTES: &str = r#"
routes:
  - path: /orders
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    framings: [sse, ndjson, websocket, long_poll, grpc_web]
    expired: gap
    window: { events: 40 }
    versions: &versions
      current: 2
      supported: [1, 2]
      deprecated:
        1: { since: 2026-11-01, sunset: 2999-03-01T12:00:00Z, link: "https://example.com/v2?a=b" }
      conversions:
        - { from: 2, to: 1, patch: [{ op: move, from: /customer/name, path: /name }, { op: remove, path: /customer }] }
        - { from: 1, to: 2, patch: [{ op: add, path: /customer, value: {} }, { op: move, from: /name, path: /customer/name }] }
  - path: /orders/{id}
    sources: [{ stream: ORDERS, subjects: ["orders.{id}"] }]
    event: "order-{subject.2}"
    versions: *versions
  - path: /core
    sources: [{ subjects: ["news.>"] }]
    versions: *versions
  - path: /gone
    sources: [{ subjects: ["news.>"] }]
    framings: [sse]
    cors: { origins: ["https://app.example"] }
    versions:
      current: 3
      supported: [1, 2, 3]
      deprecated:
        1: { since: 2020-01-01, sunset: 2020-06-01, link: "https://example.com/v3" }
        2: { since: 2020-01-01 }
      conversions: [{ from: 3, to: 2, patch: [{ op: test, path: "", value: {} }] }, { from: 2, to: 1, patch: [{ op: test, path: "", value: {} }] }]
  - path: /runs
    sources: [{ stream: ORDERS, subjects: ["orders.run"] }]
    finite: true
    versions: *versions
  - path: /state
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    framings: [sse, ndjson, websocket, long_poll]
    begin: latest
    versions: *versions
  - path: /plain
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
"#;

impl Fixture {
    async fn start() -> Self {
        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        nats::create_stream(&jetstream, "ORDERS", &["orders.>"]).await;
        let sidestream = pod(&nats).await;
        Self {
            sidestream,
            nats,
            jetstream,
        }
    }

    async fn sse(&self, path: &str) -> SseClient {
        SseClient::get(self.sidestream.url(path)).connect().await
    }

    async fn ndjson(&self, path: &str, id: &str) -> Reader {
        let url = self.sidestream.url(path);
        let request = Request {
            last_event_id: id,
            ..Request::new(&url)
        };
        request.send().await
    }

    /// Publishes an order; an empty version: without the header.
    async fn publish(&self, subject: &str, version: &str, payload: &str) {
        let mut headers = HeaderMap::new();
        if !version.is_empty() {
            headers.insert("Sidestream-Version", version);
        }
        let (subject, payload) = (subject.to_owned(), payload.to_owned().into());
        let sent = self
            .jetstream
            .publish_with_headers(subject, headers, payload);
        sent.await.unwrap().await.unwrap();
    }

    async fn conversions(&self, route: &str, version: &str, result: &str) -> f64 {
        let labels = [("route", route), ("version", version), ("result", result)];
        let name = "sidestream_version_conversions_total";
        self.sidestream.metric(name, &labels).await
    }

    async fn until_streams(&self, route: &str, version: &str, count: f64) {
        let labels = [("route", route), ("version", version)];
        let name = "sidestream_version_streams";
        self.sidestream
            .until_metric(name, &labels, |value| value == count)
            .await;
    }
}

/// Starts a sidecar.
async fn pod(nats: &Nats) -> Sidestream {
    Sidestream::start(sidestream::config(nats, ROUTES)).await
}

/// Payloads of the next events that are no positions.
async fn payloads(client: &mut SseClient, count: usize) -> Vec<String> {
    let mut payloads = Vec::new();
    while payloads.len() < count {
        let event = client.next().await;
        if event.name == "sidestream.gap" {
            payloads.push(format!("gap {}", event.data));
        } else if !event.name.starts_with("sidestream.") {
            payloads.push(event.data);
        }
    }
    payloads
}

const GAP: &str = r#"gap {"reason":"conversion","missed":1,"resume":"live"}"#;

#[tokio::test]
async fn clients_of_two_versions_receive_the_same_events_and_each_is_converted_once() {
    let fixture = Fixture::start().await;
    let mut old = Vec::new();
    for _ in 0..5 {
        old.push(fixture.sse("/orders?version=1").await);
    }
    let mut lines = fixture.ndjson("/orders?version=1", "").await;
    let mut current = fixture.sse("/orders").await;
    let mut plain = fixture.sse("/plain").await;
    fixture.until_streams("/orders", "1", 6.0).await;
    fixture.until_streams("/orders", "2", 1.0).await;

    let new = r#"{"customer":{"name":"Ada"},"id":7}"#;
    let converted = r#"{"id":7,"name":"Ada"}"#;
    fixture.publish("orders.7", "", new).await;
    fixture.publish("orders.7", "2", new).await;
    fixture.publish("orders.7", "1", converted).await;
    for client in &mut old {
        assert_eq!(payloads(client, 3).await, [converted; 3]);
    }
    assert_eq!(payloads(&mut current, 3).await, [new; 3]);
    assert_eq!(payloads(&mut plain, 3).await, [new, new, converted]);
    for event in lines.events(3).await {
        let expected: Value = serde_json::from_str(converted).unwrap();
        assert_eq!(
            (&event["data"], &event["subject"]),
            (&expected, &"orders.7".into())
        );
    }
    assert_eq!(fixture.conversions("/orders", "1", "converted").await, 2.0);
    assert_eq!(fixture.conversions("/orders", "2", "converted").await, 1.0);
    assert_eq!(fixture.conversions("/orders", "1", "failed").await, 0.0);

    // The id of one version is a position in every other one, and in every framing.
    let id = plain.last_event_id().to_owned();
    assert_eq!(current.last_event_id(), id);
    assert_eq!(old[0].last_event_id(), id);
    drop((old, plain));
    fixture.until_streams("/orders", "1", 1.0).await;
    fixture.publish("orders.8", "2", new).await;
    let mut resumed = fixture.ndjson("/orders?version=1", &id).await;
    assert_eq!(resumed.events(1).await[0]["data"]["name"], "Ada");
}

#[tokio::test]
async fn route_that_names_events_and_core_subjects_have_versions_too() {
    let fixture = Fixture::start().await;
    let mut named = fixture.sse("/orders/7?version=1").await;
    let mut core = fixture.sse("/core?version=1").await;
    let new = r#"{"customer":{"name":"Ada"}}"#;
    fixture.publish("orders.7", "2", new).await;
    let client = fixture.nats.client().await;
    client.publish("news.a", new.into()).await.unwrap();
    client.publish("news.b", "no JSON".into()).await.unwrap();
    client.publish("news.c", new.into()).await.unwrap();
    let event = named.until(|event| event.name == "order-7").await;
    assert_eq!(event.last().unwrap().data, r#"{"name":"Ada"}"#);
    let expected = [r#"{"name":"Ada"}"#, GAP, r#"{"name":"Ada"}"#];
    assert_eq!(payloads(&mut core, 3).await, expected);
}

#[tokio::test]
async fn end_that_cannot_be_converted_ends_a_finite_event_stream() {
    let fixture = Fixture::start().await;
    let mut client = fixture.sse("/runs?version=1").await;
    let mut headers = HeaderMap::new();
    headers.insert("Sidestream-End", "true");
    let sent = fixture
        .jetstream
        .publish_with_headers("orders.run", headers, "done".into());
    sent.await.unwrap().await.unwrap();
    assert_eq!(payloads(&mut client, 1).await, ["done"]);
    client.until(|event| event.name == "sidestream.end").await;
    client.closed().await;
}

#[tokio::test]
async fn failed_conversion_is_the_same_gap_live_from_memory_and_from_history() {
    let fixture = Fixture::start().await;
    let mut live = fixture.ndjson("/orders?version=1", "").await;
    let mut first = fixture.sse("/orders?version=1").await;
    let ok = r#"{"customer":{"name":"Ada"}}"#;
    fixture.publish("orders.1", "", ok).await;
    let start = live.events(1).await[0]["id"].as_str().unwrap().to_owned();
    for (version, payload) in [("2", "{}"), ("2", "text"), ("7", ok), ("v1", ok), ("", ok)] {
        fixture.publish("orders.1", version, payload).await;
    }
    let expected = [GAP, GAP, GAP, r#"{"name":"Ada"}"#, r#"{"name":"Ada"}"#];
    assert_eq!(payloads(&mut first, 6).await[1..], expected);
    let rejected = [("source", "ORDERS"), ("reason", "version")];
    let name = "sidestream_events_rejected_total";
    assert_eq!(fixture.sidestream.metric(name, &rejected).await, 1.0);
    assert_eq!(fixture.conversions("/orders", "1", "failed").await, 3.0);
    let resume = async |id: &str| {
        let url = fixture.sidestream.url("/orders?version=1");
        let mut client = SseClient::get(url).last_event_id(id).connect().await;
        let mut received = Vec::new();
        while received.len() < 5 {
            let event = client.next().await;
            if event.name != "sidestream.position" {
                received.push((event.data, event.id));
            }
        }
        received
    };
    let from_memory = resume(&start).await;
    let data = from_memory.iter().map(|(data, _)| &**data);
    assert!(data.eq(expected.map(|text| text.trim_start_matches("gap "))));
    // Enough events that the window has lost the gaps: they are read from the stream again.
    for _ in 0..60 {
        fixture.publish("orders.2", "", ok).await;
    }
    payloads(&mut first, 60).await;
    assert_eq!(resume(&start).await, from_memory, "with the same ids");
    let gaps = [("route", "/orders"), ("reason", "conversion")];
    let gaps = fixture
        .sidestream
        .metric("sidestream_gaps_total", &gaps)
        .await;
    assert!(gaps >= 12.0, "{gaps}");
}
