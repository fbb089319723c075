//! Twelve faults of proxies, planted in real ones where they can be configured to have them.

use std::time::Duration;

use serde_json::Value;

use super::fixture::{Ages, Diagnosis, FULL, NGINX_BUFFERS, PAGE, Pod, SHORT};
use testkit::faulty::{Faulty, Nat, Plant};
use testkit::front::Kind;

/// 63 s: a response that ends after a minute is seen when the proxy closes its connection, a moment
/// later.
const AFTER_MAX_MS: u64 = 63_000;

/// Diagnoses a documented proxy with these changes, in clear text.
async fn planted(ages: Ages, kind: Kind, changes: &[(&str, &str)]) -> Diagnosis {
    let pod = Pod::start(ages, "doctor: true").await;
    let front = pod.front(kind, changes).await;
    let url = front.url("/events");
    pod.diagnose(&url, &["--origin", PAGE]).await
}

/// Diagnoses a proxy of the testkit with a fault.
async fn faulty(ages: Ages, plant: Plant) -> Diagnosis {
    let pod = Pod::start(ages, "doctor: true").await;
    let proxy = Faulty::start(pod.ports.clients, plant).await;
    pod.diagnose(&proxy.url("/events"), &["--origin", PAGE])
        .await
}

/// Checks that a fault names the product, a line of its configuration and a documented place.
fn names(finding: &Value, product: &str, line: &str) {
    let advice = &finding["advice"][0];
    assert_eq!(advice["product"], product, "{finding:#}");
    assert!(
        advice["line"].as_str().unwrap().contains(line),
        "{finding:#}"
    );
    let docs = advice["docs"].as_str().unwrap();
    assert!(docs.starts_with("docs/"), "{docs}");
    assert!(
        finding["after_ms"].as_u64().unwrap() < AFTER_MAX_MS,
        "{finding:#}"
    );
}

#[tokio::test]
async fn buffering_is_found() {
    buffering(SHORT).await;
}

async fn buffering(ages: Ages) {
    let diagnosis = planted(ages, Kind::Nginx, &NGINX_BUFFERS).await;
    assert_eq!(
        diagnosis.faults(),
        ["http_1_0", "buffering"],
        "{:#}",
        diagnosis.document
    );
    names(
        &diagnosis.document["findings"][1],
        "nginx",
        "proxy_buffering off;",
    );
}

#[tokio::test]
async fn body_that_is_held_back_is_found() {
    body_held_back(SHORT).await;
}

async fn body_held_back(ages: Ages) {
    let diagnosis = faulty(ages, Plant::HoldBody).await;
    names(diagnosis.only("body_held_back"), "proxy", "buffering");
}

#[tokio::test]
async fn compression_without_flush_is_found() {
    compression(SHORT).await;
}

async fn compression(ages: Ages) {
    // With buffering, nginx does not flush what it compresses.
    let changes = [(
        "proxy_buffering off;",
        "proxy_ignore_headers X-Accel-Buffering; gzip on; gzip_types text/event-stream;",
    )];
    let diagnosis = planted(ages, Kind::Nginx, &changes).await;
    names(diagnosis.only("compression"), "nginx", "gzip_types");
    let diagnosis = faulty(ages, Plant::GzipWithoutFlush).await;
    names(diagnosis.only("compression"), "proxy", "text/event-stream");
}

#[tokio::test]
async fn limit_of_age_is_found() {
    let changes = [("timeout: 0s ", "timeout: 3s ")];
    let diagnosis = planted(SHORT, Kind::Envoy, &changes).await;
    names(diagnosis.only("age_limit"), "Envoy", "timeout: 0s");
    let diagnosis = faulty(SHORT, Plant::CutAt(Duration::from_secs(3))).await;
    names(diagnosis.only("age_limit"), "proxy", "no timeout");
}

/// Cuts at the usual ages: by Envoy while lines arrive, by nginx while nothing does.
async fn usual_ages() {
    let timeouts = [
        ("timeout: 15s ", "Envoy, 15 s"),
        ("timeout: 30s ", "30 s"),
        ("timeout: 60s ", "60 s"),
    ];
    let pod = Pod::start(FULL, "doctor: true").await;
    for (timeout, cause) in timeouts {
        let front = pod.front(Kind::Envoy, &[("timeout: 0s ", timeout)]).await;
        let diagnosis = pod.diagnose(&front.url("/events"), &[]).await;
        let finding = diagnosis.only("age_limit");
        names(finding, "Envoy", "timeout: 0s");
        assert!(
            finding["message"].as_str().unwrap().contains(cause),
            "{finding:#}"
        );
    }
    let changes = [("proxy_read_timeout 60s;", "proxy_read_timeout 15s;")];
    let front = pod.front(Kind::Nginx, &changes).await;
    let diagnosis = pod.diagnose(&front.url("/events"), &[]).await;
    names(
        diagnosis.only("idle_timeout"),
        "nginx",
        "proxy_read_timeout",
    );
}

#[tokio::test]
async fn idle_timeout_below_the_heartbeat_is_found() {
    let changes = [("proxy_read_timeout 60s;", "proxy_read_timeout 2s;")];
    let diagnosis = planted(SHORT, Kind::Nginx, &changes).await;
    names(
        diagnosis.only("idle_timeout"),
        "nginx",
        "proxy_read_timeout",
    );
    let changes = [("timeout server 60s", "timeout server 2s")];
    let diagnosis = planted(SHORT, Kind::Haproxy, &changes).await;
    names(diagnosis.only("idle_timeout"), "HAProxy", "timeout server");
}

#[tokio::test]
async fn connection_that_a_nat_drops_silently_is_found() {
    silent_drop(SHORT, Duration::from_millis(1500)).await;
}

async fn silent_drop(ages: Ages, forget_after: Duration) {
    let pod = Pod::start(ages, "doctor: true").await;
    let nat = Nat::start(pod.ports.clients, forget_after).await;
    let diagnosis = pod.diagnose(&nat.url("/events"), &[]).await;
    names(diagnosis.only("silent_drop"), "proxy", "heartbeat");
}

#[tokio::test]
async fn http_1_0_to_the_pod_is_found() {
    http10(SHORT).await;
}

async fn http10(ages: Ages) {
    let changes = [("proxy_http_version 1.1;", "proxy_http_version 1.0;")];
    let diagnosis = planted(ages, Kind::Nginx, &changes).await;
    names(
        diagnosis.only("http_1_0"),
        "nginx",
        "proxy_http_version 1.1;",
    );
}

#[tokio::test]
async fn removed_last_event_id_is_found() {
    last_event_id(SHORT).await;
}

async fn last_event_id(ages: Ages) {
    let changes = [(
        "proxy_buffering off;",
        "proxy_buffering off; proxy_set_header Last-Event-ID \"\";",
    )];
    let diagnosis = planted(ages, Kind::Nginx, &changes).await;
    names(diagnosis.only("last_event_id"), "nginx", "Last-Event-ID");
}

#[tokio::test]
async fn goaway_that_is_not_obeyed_is_found() {
    goaway(SHORT).await;
}

async fn goaway(ages: Ages) {
    let diagnosis = faulty(ages, Plant::SwallowGoaway).await;
    names(diagnosis.only("goaway"), "proxy", "GOAWAY");
}

#[tokio::test]
async fn changed_header_is_found() {
    header_changed(SHORT).await;
}

async fn header_changed(ages: Ages) {
    let changes = [(
        "proxy_buffering off;",
        "proxy_buffering off; proxy_hide_header Cache-Control; add_header Cache-Control \"public, max-age=60\";",
    )];
    let diagnosis = planted(ages, Kind::Nginx, &changes).await;
    let finding = diagnosis.only("header_changed");
    names(finding, "nginx", "proxy_hide_header");
    assert!(
        finding["message"]
            .as_str()
            .unwrap()
            .contains("public, max-age=60")
    );
}

#[tokio::test]
async fn connection_that_ends_with_each_response_is_found() {
    connection_reuse(SHORT).await;
}

async fn connection_reuse(ages: Ages) {
    let changes = [("listen 80;", "keepalive_timeout 0; listen 80;")];
    let diagnosis = planted(ages, Kind::Nginx, &changes).await;
    names(
        diagnosis.only("connection_reuse"),
        "nginx",
        "keepalive_timeout",
    );
}

#[tokio::test]
async fn wrong_cross_origin_headers_are_found() {
    cors(SHORT).await;
}

async fn cors(ages: Ages) {
    let changes = [(
        "proxy_buffering off;",
        "proxy_buffering off; add_header Access-Control-Allow-Origin *;",
    )];
    let diagnosis = planted(ages, Kind::Nginx, &changes).await;
    names(diagnosis.only("cors"), "nginx", "Access-Control-");
}

#[tokio::test]
async fn small_http2_window_is_found() {
    window(SHORT).await;
}

async fn window(ages: Ages) {
    let diagnosis = faulty(ages, Plant::Window(1)).await;
    names(diagnosis.only("window"), "proxy", "HTTP/2 window");
}

#[tokio::test]
#[ignore = "a minute for each fault: `make test-long`"]
async fn twelve_faults_are_found_within_a_minute_each_with_defaults() {
    usual_ages().await;
    tokio::join!(
        buffering(FULL),
        compression(FULL),
        http10(FULL),
        last_event_id(FULL)
    );
    tokio::join!(
        goaway(FULL),
        header_changed(FULL),
        connection_reuse(FULL),
        cors(FULL)
    );
    tokio::join!(
        window(FULL),
        body_held_back(FULL),
        silent_drop(FULL, Duration::from_secs(10))
    );
}

#[tokio::test]
async fn page_of_a_proxy_without_pods_is_found() {
    let pod = Pod::start(SHORT, "doctor: true").await;
    let changes = [("error_page 502 504 =200 @later;", "")];
    let front = pod.front(Kind::Nginx, &changes).await;
    let mut pod = pod;
    pod.sidestream.kill9();
    let diagnosis = pod.diagnose(&front.url("/events"), &[]).await;
    names(diagnosis.only("status_page"), "nginx", "error_page");
}
