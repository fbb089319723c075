//! `sidestream_connections_memory_bytes` compared with the resident memory of clients, for every
//! protocol.

#![allow(clippy::unwrap_used)] // a failure is the result

use std::sync::Arc;

use rustls::ClientConfig;

use testkit::certs::Authority;
use testkit::h2::{Builder, H2Client, H2Stream};
use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, config};
use testkit::sse::SseClient;

/// Number of clients: large, so that rounding by the allocator does not matter.
const CLIENTS: usize = 2000;

/// Maximum relative error of the metric.
const WRONG_MAX: f64 = 0.2;

/// Protocol of the clients.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Http1,
    /// HTTP/2 with this number of event streams per connection.
    Http2(usize),
}

/// Idle clients.
#[derive(Default)]
struct Crowd {
    http1: Vec<SseClient>,
    connections: Vec<H2Client>,
    streams: Vec<H2Stream>,
}

impl Crowd {
    async fn join(&mut self, url: &str, tls: Option<Arc<ClientConfig>>, kind: Kind) {
        match kind {
            Kind::Http1 => {
                let mut client = SseClient::get(format!("{url}/orders/1"));
                client = tls
                    .into_iter()
                    .fold(client, |client, config| client.tls(config));
                let mut client = client.connect().await;
                client.positioned().await;
                self.http1.push(client);
            }
            Kind::Http2(each) => {
                let connection = tls
                    .into_iter()
                    .fold(Builder::default(), |builder, config| builder.tls(config));
                let mut connection = connection.connect(url).await;
                for _ in 0..each {
                    let mut stream = connection.get("/orders/1").await;
                    stream.positioned().await;
                    self.streams.push(stream);
                }
                self.connections.push(connection);
            }
        }
    }

    fn len(&self) -> usize {
        self.http1.len() + self.streams.len()
    }
}

/// Bytes per client: resident, and in the metric.
async fn measure(kind: Kind, over_tls: bool) -> (f64, f64) {
    let (nats, authority) = (Nats::start().await, Authority::new());
    let identity = authority.server("server");
    let (certificate, key) = (identity.certificate.display(), identity.key.display());
    let tls = format!(
        "  - address: 127.0.0.1:0\n    tls: {{ certificate: {certificate}, key: {key} }}\n"
    );
    let routes =
        "routes:\n  - path: /orders/{id}\n    sources: [{ subjects: [\"orders.{id}.>\"] }]";
    let text = config(&nats, routes).replacen("listen:\n", &format!("listen:\n{tls}"), 1);
    let sidestream = Sidestream::start(text).await;
    let protocols: &[&str] = if matches!(kind, Kind::Http1) {
        &["http/1.1"]
    } else {
        &["h2"]
    };
    let url = if over_tls {
        sidestream.url_tls("")
    } else {
        sidestream.url("")
    };
    let config = over_tls.then(|| authority.trusting(protocols));
    let mut crowd = Crowd::default();
    // Memory of the first clients includes lazy initialisation.
    while crowd.len() < CLIENTS / 10 {
        crowd.join(&url, config.clone(), kind).await;
    }
    let metric = async || {
        sidestream
            .metric("sidestream_connections_memory_bytes", &[])
            .await
    };
    let (before, metric_before) = (crowd.len(), metric().await);
    let resident = sidestream.resident_bytes_at_rest().await;
    while crowd.len() < before + CLIENTS {
        crowd.join(&url, config.clone(), kind).await;
    }
    let clients = (crowd.len() - before) as f64;
    let resident = sidestream
        .resident_bytes_at_rest()
        .await
        .saturating_sub(resident) as f64
        / clients;
    (resident, (metric().await - metric_before) / clients)
}

async fn assert_metric_is_near(kind: Kind, over_tls: bool) {
    let (resident, metric) = measure(kind, over_tls).await;
    let wrong = (resident - metric).abs() / metric;
    println!(
        "{kind:?}, TLS {over_tls}: {resident:.0} bytes resident, {metric:.0} metric, wrong by {:.0} %",
        wrong * 100.0
    );
    assert!(
        wrong <= WRONG_MAX,
        "{kind:?}, TLS {over_tls}: {resident:.0} bytes resident, {metric:.0} metric"
    );
}

#[tokio::test]
#[ignore = "thousands of clients"]
async fn the_memory_metric_of_http_1_clients_matches_their_resident_memory() {
    assert_metric_is_near(Kind::Http1, false).await;
    assert_metric_is_near(Kind::Http1, true).await;
}

#[tokio::test]
#[ignore = "thousands of clients"]
async fn the_memory_metric_of_http_2_clients_matches_their_resident_memory() {
    for kind in [Kind::Http2(1), Kind::Http2(10), Kind::Http2(100)] {
        assert_metric_is_near(kind, false).await;
        assert_metric_is_near(kind, true).await;
    }
}
