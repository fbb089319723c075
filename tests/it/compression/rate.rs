//! `min_rate`, and the metric of the bytes before and after.

use super::{Fixture, Received, decode, read_to_end};

const ROUTES: &str = r#"
routes:
  - path: /always
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    compression: {}
  - path: /never
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    compression: { min_rate: 1GiB }
drain: { accept_for: 100ms, spread: 100ms, timeout: 10s }
"#;

#[tokio::test]
async fn below_the_rate_events_are_sent_without_compression() {
    let mut fixture = Fixture::start(ROUTES).await;
    let accept = [("Accept-Encoding", "gzip")];
    let readers = [
        fixture.open("/always", &accept).await,
        fixture.open("/never", &accept).await,
    ];
    fixture.publish(1..=200).await;
    for path in ["/always", "/never"] {
        let bytes = async |form| {
            let labels = [("route", path), ("coding", "gzip"), ("form", form)];
            let least = match (path, form) {
                ("/always", "sent") => 5_000.0,
                _ => 30_000.0,
            };
            let name = "sidestream_compression_bytes_total";
            let is_enough = |bytes| bytes > least;
            fixture
                .sidestream
                .until_metric(name, &labels, is_enough)
                .await
        };
        let (plain, sent) = (bytes("plain").await, bytes("sent").await);
        match path {
            "/always" => assert!(sent < plain * 0.9, "{sent} of {plain}"),
            _ => assert!(sent >= plain, "{sent} of {plain}"),
        }
    }
    fixture.sidestream.terminate();
    for reader in readers {
        let text = decode("gzip", &read_to_end(reader).await);
        assert_eq!(
            Received::of(&text, "").numbers,
            (1..=200).collect::<Vec<_>>()
        );
    }
}
