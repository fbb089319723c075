//! Fixture with a route per policy, and the tally of events that a client received and missed.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use serde_json::Value;

use testkit::certs::Authority;
use testkit::h2::{Builder, H2Client};
use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, config};
use testkit::sse::{Event, SseClient};

/// Tiers in this order, repeatedly: a fifth is critical, a fifth is telemetry.
const TIERS: [&str; 5] = ["critical", "normal", "telemetry", "normal", "normal"];

/// Stall timeout of every route: short, so that tests are fast.
pub const STALL_TIMEOUT: Duration = Duration::from_millis(300);

const ROUTES: &str = r#"
routes:
  - path: /shed
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    client: "{query.user}"
    slow: { stall_timeout: 300ms }
    priority: &rules
      - { subjects: ["orders.*.critical"], tier: critical }
      - { subjects: ["orders.*.telemetry"], tier: telemetry }
  - path: /conflate
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    slow: { stall_timeout: 300ms, policy: conflate }
    priority: *rules
  - path: /disconnect
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    slow: { stall_timeout: 300ms, policy: disconnect }
    priority: *rules
  - path: /strict
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    slow: { lag: 100, stall_timeout: 300ms, policy: disconnect }
  - path: /usual
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
  - path: /tiers
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    slow: { lag: 1000 }
    priority: *rules
  - path: /past
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    window: { events: 100 }
  - path: /quiet
    sources: [{ stream: ORDERS, subjects: ["quiet.>"] }]
    heartbeat: 2s
  - path: /both
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }, { subjects: ["news.>"] }]
    slow: { stall_timeout: 300ms }
    priority: *rules
"#;

pub struct Fixture {
    pub sidestream: Sidestream,
    pub jetstream: jetstream::Context,
    /// Number of events published to JetStream.
    pub published: u64,
    nats: Nats,
    /// Certificate authority of the TLS listener.
    authority: Authority,
}

/// Published event: its number, from 0, its tier and its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    pub number: u64,
    pub tier: &'static str,
    pub subject: u64,
}

/// Events that a client received and missed.
#[derive(Debug, Default)]
pub struct Tally {
    pub given: Vec<Published>,
    /// Missed events, each covered by the gap before the next event.
    pub missed: Vec<Published>,
    pub gaps: usize,
}

impl Published {
    pub fn of(number: u64) -> Self {
        Self {
            number,
            tier: TIERS[(number % 5) as usize],
            subject: number % 10,
        }
    }

    pub fn read(event: &Event) -> Self {
        let number = event.data.split(' ').next().unwrap();
        Self::of(
            number
                .parse()
                .unwrap_or_else(|_| panic!("not one of ours: {event:?}")),
        )
    }
}

// === impl Fixture ===

impl Fixture {
    pub async fn start() -> Self {
        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        let orders = stream::Config {
            name: "ORDERS".into(),
            subjects: vec!["orders.>".into(), "quiet.>".into()],
            storage: stream::StorageType::Memory,
            ..Default::default()
        };
        jetstream.create_stream(orders).await.unwrap();
        let authority = Authority::new();
        let identity = authority.server("server");
        let (certificate, key) = (identity.certificate.display(), identity.key.display());
        let tls = format!(
            "  - address: 127.0.0.1:0\n    tls: {{ certificate: {certificate}, key: {key} }}\n"
        );
        let text = config(&nats, ROUTES).replacen("listen:\n", &format!("listen:\n{tls}"), 1);
        let sidestream = Sidestream::start(text).await;
        Self {
            sidestream,
            jetstream,
            published: 0,
            nats,
            authority,
        }
    }

    /// Publishes `count` events of about `bytes` and waits until the sidecar has received them.
    pub async fn publish(&mut self, events: u64, bytes: usize) {
        let mut acks = Vec::new();
        for number in self.published..self.published + events {
            let Published { tier, subject, .. } = Published::of(number);
            // Critical events of the first subject have their tier in the header: the rule of the
            // route gives another tier.
            let name = if tier == "critical" && subject == 0 {
                "telemetry"
            } else {
                tier
            };
            let mut headers = HeaderMap::new();
            if name != tier {
                headers.insert("Sidestream-Priority", tier);
            }
            let payload = format!("{number} {}", "x".repeat(bytes));
            let sent = self.jetstream.publish_with_headers(
                format!("orders.{subject}.{name}"),
                headers,
                payload.into(),
            );
            acks.push(sent.await.unwrap());
        }
        for ack in acks {
            ack.await.unwrap();
        }
        self.published += events;
        // In the window, not only received: pending events are counted there.
        let (held, source) = (self.published.min(10_000) as f64, [("source", "ORDERS")]);
        self.sidestream
            .until_metric("sidestream_window_events", &source, |events| events >= held)
            .await;
    }

    /// Publishes to core NATS an event that is never shed.
    pub async fn publish_core(&self, text: &str) {
        let client = self.nats.client().await;
        let mut headers = HeaderMap::new();
        headers.insert("Sidestream-Priority", "critical");
        client
            .publish_with_headers("news.x", headers, text.to_owned().into())
            .await
            .unwrap();
        client.flush().await.unwrap();
    }

    /// HTTP/1.1 client with a small socket buffer that reads only on demand.
    pub async fn lazy(&self, path: &str) -> SseClient {
        let mut client = SseClient::get(self.sidestream.url(path))
            .receive_buffer(4096)
            .connect()
            .await;
        client
            .until_seen("the client has a position", |parser| {
                !parser.last_event_id().is_empty()
            })
            .await;
        client
    }

    /// Same as [`Fixture::lazy`], over TLS.
    pub async fn lazy_tls(&self, path: &str) -> SseClient {
        let client = SseClient::get(self.sidestream.url_tls(path))
            .tls(self.authority.trusting(&["http/1.1"]));
        let mut client = client.receive_buffer(4096).connect().await;
        client
            .until_seen("the client has a position", |parser| {
                !parser.last_event_id().is_empty()
            })
            .await;
        client
    }

    /// HTTP/2 connection in clear text.
    pub async fn http2(&self) -> H2Client {
        H2Client::connect(self.sidestream.url("/")).await
    }

    /// Same as [`Fixture::http2`], over TLS.
    pub async fn http2_tls(&self) -> H2Client {
        Builder::default()
            .tls(self.authority.trusting(&["h2"]))
            .connect(self.sidestream.url_tls("/"))
            .await
    }

    /// Publishes until about `count` events are pending on a route.
    pub async fn publish_until_waiting(&mut self, path: &str, waiting: u64, bytes: usize) {
        // Events in socket buffers are not pending.
        for _ in 0..100 {
            let lag = self
                .sidestream
                .metric("sidestream_lag_events", &[("route", path)])
                .await as u64;
            if lag >= waiting {
                return;
            }
            self.publish((waiting - lag).clamp(10, 300), bytes).await;
        }
        panic!("{waiting} events never wait at {path}");
    }

    pub async fn until_slow(&self, path: &str) {
        self.sidestream
            .until_metric("sidestream_slow_clients", &[("route", path)], |slow| {
                slow == 1.0
            })
            .await;
    }

    /// The only event stream of a route, from `/connections`.
    pub async fn connection(&self, path: &str) -> Value {
        let listed = self
            .sidestream
            .admin_json(&format!("/connections?route={path}"))
            .await;
        listed["connections"][0].clone()
    }

    pub async fn until_ended(&self, path: &str, events: f64) {
        let labels = [("route", path), ("reason", "slow")];
        self.sidestream
            .until_metric("sidestream_streams_closed_total", &labels, |ended| {
                ended == events
            })
            .await;
    }
}

// === impl Tally ===

impl Tally {
    /// Compares the events that a client received from `first` on with the published ones. Every
    /// gap must have the exact number of events that are missing between its neighbours.
    pub fn of(events: &[Event], first: u64, reason: &str) -> Self {
        let (mut tally, mut next, mut told) = (Self::default(), first, 0);
        for event in events {
            if event.name == "sidestream.gap" {
                let gap: Value = serde_json::from_str(&event.data).unwrap();
                assert_eq!(gap["reason"], reason, "{event:?}");
                told += gap["missed"].as_u64().unwrap();
                tally.gaps += 1;
                continue;
            }
            let given = Published::read(event);
            assert!(
                given.number >= next,
                "{} came twice or too late",
                given.number
            );
            let missing = (next..given.number).map(Published::of);
            tally.missed.extend(missing);
            if reason == "slow" {
                assert_eq!(
                    told,
                    given.number - next,
                    "a gap says what is missing before {}",
                    given.number
                );
                told = 0;
            }
            tally.given.push(given);
            next = given.number + 1;
        }
        if reason == "conflated" {
            assert_eq!(
                told,
                tally.missed.len() as u64,
                "the gaps say what is missing"
            );
        }
        tally
    }

    pub fn count_missed(&self, tier: &str) -> usize {
        self.missed
            .iter()
            .filter(|missed| missed.tier == tier)
            .count()
    }
}
