//! `sidestream drain`, and signals during a drain: exit codes, output and duration.

use std::process::Output;
use std::time::{Duration, Instant};

use super::reader::{Reader, Via};
use super::{Fixture, publish_numbers};
use testkit::sidestream::{Sidestream, run};
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};

/// Configuration of a short drain.
const QUICK: &str =
    "drain: { accept_for: 200ms, spread: 200ms, timeout: 5s, retry: { min: 600ms, max: 900ms } }";
/// Configuration of a drain that takes longer than any test waits.
const LONG: &str = "drain: { accept_for: 20s, spread: 10s, timeout: 100s }";

async fn drain(sidestream: &Sidestream, arguments: &[&str]) -> Output {
    let all = [&["drain", "--config", "sidecar.yaml"], arguments].concat();
    run(&all, sidestream.folder()).await
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

async fn phase(sidestream: &Sidestream) -> String {
    sidestream.admin_json("/health").await["drain"]["phase"]
        .as_str()
        .unwrap()
        .to_owned()
}

async fn until_phase(sidestream: &Sidestream, wanted: &str) {
    eventually(
        DEADLINE,
        &format!("the drain is in its phase {wanted}"),
        || async { phase(sidestream).await == wanted },
    )
    .await;
}

#[tokio::test]
async fn after_the_command_the_process_stays_drained_until_a_signal() {
    let mut fixture = Fixture::with_rest(QUICK).await;
    let mut readers = Vec::new();
    for via in Via::ALL {
        readers.push((via, fixture.open(via, "/orders").await));
    }
    let begun = Instant::now();
    let output = drain(&fixture.sidestream, &["--wait"]).await;
    assert_eq!(
        (output.status.code(), &*printed(&output)),
        (Some(0), "drained\n")
    );
    assert!(
        begun.elapsed() >= Duration::from_millis(400),
        "accept_for and spread have passed"
    );
    for (via, reader) in &mut readers {
        let (events, end) = reader.read_to_end().await;
        assert_eq!(
            (end, &*events.last().unwrap().name),
            (via.proper_end(), "sidestream.close")
        );
    }

    assert_eq!(
        fixture.sidestream.admin("/health/live").await.0,
        200,
        "or the kubelet would kill it"
    );
    assert_eq!(fixture.sidestream.admin("/health/ready").await.0, 503);
    let health = fixture.sidestream.admin_json("/health").await;
    assert_eq!(health["status"], "draining");
    let expected = serde_json::json!({ "phase": "done", "number": 8, "streams_left": 0, "cut": 0 });
    assert_eq!(health["drain"], expected);
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_drain_phase", &[("phase", "done")])
            .await,
        1.0
    );
    let url = fixture.sidestream.url("/orders");
    assert!(
        SseClient::get(&url).try_connect().await.is_err(),
        "no server listens"
    );
    let stream = fixture.jetstream.get_stream("ORDERS").await.unwrap();
    assert_eq!(
        stream.cached_info().state.consumer_count,
        0,
        "NATS is left in order"
    );

    assert!(fixture.sidestream.running());
    fixture.sidestream.terminate();
    let told = Instant::now();
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    assert!(
        told.elapsed() < Duration::from_secs(4),
        "{:?}",
        told.elapsed()
    );
}

#[tokio::test]
async fn a_second_drain_command_waits_for_the_same_drain() {
    let mut fixture = Fixture::with_rest(QUICK).await;
    let mut reader = fixture.open(Via::Http11, "/orders").await;
    let first = drain(&fixture.sidestream, &[]).await;
    assert_eq!(first.status.code(), Some(0));
    assert!(
        printed(&first).starts_with("draining: phase"),
        "{}",
        printed(&first)
    );
    let (second, third) = tokio::join!(
        drain(&fixture.sidestream, &["--wait"]),
        drain(&fixture.sidestream, &["--wait"])
    );
    for output in [
        second,
        third,
        drain(&fixture.sidestream, &[]).await,
        drain(&fixture.sidestream, &["--wait"]).await,
    ] {
        assert_eq!(
            (output.status.code(), &*printed(&output)),
            (Some(0), "drained\n")
        );
    }
    reader.read_to_end().await;
    let began = fixture
        .sidestream
        .log()
        .iter()
        .filter(|line| line["message"] == "drain started")
        .count();
    assert_eq!(began, 1);
    fixture.sidestream.terminate();
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    let gone = drain(&fixture.sidestream, &["--wait"]).await;
    assert_eq!(gone.status.code(), Some(69), "{}", printed(&gone));
    assert!(
        printed(&gone).contains("cannot reach a sidecar to drain:\n  control.sock: "),
        "{}",
        printed(&gone)
    );
}

#[tokio::test]
async fn a_client_that_was_cut_makes_the_drain_incomplete() {
    let short = "drain: { accept_for: 0s, spread: 100ms, timeout: 1s }";
    let mut fixture = Fixture::with_rest(short).await;
    let (stalled, mut reading) = fixture.stalled_and_reading().await;
    let begun = Instant::now();
    let output = drain(&fixture.sidestream, &["--wait"]).await;
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(output.status.code(), Some(75));
    assert_eq!(
        printed(&output),
        "sidestream: drain incomplete: 1 event streams were cut\n"
    );
    assert_eq!(reading.read_to_end().await.1, Via::Http11.proper_end());
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_drain_cut_total", &[])
            .await,
        1.0
    );
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_streams_closed_total", &[("reason", "cut")])
            .await,
        1.0
    );
    assert_eq!(
        fixture.sidestream.admin_json("/health").await["drain"]["cut"],
        1
    );
    fixture
        .sidestream
        .until_metric("sidestream_connections", &[], |open| open == 0.0)
        .await;
    drop(stalled);
    fixture.sidestream.terminate();
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
}

#[tokio::test]
async fn an_unreachable_sidecar_and_a_wrong_argument_have_their_own_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidecar.yaml");
    let ask = |arguments: &'static [&'static str]| run(arguments, folder.path());
    let unknown = ask(&["drain", "--now"]).await;
    assert_eq!(unknown.status.code(), Some(64), "{}", printed(&unknown));
    let missing = ask(&["drain", "--config", "other.yaml"]).await;
    assert_eq!(missing.status.code(), Some(64), "{}", printed(&missing));
    std::fs::write(&file, "admin: { control: nobody.sock }\nrouts: []\n").unwrap();
    let wrong = ask(&["drain", "--wait"]).await;
    assert_eq!(wrong.status.code(), Some(64));
    assert!(
        printed(&wrong).contains("unknown key `routs`"),
        "{}",
        printed(&wrong)
    );
    let routes = "routes: [{ path: /a, sources: [{ subjects: [\"a.>\"] }] }]";
    std::fs::write(
        &file,
        format!("admin: {{ control: nobody.sock }}\n{routes}\n"),
    )
    .unwrap();
    let nobody = ask(&["drain", "--wait"]).await;
    assert_eq!(nobody.status.code(), Some(69), "{}", printed(&nobody));
}

#[tokio::test]
async fn a_signal_during_a_drain_compresses_it_and_a_second_one_ends_it() {
    // Planned: 20 s of accepting and 10 s of spread. Compressed to 8 s: 1.6 s and 0.8 s.
    let mut fixture = Fixture::with_rest(LONG).await;
    let mut readers = [
        fixture.open(Via::Http11, "/orders").await,
        fixture.open(Via::H2, "/orders").await,
    ];
    assert_eq!(drain(&fixture.sidestream, &[]).await.status.code(), Some(0));
    until_phase(&fixture.sidestream, "accepting").await;
    let told = Instant::now();
    fixture.sidestream.terminate();
    let line = fixture
        .sidestream
        .until_message("signal received; the rest of the drain is compressed")
        .await;
    assert!(line["seconds"].as_f64().unwrap() <= 8.0, "{line}");
    let output = drain(&fixture.sidestream, &["--wait"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    assert!(
        told.elapsed() < Duration::from_secs(8),
        "{:?}",
        told.elapsed()
    );
    for reader in &mut readers {
        let (events, end) = reader.read_to_end().await;
        assert_eq!(
            (end, &*events.last().unwrap().name),
            (Via::H2.proper_end(), "sidestream.close")
        );
    }
}

#[tokio::test]
async fn two_signals_during_a_drain_end_the_process_at_once() {
    let mut fixture = Fixture::with_rest(LONG).await;
    let _reader = fixture.open(Via::Http11, "/orders").await;
    assert_eq!(drain(&fixture.sidestream, &[]).await.status.code(), Some(0));
    let folder = fixture.sidestream.folder().to_owned();
    let waiting = tokio::spawn(async move {
        run(&["drain", "--wait", "--config", "sidecar.yaml"], &folder).await
    });
    fixture.sidestream.terminate();
    fixture
        .sidestream
        .until_message("signal received; the rest of the drain is compressed")
        .await;
    fixture.sidestream.terminate();
    let told = Instant::now();
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    assert!(
        told.elapsed() < Duration::from_secs(5),
        "{:?}",
        told.elapsed()
    );
    // Not 0: the drain has not ended by itself.
    let output = waiting.await.unwrap();
    assert!(
        [69, 75].contains(&output.status.code().unwrap()),
        "{}",
        printed(&output)
    );
}

#[tokio::test]
async fn a_grace_period_that_is_too_short_compresses_the_drain_from_its_beginning() {
    let fixture = Fixture::start().await;
    let config = format!(
        "listen: [{{ address: 127.0.0.1:0 }}]\nadmin: {{ address: 127.0.0.1:0, control: control.sock }}\n\
         nats: {{ servers: [\"{}\"] }}\nroutes: [{{ path: /news, sources: [{{ subjects: [\"news.>\"] }}] }}]\n{LONG}\n",
        fixture.nats.url()
    );
    let name = "SIDESTREAM_TERMINATION_GRACE_PERIOD";
    for period in ["8", "8000ms"] {
        let mut sidestream = Sidestream::builder(config.clone())
            .env(name, period)
            .start()
            .await;
        sidestream
            .until_message("drain.timeout exceeds the grace period; the drain will be compressed")
            .await;
        let mut reader = SseClient::get(sidestream.url("/news")).connect().await;
        sidestream.terminate();
        let begun = Instant::now();
        assert_eq!(reader.closed().await, Via::Http11.proper_end());
        assert_eq!(sidestream.wait_exit(DEADLINE).await, 0);
        assert!(
            begun.elapsed() < Duration::from_secs(8),
            "{period}: {:?}",
            begun.elapsed()
        );
    }
    let mut wrong = Sidestream::builder(config).env(name, "soon").spawn();
    assert_eq!(wrong.wait_exit(DEADLINE).await, 64);
    eventually(DEADLINE, "it says what is wrong", || async {
        wrong.output().iter().any(|line| line.contains(name))
    })
    .await;
}

#[tokio::test]
async fn a_pod_without_clients_exits_when_it_no_longer_accepts() {
    let rest = "drain: { accept_for: 500ms, spread: 20s, timeout: 30s }";
    let mut fixture = Fixture::with_rest(rest).await;
    // A pod that has had a connection may be in a load balancer, so it accepts for a while.
    assert_eq!(
        SseClient::get(fixture.sidestream.url("/none"))
            .connect()
            .await
            .status(),
        404
    );
    fixture.sidestream.terminate();
    let begun = Instant::now();
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    let taken = begun.elapsed();
    assert!(
        taken >= Duration::from_millis(500) && taken < Duration::from_secs(5),
        "{taken:?}"
    );
    let phases: Vec<String> = fixture
        .sidestream
        .log()
        .iter()
        .filter(|line| line["message"] == "drain phase")
        .map(|line| line["phase"].as_str().unwrap().to_owned())
        .collect();
    let all = [
        "not-ready",
        "accepting",
        "listeners-closed",
        "goaway",
        "ending",
        "lingering",
        "upstream",
        "done",
    ];
    assert_eq!(phases, all);
}

#[tokio::test]
async fn three_hundred_clients_are_closed_evenly_over_the_spread() {
    let rest = "drain: { accept_for: 0s, spread: 2s, timeout: 10s, retry: { min: 1s, max: 2s } }";
    let mut fixture = Fixture::with_rest(rest).await;
    let mut clients = tokio::task::JoinSet::new();
    for place in 0..300 {
        let mut reader = fixture
            .open(Via::ALL[place % Via::ALL.len()], "/orders")
            .await;
        clients.spawn(async move {
            let (_, end) = reader.read_to_end().await;
            (Instant::now(), reader.retry().unwrap(), end)
        });
    }
    fixture.sidestream.terminate();
    let begun = Instant::now();
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    assert!(
        begun.elapsed() < Duration::from_secs(7),
        "{:?}",
        begun.elapsed()
    );
    let ends = clients.join_all().await;
    let mut fifths = [0; 5];
    for (at, retry, _) in &ends {
        let after = at.saturating_duration_since(begun).as_millis() as usize;
        fifths[(after / 400).min(4)] += 1;
        assert!((1000..=2000).contains(retry), "{retry}");
    }
    // 60 each on an idle machine.
    assert!(
        fifths.iter().all(|count| (20..=140).contains(count)),
        "{fifths:?}"
    );
    let retries: std::collections::BTreeSet<u64> =
        ends.iter().map(|(_, retry, _)| *retry).collect();
    assert!(
        retries.len() > 100,
        "each has a time of its own: {}",
        retries.len()
    );
}

#[tokio::test]
#[ignore = "five thousand clients take their time to come: `make test-long`"]
async fn five_thousand_clients_are_closed_within_accept_for_spread_and_five_seconds() {
    let rest = "drain: { accept_for: 1s, spread: 10s, timeout: 60s, retry: { min: 1s, max: 2s } }";
    let mut fixture = Fixture::with_rest(rest).await;
    let mut clients = tokio::task::JoinSet::new();
    for place in 0..5000 {
        let via = if place % 100 == 0 {
            Via::ALL[place / 100 % Via::ALL.len()]
        } else {
            Via::Http11
        };
        let mut reader = fixture.open(via, "/orders").await;
        clients.spawn(async move {
            let end = match &mut reader {
                Reader::Http1(client) => client.closed_within(Duration::from_secs(120)).await,
                Reader::H2(_, stream) => stream.closed_within(Duration::from_secs(120)).await,
            };
            (via, end, Instant::now())
        });
    }
    let publishing = publish_numbers(&fixture.jetstream, "x", Duration::from_millis(500));
    let begun = Instant::now();
    assert_eq!(drain(&fixture.sidestream, &[]).await.status.code(), Some(0));
    let over = Duration::from_secs(60);
    eventually(over, "the drain is over", || async {
        phase(&fixture.sidestream).await == "done"
    })
    .await;
    let taken = begun.elapsed();
    publishing.abort();
    let output = drain(&fixture.sidestream, &["--wait"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    assert!(taken < Duration::from_secs(1 + 10 + 5), "{taken:?}");
    let mut seconds = [0; 16];
    for (via, end, at) in clients.join_all().await {
        assert_eq!(end, via.proper_end(), "{via:?}");
        seconds[(at.saturating_duration_since(begun).as_secs() as usize).min(15)] += 1;
    }
    // The plan is 500 per second.
    assert!(seconds.iter().all(|count| *count <= 1000), "{seconds:?}");
    fixture.sidestream.terminate();
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
}

/// The sidecar of a Job ends right after its application.
#[tokio::test]
async fn a_pod_that_never_had_a_connection_does_not_wait_for_load_balancers() {
    let mut fixture = Fixture::with_rest(LONG).await;
    // Probes and scrapes are connections of the admin port.
    assert_eq!(fixture.sidestream.admin("/health/ready").await.0, 200);
    let begun = Instant::now();
    let output = drain(&fixture.sidestream, &["--wait"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    fixture.sidestream.terminate();
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
}
