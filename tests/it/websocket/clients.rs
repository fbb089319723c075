//! Clients that applications use: the npm package `ws`, and Chromium.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Fixture;
use testkit::browser::Page;
use testkit::node::NodeClient;
use testkit::proxy::Proxy;

/// Script of a page: it reconnects, and resumes from the last id.
const SCRIPT: &str = r#"
const url = new URL("WS_URL");
let position = "";
function connect() {
  if (position) url.searchParams.set("last_event_id", position);
  const socket = new WebSocket(url, "sidestream.v1");
  let retry = 300;
  socket.onopen = () => report({ kind: "open", protocol: socket.protocol });
  socket.onmessage = ({ data }) => {
    const object = JSON.parse(data);
    position = object.id ?? position;
    if (object.control === "close") retry = object.retry;
    report(object.control ? { kind: "control", ...object } : { kind: "event", data: object.data });
  };
  socket.onclose = ({ code, reason, wasClean }) => {
    report({ kind: "close", code, reason, wasClean });
    setTimeout(connect, retry);
  };
}
connect();
"#;

fn numbers(reports: &[Value]) -> Vec<u64> {
    reports
        .iter()
        .filter(|report| report["kind"] == "event")
        .map(|report| report["data"].as_u64().unwrap())
        .collect()
}

fn count(reports: &[Value], kind: &str) -> usize {
    reports
        .iter()
        .filter(|report| report["kind"] == kind)
        .count()
}

/// Publishes numbers until there are 30, and ends the first pod after ten. Another pod continues.
#[tokio::test]
async fn npm_package_ws_receives_events_pings_and_pongs_and_continues_after_a_drain() {
    let mut fixture = Fixture::start().await;
    let proxy = Proxy::start(fixture.sidestream.address()).await;
    let client = NodeClient::websocket(&format!("ws://{}/orders", proxy.address()));
    client
        .until("ping and pong", |reports| {
            count(reports, "ping") > 0 && count(reports, "pong") > 0
        })
        .await;
    fixture.publish_across_a_drain(&proxy).await;
    let reports = client
        .until("all events", |reports| numbers(reports).len() >= 30)
        .await;
    assert_eq!(numbers(&reports), (0..30).collect::<Vec<_>>());
    let close = reports.iter().find(|report| report["kind"] == "close");
    let close = close.unwrap();
    assert_eq!(
        (&close["code"], &close["reason"]),
        (&1001.into(), &"drain".into())
    );
    let protocols: BTreeSet<_> = reports
        .iter()
        .filter_map(|report| report["protocol"].as_str())
        .collect();
    assert_eq!(protocols, BTreeSet::from(["sidestream.v1"]));
}

#[tokio::test]
async fn chromium_receives_events_and_continues_on_another_pod_after_a_drain() {
    let page = Page::serve().await;
    let mut fixture = Fixture::with_origin(&page.origin()).await;
    let proxy = Proxy::start(fixture.sidestream.address()).await;
    let url = format!("ws://{}/orders", proxy.address());
    let browser = page.run(&SCRIPT.replace("WS_URL", &url));
    browser
        .until("the position", |reports| {
            reports.iter().any(|report| report["control"] == "position")
        })
        .await;
    fixture.publish_across_a_drain(&proxy).await;
    let reports = browser
        .until("all events", |reports| numbers(reports).len() >= 30)
        .await;
    assert_eq!(numbers(&reports), (0..30).collect::<Vec<_>>());
    let close = reports.iter().find(|report| report["kind"] == "close");
    let close = close.unwrap();
    assert_eq!(close["code"], 1001, "{close}");
    assert_eq!(close["reason"], "drain");
    assert_eq!(close["wasClean"], true);
}

#[tokio::test]
async fn chromium_opens_a_websocket_over_http2_with_tls() {
    let page = Page::serve().await;
    let fixture = Fixture::with_origin(&page.origin()).await;
    let url = fixture.sidestream.url_tls("/orders");
    // A request before it opens the HTTP/2 connection that the WebSocket then uses.
    let script = SCRIPT.replace("WS_URL", &url.replace("https://", "wss://")).replace(
        "\nconnect();",
        &format!("\nfetch(\"{url}\", {{ credentials: \"include\", headers: {{ Accept: \"application/json\" }} }}).then(connect, connect);"),
    );
    let browser = page.run(&script);
    browser
        .until("the position", |reports| {
            reports.iter().any(|report| report["control"] == "position")
        })
        .await;
    let labels = [("protocol", "h2"), ("framing", "websocket")];
    let open = fixture.sidestream.metric("sidestream_streams", &labels);
    assert_eq!(open.await, 1.0);
    fixture.publish("orders.1", "1").await;
    browser
        .until("the event", |reports| numbers(reports) == [1])
        .await;
}
