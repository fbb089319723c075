//! Answers that are used again: only for the same request, and only as long as permitted.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use testkit::endpoint::Reply;
use testkit::http1;
use testkit::wait::{DEADLINE, eventually};

use super::{App, sessions};

/// Path, header fields, and whether the endpoint is asked.
type Row = (&'static str, &'static [(&'static str, &'static str)], bool);

const ALICE: (&str, &str) = ("Cookie", "session=alice");

#[tokio::test]
async fn answer_is_used_only_for_a_request_that_asks_the_same() {
    let app = App::start("cache: { for: 1h },", sessions).await;
    let mut calls = 0;
    let rows: [Row; 13] = [
        ("/events/a", &[ALICE], true),
        ("/events/a", &[ALICE], false),
        ("/events/a?last_event_id=1", &[ALICE], false),
        ("/events/a?lastEventId=2", &[ALICE, ("X-Other", "1")], false),
        ("/events/b", &[ALICE], true),
        ("/events/a?x=1", &[ALICE], true),
        ("/events/a?x=1&last_event_id=1", &[ALICE], false),
        ("/events/a", &[ALICE, ("Cookie", "a=1")], true),
        ("/events/a", &[ALICE, ("Authorization", "Basic YTpi")], true),
        ("/events/a", &[ALICE, ("Authorization", "")], true),
        (
            "/events/a",
            &[ALICE, ("X-Forwarded-For", "192.0.2.7")],
            true,
        ),
        ("/events/a", &[ALICE, ("X-Forwarded-Proto", "https")], true),
        (
            "/events/a",
            &[ALICE, ("X-Forwarded-Host", "b.example")],
            true,
        ),
    ];
    for (path, headers, is_new) in rows {
        assert_eq!(app.head(path, headers).await.status, 200, "{path}");
        calls += usize::from(is_new);
        assert_eq!(app.endpoint.calls().len(), calls, "{path} {headers:?}");
    }
    let url = app.fixture.sidestream.url("/events/a");
    let answer = http1::request("HEAD", &url, &[("Cookie", "session=bob")]).await;
    assert_eq!(answer.unwrap().status, 200);
    assert_eq!(app.endpoint.calls().len(), calls + 1, "another cookie");
    let request = app.fixture.get("/events/a").header(ALICE.0, ALICE.1);
    assert_eq!(request.connect().await.status(), 200);
    assert_eq!(app.endpoint.calls().len(), calls + 2, "another method");
    assert_eq!(app.count("cached").await, 4.0);
    assert_eq!(app.endpoint.connections(), 1, "its connection is kept");
}

#[tokio::test]
async fn answer_for_one_path_is_never_the_answer_for_another() {
    let app = App::start("cache: { for: 1h },", |call| {
        if call.header("x-forwarded-uri").starts_with("/events/a") {
            return sessions(call);
        }
        Reply::status(403)
    })
    .await;
    for _ in 0..3 {
        assert_eq!(app.head("/events/a", &[ALICE]).await.status, 200);
        assert_eq!(app.head("/events/b", &[ALICE]).await.status, 403);
    }
}

#[tokio::test]
async fn answer_is_used_no_longer_than_the_configuration_and_the_endpoint_permit() {
    for (settings, cache_control, shortest) in [
        ("cache: { for: 300ms },", "max-age=3600", 250),
        ("cache: { for: 1h },", "private, max-age=1", 950),
    ] {
        let app = App::start(settings, move |call| {
            sessions(call).header("Cache-Control", cache_control)
        })
        .await;
        let begun = Instant::now();
        assert_eq!(app.status("alice").await, 200);
        eventually(DEADLINE, "the endpoint is asked again", async || {
            assert_eq!(app.status("alice").await, 200);
            app.endpoint.calls().len() == 2
        })
        .await;
        assert!(
            begun.elapsed() >= Duration::from_millis(shortest),
            "{settings}"
        );
        assert!(app.count("cached").await >= 1.0, "{settings}");
    }
}

#[tokio::test]
async fn rejections_and_answers_that_must_not_be_stored_are_not_used_again() {
    for cache_control in ["no-store", "private, no-cache", "max-age=0"] {
        let app = App::start("cache: { for: 1h },", move |call| {
            sessions(call).header("Cache-Control", cache_control)
        })
        .await;
        for calls in 1..=3 {
            assert_eq!(app.status("alice").await, 200);
            assert_eq!(app.endpoint.calls().len(), calls, "{cache_control}");
        }
    }
    let app = App::start("cache: { for: 1h },", sessions).await;
    for calls in 1..=3 {
        assert_eq!(app.status("expired").await, 401);
        assert_eq!(app.endpoint.calls().len(), calls);
    }
    let app = App::start("cache: null,", sessions).await;
    for calls in 1..=3 {
        assert_eq!(app.status("alice").await, 200);
        assert_eq!(app.endpoint.calls().len(), calls);
    }
}

#[tokio::test]
async fn hundred_equal_requests_at_once_cause_one_call() {
    for (session, cache_control, expected) in [
        ("alice", "private", 1),
        ("expired", "private", 1),
        // Each request asks itself.
        ("alice", "no-store", 100),
    ] {
        let app = App::start("", move |call| {
            sessions(call)
                .header("Cache-Control", cache_control)
                .after(Duration::from_millis(700))
        })
        .await;
        let statuses = join_all((0..100).map(|_| app.status(session))).await;
        let status = if session == "alice" { 200 } else { 401 };
        assert_eq!(statuses, [status; 100]);
        assert_eq!(
            app.endpoint.calls().len(),
            expected,
            "{session} {cache_control}"
        );
    }
}

#[tokio::test]
async fn calls_of_one_address_are_limited_and_cached_answers_are_not() {
    let app = App::start("cache: { for: 1h },", sessions).await;
    let from = |address: &'static str, session: String| {
        let app = &app;
        async move {
            let cookie = format!("session={session}");
            let headers = [("Cookie", cookie.as_str()), ("X-Forwarded-For", address)];
            app.head("/events/a", &headers).await.status
        }
    };
    assert_eq!(from("192.0.2.1", "alice".into()).await, 200);
    let mut sent = 0;
    while from("192.0.2.1", format!("user-{sent}")).await == 200 {
        sent += 1;
        assert!(sent < 20_000, "the limit is never reached");
    }
    assert!(sent >= 499, "{sent}");
    assert_eq!(from("192.0.2.1", "alice".into()).await, 200, "cached");
    assert_eq!(
        from("192.0.2.2", "alice".into()).await,
        200,
        "another address"
    );
    assert!(app.count("limited").await >= 1.0);
    let labels = [("code", "too_many_authentications")];
    let sidestream = &app.fixture.sidestream;
    let rejected = sidestream.metric("sidestream_refusals_total", &labels);
    assert!(rejected.await >= 1.0);
    let message = "too many calls to an authentication endpoint; requests rejected";
    let line = sidestream.until_message(message).await;
    assert_eq!(line["client.addr"], "192.0.2.1");
}
