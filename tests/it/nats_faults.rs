//! Faults of NATS as clients see them: no effect, or exactly one gap if events are lost.

mod access;
mod messages;
mod server;
mod streams;

use async_nats::jetstream::{self, stream};
use serde_json::Value;

use testkit::nats::Nats;
use testkit::sidestream::Sidestream;
use testkit::sse::{Event, SseClient};
use testkit::wait::{RECOVERY, eventually};

/// A JetStream route, a core route, and a route with both.
const ROUTES: &str = "routes:
  - path: /stream
    sources: [{ stream: A, subjects: [\"a.>\"] }]
  - path: /core
    sources: [{ subjects: [\"c.>\"] }]
  - path: /both
    sources: [{ stream: A, subjects: [\"a.>\"] }, { subjects: [\"c.>\"] }]
";

async fn create_stream(context: &jetstream::Context, name: &str, subjects: &[&str]) {
    let subjects = subjects.iter().map(ToString::to_string).collect();
    let config = stream::Config {
        name: name.into(),
        subjects,
        ..Default::default()
    };
    context.create_stream(config).await.unwrap();
}

/// Publishes and waits until JetStream has the message; retries while the server is down.
async fn publish(context: &jetstream::Context, subject: &str, data: &str) {
    eventually(RECOVERY, "JetStream takes a message", || async {
        match context
            .publish(subject.to_owned(), data.to_owned().into())
            .await
        {
            Ok(acknowledged) => acknowledged.await.is_ok(),
            Err(_) => false,
        }
    })
    .await;
}

/// Publishes to core NATS; returns when the server has the message.
async fn publish_core(nats: &Nats, subject: &'static str, data: &'static str) {
    let client = nats.client().await;
    client.publish(subject, data.into()).await.unwrap();
    client.flush().await.unwrap();
}

/// Opens an event stream and waits for its position.
async fn open(sidestream: &Sidestream, target: &str) -> SseClient {
    let mut client = SseClient::get(sidestream.url(target)).connect().await;
    assert_eq!(client.status(), 200, "{target}");
    client.positioned().await;
    client
}

/// Waits until the message of a check contains all of these words; returns the message.
async fn until_reported(sidestream: &Sidestream, check: &str, words: &[&str]) -> String {
    eventually(
        RECOVERY,
        &format!("check {check} says {words:?}"),
        || async {
            let health = sidestream.admin_json("/health").await;
            let why = health["checks"][check]["message"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            words.iter().all(|word| why.contains(word)).then_some(why)
        },
    )
    .await
}

async fn until_ready(sidestream: &Sidestream) {
    eventually(RECOVERY, "the sidecar is ready", || async {
        sidestream.admin("/health/ready").await.0 == 200
    })
    .await;
}

/// Reason of a gap event.
fn gap_reason(event: &Event) -> Option<String> {
    let data: Value = serde_json::from_str(&event.data).ok()?;
    (event.name == "sidestream.gap").then(|| data["reason"].as_str().unwrap().to_owned())
}

/// Data of events, and gaps as `gap:reason`.
fn summaries(events: &[Event]) -> Vec<String> {
    events
        .iter()
        .map(|event| gap_reason(event).map_or(event.data.clone(), |reason| format!("gap:{reason}")))
        .collect()
}

/// JetStream context and the stream A with the subjects `a.>`.
async fn with_stream(nats: &Nats) -> jetstream::Context {
    let context = nats.jetstream().await;
    create_stream(&context, "A", &["a.>"]).await;
    context
}
