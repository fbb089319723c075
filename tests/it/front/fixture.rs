//! Two pods on ports of their own, a nats-server with three JetStream streams, and a proxy in front.

use std::time::Duration;

use serde_json::Value;

use super::publisher::STREAMS;
use testkit::certs::Authority;
use testkit::front::{Front, Kind, Ports};
use testkit::http1;
use testkit::nats::{Nats, create_stream, free_port};
use testkit::sidestream::{Sidestream, metric};

/// `drain.spread`, scaled down.
pub(crate) const SPREAD: Duration = Duration::from_secs(3);

/// Sidecar that restarts on the same ports.
pub(crate) struct Pod {
    config: String,
    pub(crate) sidestream: Sidestream,
}

/// Everything but clients.
pub(crate) struct Fixture {
    pub(crate) nats: Nats,
    pub(crate) pods: [Pod; 2],
    pub(crate) authority: Authority,
    pub(crate) front: Front,
}

// === impl Pod ===

impl Pod {
    /// Starts a pod, whose configuration names its ports; returns when it is ready.
    pub(crate) async fn start(config: String) -> Self {
        let sidestream = Sidestream::start(config.as_str()).await;
        Self { config, sidestream }
    }

    /// Starts another process on the same ports; returns when it is ready.
    pub(crate) async fn restart(&mut self) {
        assert!(
            !self.sidestream.running(),
            "a pod is restarted when it has ended"
        );
        self.sidestream = Sidestream::start(self.config.as_str()).await;
    }

    /// Number of open event streams; 0 if the pod is down.
    pub(crate) async fn streams(&self) -> usize {
        let Ok(answer) = http1::get(&self.sidestream.url_admin("/metrics")).await else {
            return 0;
        };
        metric(&answer.body, "sidestream_streams", &[]) as usize
    }

    /// Times at which event streams were opened, in seconds.
    pub(crate) fn opened(&self) -> Vec<f64> {
        let opened = |line: &Value| line["message"] == "event stream opened";
        let log = self.sidestream.log();
        log.iter()
            .filter(|line| opened(line))
            .map(|line| seconds(line["timestamp"].as_str().unwrap()))
            .collect()
    }
}

// === impl Fixture ===

impl Fixture {
    /// Two ready pods behind a proxy that has detected them. `origin`: a page that may read from
    /// another origin.
    pub(crate) async fn set(kind: Kind, origin: &str) -> Self {
        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        for name in STREAMS {
            create_stream(&jetstream, &name.to_uppercase(), &[&format!("{name}.>")]).await;
        }
        let ports = [(); 2].map(|()| Ports {
            clients: free_port(),
            admin: free_port(),
        });
        let (first, second) = tokio::join!(
            Pod::start(configuration(&nats, ports[0], origin)),
            Pod::start(configuration(&nats, ports[1], origin))
        );
        let authority = Authority::new();
        let front = Front::start(kind, ports, &authority).await;
        Self {
            nats,
            pods: [first, second],
            authority,
            front,
        }
    }

    /// Number of open event streams on both pods.
    pub(crate) async fn streams(&self) -> usize {
        self.pods[0].streams().await + self.pods[1].streams().await
    }
}

fn configuration(nats: &Nats, ports: Ports, origin: &str) -> String {
    let sources = |token: &str| {
        STREAMS
            .map(|name| {
                format!(
                    "{{ stream: {}, subjects: [\"{name}.{token}\"] }}",
                    name.to_uppercase()
                )
            })
            .join(", ")
    };
    let (all, share) = (sources("*"), sources("{id}"));
    let (url, spread) = (nats.url(), SPREAD.as_millis());
    let Ports { clients, admin } = ports;
    format!(
        "listen: [{{ address: \"127.0.0.1:{clients}\" }}]
admin: {{ address: \"127.0.0.1:{admin}\" }}
nats: {{ servers: [\"{url}\"] }}
routes:
  - {{ path: /all, sources: [{all}], retry: 500ms, cors: {{ origins: [\"{origin}\"] }} }}
  - {{ path: \"/share/{{id}}\", sources: [{share}], retry: 500ms, cors: {{ origins: [\"{origin}\"] }} }}
trusted_proxies: [\"127.0.0.0/8\"]
drain: {{ accept_for: 500ms, spread: {spread}ms, timeout: 20s, retry: {{ min: 100ms, max: 600ms }} }}
"
    )
}

fn seconds(timestamp: &str) -> f64 {
    let at = time::OffsetDateTime::parse(timestamp, &time::format_description::well_known::Rfc3339)
        .unwrap();
    at.unix_timestamp_nanos() as f64 / 1e9
}
