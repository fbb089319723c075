//! Endpoints that fail: bounds of time, size and concurrency, the health check, TLS.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use testkit::certs::Authority;
use testkit::endpoint::{Endpoint, Reply};
use testkit::http1;
use testkit::wait::{RECOVERY, eventually};

use super::super::Fixture;
use super::{App, sessions};

#[tokio::test]
async fn answer_that_decides_nothing_is_503_and_degrades_the_check() {
    let other = Endpoint::start(sessions).await;
    let location = other.url().to_owned();
    let app = App::start("timeout: 1s, cache: null,", move |call| {
        match call.header("cookie") {
            "session=late" => sessions(call).after(Duration::from_secs(10)),
            "session=moved" => Reply::status(302).header("Location", location.as_str()),
            "session=error" => Reply::status(500),
            "session=missing" => Reply::status(404),
            "session=large" => Reply::json(json!({ "sub": "a".repeat(65 << 10) }).to_string()),
            "session=head" => sessions(call).header("X-Large", "a".repeat(200 << 10)),
            "session=list" => Reply::json("[1]"),
            "session=time" => sessions(call).header("Sidestream-Expires", "tomorrow"),
            _ => sessions(call),
        }
    })
    .await;
    let url = app.fixture.sidestream.url("/events/a");
    for (fault, reason) in [
        ("late", "it does not answer within 1 s"),
        ("moved", "it answers 302 Found"),
        ("error", "it answers 500"),
        ("missing", "it answers 404"),
        ("large", "its answer is larger than 64 KiB"),
        ("head", "client error"),
        ("list", "its answer has a body that is not a JSON object"),
        ("time", "its answer has a Sidestream-Expires"),
    ] {
        let cookie = format!("session={fault}");
        let begun = Instant::now();
        let answer = http1::request("GET", &url, &[("Cookie", &cookie)])
            .await
            .unwrap();
        assert_eq!(answer.status, 503, "{fault}");
        assert_eq!(answer.json()["error"]["code"], "authentication_unavailable");
        assert!(answer.header("retry-after").is_some(), "{fault}");
        assert!(begun.elapsed() < Duration::from_secs(8), "{fault}");
        let check = app.check().await;
        assert_eq!(check["status"], "degraded", "{fault}: {check}");
        assert!(check.to_string().contains(reason), "{fault}: {check}");
        assert_eq!(app.status("alice").await, 200, "{fault}");
        assert_eq!(app.check().await["status"], "ok", "{fault}");
        // The check reports one failure per second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    assert_eq!(other.calls().len(), 0, "the redirect is not followed");
    assert_eq!(app.count("failed").await, 8.0);
    let request = app.fixture.get("/events/a").browser();
    let mut browser = request.header("Cookie", "session=error").connect().await;
    let close = browser.next().await;
    let data: Value = serde_json::from_str(&close.data).unwrap();
    assert_eq!(
        (&*close.name, &data["reason"]),
        ("sidestream.close", &json!("overload"))
    );
    assert_eq!(app.fixture.sidestream.admin("/health/ready").await.0, 200);
    let log = app.fixture.sidestream.output().join("\n");
    assert!(!log.contains("session="), "the log has a cookie");
}

#[tokio::test]
async fn event_streams_and_cached_answers_outlast_an_endpoint_that_is_down() {
    let app = App::start("cache: { for: 1h },", sessions).await;
    let request = app
        .fixture
        .get("/events/a")
        .header("Cookie", "session=alice");
    let mut client = request.connect().await;
    client.positioned().await;
    assert_eq!(app.status("alice").await, 200);
    app.endpoint.set_down(true);
    assert_eq!(app.status("bob").await, 503);
    assert_eq!(app.check().await["status"], "degraded");
    assert_eq!(app.status("alice").await, 200);
    app.fixture.publish("orders.alice.paid", "1").await;
    assert_eq!(client.next().await.data, "1");
    app.endpoint.set_down(false);
    eventually(RECOVERY, "the session is accepted", async || {
        app.status("bob").await == 200
    })
    .await;
    assert_eq!(app.check().await["status"], "ok");
}

#[tokio::test]
async fn calls_at_once_are_bounded_and_others_wait_for_a_second() {
    let app = App::start("timeout: 20s,", |call| {
        sessions(call).after(Duration::from_secs(3))
    })
    .await;
    let begun = Instant::now();
    let requests = (0..200).map(|number| {
        let app = &app;
        async move { app.status(&format!("user-{number}")).await }
    });
    let statuses = join_all(requests).await;
    let count = |status: u16| statuses.iter().filter(|one| **one == status).count();
    assert_eq!(count(200), 64);
    assert_eq!(count(503), 136);
    // Two calls one after the other take six.
    assert!(begun.elapsed() < Duration::from_secs(6));
    assert_eq!(app.endpoint.most_at_once(), 64);
    assert_eq!(app.count("busy").await, 136.0);
    assert_eq!(app.status("alice").await, 200, "calls that ended have room");
}

#[tokio::test]
async fn endpoint_over_tls_is_asked_if_its_authority_is_known() {
    let (authority, other) = (Authority::new(), Authority::new());
    let endpoint = Endpoint::start_tls(&authority.server("localhost"), sessions).await;
    for (ca, status) in [(authority.file(), 200), (other.file(), 503)] {
        let settings = format!("ca: \"{}\",", ca.display());
        let port = endpoint.address().port().to_string();
        let text = super::text(&endpoint, &settings)
            .replace(&format!("127.0.0.1:{port}"), &format!("localhost:{port}"));
        let fixture = Fixture::with(&text, "").await;
        let url = fixture.sidestream.url("/events/a");
        let cookie = [("Cookie", "session=alice")];
        let answer = http1::request("HEAD", &url, &cookie).await.unwrap();
        assert_eq!(answer.status, status);
    }
    assert_eq!(endpoint.calls().len(), 1);
}

#[tokio::test]
async fn reload_replaces_the_endpoint_and_removes_its_metrics() {
    let app = App::start("cache: { for: 1h },", sessions).await;
    assert_eq!(app.status("alice").await, 200);
    let next = Endpoint::start(sessions).await;
    let text = |routes: &str| super::super::text(&app.fixture.nats, routes, "");
    let sidestream = &app.fixture.sidestream;
    sidestream.rewrite_config(&text(&super::text(&next, "")));
    eventually(RECOVERY, "the next endpoint is asked", async || {
        assert_eq!(app.status("alice").await, 200);
        next.calls().len() == 1
    })
    .await;
    assert_eq!(app.endpoint.calls().len(), 1);
    let without = super::super::ROUTES;
    sidestream.rewrite_config(&text(without));
    eventually(RECOVERY, "the check is gone", async || {
        app.check().await.is_null()
    })
    .await;
    let metrics = sidestream.admin("/metrics").await.1;
    assert!(!metrics.contains("provider=\"session\""));
}
