//! Healthy paths have no faults.

use super::fixture::{Ages, FULL, PAGE, Pod, SHORT};
use testkit::front::Kind;

/// Faults that a run with probes looks for on every path.
const LOOKED_FOR: [&str; 13] = [
    "age_limit",
    "body_held_back",
    "buffering",
    "compression",
    "connection_reuse",
    "cors",
    "goaway",
    "header_changed",
    "http_1_0",
    "idle_timeout",
    "last_event_id",
    "silent_drop",
    "window",
];

async fn has_no_faults(ages: Ages, kind: Kind, product: &str) {
    let pod = Pod::start(ages, "doctor: true").await;
    let front = pod.front(kind, &[]).await;
    for url in [front.url("/events"), front.url_tls("/events")] {
        let diagnosis = pod.diagnose(&url, &["--origin", PAGE]).await;
        let document = &diagnosis.document;
        assert_eq!(diagnosis.faults(), Vec::<&str>::new(), "{document:#}");
        assert_eq!(diagnosis.code, 0);
        assert_eq!(diagnosis.products(), [product], "{document:#}");
        let mut looked_for: Vec<_> = document["not_found"].as_array().unwrap().iter().collect();
        looked_for.sort_by_key(|fault| fault.to_string());
        assert_eq!(looked_for, LOOKED_FOR, "{document:#}");
    }
}

#[tokio::test]
async fn nginx_as_documented_has_no_faults() {
    has_no_faults(SHORT, Kind::Nginx, "nginx").await;
}

#[tokio::test]
async fn haproxy_as_documented_has_no_faults() {
    has_no_faults(SHORT, Kind::Haproxy, "HAProxy").await;
}

#[tokio::test]
async fn caddy_as_documented_has_no_faults() {
    has_no_faults(SHORT, Kind::Caddy, "Caddy").await;
}

#[tokio::test]
async fn envoy_as_documented_has_no_faults() {
    has_no_faults(SHORT, Kind::Envoy, "Envoy").await;
}

#[tokio::test]
#[ignore = "two minutes for each proxy: `make test-long`"]
async fn documented_proxies_have_no_faults_within_a_minute() {
    for (kind, product) in [
        (Kind::Nginx, "nginx"),
        (Kind::Haproxy, "HAProxy"),
        (Kind::Caddy, "Caddy"),
    ] {
        has_no_faults(FULL, kind, product).await;
    }
}

#[tokio::test]
async fn path_without_proxies_has_no_faults_over_http1_and_http2() {
    let pod = Pod::start(SHORT, "doctor: true").await;
    let url = pod.sidestream.url("/events");
    for arguments in [&[][..], &["--http2"]] {
        let diagnosis = pod.diagnose(&url, arguments).await;
        let document = &diagnosis.document;
        assert_eq!(diagnosis.faults(), Vec::<&str>::new(), "{document:#}");
        assert_eq!(diagnosis.code, 0);
        assert_eq!(diagnosis.products(), Vec::<&str>::new(), "{document:#}");
    }
}
