//! Responses that the application marks cacheable.

mod bounds;
mod sharing;

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use testkit::application::Application;
use testkit::http1::{self, Answer};

use super::{Fixture, VERSIONS, Version};

/// Query of a page that is fresh for a minute.
const MINUTE: &str = "cache-control=max-age%3D60";
const MISS: &str = "sidestream; fwd=uri-miss";
const STORED: &str = "sidestream; fwd=uri-miss; stored";
const HIT: &str = "sidestream; hit";
const REVALIDATED: &str = "sidestream; fwd=stale; fwd-status=304";

/// Returns an answer and its `Cache-Status`.
async fn get(fixture: &Fixture, path: &str, headers: &[(&str, &str)]) -> (Answer, String) {
    let answer = fixture.get(path, headers).await;
    let status = answer.header("cache-status").unwrap_or_default();
    (answer, status)
}

async fn count(fixture: &Fixture, result: &str) -> f64 {
    let name = "sidestream_application_cache_requests_total";
    fixture.sidestream.metric(name, &[("result", result)]).await
}

async fn bytes(fixture: &Fixture) -> f64 {
    let name = "sidestream_application_cache_bytes";
    fixture.sidestream.metric(name, &[]).await
}

#[tokio::test]
async fn cacheable_response_is_a_hit_over_each_protocol() {
    let fixture = Fixture::start().await;
    let path = format!("/cached/a?{MINUTE}");
    let (first, status) = get(&fixture, &path, &[]).await;
    assert_eq!((first.status, &*status), (200, STORED));
    assert!(first.header("age").is_none());
    for version in VERSIONS {
        for method in ["GET", "HEAD"] {
            let request = Request::builder().method(method);
            let request = request.uri(fixture.sidestream.url(&path));
            let request = request.body(Empty::new().boxed()).unwrap();
            let answer = fixture.send(version, request).await;
            let body = if method == "HEAD" { "" } else { &first.body };
            assert_eq!(answer.body(), body, "{version:?} {method}");
            let headers = answer.headers();
            assert_eq!(headers["cache-status"], HIT);
            assert_eq!(headers["content-length"], first.body.len().to_string());
            assert_eq!(headers["via"], "1.1 sidestream");
            let age: u64 = headers["age"].to_str().unwrap().parse().unwrap();
            assert!(age < 60);
        }
    }
    assert_eq!(fixture.application.requests(&path), 1);
    assert_eq!(count(&fixture, "hit").await, 4.0);
    assert_eq!(count(&fixture, "miss").await, 1.0);
    assert!(bytes(&fixture).await > first.body.len() as f64);
}

#[tokio::test]
async fn response_without_a_length_is_stored_too_from_either_protocol_of_the_application() {
    let mut http2 = Application::down().http2();
    http2.run().await;
    for application in [Application::start().await, http2] {
        let fixture = Fixture::with(application, "", "").await;
        let path = format!("/cached/a?{MINUTE}&chunked=1");
        let (first, status) = get(&fixture, &path, &[]).await;
        assert_eq!(status, STORED);
        let (second, status) = get(&fixture, &path, &[]).await;
        assert_eq!((&second.body, &*status), (&first.body, HIT));
    }
}

#[tokio::test]
async fn stale_response_is_revalidated_and_has_the_head_of_the_304() {
    let fixture = Fixture::start().await;
    let date = "Sun,%2006%20Nov%201994%2008:49:37%20GMT";
    for validator in ["etag=%22v1%22", &format!("last-modified={date}")] {
        let updates = "304-x=new&304-cache-control=max-age%3D60";
        let path = format!("/cached/a?cache-control=max-age%3D2&x=old&{validator}&{updates}");
        let (first, status) = get(&fixture, &path, &[]).await;
        assert_eq!(status, STORED);
        assert_eq!(first.header("x").unwrap(), "old");
        let (_, status) = get(&fixture, &path, &[]).await;
        assert_eq!(status, HIT);
        tokio::time::sleep(Duration::from_millis(2100)).await;
        for expected in [REVALIDATED, HIT] {
            let (answer, status) = get(&fixture, &path, &[]).await;
            assert_eq!((answer.status, &*status), (200, expected));
            assert_eq!(answer.body, first.body);
            assert_eq!(answer.header("x").unwrap(), "new");
            assert_eq!(answer.header("cache-control").unwrap(), "max-age=60");
        }
        assert_eq!(fixture.application.requests(&path), 2);
    }
    assert_eq!(count(&fixture, "revalidated").await, 2.0);
}

#[tokio::test]
async fn stale_response_without_a_validator_is_replaced() {
    let fixture = Fixture::start().await;
    let path =
        "/cached/a?cache-control=max-age%3D1,stale-while-revalidate%3D60,stale-if-error%3D60";
    let (first, _) = get(&fixture, path, &[]).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let (second, status) = get(&fixture, path, &[]).await;
    assert_eq!(status, "sidestream; fwd=stale; stored");
    assert_ne!(first.body, second.body);
}

#[tokio::test]
async fn cookie_of_a_304_is_for_one_client() {
    let fixture = Fixture::start().await;
    let path = format!("/cached/a?{MINUTE}&etag=%22v1%22&304-set-cookie=a%3D1");
    get(&fixture, &path, &[]).await;
    let (answer, status) = get(&fixture, &path, &[("Cache-Control", "no-cache")]).await;
    assert_eq!(status, "sidestream; fwd=request; fwd-status=304");
    assert_eq!(answer.header("set-cookie").unwrap(), "a=1");
    for expected in [STORED, HIT] {
        let (answer, status) = get(&fixture, &path, &[]).await;
        assert_eq!(status, expected);
        assert!(answer.header("set-cookie").is_none());
    }
}

#[tokio::test]
async fn whole_response_is_requested_after_a_304_about_another_one() {
    let fixture = Fixture::start().await;
    let path = format!("/cached/a?{MINUTE}&etag=%22v1%22&304-etag=%22v2%22");
    let (first, _) = get(&fixture, &path, &[]).await;
    let (second, status) = get(&fixture, &path, &[("Cache-Control", "no-cache")]).await;
    assert_eq!(status, "sidestream; fwd=request; stored");
    assert_eq!(second.status, 200);
    assert_ne!(first.body, second.body);
    assert_eq!(fixture.application.requests(&path), 3);
}

#[tokio::test]
async fn conditions_of_clients_are_answered_from_the_cache() {
    let fixture = Fixture::start().await;
    let path = format!("/cached/a?{MINUTE}&etag=%22v1%22");
    // Without a stored response, the condition is the application's.
    let (answer, status) = get(&fixture, &path, &[("If-None-Match", "\"v1\"")]).await;
    assert_eq!((answer.status, &*status), (304, MISS));
    get(&fixture, &path, &[]).await;
    for version in VERSIONS {
        let request = Request::get(fixture.sidestream.url(&path));
        let request = request.header("If-None-Match", "W/\"v1\"");
        let request = request.body(Empty::new().boxed()).unwrap();
        let answer = fixture.send(version, request).await;
        assert_eq!(answer.status(), 304, "{version:?}");
        assert_eq!(answer.headers()["cache-status"], HIT);
        assert_eq!(answer.headers()["etag"], "\"v1\"");
        assert!(answer.body().is_empty());
    }
    let (answer, status) = get(&fixture, &path, &[("If-None-Match", "\"v0\"")]).await;
    assert_eq!((answer.status, &*status), (200, HIT));
    // A stale response is revalidated for the cache, then the client's condition counts.
    let fields = [("Cache-Control", "no-cache"), ("If-None-Match", "\"v1\"")];
    let (answer, status) = get(&fixture, &path, &fields).await;
    assert_eq!(answer.status, 304);
    assert_eq!(status, "sidestream; fwd=request; fwd-status=304");
    assert_eq!(fixture.application.requests(&path), 3);
}

#[tokio::test]
async fn clients_say_with_cache_control_what_they_accept() {
    let fixture = Fixture::start().await;
    let path = format!("/cached/a?{MINUTE}");
    let only = [("Cache-Control", "only-if-cached")];
    let answer = fixture.get(&path, &only).await;
    assert_eq!(answer.status, 504);
    assert_eq!(answer.json()["error"]["code"], "not_cached");
    assert_eq!(fixture.application.requests(&path), 0);
    get(&fixture, &path, &[]).await;
    let (answer, status) = get(&fixture, &path, &only).await;
    assert_eq!((answer.status, &*status), (200, HIT));
    for (field, expected) in [
        (
            ("Cache-Control", "no-cache"),
            "sidestream; fwd=request; stored",
        ),
        (("Pragma", "no-cache"), "sidestream; fwd=request; stored"),
        (
            ("Cache-Control", "min-fresh=120"),
            "sidestream; fwd=request; stored",
        ),
        (("Cache-Control", "no-store"), "sidestream; fwd=bypass"),
        (("Cache-Control", "max-age=30"), HIT),
    ] {
        let (_, status) = get(&fixture, &path, &[field]).await;
        assert_eq!(status, expected, "{field:?}");
    }
    assert_eq!(fixture.application.requests(&path), 5);
}

#[tokio::test]
async fn unsafe_method_invalidates_unless_it_fails() {
    let fixture = Fixture::start().await;
    for (status, is_kept) in [(200, false), (303, false), (404, true), (500, true)] {
        let path = format!("/cached/a?{MINUTE}&unsafe={status}&vary=Accept-Language");
        let german = [("Accept-Language", "de")];
        get(&fixture, &path, &[]).await;
        get(&fixture, &path, &german).await;
        let url = fixture.sidestream.url(&path);
        let answer = http1::request("POST", &url, &[]).await.unwrap();
        assert_eq!(answer.status, status);
        let fwd = answer.header("cache-status").unwrap();
        assert_eq!(fwd, "sidestream; fwd=method");
        for fields in [&[][..], &german] {
            let (_, fwd) = get(&fixture, &path, fields).await;
            assert_eq!(fwd == HIT, is_kept, "{status}: {fwd}");
        }
    }
}

#[tokio::test]
async fn response_of_before_an_unsafe_method_is_not_stored() {
    let fixture = Fixture::start().await;
    // The application reads its state, a POST changes it, and only then the response is complete.
    let path = format!("/cached/a?{MINUTE}&pause=600&unsafe=204");
    let url = fixture.sidestream.url(&path);
    let change = async {
        let began = "the GET is in progress";
        fixture
            .application
            .until(began, |reports| {
                reports.iter().any(|report| report["url"] == *path)
            })
            .await;
        http1::request("POST", &url, &[]).await.unwrap()
    };
    let ((old, status), changed) = tokio::join!(get(&fixture, &path, &[]), change);
    assert_eq!(changed.status, 204);
    assert_eq!((old.status, &*status), (200, MISS));
    let (new, status) = get(&fixture, &path, &[]).await;
    assert_eq!(status, STORED);
    assert_ne!(new.body, old.body);
}

#[tokio::test]
async fn ranges_and_event_sources_pass_by() {
    let fixture = Fixture::start().await;
    let path = format!("/cached/a?{MINUTE}");
    get(&fixture, &path, &[]).await;
    let (_, status) = get(&fixture, &path, &[("Range", "bytes=0-1")]).await;
    assert_eq!(status, "sidestream; fwd=bypass");
    let event_source = [
        ("User-Agent", "Mozilla/5.0"),
        ("Accept", "text/event-stream"),
    ];
    let (answer, status) = get(&fixture, &path, &event_source).await;
    assert_eq!((answer.status, &*status), (200, ""));
    assert_eq!(fixture.application.requests(&path), 3);
    assert_eq!(count(&fixture, "bypass").await, 1.0);
}
