//! Exhaustion of file descriptors: load levels, rejections, reserved descriptors and recovery.

use std::time::Duration;

use tokio::net::TcpStream;

use super::table::assert_passing;
use testkit::h2::H2Client;
use testkit::http1;
use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, config};
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};

/// The hard limit of the process. 90 % are 231, half of the rest begins at 243.
const LIMIT: u64 = 256;

const ROUTES: &str = "
limits: { connections: 10000 }
routes:
  - path: /orders/{id}
    sources: [{ subjects: [\"orders.{id}.>\"] }]
    priority: [{ subjects: [\"orders.*.telemetry\"], tier: telemetry }]";

async fn start() -> (Nats, Sidestream) {
    let nats = Nats::start().await;
    let sidestream = Sidestream::builder(config(&nats, ROUTES))
        .open_files(LIMIT, LIMIT)
        .start()
        .await;
    (nats, sidestream)
}

/// Opens event streams one after the other until one is rejected.
async fn fill(sidestream: &Sidestream) -> Vec<SseClient> {
    let mut clients = Vec::new();
    loop {
        let client = SseClient::get(sidestream.url("/orders/1")).connect().await;
        if client.status() != 200 {
            assert_eq!(client.status(), 503);
            return clients;
        }
        clients.push(client);
        assert!((clients.len() as u64) < LIMIT, "no client is rejected");
    }
}

fn file_descriptors(health: &serde_json::Value) -> (&str, &str) {
    let check = &health["checks"]["file_descriptors"];
    (
        check["status"].as_str().unwrap(),
        check["message"].as_str().unwrap_or_default(),
    )
}

#[tokio::test]
async fn a_pod_with_few_descriptors_serves_up_to_its_threshold_then_rejects_and_recovers() {
    let (nats, sidestream) = start().await;
    let publisher = nats.client().await;
    let mut clients = fill(&sidestream).await;
    let open = sidestream.open_files() as u64;
    assert!(
        (226..=240).contains(&open),
        "some more than 90 % of {LIMIT}: {open} are open"
    );
    assert_passing(&sidestream, "/orders/1", "no_file_descriptors", "overload").await;
    // Over HTTP/2 a rejected connection gets GOAWAY; otherwise it would keep its descriptor.
    let mut h2 = H2Client::connect(sidestream.url("/")).await;
    assert_eq!(h2.get("/orders/1").await.status(), 503);
    sidestream
        .until_metric("sidestream_connections", &[("protocol", "h2")], |open| {
            open == 0.0
        })
        .await;
    drop(h2);

    // The operator sees it in the health report, and the pod stays ready.
    let warned =
        |line: &serde_json::Value| line["check"] == "file_descriptors" && line["level"] == "WARN";
    sidestream.until_log("a warning", warned).await;
    let health = sidestream.admin_json("/health").await;
    let (status, message) = file_descriptors(&health);
    assert!(
        status == "degraded" && message.contains("of 256 are in use"),
        "{health}"
    );
    assert_eq!(sidestream.admin("/health/ready").await.0, 200);
    assert_eq!(
        sidestream
            .metric("sidestream_file_descriptors_limit", &[])
            .await,
        LIMIT as f64
    );
    let told = sidestream.metric("sidestream_file_descriptors", &[]).await;
    // Probes connect in between.
    assert!(
        (told - sidestream.open_files() as f64).abs() <= 5.0,
        "{told} are told"
    );
    assert!(
        sidestream
            .metric("sidestream_sockets", &[("state", "established")])
            .await
            >= clients.len() as f64
    );
    publisher
        .publish("orders.1.a", "served".into())
        .await
        .unwrap();
    for client in &mut clients {
        assert_eq!(client.next().await.data, "served");
    }

    clients.truncate(100);
    eventually(
        DEADLINE,
        "a client is served once descriptors are free",
        || async {
            SseClient::get(sidestream.url("/orders/1"))
                .connect()
                .await
                .status()
                == 200
        },
    )
    .await;
    sidestream
        .until_metric("sidestream_file_descriptors", &[], |open| {
            open < told - 80.0
        })
        .await;
    // Both ends are in this network namespace: closed sockets remain there in TIME_WAIT.
    sidestream
        .until_metric("sidestream_sockets", &[("state", "time_wait")], |waiting| {
            waiting >= 1.0
        })
        .await;
    eventually(DEADLINE, "the warning is over", || async {
        file_descriptors(&sidestream.admin_json("/health").await).0 == "ok"
    })
    .await;
}

/// CPU time of the process, from the clock ticks of proc(5): a hundred per second.
fn cpu(sidestream: &Sidestream) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", sidestream.pid())).unwrap();
    let words: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: u64 = words[11].parse::<u64>().unwrap() + words[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[tokio::test]
async fn idle_connections_leave_descriptors_for_probes_and_nats_and_use_no_cpu() {
    let (mut nats, sidestream) = start().await;
    let address = sidestream.url("").replace("http://", "");
    let mut silent = Vec::new();
    for _ in 0..400 {
        // Rejected connections are reset as soon as they are accepted.
        silent.extend(TcpStream::connect(&address).await);
    }
    let connection_reset = sidestream
        .until_metric(
            "sidestream_refusals_total",
            &[("code", "connection_reset")],
            |count| count >= 100.0,
        )
        .await;
    assert!(connection_reset <= 400.0);
    let open = sidestream.open_files() as u64;
    // The idle connections use the free descriptors; those of probes and NATS count, too.
    assert!(open < LIMIT, "{open} of {LIMIT} are open");
    let before = cpu(&sidestream);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let used = cpu(&sidestream) - before;
    assert!(
        used < Duration::from_millis(300),
        "{used:?} in a second of waiting"
    );
    assert_eq!(sidestream.admin("/health/live").await.0, 200);
    // NATS reconnects with its reserved descriptors.
    nats.restart().await;
    sidestream
        .until_metric("sidestream_nats_reconnects_total", &[], |count| {
            count >= 4.0
        })
        .await;
    sidestream
        .until_metric("sidestream_nats_connected", &[], |up| up == 1.0)
        .await;
    // Idle connections are closed after 5 s, and their descriptors are free again.
    eventually(DEADLINE * 2, "the crowd is gone", || async {
        http1::request("HEAD", &sidestream.url("/orders/1"), &[])
            .await
            .is_ok_and(|answer| answer.status == 200)
            && SseClient::get(sidestream.url("/orders/1"))
                .try_connect()
                .await
                .is_ok_and(|client| client.status() == 200)
    })
    .await;
    drop(silent);
}

/// Publishes telemetry events and then a normal one. Returns the number of telemetry events that a
/// client receives, and the number that gaps report as missed.
pub(crate) async fn delivered_and_missed_telemetry(
    nats: &Nats,
    client: &mut SseClient,
    count: u64,
) -> (u64, u64) {
    let publisher = nats.client().await;
    for _ in 0..count {
        publisher
            .publish("orders.1.telemetry", "t".into())
            .await
            .unwrap();
    }
    publisher.publish("orders.1.a", "end".into()).await.unwrap();
    let (mut given, mut missed) = (0, 0);
    for event in client.until(|event| event.data == "end").await {
        if event.name == "sidestream.gap" {
            let gap: serde_json::Value = serde_json::from_str(&event.data).unwrap();
            missed += gap["missed"].as_u64().unwrap();
        } else if event.data == "t" {
            given += 1;
        }
    }
    (given, missed)
}

#[tokio::test]
async fn scarce_descriptors_raise_the_load_level_step_by_step_and_it_falls_again() {
    let (nats, sidestream) = start().await;
    let mut clients = Vec::new();
    let level = async |level: &str| {
        sidestream
            .until_metric("sidestream_pressure_level", &[("level", level)], |value| {
                value == 1.0
            })
            .await
    };
    let fill_to = async |clients: &mut Vec<SseClient>, files: usize| {
        while sidestream.open_files() < files {
            let client = SseClient::get(sidestream.url("/orders/1")).connect().await;
            assert_eq!(client.status(), 200);
            clients.push(client);
        }
    };
    level("none").await;
    // 80 % are 205, 85 % are 218.
    fill_to(&mut clients, 211).await;
    level("thin").await;
    let (given, missed) = delivered_and_missed_telemetry(&nats, &mut clients[0], 20).await;
    assert!(
        given >= 1 && missed >= 10 && given + missed == 20,
        "thinned to ten a second: {given}, {missed}"
    );
    fill_to(&mut clients, 225).await;
    level("shed").await;
    assert_eq!(
        delivered_and_missed_telemetry(&nats, &mut clients[0], 20).await,
        (0, 20),
        "no telemetry, and a gap"
    );
    let health = sidestream.admin_json("/health").await;
    assert_eq!(
        health["checks"]["pressure"]["status"], "degraded",
        "{health}"
    );
    assert_eq!(
        sidestream.admin("/health/ready").await.0,
        200,
        "a pod under pressure serves"
    );
    clients.truncate(50);
    level("none").await;
    let told = |line: &serde_json::Value| {
        let number = |key: &str| line[key].as_u64().unwrap();
        (line["message"] == "pressure").then(|| (number("from"), number("to")))
    };
    let expected = [(0, 1), (1, 2), (2, 1), (1, 0)];
    // The line of a change follows its metric.
    eventually(DEADLINE, "every change is logged", async || {
        let changes: Vec<_> = sidestream.log().iter().filter_map(told).collect();
        assert!(expected.starts_with(&changes), "{changes:?}");
        changes.len() == expected.len()
    })
    .await;
}
