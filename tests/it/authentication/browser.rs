//! Chromium whose session ends, and begins again while its EventSource waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use testkit::browser::Page;

use super::Fixture;
use super::token::Token;

/// Route for the page of an origin.
fn route(origin: &str) -> String {
    format!(
        "routes:
  - path: /orders
    authenticate: [idp]
    retry: 500ms
    sources: [{{ stream: ORDERS, subjects: [\"orders.>\"] }}]
    cors: {{ origins: [\"{origin}\"], credentials: true }}
"
    )
}

#[tokio::test]
async fn chromium_with_an_expired_cookie_waits_and_misses_nothing_after_a_new_login() {
    // The first session ends after some seconds, and the application does not renew it: the cookie
    // of the renewal has expired already. The third one is that of the new login.
    let sessions = Arc::new(AtomicUsize::new(0));
    let page = Page::serve_with_session(Arc::new(move || {
        let seconds = match sessions.fetch_add(1, Ordering::Relaxed) {
            0 => 10,
            1 => -60,
            _ => 3600,
        };
        let token = Token::of("alice").expires_in(seconds).signed();
        Box::pin(std::future::ready(token))
    }))
    .await;
    let fixture = Fixture::with(&route(&page.origin()), "").await;
    let names = ["sidestream.gap", "sidestream.close", "sidestream.renew"];
    let browser = page.open(&[&fixture.sidestream.url("/orders")], &names);
    let opened = |reports: &[Value], count: usize| {
        let opened = reports.iter().filter(|report| report["kind"] == "open");
        opened.count() >= count
    };
    let first = browser.until("it is open", |reports| opened(reports, 1));
    first.await;
    let is_closed = |reports: &[Value], reason: &str| {
        let closed = reports
            .iter()
            .filter(|report| report["name"] == "sidestream.close");
        closed
            .filter_map(|report| report["data"].as_str())
            .any(|data| data.contains(reason))
    };
    fixture.publish("orders.1.paid", "1").await;
    let unauthenticated = browser.until("the session has ended", |reports| {
        is_closed(reports, "\"unauthenticated\"")
    });
    unauthenticated.await;
    // Published while the EventSource waits.
    fixture.publish("orders.1.paid", "2").await;
    let returned = browser.until("it has returned", |reports| opened(reports, 3));
    returned.await;
    fixture.publish("orders.1.paid", "3").await;
    let reports = browser
        .until("it has every event", |reports| {
            reports.iter().any(|report| report["data"] == "3")
        })
        .await;

    let of_name = |name: &'static str| {
        let named = reports.iter().filter(move |report| report["name"] == name);
        named.map(|report| report["data"].as_str().unwrap().to_owned())
    };
    assert_eq!(of_name("message").collect::<Vec<_>>(), ["1", "2", "3"]);
    assert_eq!(of_name("sidestream.renew").count(), 1);
    let closes: Vec<_> = of_name("sidestream.close").collect();
    assert_eq!(closes.len(), 2, "{closes:?}");
    assert!(closes[0].contains("\"expired\""), "{closes:?}");
    // A closed EventSource has the state 2, and does not return.
    let dead = reports.iter().find(|report| report["state"] == 2);
    assert_eq!(dead, None);
    let opened: Vec<_> = reports
        .iter()
        .filter(|report| report["kind"] == "open")
        .map(|report| Duration::from_millis(report["at"].as_u64().unwrap()))
        .collect();
    assert_eq!(opened.len(), 3, "{opened:?}");
    let waited = opened[2] - opened[1];
    assert!(waited >= Duration::from_secs(15), "{waited:?}");
    let labels = [("code", "invalid_token")];
    let rejected = fixture
        .sidestream
        .metric("sidestream_refusals_total", &labels);
    assert_eq!(rejected.await, 1.0, "one request in all that time");
}
