//! A real browser that comes back: everything from the archive; and an EventSource that outlives an expired position.

use serde_json::Value;

use crate::support::browser::{Browser, Page};
use crate::{Stage, texts};

/// A stream of 300 messages and a route for the page's origin.
async fn stage(page: &Page) -> Stage {
    let route = format!(
        "  - {{ path: /page, sources: [{{ stream: A, subjects: [\"a.>\"] }}], window: {{ events: 20 }}, cors: {{ origins: [\"{}\"] }} }}",
        page.origin()
    );
    Stage::with_routes(300, &route).await
}

/// What the page has seen, in order; gaps as `gap:reason`.
fn seen(reports: &[Value]) -> Vec<String> {
    let events = reports.iter().filter(|report| report["kind"] == "event");
    events
        .map(|event| {
            let data = event["data"].as_str().unwrap();
            if event["name"] == "message" {
                return data.to_owned();
            }
            let gap: Value = serde_json::from_str(data).unwrap();
            format!("gap:{}", gap["reason"].as_str().unwrap())
        })
        .collect()
}

/// Waits until the page has this many events; publishes one more, and waits for that.
async fn read(stage: &Stage, browser: &Browser, count: usize) -> Vec<String> {
    browser.until("the page has the past", |reports| seen(reports).len() >= count).await;
    stage.publish("a.end", "end").await;
    seen(&browser.until("the page is live", |reports| seen(reports).iter().any(|text| text == "end")).await)
}

#[tokio::test]
async fn chromium_resumes_from_the_archive() {
    let page = Page::serve().await;
    let stage = stage(&page).await;
    let ids = stage.ids().await;
    let url = stage.sidestream.url(&format!("/page?last_event_id={}", ids[99]));
    let browser = page.open(&[&url], &["sidestream.gap"]);
    let expected = [texts(101, 300), vec!["end".to_owned()]].concat();
    assert_eq!(read(&stage, &browser, 200).await, expected);
}

#[tokio::test]
async fn chromium_is_told_that_its_position_expired_and_goes_on() {
    let page = Page::serve().await;
    let stage = stage(&page).await;
    let ids = stage.ids().await;
    stage.stream.purge().sequence(251).await.unwrap();
    let url = stage.sidestream.url(&format!("/page?last_event_id={}", ids[99]));
    let browser = page.open(&[&url], &["sidestream.gap"]);
    let expected = [vec!["gap:expired".to_owned()], texts(251, 300), vec!["end".to_owned()]].concat();
    assert_eq!(read(&stage, &browser, 51).await, expected);
}
