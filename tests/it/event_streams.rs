//! Event streams of the real sidecar and a real nats-server, read by real clients on every protocol.

mod clients;
mod drain;
mod end;
mod events;
mod handover;
mod http2;
mod leaving;
mod numbers;
mod opening;
mod reader;
mod sharing;
mod time;

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use rustls::ClientConfig;
use serde_json::Value;
use tokio::task::JoinHandle;

use reader::{Reader, Via};
use testkit::certs::Authority;
use testkit::nats::{Nats, store, store_with};
use testkit::sidestream::{Sidestream, config_with_tls};
use testkit::sse::SseClient;

/// A nats-server with the JetStream stream ORDERS, and a sidecar that serves it and the core
/// subjects `news.>`.
struct Fixture {
    sidestream: Sidestream,
    nats: Nats,
    jetstream: jetstream::Context,
    authority: Authority,
}

/// Additions to the usual configuration of a fixture.
#[derive(Clone, Copy, Default)]
struct Setting<'a> {
    /// Further keys of every route, as flow entries: `heartbeat: 1s, max_age: 2s`.
    route: &'a str,
    /// Further lines at the end of the file, such as `drain:`.
    rest: &'a str,
    /// Lines for the configuration of the nats-server.
    nats: &'a str,
    /// Port of the listener in clear text; 0 is a free port.
    port: u16,
}

// === impl Fixture ===

impl Fixture {
    async fn start() -> Self {
        Self::with(Setting::default()).await
    }

    async fn with_route(route: &str) -> Self {
        Self::with(Setting {
            route,
            ..Setting::default()
        })
        .await
    }

    async fn with_rest(rest: &str) -> Self {
        Self::with(Setting {
            rest,
            ..Setting::default()
        })
        .await
    }

    async fn with(setting: Setting<'_>) -> Self {
        let nats = Nats::builder().config(setting.nats).start().await;
        let jetstream = nats.jetstream().await;
        let orders = stream::Config {
            name: "ORDERS".into(),
            subjects: vec!["orders.>".into()],
            storage: stream::StorageType::Memory,
            ..Default::default()
        };
        jetstream.create_stream(orders).await.unwrap();
        let authority = Authority::new();
        let sidestream = Sidestream::start(config(&nats, &authority, setting)).await;
        Self {
            sidestream,
            nats,
            jetstream,
            authority,
        }
    }

    /// Opens `path` over `via`; returns when the response headers have arrived.
    async fn open(&self, via: Via, path: &str) -> Reader {
        Reader::open(self, via, path, "").await
    }

    /// Returns a client that reads nothing, with more events pending than its socket accepts, and a
    /// client that has received these events.
    async fn stalled_and_reading(&self) -> (SseClient, Reader) {
        let stalled = SseClient::get(self.sidestream.url("/orders"))
            .receive_buffer(4096)
            .connect()
            .await;
        let mut reading = self.open(Via::Http11, "/orders").await;
        for _ in 0..100 {
            self.publish("orders.1.x", "x".repeat(64 * 1024)).await;
        }
        reading.take(100).await;
        (stalled, reading)
    }

    /// Opens `path` after the event with this id.
    async fn resume(&self, via: Via, path: &str, id: &str) -> Reader {
        Reader::open(self, via, path, id).await
    }

    /// Publishes to JetStream; returns the sequence number once the message is stored.
    async fn publish(&self, subject: &str, payload: impl Into<bytes::Bytes>) -> u64 {
        store(&self.jetstream, subject, payload).await
    }

    /// Same as [`Fixture::publish`], with this event name.
    async fn publish_named(
        &self,
        subject: &str,
        name: &str,
        payload: impl Into<bytes::Bytes>,
    ) -> u64 {
        let mut headers = HeaderMap::new();
        headers.insert("Sidestream-Event", name);
        store_with(&self.jetstream, subject, headers, payload).await
    }

    /// Publishes to core NATS.
    async fn publish_core(&self, subject: &str, payload: impl Into<bytes::Bytes>) {
        let client = self.jetstream.client();
        client
            .publish(subject.to_owned(), payload.into())
            .await
            .unwrap();
        client.flush().await.unwrap();
    }

    /// Number of event streams in `/connections`.
    async fn connections(&self) -> u64 {
        self.sidestream.admin_json("/connections").await["total"]
            .as_u64()
            .unwrap()
    }

    /// TLS client that offers `protocol`.
    fn tls(&self, protocol: &str) -> Arc<ClientConfig> {
        self.authority.trusting(&[protocol])
    }
}

fn config(nats: &Nats, authority: &Authority, setting: Setting<'_>) -> String {
    let Setting {
        route, rest, port, ..
    } = setting;
    let orders = "stream: ORDERS, subjects";
    let routes = format!(
        r#"
routes:
  - {{ path: /orders, sources: [{{ {orders}: ["orders.>"] }}], {route} }}
  - {{ path: "/orders/{{id}}", sources: [{{ {orders}: ["orders.{{id}}.>"] }}], {route} }}
  - {{ path: /named, sources: [{{ {orders}: ["orders.>"] }}], event: "{{subject.3}}", {route} }}
  - {{ path: /news, sources: [{{ subjects: ["news.>"] }}], {route} }}
  - {{ path: /both, sources: [{{ {orders}: ["orders.>"] }}, {{ subjects: ["news.>"] }}], {route} }}
{rest}
"#
    );
    let port = format!("address: 127.0.0.1:{port}");
    config_with_tls(nats, authority, &routes).replacen("address: 127.0.0.1:0", &port, 1)
}

/// Publishes 1, 2, 3... to `orders.1.TOKEN`, with a pause after each, until it is aborted.
fn publish_numbers(jetstream: &jetstream::Context, token: &str, pause: Duration) -> JoinHandle<()> {
    let (jetstream, subject) = (jetstream.clone(), format!("orders.1.{token}"));
    tokio::spawn(async move {
        for number in 1_u64.. {
            // There is no acknowledgement while the server is down.
            if let Ok(ack) = jetstream
                .publish(subject.clone(), number.to_string().into())
                .await
            {
                drop(ack.await);
            }
            tokio::time::sleep(pause).await;
        }
    })
}

/// Sequence number of the position at this index of an id.
fn sequence(id: &str, place: usize) -> u64 {
    let component = id
        .split('.')
        .nth(place)
        .unwrap_or_else(|| panic!("{id:?} has a component {place}"));
    component.split('-').nth(1).unwrap().parse().unwrap()
}

/// Data of a control event as JSON.
fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:?}"))
}
