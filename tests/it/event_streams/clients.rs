//! Widely used clients: curl, nghttp, Chromium, npm packages, and `sidestream tail`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{Fixture, Setting, config, publish_numbers};
use testkit::browser::Page;
use testkit::nats::free_port;
use testkit::node::NodeClient;
use testkit::process::Process;
use testkit::proxy::{Fault, Proxy};
use testkit::sidestream::{Sidestream, binary, config_for};
use testkit::wait::{DEADLINE, eventually};

/// Waits until the program has printed a line with `text`.
async fn prints(process: &Process, text: &str) {
    eventually(DEADLINE, &format!("it prints {text:?}"), || async {
        process.scan(0, |lines| lines.iter().any(|line| line.contains(text)))
    })
    .await;
}

/// Pause between two events.
const PAUSE: Duration = Duration::from_millis(5);

#[tokio::test]
async fn curl_prints_events_as_they_arrive_on_every_protocol() {
    let fixture = Fixture::start().await;
    let authority = fixture.authority.file();
    let authority = authority.to_str().unwrap();
    let (clear, tls) = (
        fixture.sidestream.url("/orders"),
        fixture.sidestream.url_tls("/orders"),
    );
    for (arguments, version) in [
        (vec!["--http1.0", &clear], "HTTP/1.0"),
        (vec!["--http1.1", &clear], "HTTP/1.1"),
        (vec!["--http2-prior-knowledge", &clear], "HTTP/2"),
        // An offer to upgrade is ignored.
        (vec!["--http2", &clear], "HTTP/1.1"),
        (vec!["--http1.1", "--cacert", authority, &tls], "HTTP/1.1"),
        (vec!["--http2", "--cacert", authority, &tls], "HTTP/2"),
    ] {
        let mut command = Command::new("curl");
        command
            .args([
                "--no-buffer",
                "--silent",
                "--show-error",
                "--include",
                "--max-time",
                "20",
            ])
            .args(&arguments);
        let curl = Process::spawn("curl", &mut command);
        prints(&curl, "retry: 3000").await;
        fixture
            .publish_named("orders.1.x", "created", "for curl")
            .await;
        prints(&curl, "data: for curl").await;
        let lines = curl.lines();
        assert!(
            lines[0].starts_with(&format!("{version} 200")),
            "{arguments:?}: {lines:?}"
        );
        assert!(lines.contains(&"event: created".to_owned()), "{lines:?}");
        drop(curl);
        fixture
            .sidestream
            .until_metric("sidestream_streams", &[], |streams| streams == 0.0)
            .await;
    }
}

#[tokio::test]
async fn nghttp_gets_events_and_the_proper_end_of_their_stream() {
    let fixture = Fixture::with_route("max_age: 500ms").await;
    let publishing = publish_numbers(&fixture.jetstream, "x", PAUSE);
    let mut nghttp = Process::spawn(
        "nghttp",
        Command::new("nghttp").arg(fixture.sidestream.url("/orders")),
    );
    assert!(nghttp.wait_exit(DEADLINE).await.success());
    publishing.abort();
    prints(&nghttp, "event: sidestream.close").await;
    assert!(
        nghttp.lines().iter().any(|line| line.starts_with("data: ")),
        "{:?}",
        nghttp.lines()
    );
    assert!(
        !nghttp.lines().iter().any(|line| line.contains("[ERROR]")),
        "{:?}",
        nghttp.lines()
    );
}

/// Number of connections of a client, and the numbers that it received.
fn connections_and_numbers(reports: &[Value]) -> (usize, Vec<u64>) {
    let lives = reports
        .iter()
        .filter(|report| report["kind"] == "open")
        .count();
    let events = reports.iter().filter(|report| report["name"] == "message");
    let numbers = events
        .map(|event| event["data"].as_str().unwrap().parse().unwrap())
        .collect();
    (lives, numbers)
}

/// Asserts that a client with three connections received every number once, in order, and the
/// reason of each end.
fn assert_nothing_missed(reports: &[Value]) {
    let (_, numbers) = connections_and_numbers(reports);
    assert_eq!(
        numbers,
        (numbers[0]..).take(numbers.len()).collect::<Vec<_>>()
    );
    let ids: Vec<_> = reports
        .iter()
        .filter(|report| report["name"] == "message")
        .map(|event| &event["id"])
        .collect();
    assert!(
        ids.iter()
            .all(|id| id.as_str().is_some_and(|id| id.split('-').count() == 3)),
        "{ids:?}"
    );
    assert!(
        reports
            .iter()
            .any(|report| report["name"] == "sidestream.close"),
        "a life ended with its reason"
    );
    assert!(
        !reports
            .iter()
            .any(|report| report["name"] == "sidestream.gap")
    );
}

#[tokio::test]
async fn chromium_is_handed_over_without_loss() {
    let page = Page::serve().await;
    let route = format!(
        "max_age: 500ms, retry: 100ms, cors: {{ origins: [\"{}\"] }}",
        page.origin()
    );
    let fixture = Fixture::with_route(&route).await;
    let publishing = publish_numbers(&fixture.jetstream, "x", PAUSE);
    let browser = page.open(
        &[&fixture.sidestream.url("/orders")],
        &["sidestream.close", "sidestream.gap"],
    );
    let fact = "Chromium has lived three times and seen a hundred events";
    let done = |reports: &[Value]| {
        let (lives, numbers) = connections_and_numbers(reports);
        lives >= 3 && numbers.len() > 100
    };
    assert_nothing_missed(&browser.until(fact, done).await);
    publishing.abort();
    let resumes = fixture
        .sidestream
        .metric("sidestream_resumes_total", &[("outcome", "window")])
        .await;
    assert!(resumes >= 2.0, "it came back with its id: {resumes}");
}

#[tokio::test]
async fn the_npm_package_eventsource_is_handed_over_without_loss() {
    let fixture = Fixture::with_route("max_age: 500ms, retry: 100ms").await;
    let publishing = publish_numbers(&fixture.jetstream, "x", PAUSE);
    let names = ["sidestream.close", "sidestream.gap"];
    let client = NodeClient::eventsource(&fixture.sidestream.url("/orders"), &names);
    let fact = "eventsource has lived three times and seen a hundred events";
    let done = |reports: &[Value]| {
        let (lives, numbers) = connections_and_numbers(reports);
        lives >= 3 && numbers.len() > 100
    };
    assert_nothing_missed(&client.until(fact, done).await);
    publishing.abort();
}

#[tokio::test]
async fn node_fetch_gets_the_status_of_a_rejection_and_a_browser_a_close_event() {
    let page = Page::serve().await;
    let cors = format!("cors: {{ origins: [\"{}\"] }}", page.origin());
    let routes = format!(
        "routes:\n  - path: /e\n    sources: [{{ stream: E, subjects: [\"e.>\"] }}]\n    {cors}"
    );
    // No NATS server listens there: every request gets a temporary rejection.
    let nowhere = format!("nats://127.0.0.1:{}", free_port());
    let sidestream = Sidestream::builder(config_for(&[nowhere], &routes))
        .without_waiting()
        .start()
        .await;
    let url = sidestream.url("/e");
    let is_closed = |report: &Value| {
        report["name"] == "sidestream.close" && report["data"].to_string().contains("overload")
    };

    let node = NodeClient::eventsource(&url, &["sidestream.close"]);
    let reports = node
        .until("eventsource has ended", |reports| {
            reports.iter().any(|report| report["state"] == 2)
        })
        .await;
    assert_eq!(
        reports.iter().find(|report| report["state"] == 2).unwrap()["code"],
        503,
        "{reports:?}"
    );
    let node = NodeClient::fetch_event_source(&url);
    let fact = "fetch-event-source has its status";
    let reports = node
        .until(fact, |reports| {
            reports.iter().any(|report| report["kind"] == "open")
        })
        .await;
    assert_eq!(reports[0]["status"], 503, "{reports:?}");

    let like_a_browser = NodeClient::eventsource(&url, &["sidestream.close", "--browser"]);
    like_a_browser
        .until("it has a close event", |reports| {
            reports.iter().any(is_closed)
        })
        .await;
    let browser = page.open(&[&url], &["sidestream.close"]);
    let reports = browser
        .until("Chromium has a close event", |reports| {
            reports.iter().any(is_closed)
        })
        .await;
    assert!(
        !reports.iter().any(|report| report["state"] == 2),
        "it comes back: {reports:?}"
    );
}

#[tokio::test]
async fn the_npm_package_eventsource_has_a_position_before_its_first_event_and_loses_nothing_in_a_crash()
 {
    let setting = Setting {
        route: "retry: 100ms",
        ..Setting::default()
    };
    let mut fixture = Fixture::with(setting).await;
    let proxy = Proxy::start(fixture.sidestream.address()).await;
    let url = format!("http://{}/orders", proxy.address());
    let names = ["sidestream.position", "sidestream.gap"];
    let client = NodeClient::eventsource(&url, &names);
    let at = |reports: &[Value], name: &str| {
        reports
            .iter()
            .filter(|report| report["name"] == name)
            .count()
    };
    client
        .until("it has a position", |reports| {
            at(reports, "sidestream.position") == 1
        })
        .await;
    // The package ends for good at a 503, the answer of a sidecar that is not connected to NATS
    // yet. As with a Service, no connection reaches the sidecar before it is ready.
    proxy.set(Fault {
        refuse: true,
        ..Fault::default()
    });
    fixture.sidestream.kill9();
    fixture
        .publish("orders.1.x", "published while the sidecar was away")
        .await;
    fixture.sidestream =
        Sidestream::start(config(&fixture.nats, &fixture.authority, setting)).await;
    proxy.forward_to(fixture.sidestream.address());
    proxy.set(Fault::default());
    let reports = client
        .until("it has an event", |reports| at(reports, "message") == 1)
        .await;
    let event = reports
        .iter()
        .find(|report| report["name"] == "message")
        .unwrap();
    assert_eq!(event["data"], "published while the sidecar was away");
    assert_eq!(at(&reports, "sidestream.gap"), 0);
}

#[tokio::test]
async fn sidestream_tail_continues_after_a_restart_of_the_sidecar() {
    let quick =
        "drain: { accept_for: 0s, spread: 0s, timeout: 2s, retry: { min: 50ms, max: 100ms } }";
    let setting = Setting {
        rest: quick,
        port: free_port(),
        ..Setting::default()
    };
    let mut fixture = Fixture::with(setting).await;
    let url = fixture.sidestream.url("/orders");
    let mut command = Command::new(binary());
    command
        .args(["tail", "--json", &url])
        .current_dir(Path::new("/"));
    let tail = Process::spawn("tail", &mut command);
    prints(&tail, "connected over HTTP/1.1").await;
    let publishing = publish_numbers(&fixture.jetstream, "x", PAUSE);
    prints(&tail, "\"data\":\"20\"").await;

    fixture.sidestream.terminate();
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    fixture.sidestream =
        Sidestream::start(config(&fixture.nats, &fixture.authority, setting)).await;

    let connected = || {
        tail.scan(0, |lines| {
            lines
                .iter()
                .filter(|line| line.contains("connected over"))
                .count()
        })
    };
    eventually(DEADLINE, "tail is back", || async { connected() == 2 }).await;
    let last = fixture
        .jetstream
        .get_stream("ORDERS")
        .await
        .unwrap()
        .cached_info()
        .state
        .last_sequence;
    prints(&tail, &format!("\"data\":\"{}\"", last + 20)).await;
    publishing.abort();
    let events: Vec<Value> = tail.scan(0, |lines| {
        lines
            .iter()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    });
    let numbers: Vec<u64> = events
        .iter()
        .map(|event| event["data"].as_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(
        numbers,
        (1..=numbers.len() as u64).collect::<Vec<_>>(),
        "every event once, in order"
    );
}
