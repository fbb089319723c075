//! The sample publisher: creates the JetStream stream and publishes the scenario into it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::{self, stream};
use async_nats::{Client, HeaderMap};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::failure::Failure;
use super::scenario::{Occurrence, Scenario};

/// A connection to NATS with the stream in place.
pub(super) struct Publisher {
    client: Client,
    context: jetstream::Context,
}

impl Publisher {
    /// Connects to `url` and creates the stream `DEMO`.
    pub(super) async fn connect(url: &str) -> Result<Self, Failure> {
        let client = async_nats::ConnectOptions::new()
            .name("sidestream demo publisher")
            .connect(url)
            .await;
        let client = client.map_err(|error| failure(&error))?;
        let context = jetstream::new(client.clone());
        context
            .create_stream(demo_stream())
            .await
            .map_err(|error| failure(&error))?;
        Ok(Self { client, context })
    }

    /// Publishes the scenario for as long as NATS takes it.
    pub(super) async fn run(self) -> Failure {
        let mut scenario = Scenario::new(fastrand::u64(..));
        loop {
            if let Err(failure) = self.publish(scenario.next()).await {
                return failure;
            }
            sleep(Duration::from_millis(fastrand::u64(PAUSE_MS))).await;
        }
    }

    async fn publish(&self, occurrence: Occurrence) -> Result<(), Failure> {
        let mut headers = HeaderMap::new();
        headers.insert("Sidestream-Event", occurrence.event);
        if let Some(priority) = occurrence.priority {
            headers.insert("Sidestream-Priority", priority);
        }
        let subject = occurrence.subject;
        let stored = subject.starts_with("demo.");
        let payload = stamped(occurrence.body);
        if stored {
            let acknowledged = self
                .context
                .publish_with_headers(subject, headers, payload.into())
                .await;
            acknowledged
                .map_err(|error| failure(&error))?
                .await
                .map_err(|error| failure(&error))?;
        } else {
            let sent = self
                .client
                .publish_with_headers(subject, headers, payload.into())
                .await;
            sent.map_err(|error| failure(&error))?;
        }
        Ok(())
    }
}

/// The payload with the time of publishing in it: what the page computes latencies from.
fn stamped(mut body: Value) -> Vec<u8> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    body["published"] = json!(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    body.to_string().into_bytes()
}

/// Retention limits of the stream, small enough for any temporary directory.
fn demo_stream() -> stream::Config {
    stream::Config {
        name: "DEMO".into(),
        subjects: vec!["demo.>".into()],
        retention: stream::RetentionPolicy::Limits,
        discard: stream::DiscardPolicy::Old,
        max_age: Duration::from_secs(60 * 60),
        max_bytes: 64 << 20,
        allow_direct: true,
        ..stream::Config::default()
    }
}

fn failure(error: &dyn std::fmt::Display) -> Failure {
    Failure::unavailable(format!("the sample publisher failed: {error}"))
}

/// About five events a second at irregular intervals: slow enough to read, fast enough to notice a
/// gap.
const PAUSE_MS: std::ops::Range<u64> = 100..300;
