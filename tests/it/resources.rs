//! Limits of the control group that change while the sidecar runs, and ages of event streams.

use std::thread::available_parallelism;
use std::time::Duration;

use testkit::faulty::{Faulty, Plant};
use testkit::nats::{Nats, create_stream};
use testkit::sidestream::{Sidestream, config};
use testkit::sse::SseClient;
use testkit::wait::{RECOVERY, eventually};

const ROUTES: &str = "
routes:
  - path: /events
    sources: [{ stream: EVENTS, subjects: [\"events.>\"] }]
";

async fn nats() -> Nats {
    let nats = Nats::start().await;
    create_stream(&nats.jetstream().await, "EVENTS", &["events.>"]).await;
    nats
}

/// Waits until a check is degraded with a text that has all of these parts, or is ok without any.
async fn until_check(sidestream: &Sidestream, name: &str, parts: &[&str]) {
    eventually(RECOVERY, "the check has the status", || async {
        let health = sidestream.admin("/health").await.1;
        let health: serde_json::Value = serde_json::from_str(&health).unwrap();
        let check = health["checks"][name].to_string();
        if parts.is_empty() {
            return check.contains("ok");
        }
        check.contains("degraded") && parts.iter().all(|part| check.contains(part))
    })
    .await;
}

#[tokio::test]
async fn changed_limits_of_the_control_group_are_noticed() {
    let nats = nats().await;
    let group = tempfile::tempdir().unwrap();
    let set = |file: &str, text: &str| std::fs::write(group.path().join(file), text).unwrap();
    set("cpu.max", "max 100000\n");
    set("memory.max", "1073741824\n");
    let sidestream = Sidestream::builder(config(&nats, ROUTES))
        .env("SIDESTREAM_CGROUP", group.path().to_str().unwrap())
        .start()
        .await;
    sidestream
        .until_metric("sidestream_memory_limit_bytes", &[], |bytes| {
            bytes == 1_073_741_824.0
        })
        .await;
    until_check(&sidestream, "resources", &[]).await;

    set("memory.max", "134217728\n");
    let memory = ["134217728 bytes", "limits.window_bytes"];
    until_check(&sidestream, "resources", &memory).await;
    sidestream.until_message("limits of the pod changed").await;

    set("memory.max", "max\n");
    set("cpu.max", "100000 100000\n");
    let shards = available_parallelism().unwrap().get();
    if shards > 1 {
        let text = format!("{shards} shards run, and a restart starts 1");
        until_check(&sidestream, "resources", &[&text]).await;
    }
    sidestream
        .until_metric("sidestream_cpu_limit_cores", &[], |cores| cores == 1.0)
        .await;

    set("cpu.max", "max 100000\n");
    until_check(&sidestream, "resources", &[]).await;
}

#[tokio::test]
async fn age_of_an_event_stream_is_that_of_the_side_that_ended_it() {
    let nats = nats().await;
    let mut sidestream = Sidestream::start(config(&nats, ROUTES)).await;
    let url = sidestream.url("/events");
    for _ in 0..3 {
        let mut client = SseClient::get(url.clone()).connect().await;
        client.positioned().await;
    }
    let name = "sidestream_stream_age_seconds_count";
    sidestream
        .until_metric(name, &[("side", "peer")], |count| count == 3.0)
        .await;
    assert_eq!(sidestream.metric(name, &[("side", "pod")]).await, 0.0);
    let line = sidestream.until_message("event stream closed").await;
    assert_eq!(
        (line["source"].as_str(), line["reason"].as_str()),
        (Some("EVENTS"), Some("client"))
    );
    sidestream.terminate();
}

#[tokio::test]
#[ignore = "half a minute: `make test-long`"]
async fn event_streams_that_a_proxy_ends_at_one_age_degrade_a_check() {
    let nats = nats().await;
    let sidestream = Sidestream::start(config(&nats, ROUTES)).await;
    let port = sidestream.address().port();
    let proxy = Faulty::start(port, Plant::CutAt(Duration::from_secs(15))).await;
    let mut clients = Vec::new();
    for _ in 0..12 {
        let mut client = SseClient::get(proxy.url("/events")).connect().await;
        client.positioned().await;
        clients.push(client);
    }
    until_check(&sidestream, "stream_ages", &[]).await;
    for client in &mut clients {
        client.closed().await;
    }
    let parts = ["12 were 15 s old", "Envoy", "sidestream doctor"];
    until_check(&sidestream, "stream_ages", &parts).await;
}
