//! Servers that answer no probes: what an event stream itself shows.

use std::time::Duration;

use super::fixture::{Ages, Diagnosis, FULL, NGINX_BUFFERS, Pod, SHORT, run};
use testkit::faulty::Nat;
use testkit::front::Kind;
use testkit::http1;
use testkit::sse::SseClient;

/// The next heartbeat comes after the run.
const QUIET: Ages = Ages {
    heartbeat: "1m",
    ..SHORT
};

async fn diagnose(changes: &[(&str, &str)]) -> Diagnosis {
    let pod = Pod::start(QUIET, "").await;
    let front = pod.front(Kind::Nginx, changes).await;
    pod.diagnose(&front.url("/events"), &[]).await
}

#[tokio::test]
async fn healthy_path_has_no_faults_and_names_what_cannot_be_checked() {
    let diagnosis = diagnose(&[]).await;
    let document = &diagnosis.document;
    assert_eq!(
        (diagnosis.faults().len(), diagnosis.code),
        (0, 0),
        "{document:#}"
    );
    let unchecked: Vec<_> = document["not_checked"].as_array().unwrap().iter().collect();
    let faults: Vec<_> = unchecked
        .iter()
        .map(|entry| entry["fault"].as_str().unwrap())
        .collect();
    for fault in ["http_1_0", "goaway", "window"] {
        assert!(faults.contains(&fault), "{document:#}");
    }
}

#[tokio::test]
async fn timeouts_positions_and_headers_are_found() {
    let idle = [("proxy_read_timeout 60s;", "proxy_read_timeout 3s;")];
    let position = [(
        "proxy_buffering off;",
        "proxy_buffering off; proxy_set_header Last-Event-ID \"\";",
    )];
    let header = [(
        "proxy_buffering off;",
        "proxy_buffering off; proxy_hide_header Cache-Control;",
    )];
    let reuse = [("listen 80;", "keepalive_timeout 0; listen 80;")];
    let (idle, position, header, reuse) = tokio::join!(
        diagnose(&idle),
        diagnose(&position),
        diagnose(&header),
        diagnose(&reuse),
    );
    idle.only("idle_timeout");
    position.only("last_event_id");
    header.only("header_changed");
    reuse.only("connection_reuse");
}

#[tokio::test]
#[ignore = "a minute: `make test-long`"]
async fn missing_heartbeats_are_found() {
    let pod = Pod::start(FULL, "").await;
    let front = pod.front(Kind::Nginx, &NGINX_BUFFERS).await;
    let nat = Nat::start(pod.ports.clients, Duration::from_secs(5)).await;
    let (front, nat) = (front.url("/events"), nat.url("/events"));
    let (buffering, nat) = tokio::join!(pod.diagnose(&front, &[]), pod.diagnose(&nat, &[]));
    buffering.only("buffering");
    nat.only("silent_drop");
}

#[tokio::test]
async fn probes_are_bounded_need_the_key_and_echo_no_credentials() {
    let pod = Pod::start(SHORT, "doctor: true").await;
    let url = pod.sidestream.url("/events");
    let mut open = Vec::new();
    for _ in 0..32 {
        let client = SseClient::get(url.clone())
            .header("Sidestream-Doctor", "lines; count=2; every=60000")
            .connect()
            .await;
        assert_eq!(client.status(), 200);
        open.push(client);
    }
    let over = SseClient::get(url.clone())
        .header("Sidestream-Doctor", "report")
        .connect()
        .await;
    assert_eq!(over.status(), 429);
    drop(open);
    let headers = [
        ("Sidestream-Doctor", "report"),
        ("Authorization", "Bearer secret-token"),
        ("Cookie", "session=secret-cookie"),
        ("X-Forwarded-For", "203.0.113.77"),
    ];
    let report = testkit::wait::eventually(testkit::wait::DEADLINE, "a permit is free", || async {
        let answer = http1::request("GET", &url, &headers).await.ok()?;
        (answer.status == 200).then_some(answer.body)
    })
    .await;
    assert!(report.contains("x-forwarded-for"), "{report}");
    for secret in ["secret-token", "secret-cookie", "203.0.113.77"] {
        assert!(!report.contains(secret), "{report}");
    }
    // Without the key the header has no meaning.
    let pod = Pod::start(SHORT, "").await;
    let mut client = SseClient::get(pod.sidestream.url("/events"))
        .header("Sidestream-Doctor", "report")
        .connect()
        .await;
    assert_eq!(client.status(), 200);
    client.positioned().await;
}

#[tokio::test]
async fn rejection_and_missing_server_exit_with_unavailable() {
    let pod = Pod::start(SHORT, "doctor: true").await;
    let missing = pod.diagnose(&pod.sidestream.url("/missing"), &[]).await;
    assert_eq!(missing.code, 69);
    let port = testkit::nats::free_port();
    let url = format!("http://127.0.0.1:{port}/events");
    assert_eq!(run(&["doctor", &url]).await.code, 69);
    assert_eq!(run(&["doctor", "events"]).await.code, 64);
}
