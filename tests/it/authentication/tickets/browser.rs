//! The page of the manual in Chromium: an EventSource of another origin with tickets.

use testkit::browser::Page;

use super::super::{Fixture, token};
use super::another_pod_with;

/// Script of the section about tickets in the manual.
fn script() -> &'static str {
    let page = include_str!("../../../../docs/authentication.md");
    let section = page
        .split("\n## Tickets for a cross-origin EventSource")
        .nth(1)
        .unwrap();
    let script = section.split("```js\n").nth(1).unwrap();
    script.split("```").next().unwrap()
}

#[tokio::test]
async fn chromium_reopens_its_event_source_with_new_tickets_and_loses_nothing() {
    const COUNT: u32 = 400;
    let page = Page::serve().await;
    let origin = page.origin();
    let routes = format!(
        "routes:
  - path: /orders
    authenticate: [idp]
    max_age: 2s
    retry: 100ms
    cors: {{ origins: [\"{origin}\"] }}
    sources: [{{ stream: ORDERS, subjects: [\"orders.{{claim.sub}}.>\"] }}]
"
    );
    let tickets = format!(
        "  tickets: {{ path: /tickets, bucket: tickets, authenticate: [idp], cors: {{ origins: [\"{origin}\"] }} }}\n"
    );
    let fixture = Fixture::with(&routes, &tickets).await;
    let other = another_pod_with(&fixture, &routes, &tickets).await;
    let follow = script()
        .replace(
            "https://events.example.com/tickets",
            &fixture.sidestream.url("/tickets"),
        )
        .replace(
            "https://events.example.com/events/orders",
            &other.url("/orders"),
        );
    let token = token("alice");
    let browser = page.run(&format!(
        "{follow}
const token = async () => \"{token}\";
follow((event) => report({{ kind: \"event\", data: event.data }}));
report({{ kind: \"started\" }});"
    ));
    let opened = "sidestream_streams_opened_total";
    let is_open = |value| value >= 1.0;
    let deadline = std::time::Duration::from_secs(60);
    (other.until_metric_within(deadline, opened, &[], is_open)).await;
    for number in 0..COUNT {
        fixture
            .publish("orders.alice.paid", number.to_string())
            .await;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let count = |reports: &[serde_json::Value]| {
        let events = reports.iter().filter(|report| report["kind"] == "event");
        events.count() >= COUNT as usize
    };
    let reports = browser.until("every event", count).await;
    let events: Vec<u32> = (reports.iter())
        .filter(|report| report["kind"] == "event")
        .map(|report| report["data"].as_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(events, (0..COUNT).collect::<Vec<_>>());
    let streams = other.metric(opened, &[]).await;
    assert!(streams >= 3.0, "{streams}");
    let redeemed = [("result", "redeemed")];
    assert_eq!(other.metric(super::REDEMPTIONS, &redeemed).await, streams);
}
