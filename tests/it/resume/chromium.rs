//! Chromium resuming with every kind of position: the EventSource gets later events or a gap, and
//! stays open.

use serde_json::Value;

use super::{Fixture, texts};
use testkit::browser::Page;

/// A stream of `count` messages, and a route for the origin of the page.
pub(crate) async fn fixture(page: &Page, count: u64) -> Fixture {
    let route = format!(
        "  - {{ path: /page, sources: [{{ stream: A, subjects: [\"a.>\"] }}], window: {{ events: 20 }}, cors: {{ origins: [\"{}\"] }} }}",
        page.origin()
    );
    Fixture::with_routes(count, &route).await
}

/// Events of one EventSource of the page, in order; gaps as `gap:reason`.
fn seen(reports: &[Value], source: usize) -> Vec<String> {
    let events = reports
        .iter()
        .filter(|report| report["kind"] == "event" && report["source"] == source);
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

/// Opens an EventSource at each id, waits for the expected events, publishes one more, and
/// compares.
pub(crate) async fn show(fixture: &Fixture, page: Page, cases: &[(String, Vec<String>)]) {
    // A browser opens six connections per host: the other half uses another name of the host.
    let by_name = |url: &str| url.replacen("127.0.0.1", "localhost", 1);
    let urls: Vec<String> = (cases.iter().enumerate())
        .map(|(number, (id, _))| {
            let url = fixture.sidestream.url(&format!("/page?last_event_id={id}"));
            if number < 6 { url } else { by_name(&url) }
        })
        .collect();
    assert!(urls.len() <= 12, "the browser would not open more");
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let browser = page.open(&urls, &["sidestream.gap"]);
    let is_open = |reports: &[Value], source: usize| {
        reports
            .iter()
            .any(|report| report["kind"] == "open" && report["source"] == source)
    };
    browser
        .until("every EventSource is open", |reports| {
            (0..cases.len()).all(|source| is_open(reports, source))
        })
        .await;
    fixture.publish("a.end", "end").await;
    let at_end = |reports: &[Value], source| seen(reports, source).iter().any(|text| text == "end");
    let reports = browser
        .until("every EventSource is live", |reports| {
            (0..cases.len()).all(|one| at_end(reports, one))
        })
        .await;
    for (source, (id, expected)) in cases.iter().enumerate() {
        let expected: Vec<String> = expected.iter().cloned().chain(["end".to_owned()]).collect();
        assert_eq!(seen(&reports, source), expected, "{id}");
    }
}

#[tokio::test]
async fn chromium_resumes_at_every_position_and_gets_a_gap_for_lost_events() {
    let page = Page::serve().await;
    let fixture = fixture(&page, 300).await;
    let ids = fixture.ids().await;
    fixture.stream.purge().sequence(101).await.unwrap();
    fixture.stream.delete_message(150).await.unwrap();
    fixture.knows_expired(99).await;
    let tag = ids[0].split('-').next().unwrap();
    let gap = |reason: &str| vec![format!("gap:{reason}")];
    let past = |first| {
        texts(first, 300)
            .into_iter()
            .filter(|text| text != "150")
            .collect::<Vec<_>>()
    };
    let other_check = format!("{}-0000000", ids[199].rsplit_once('-').unwrap().0);
    let cases = [
        (ids[289].clone(), past(291)),  // In the window.
        (ids[120].clone(), past(122)),  // Only in the archive.
        (ids[99].clone(), past(101)),   // first_seq - 1
        (ids[100].clone(), past(102)),  // first_seq
        (ids[299].clone(), Vec::new()), // last_seq
        (ids[149].clone(), past(151)),  // At a deleted message.
        (ids[49].clone(), [gap("expired"), past(101)].concat()), // Below retention.
        (format!("{tag}-301"), gap("ahead")), // Ahead of the stream.
        (other_check, gap("recreated")), // Another message at this number.
        (ids[249].replacen(tag, "abcdef", 1), gap("recreated")), // Another stream's.
        ("%00".to_owned(), gap("invalid")), // NUL.
        ("9".repeat(5_000), gap("invalid")), // Garbage, and much of it.
    ];
    show(&fixture, page, &cases).await;
}

#[tokio::test]
async fn chromium_gets_a_gap_after_a_purge_and_after_a_recreated_stream() {
    let page = Page::serve().await;
    let fixture = fixture(&page, 300).await;
    let ids = fixture.ids().await;
    fixture.stream.purge().await.unwrap();
    fixture.knows_expired(200).await;
    let cases = [
        (ids[199].clone(), vec!["gap:expired".to_owned()]),
        (ids[299].clone(), Vec::new()),
    ];
    show(&fixture, page, &cases).await;

    let page = Page::serve().await;
    let fixture = self::fixture(&page, 100).await;
    let ids = super::recreated::recreate_stream(&fixture, 30).await;
    show(
        &fixture,
        page,
        &[(ids[49].clone(), vec!["gap:recreated".to_owned()])],
    )
    .await;
}
