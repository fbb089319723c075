//! Event streams as newline-delimited JSON: the same behaviour as Server-Sent Events, in another form.

mod choice;
mod end;
mod events;
mod examples;
mod resume;

use std::sync::Arc;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use rustls::ClientConfig;
use serde_json::Value;

use testkit::certs::Authority;
use testkit::http1::End;
use testkit::nats::{Nats, store_with};
use testkit::ndjson::{Reader, Request, Version};
use testkit::sidestream::{Sidestream, config_with_tls};

/// Transport of an event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Via {
    Http10,
    Http11,
    H2,
    Tls11,
    TlsH2,
}

/// A nats-server with the JetStream stream ORDERS, and a sidecar that serves it.
struct Fixture {
    sidestream: Sidestream,
    nats: Nats,
    jetstream: jetstream::Context,
    authority: Authority,
}

const ROUTES: &str = r#"
routes:
  - path: /orders
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    heartbeat: 400ms
    expired: gap
    client: "{query.user}"
    slow: { lag: 200, stall_timeout: 300ms }
    priority: [{ subjects: ["orders.*.telemetry"], tier: telemetry }]
  - path: /named
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    event: "{subject.3}"
  - path: /both
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }, { subjects: ["news.>"] }]
  - path: /lines
    framings: [ndjson, sse]
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
  - path: /sse
    framings: [sse]
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
drain: { accept_for: 100ms, spread: 100ms, timeout: 5s, retry: { min: 600ms, max: 900ms } }
"#;

impl Via {
    const ALL: [Self; 5] = [
        Self::Http10,
        Self::Http11,
        Self::H2,
        Self::Tls11,
        Self::TlsH2,
    ];

    fn version(self) -> Version {
        match self {
            Self::Http10 => Version::Http10,
            Self::Http11 | Self::Tls11 => Version::Http11,
            Self::H2 | Self::TlsH2 => Version::H2,
        }
    }

    fn is_tls(self) -> bool {
        matches!(self, Self::Tls11 | Self::TlsH2)
    }

    /// End of a response that the server ends regularly.
    fn proper_end(self) -> End {
        if self == Self::Http10 {
            End::Closed
        } else {
            End::Terminated
        }
    }
}

impl Fixture {
    async fn start() -> Self {
        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        let authority = Authority::new();
        create_stream(&jetstream, stream::Config::default()).await;
        let sidestream = sidestream(&nats, &authority).await;
        Self {
            sidestream,
            nats,
            jetstream,
            authority,
        }
    }

    /// Ends the sidecar by SIGTERM and starts another one, as a rolling update does.
    async fn replace_sidestream(&mut self) {
        self.sidestream.terminate();
        assert_eq!(self.sidestream.wait_exit(testkit::wait::DEADLINE).await, 0);
        self.sidestream = sidestream(&self.nats, &self.authority).await;
    }

    /// Opens `path`, after the event with this id unless it is empty.
    async fn open(&self, via: Via, path: &str, id: &str) -> Reader {
        let url = self.url(via, path);
        let request = Request {
            version: via.version(),
            tls: via.is_tls().then(|| self.tls(via)),
            last_event_id: id,
            ..Request::new(&url)
        };
        request.send().await
    }

    /// Sends a request with this `Accept`; empty: none.
    async fn accept(&self, path: &str, accept: &str) -> Reader {
        let url = self.sidestream.url(path);
        let request = Request {
            accept,
            ..Request::new(&url)
        };
        request.send().await
    }

    fn url(&self, via: Via, path: &str) -> String {
        if via.is_tls() {
            self.sidestream.url_tls(path)
        } else {
            self.sidestream.url(path)
        }
    }

    fn tls(&self, via: Via) -> Arc<ClientConfig> {
        let protocol = if via.version() == Version::H2 {
            "h2"
        } else {
            "http/1.1"
        };
        self.authority.trusting(&[protocol])
    }

    async fn publish(&self, subject: &str, payload: impl Into<bytes::Bytes>) {
        self.publish_named(subject, None, payload).await;
    }

    async fn publish_named(
        &self,
        subject: &str,
        name: Option<&str>,
        payload: impl Into<bytes::Bytes>,
    ) {
        let mut headers = HeaderMap::new();
        if let Some(name) = name {
            headers.insert("Sidestream-Event", name);
        }
        store_with(&self.jetstream, subject, headers, payload).await;
    }
}

async fn create_stream(jetstream: &jetstream::Context, rest: stream::Config) {
    let config = stream::Config {
        name: "ORDERS".into(),
        subjects: vec!["orders.>".into()],
        storage: stream::StorageType::Memory,
        ..rest
    };
    jetstream.create_stream(config).await.unwrap();
}

async fn sidestream(nats: &Nats, authority: &Authority) -> Sidestream {
    Sidestream::start(config_with_tls(nats, authority, ROUTES)).await
}

/// Numbers that the events carry as their payload.
fn numbers(events: &[Value]) -> Vec<u64> {
    events
        .iter()
        .map(|event| event["data"].as_u64().unwrap())
        .collect()
}
