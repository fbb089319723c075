//! The page on the admin port in Chromium, by the programs of `tests/page`.

use std::process::Command;
use std::time::Duration;

use testkit::nats::{Nats, create_stream};
use testkit::process::Process;
use testkit::repository::root;
use testkit::sidestream::{self, Sidestream};
use testkit::sse::SseClient;
use testkit::wait::eventually;

/// 60 s: Chromium takes seconds to start, and longer on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

const TOKEN: &str = "the-token-of-the-admin-port-2026";

/// Name of a client that is markup, if a page does not escape it.
const HOSTILE: &str = "<img src=x onerror=\"document.title='broken'\">";

const ROUTES: &str = r#"
presence: { bucket: presence }
drain: { accept_for: 1s, spread: 3s, timeout: 10s }
routes:
  - path: /events
    client: "{query.user}"
    sources: [{ stream: ORDERS, subjects: ["{query.subject}"], allow: ["orders.>"] }]
"#;

/// Starts a program of `tests/page` with the URL of the page.
fn script(name: &str, sidestream: &Sidestream) -> Process {
    let folder = root().join("tests/page");
    assert!(
        folder.join("node_modules").exists(),
        "Playwright is not installed: run `make tools`"
    );
    let mut command = Command::new("node");
    command
        .arg(folder.join(name))
        .args([&sidestream.url_admin("/"), TOKEN, HOSTILE])
        .env_remove("NODE_OPTIONS");
    Process::spawn(name, &mut command)
}

async fn start(nats: &Nats) -> Sidestream {
    create_stream(&nats.jetstream().await, "ORDERS", &["orders.>"]).await;
    let admin = format!("admin:\n  tap: true\n  token: {TOKEN}\n");
    Sidestream::start(sidestream::config(nats, ROUTES).replace("admin:\n", &admin)).await
}

async fn connect(sidestream: &Sidestream, user: &str) -> SseClient {
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("user", user)
        .append_pair("subject", "orders.>")
        .finish();
    let mut client = SseClient::get(sidestream.url(&format!("/events?{query}")))
        .connect()
        .await;
    client.positioned().await;
    client
}

/// Waits for a line of a program.
async fn until_line(process: &Process, line: &str) {
    eventually(
        DEADLINE,
        &format!("the program writes {line:?}"),
        || async { process.lines().iter().any(|found| found == line) },
    )
    .await;
}

async fn ends_well(mut process: Process) {
    let status = process.wait_exit(DEADLINE).await;
    assert!(status.success(), "{:#?}", process.lines());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_in_a_browser_finds_clients_taps_a_route_and_is_accessible() {
    let nats = Nats::start().await;
    let sidestream = start(&nats).await;
    let _clients = [
        connect(&sidestream, "alice").await,
        connect(&sidestream, HOSTILE).await,
    ];
    let page = script("page.js", &sidestream);
    until_line(&page, "tapping").await;
    let payload = format!("{{\"note\":{HOSTILE:?}}}");
    let jetstream = nats.jetstream().await;
    testkit::nats::publish(&jetstream, "orders.42.paid", [payload]).await;
    ends_well(page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_in_a_browser_follows_a_drain_to_its_end() {
    let nats = Nats::start().await;
    let mut sidestream = start(&nats).await;
    let mut clients = Vec::new();
    for number in 0..12 {
        clients.push(connect(&sidestream, &format!("user-{number}")).await);
    }
    let page = script("drain.js", &sidestream);
    until_line(&page, "watching").await;
    sidestream.terminate();
    assert_eq!(sidestream.wait_exit(DEADLINE).await, 0);
    ends_well(page).await;
}
