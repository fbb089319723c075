//! Faults of the presence bucket: no effect on clients, visible to operators.

use std::time::{Duration, Instant};

use async_nats::ConnectOptions;

use super::{Fixture, keys, target_of};
use testkit::h2::H2Client;
use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, config, config_for};
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};

const ERRORS: &str = "sidestream_presence_errors_total";

#[tokio::test]
async fn a_deleted_bucket_is_recreated_with_all_entries_and_no_event_is_lost() {
    let fixture = Fixture::with(1).await;
    let mut client = fixture.connect(0, "/named?client=42").await;
    fixture
        .until_found(0, "42", 1, |entry| entry["state"] == "active")
        .await;
    fixture.jetstream.delete_key_value("clients").await.unwrap();
    let begun = Instant::now();
    // The write of a new client detects it; the client does not wait.
    let _other = fixture.connect(0, "/named?client=43").await;
    assert!(begun.elapsed() < Duration::from_secs(4));
    fixture.pods[0]
        .until_metric(ERRORS, &[], |errors| errors >= 1.0)
        .await;
    fixture.publish("a.1", "x").await;
    assert_eq!(client.next().await.data, "x");
    eventually(DEADLINE, "both are in a new bucket", || async {
        match fixture.jetstream.get_key_value("clients").await {
            Ok(bucket) => keys(&bucket).await.len() == 2,
            Err(_) => false,
        }
    })
    .await;
    assert_eq!(fixture.pods[0].admin("/health/ready").await.0, 200);
}

#[tokio::test]
async fn without_jetstream_clients_are_served_at_once_and_the_check_is_degraded() {
    let nats = Nats::builder().without_jetstream().start().await;
    let routes =
        "routes: [{ path: /core, sources: [{ subjects: [\"c.>\"] }], client: \"{query.client}\" }]
presence: { bucket: clients }
drain: { accept_for: 0s, spread: 0s, timeout: 5s }";
    let mut pod = Sidestream::start(config(&nats, routes)).await;
    let begun = Instant::now();
    let mut client = SseClient::get(pod.url("/core?client=42")).connect().await;
    client.positioned().await;
    assert!(begun.elapsed() < Duration::from_secs(4));
    let publisher = nats.client().await;
    publisher.publish("c.1", "x".into()).await.unwrap();
    publisher.flush().await.unwrap();
    assert_eq!(client.next().await.data, "x");
    pod.until_metric(ERRORS, &[], |errors| errors >= 1.0).await;
    let (status, body) = pod.admin(&target_of("42")).await;
    assert_eq!(status, 503);
    assert!(
        body.contains("presence_unavailable") && body.contains("JetStream"),
        "{body}"
    );
    let health = pod.admin_json("/health").await;
    assert_eq!(
        health["checks"]["presence"]["status"], "degraded",
        "{health}"
    );
    assert_eq!(pod.admin("/health/ready").await.0, 200);
    pod.terminate();
    assert_eq!(pod.wait_exit(DEADLINE).await, 0);
}

#[tokio::test]
async fn without_nats_no_client_waits_and_all_entries_are_written_when_it_is_back() {
    let mut fixture = Fixture::with(1).await;
    let _client = fixture.connect(0, "/named?client=42").await;
    fixture
        .until_found(0, "42", 1, |entry| entry["state"] == "active")
        .await;
    fixture.nats.kill9();
    fixture.pods[0]
        .until_metric("sidestream_nats_connected", &[], |up| up == 0.0)
        .await;
    let begun = Instant::now();
    let _other = fixture.connect(0, "/named?client=43").await;
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    fixture.nats.restart().await;
    // The bucket is in memory, so both entries are written again.
    for client in ["42", "43"] {
        eventually(
            Duration::from_secs(30),
            "the client is found again",
            || async {
                let (status, body) = fixture.pods[0].admin(&target_of(client)).await;
                status == 200 && body.contains("\"active\"")
            },
        )
        .await;
    }
}

#[tokio::test]
async fn the_documented_permissions_suffice_and_a_missing_one_is_named_once() {
    let permissions = "
        \"$JS.API.STREAM.INFO.KV_clients\", \"$JS.API.STREAM.CREATE.KV_clients\",
        \"$JS.API.STREAM.MSG.GET.KV_clients\", ";
    let user = |name: &str, publish: &str| {
        format!(
            "{{ user: {name}, password: x, permissions: {{ publish: {{ allow: [{publish} \"_INBOX_sse.>\"] }},
                subscribe: {{ allow: [\"_INBOX_sse.>\", \"c.>\"] }} }} }}"
        )
    };
    let writer = user("writer", &format!("{permissions} \"$KV.clients.>\","));
    let text = format!(
        "authorization {{ users: [ {writer}, {}, {{ user: admin, password: x }} ] }}",
        user("reader", permissions)
    );
    let nats = Nats::builder().config(&text).start().await;
    let routes = |user: &str| {
        let routes = "routes: [{ path: /core, sources: [{ subjects: [\"c.>\"] }], client: \"{query.client}\" }]
presence: { bucket: clients }";
        config_for(&[nats.url()], routes).replace(
            "\nroutes:",
            &format!("\n  user: {user}\n  password: x\nroutes:"),
        )
    };
    let writer = Sidestream::start(routes("writer")).await;
    let _one = SseClient::get(writer.url("/core?client=42"))
        .connect()
        .await;
    eventually(DEADLINE, "the client is found", || async {
        writer.admin_json(&target_of("42")).await["total"] == 1
    })
    .await;
    assert_eq!(writer.metric(ERRORS, &[]).await, 0.0);

    let reader = Sidestream::start(routes("reader")).await;
    let mut clients = Vec::new();
    for number in 0..50 {
        clients.push(
            SseClient::get(reader.url(&format!("/core?client={number}")))
                .connect()
                .await,
        );
    }
    reader
        .until_metric(ERRORS, &[], |errors| errors >= 2.0)
        .await;
    let health = reader.admin_json("/health").await;
    let told = health["checks"]["presence"]["message"].as_str().unwrap();
    assert!(
        told.contains("$KV.clients.") && told.contains("permission"),
        "{told}"
    );
    // One or two lines per attempt, not per client.
    let loud = reader
        .log()
        .iter()
        .filter(|line| matches!(line["level"].as_str(), Some("WARN" | "ERROR")))
        .count();
    assert!(loud <= 12, "{loud} lines: {:?}", reader.output());
    let publisher = nats
        .client_with(ConnectOptions::new().user_and_password("admin".into(), "x".into()))
        .await;
    publisher.publish("c.1", "x".into()).await.unwrap();
    for client in &mut clients {
        assert_eq!(client.next().await.data, "x");
    }
}

#[tokio::test]
async fn a_silently_lost_bucket_is_filled_within_seconds_without_any_change() {
    let fixture = Fixture::with(1).await;
    let _client = fixture.connect(0, "/named?client=42").await;
    fixture
        .until_found(0, "42", 1, |entry| entry["state"] == "active")
        .await;
    // Deleted; and emptied, as by the restart of another server that keeps the bucket in memory.
    for is_deleted in [true, false] {
        if is_deleted {
            fixture.jetstream.delete_key_value("clients").await.unwrap();
        } else {
            fixture
                .jetstream
                .get_stream("KV_clients")
                .await
                .unwrap()
                .purge()
                .await
                .unwrap();
        }
        let begun = Instant::now();
        eventually(
            Duration::from_secs(15),
            "the client is found again",
            || async {
                let (status, body) = fixture.pods[0].admin(&target_of("42")).await;
                status == 200 && body.contains("\"active\"")
            },
        )
        .await;
        eprintln!(
            "deleted: {is_deleted}, found again after {:?}",
            begun.elapsed()
        );
        assert!(
            begun.elapsed() < Duration::from_secs(12),
            "{:?}",
            begun.elapsed()
        );
    }
}

#[tokio::test]
async fn a_full_bucket_is_reported_and_positions_still_have_space() {
    const FULL: &str = "sidestream_presence_full_total";
    let small = |text: String| text.replace("bucket: clients", "bucket: clients, max_bytes: 64KiB");
    let mut fixture = Fixture::edited(Nats::start().await, 2, small).await;
    let mut client = fixture.connect(0, "/named?client=42").await;
    fixture
        .until_found(1, "42", 1, |entry| entry["state"] == "active")
        .await;
    // Clients with the longest names connect to the other pod until three quarters are in use, and
    // beyond.
    let mut crowd = H2Client::connect(fixture.pods[1].url("/")).await;
    let mut held = Vec::new();
    for number in 0..200 {
        let target = format!(
            "/chosen?client={number:x<256}&subject=a.1&subject=a.2&subject=a.3&subject=a.4&subject=a.5"
        );
        held.push(
            crowd
                .request("GET", &target, &[("accept", "text/event-stream")])
                .await,
        );
    }
    fixture.pods[1]
        .until_metric(FULL, &[], |full| full >= 100.0)
        .await;
    let health = fixture.pods[1].admin_json("/health").await;
    assert_eq!(
        health["checks"]["presence"]["status"], "degraded",
        "{health}"
    );
    let told = health["checks"]["presence"]["message"].as_str().unwrap();
    assert!(
        told.contains("full") && told.contains("max_bytes"),
        "{told}"
    );
    assert_eq!(fixture.pods[1].admin("/health/ready").await.0, 200);
    let mut stream = fixture.jetstream.get_stream("KV_clients").await.unwrap();
    let info = stream.info().await.unwrap();
    assert_eq!(info.config.max_bytes, 64 * 1024);
    assert!(info.state.bytes <= 64 * 1024, "{}", info.state.bytes);
    let lines = fixture.pods[1]
        .log()
        .into_iter()
        .filter(|line| line["check"] == "presence" && line["why"] != "")
        .count();
    assert!(lines <= 3, "{lines}");
    // The position still has space.
    fixture.drain(0).await;
    client.closed_within(DEADLINE).await;
    fixture.publish("a.x", "missed").await;
    assert_eq!(
        fixture
            .connect(1, "/named?client=42")
            .await
            .next()
            .await
            .data,
        "missed"
    );
    // With free space, the others are written.
    drop(held.split_off(10));
    eventually(
        Duration::from_secs(90),
        "one that had no room is found",
        || async { fixture.find(1, &format!("{:x<256}", 9)).await.len() == 1 },
    )
    .await;
}
