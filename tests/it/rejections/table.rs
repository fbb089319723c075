//! Every rejection code: status, body, headers and metric, over HTTP/1 and HTTP/2.

use serde_json::Value;

use super::fixture::Fixture;
use testkit::h2::H2Client;
use testkit::h2_tap::DATA;
use testkit::http1::{self, Answer, End};
use testkit::nats::{Nats, free_port};
use testkit::sidestream::{Sidestream, config_for};
use testkit::sse::SseClient;

/// Request with a permanent rejection: method, target, headers, status, code.
type Row = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    u16,
    &'static str,
);

const ROWS: [Row; 17] = [
    ("GET", "/nowhere", &[], 404, "not_found"),
    ("GET", "/", &[], 404, "not_found"),
    ("GET", "/orders", &[], 404, "not_found"),
    ("GET", "/orders/1/2", &[], 404, "not_found"),
    ("POST", "/orders/1", &[], 405, "method_not_allowed"),
    ("PUT", "/orders/1", &[], 405, "method_not_allowed"),
    ("DELETE", "/orders/1", &[], 405, "method_not_allowed"),
    ("PATCH", "/orders/1", &[], 405, "method_not_allowed"),
    ("TRACE", "/orders/1", &[], 405, "method_not_allowed"),
    ("BREW", "/orders/1", &[], 405, "method_not_allowed"),
    (
        "GET",
        "/orders/1",
        &[("accept", "application/json")],
        406,
        "not_acceptable",
    ),
    (
        "GET",
        "/orders/1",
        &[("accept", "text/html, text/event-stream;q=0")],
        406,
        "not_acceptable",
    ),
    ("GET", "/orders/a.b", &[], 400, "bad_variable"),
    ("GET", "/tenant", &[], 400, "bad_variable"),
    ("GET", "/events?subject=orders..x", &[], 400, "bad_subject"),
    (
        "GET",
        "/events?subject=secret.x",
        &[],
        403,
        "subject_not_allowed",
    ),
    (
        "GET",
        "/any?subject=a&subject=b&subject=c&subject=d&subject=e",
        &[],
        400,
        "too_many_subjects",
    ),
];

pub(crate) fn assert_explained(body: &str, code: &str, case: &str) {
    let body: Value =
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{case}: {error} in {body:?}"));
    let error = &body["error"];
    assert_eq!(error["code"], code, "{case}");
    for part in ["message", "hint"] {
        assert!(
            error[part].as_str().is_some_and(|text| !text.is_empty()),
            "{case}: {part} in {body}"
        );
    }
}

#[tokio::test]
async fn each_rejection_has_its_status_reason_hint_and_metric() {
    let fixture = Fixture::start("limits: { subjects_per_request: 4 }").await;
    let mut h2 = H2Client::connect(fixture.sidestream.url("/")).await;
    for (method, target, headers, status, code) in ROWS {
        let case = format!("{method} {target} {headers:?}");
        let before = fixture.refused(code).await;
        let answer = http1::request(method, &fixture.sidestream.url(target), headers)
            .await
            .unwrap();
        assert_eq!(answer.status, status, "{case}");
        assert_eq!(answer.end, End::Terminated, "{case}");
        assert_eq!(
            answer.header("content-type").as_deref(),
            Some("application/json"),
            "{case}"
        );
        assert_eq!(
            answer.header("cache-control").as_deref(),
            Some("no-store"),
            "{case}"
        );
        assert_eq!(answer.header("allow").is_some(), status == 405, "{case}");
        assert_eq!(answer.header("retry-after"), None, "{case}");
        assert_explained(&answer.body, code, &case);

        let mut answer = h2.request(method, target, headers).await;
        assert_eq!(answer.status(), status, "{case} over HTTP/2");
        assert_eq!(answer.header("connection"), None, "{case} over HTTP/2");
        assert_eq!(
            answer.header("allow").is_some(),
            status == 405,
            "{case} over HTTP/2"
        );
        assert_explained(&answer.body().await, code, &case);
        assert_eq!(fixture.refused(code).await, before + 2.0, "{case}: counted");
    }
    drop(h2);
    fixture.finish().await;
}

#[tokio::test]
async fn a_permanent_rejection_is_a_status_to_browsers_too_and_head_gets_its_headers() {
    let fixture = Fixture::start("").await;
    let url = |target: &str| fixture.sidestream.url(target);
    let browser = SseClient::get(url("/nowhere")).browser().connect().await;
    assert_eq!(browser.status(), 404);
    let head = SseClient::get(url("/orders/1")).head().connect().await;
    assert_eq!(
        (head.status(), head.header("content-type").as_deref()),
        (200, Some("text/event-stream"))
    );
    let head = SseClient::get(url("/orders/a.b")).head().connect().await;
    assert_eq!(head.status(), 400);
    let options = http1::request("OPTIONS", &url("/orders/1"), &[])
        .await
        .unwrap();
    assert_eq!(
        (options.status, options.header("allow").as_deref()),
        (204, Some("GET, HEAD, OPTIONS"))
    );
    drop((browser, head));
    fixture.finish().await;
}

/// Asserts that a response to HEAD over HTTP/2 has no DATA frame, which some clients treat as a
/// protocol error.
async fn assert_only_a_head(
    connection: &mut H2Client,
    target: &str,
    headers: &[(&str, &str)],
    status: u16,
) {
    let mut answer = connection.request("HEAD", target, headers).await;
    assert_eq!(answer.status(), status, "HEAD {target} {headers:?}");
    assert_eq!(answer.body().await, "", "HEAD {target} {headers:?}");
    let content = connection
        .frames()
        .into_iter()
        .filter(|frame| frame.kind == DATA && frame.id == answer.id())
        .count();
    assert_eq!(content, 0, "HEAD {target} {headers:?}");
}

#[tokio::test]
async fn head_over_http_2_has_no_content_whatever_its_status() {
    let fixture = Fixture::start("limits: { subjects_per_request: 4 }").await;
    let mut h2 = H2Client::connect(fixture.sidestream.url("/")).await;
    assert_only_a_head(&mut h2, "/orders/1", &[], 200).await;
    for (method, target, headers, status, _) in ROWS {
        if method == "GET" {
            assert_only_a_head(&mut h2, target, headers, status).await;
        }
    }
    // The connection continues.
    assert_eq!(h2.get("/nowhere").await.status(), 404);
    drop(h2);
    fixture.finish().await;
}

#[tokio::test]
async fn head_over_http_2_has_no_content_without_nats() {
    let nobody = format!("nats://127.0.0.1:{}", free_port());
    let routes = "routes:\n  - path: /e\n    sources: [{ stream: E, subjects: [\"e.{query.x}\"] }]";
    let sidestream = Sidestream::builder(config_for(&[nobody], routes))
        .without_waiting()
        .start()
        .await;
    for headers in [
        &[][..],
        &[
            ("user-agent", "Mozilla/5.0 (X11)"),
            ("accept", "text/event-stream"),
        ],
    ] {
        let mut h2 = H2Client::connect(sidestream.url("/")).await;
        // HEAD opens no event stream, so it does not need NATS.
        assert_only_a_head(&mut h2, "/e?x=1", headers, 200).await;
        assert_only_a_head(&mut h2, "/e", headers, 400).await;
    }
}

/// Asserts the response of a temporary rejection to a program and to a browser.
pub(crate) async fn assert_passing(
    sidestream: &Sidestream,
    target: &str,
    code: &str,
    reason: &str,
) {
    let url = sidestream.url(target);
    let before = sidestream
        .metric("sidestream_refusals_total", &[("code", code)])
        .await;
    let answer: Answer = http1::get(&url).await.unwrap();
    assert_eq!(answer.status, 503, "{code}: {}", answer.body);
    assert_explained(&answer.body, code, code);
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=10).contains(&wait), "{wait}");
    assert_eq!(answer.header("connection").as_deref(), Some("close"));
    // The `fetch` of Node, the `fetch` of a page, and a page that asks for lines: none is an
    // EventSource of a browser.
    let node = SseClient::get(&url)
        .header("Sec-Fetch-Mode", "cors")
        .header("User-Agent", "node");
    let page = SseClient::bare(&url)
        .header("Accept", "*/*")
        .header("User-Agent", "Mozilla/5.0 (X11)");
    let lines = SseClient::bare(&url)
        .header("Accept", "application/x-ndjson, text/event-stream;q=0.5")
        .header("User-Agent", "Mozilla/5.0 (X11)");
    for request in [node, page, lines] {
        assert_eq!(
            request.connect().await.status(),
            503,
            "{code}: Accept and User-Agent make a browser"
        );
    }
    // Over plain HTTP a browser sends no `Sec-Fetch-*`; over TLS it does.
    let plain = SseClient::get(&url).header("User-Agent", "Mozilla/5.0 (X11)");
    let secure = SseClient::get(&url).browser();
    for request in [plain, secure] {
        let mut browser = request.connect().await;
        assert_eq!(
            browser.status(),
            200,
            "{code}: any other status ends an EventSource for good"
        );
        assert_eq!(
            browser.header("content-type").as_deref(),
            Some("text/event-stream")
        );
        assert_eq!(browser.header("connection").as_deref(), Some("close"));
        let event = browser.next().await;
        let data: Value = serde_json::from_str(&event.data).unwrap();
        assert_eq!(
            (event.name.as_str(), data["reason"].as_str()),
            ("sidestream.close", Some(reason))
        );
        assert_eq!(
            data["retry"].as_u64(),
            browser.retry(),
            "both have the retry delay"
        );
        assert!(
            browser
                .retry()
                .is_some_and(|retry| (1_000..=10_000).contains(&retry))
        );
        assert_eq!(browser.closed().await, End::Terminated);
        assert!(browser.fin().await, "it ends at once");
    }
    let after = sidestream
        .metric("sidestream_refusals_total", &[("code", code)])
        .await;
    assert_eq!(after, before + 6.0, "{code}: counted");
}

#[tokio::test]
async fn a_temporary_rejection_is_a_503_to_programs_and_a_short_event_stream_to_browsers() {
    // No server listens on that port.
    let nobody = format!("nats://127.0.0.1:{}", free_port());
    let routes = "routes:\n  - path: /e\n    sources: [{ stream: E, subjects: [\"e.>\"] }]";
    let sidestream = Sidestream::builder(config_for(&[nobody], routes))
        .without_waiting()
        .start()
        .await;
    assert_passing(&sidestream, "/e", "nats_not_connected", "overload").await;
    let (ready, _) = sidestream.admin("/health/ready").await;
    assert_eq!(ready, 503);
    let (live, _) = sidestream.admin("/health/live").await;
    assert_eq!(live, 200);
}

#[tokio::test]
async fn a_core_route_rejects_clients_without_nats() {
    let mut nats = Nats::start().await;
    let routes = "routes:\n  - path: /e\n    sources: [{ subjects: [\"e.>\"] }]";
    let sidestream = Sidestream::start(config_for(&[nats.url()], routes)).await;
    nats.kill9();
    sidestream
        .until_metric("sidestream_nats_connected", &[], |up| up == 0.0)
        .await;
    let answer = http1::get(&sidestream.url("/e")).await.unwrap();
    assert_eq!(answer.status, 503);
    assert_explained(&answer.body, "nats_not_connected", "core");
}
