//! Cache key, answers, cache and calls in flight of a provider that asks an endpoint.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::header::{ACCEPT, AUTHORIZATION, COOKIE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use serde_json::json;

use super::answer::{Allowed, Answer, rejection};
use super::answers::{Answers, Call, Start};
use super::question::{Key, Question};
use crate::auth::provider::Target;

const NOW: Duration = Duration::from_secs(1_000_000);
const SEND: [HeaderName; 2] = [AUTHORIZATION, COOKIE];

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name: HeaderName = name.parse().unwrap();
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn target() -> Target<'static> {
    Target {
        method: &Method::GET,
        scheme: "https",
        host: Cow::Borrowed("shop.example"),
        path: "/events/a",
        query: Cow::Borrowed("x=1"),
        client: [192, 0, 2, 1].into(),
    }
}

fn key_of(target: Target<'static>, fields: &[(&str, &str)]) -> Key {
    let headers = headers(fields);
    let send = &SEND;
    let (target, headers) = (target, &headers);
    Question {
        target,
        headers,
        send,
    }
    .key()
}

fn key(fields: &[(&str, &str)]) -> Key {
    key_of(target(), fields)
}

fn allowed(fields: &[(&str, &str)], body: &str) -> Result<Option<Allowed>, &'static str> {
    Allowed::new(&headers(fields), body.as_bytes(), NOW)
}

fn lifetime(cache_control: &str) -> u64 {
    let allowed = allowed(&[("cache-control", cache_control)], "")
        .unwrap()
        .unwrap();
    allowed.lifetime(Duration::from_secs(10), NOW).as_secs()
}

#[test]
fn key_differs_with_each_part_of_the_question() {
    let base = key(&[("cookie", "a=1"), ("authorization", "x")]);
    let fields = [("cookie", "a=1"), ("authorization", "x")];
    assert_eq!(key(&fields), base);
    assert_eq!(
        key(&[("authorization", "x"), ("accept", "y"), ("cookie", "a=1")]),
        base,
        "order of fields, and headers that are not sent"
    );
    for other in [
        key(&[("cookie", "a=2"), ("authorization", "x")]),
        key(&[("cookie", "a=1"), ("authorization", "y")]),
        key(&[("cookie", "a=1")]),
        key(&[("cookie", "a=1"), ("authorization", "")]),
        key(&[("cookie", "x"), ("authorization", "a=1")]),
        key(&[("cookie", "a=1"), ("cookie", ""), ("authorization", "x")]),
        key_of(
            Target {
                method: &Method::HEAD,
                ..target()
            },
            &fields,
        ),
        key_of(
            Target {
                scheme: "http",
                ..target()
            },
            &fields,
        ),
        key_of(
            Target {
                host: "other.example".into(),
                ..target()
            },
            &fields,
        ),
        key_of(
            Target {
                path: "/events/b",
                ..target()
            },
            &fields,
        ),
        key_of(
            Target {
                query: "x=2".into(),
                ..target()
            },
            &fields,
        ),
        key_of(
            Target {
                query: "".into(),
                ..target()
            },
            &fields,
        ),
        key_of(
            Target {
                client: [192, 0, 2, 2].into(),
                ..target()
            },
            &fields,
        ),
    ] {
        assert_ne!(other, base);
    }
}

#[test]
fn parts_of_a_key_cannot_be_shifted_into_one_another() {
    assert_ne!(
        key(&[("cookie", "a"), ("cookie", "b")]),
        key(&[("cookie", "ab")])
    );
    assert_ne!(
        key(&[("authorization", "a"), ("cookie", "b")]),
        key(&[("authorization", "a"), ("authorization", "b")])
    );
    assert_ne!(
        key_of(
            Target {
                host: "ab".into(),
                path: "/c",
                ..target()
            },
            &[]
        ),
        key_of(
            Target {
                host: "a".into(),
                path: "b/c",
                ..target()
            },
            &[]
        )
    );
}

#[test]
fn request_describes_the_client_and_copies_only_what_is_named() {
    let client = headers(&[
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("authorization", "Bearer x"),
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-user", "evil"),
        ("sidestream-claim-sub", "evil"),
        ("accept", "text/event-stream"),
        ("connection", "keep-alive"),
    ]);
    let send = [COOKIE, AUTHORIZATION, HeaderName::from_static("x-absent")];
    let question = Question {
        target: target(),
        headers: &client,
        send: &send,
    };
    let request = question
        .request(&"http://127.0.0.1:1/authorize?a=b".parse().unwrap())
        .unwrap();
    assert_eq!(
        request.uri().to_string(),
        "http://127.0.0.1:1/authorize?a=b"
    );
    let mut sent: Vec<String> = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .filter(|line| !line.starts_with("user-agent: sidestream/"))
        .collect();
    sent.sort();
    assert_eq!(
        sent,
        [
            "accept: application/json, */*;q=0.1",
            "authorization: Bearer x",
            "cookie: a=1; b=2",
            "x-forwarded-for: 192.0.2.1",
            "x-forwarded-host: shop.example",
            "x-forwarded-method: GET",
            "x-forwarded-proto: https",
            "x-forwarded-uri: /events/a?x=1",
        ]
    );
    // A header of the client replaces our own.
    let question = Question {
        send: &[ACCEPT],
        ..question
    };
    let request = question
        .request(&"http://127.0.0.1:1/".parse().unwrap())
        .unwrap();
    assert_eq!(request.headers()[ACCEPT], "text/event-stream");
}

#[test]
fn claims_come_from_the_body_and_from_headers() {
    const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");
    for (fields, body, claims) in [
        (
            &[JSON][..],
            r#"{"sub":"alice","n":1}"#,
            json!({ "sub": "alice", "n": 1 }),
        ),
        (&[JSON], " \r\n", json!({})),
        (
            &[("content-type", "application/problem+json")],
            r#"{"a":1}"#,
            json!({ "a": 1 }),
        ),
        (
            &[("content-type", "text/html")],
            r#"{"sub":"x"}"#,
            json!({}),
        ),
        (&[], r#"{"sub":"x"}"#, json!({})),
        (
            &[
                ("sidestream-claim-sub", "alice"),
                ("Sidestream-Claim-Tenant-Id", "7"),
            ],
            "",
            json!({ "sub": "alice", "tenant-id": "7" }),
        ),
        (
            &[
                ("sidestream-claim-allow", "a.>"),
                ("sidestream-claim-allow", "b.ü"),
            ],
            "",
            json!({ "allow": ["a.>", "b.ü"] }),
        ),
        (
            &[JSON, ("sidestream-claim-sub", "header")],
            r#"{"sub":"body","n":1}"#,
            json!({ "sub": "header", "n": 1 }),
        ),
    ] {
        let allowed = allowed(fields, body).unwrap().unwrap();
        assert_eq!(
            serde_json::Value::Object(allowed.claims()),
            claims,
            "{body}"
        );
    }
    for body in ["[]", "\"ok\"", "{", "{\"a\":1} x", &"[".repeat(1000)] {
        assert_eq!(
            allowed(&[JSON], body),
            Err("a body that is not a JSON object"),
            "{body}"
        );
    }
    let mut invalid = HeaderMap::new();
    let bytes = HeaderValue::from_bytes(b"\xff").unwrap();
    invalid.insert("sidestream-claim-sub", bytes);
    assert_eq!(
        Allowed::new(&invalid, b"", NOW),
        Err("a claim that is not UTF-8")
    );
}

#[test]
fn expiry_is_a_number_of_seconds_in_the_future() {
    let expires = |value: &str| allowed(&[("sidestream-expires", value)], "");
    let later = expires("1000005").unwrap().unwrap();
    assert_eq!(later.expires, Some(Duration::from_secs(1_000_005)));
    assert_eq!(later.lifetime(Duration::from_secs(10), NOW).as_secs(), 5);
    for past in ["1000000", "0"] {
        assert_eq!(expires(past), Ok(None), "{past}");
    }
    for invalid in [
        "",
        "soon",
        "-1",
        "+1000005",
        "1000005.5",
        "99999999999999999999999",
    ] {
        assert!(expires(invalid).is_err(), "{invalid}");
    }
    let twice = [
        ("sidestream-expires", "2000000"),
        ("sidestream-expires", "3000000"),
    ];
    assert_eq!(allowed(&twice, ""), Err("more than one Sidestream-Expires"));
}

#[test]
fn cache_control_shortens_the_lifetime_and_never_extends_it() {
    for (value, seconds) in [
        ("", 10),
        ("private", 10),
        ("public, must-revalidate", 10),
        ("max-age=3", 3),
        ("Max-Age=3, private", 3),
        ("max-age=\"3\"", 3),
        ("max-age=3600", 10),
        ("max-age=3, s-maxage=5", 5),
        ("s-maxage=2, max-age=9", 2),
        ("max-age=0", 0),
        ("max-age=x", 0),
        ("max-age", 0),
        ("no-store", 0),
        ("max-age=5, No-Store", 0),
        ("no-cache", 0),
        ("no-cache=\"set-cookie\"", 0),
    ] {
        assert_eq!(lifetime(value), seconds, "{value}");
    }
    let aged = allowed(&[("cache-control", "max-age=8"), ("age", "5")], "");
    let aged = aged.unwrap().unwrap();
    assert_eq!(aged.lifetime(Duration::from_secs(10), NOW).as_secs(), 3);
}

#[test]
fn only_401_and_403_are_rejections() {
    let challenges = headers(&[
        ("www-authenticate", "Basic realm=\"a\""),
        ("www-authenticate", "Bearer"),
    ]);
    let unauthorized = rejection(StatusCode::UNAUTHORIZED, &challenges).unwrap();
    assert!(!unauthorized.is_forbidden);
    assert_eq!(unauthorized.challenges, ["Basic realm=\"a\"", "Bearer"]);
    let forbidden = rejection(StatusCode::FORBIDDEN, &HeaderMap::new()).unwrap();
    assert!(forbidden.is_forbidden && forbidden.challenges.is_empty());
    for status in [302, 304, 400, 404, 407, 429, 500, 503] {
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(rejection(status, &challenges), None, "{status}");
    }
}

fn permission(bytes: usize) -> Arc<Allowed> {
    let claim = "x".repeat(bytes);
    Arc::new(
        allowed(&[("sidestream-claim-sub", &claim)], "")
            .unwrap()
            .unwrap(),
    )
}

#[test]
fn cache_is_bounded_by_entries_and_by_bytes() {
    let later = Instant::now() + Duration::from_secs(60);
    for (bytes, most) in [(10, 200), (10_000, 20)] {
        let answers = Answers::new(200);
        let permission = permission(bytes);
        let number = |number: u32| {
            let value = number.to_string();
            key(&[("cookie", &value)])
        };
        for each in 0..1000 {
            answers.store(number(each), Arc::clone(&permission), later);
        }
        let now = Instant::now();
        let kept = (0..1000)
            .filter(|each| answers.cached(&number(*each), now).is_some())
            .count();
        assert!((1..=most).contains(&kept), "{kept} of {bytes} bytes");
        assert!((0..1000).all(|each| answers.cached(&number(each), later).is_none()));
    }
}

fn counted(calls: &Arc<AtomicUsize>) -> Call {
    let calls = Arc::clone(calls);
    Box::pin(async move {
        calls.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(50)).await;
        Answer::Failed
    })
}

#[tokio::test(start_paused = true)]
async fn call_in_flight_is_shared_and_survives_the_request_that_made_it() {
    let (answers, calls) = (Arc::new(Answers::new(10)), Arc::<AtomicUsize>::default());
    let Start::Started(first) = answers.start(key(&[]), counted(&calls)) else {
        panic!("the first call is started");
    };
    let Start::Joined(second) = answers.start(key(&[]), counted(&calls)) else {
        panic!("the second call is joined");
    };
    let Start::Started(other) = answers.start(key(&[("cookie", "a")]), counted(&calls)) else {
        panic!("a call with another key is started");
    };
    assert!(answers.in_flight(&key(&[])).is_some());
    // The request that made the call is gone after its call has begun.
    assert!(
        tokio::time::timeout(Duration::from_millis(10), first)
            .await
            .is_err()
    );
    assert!(matches!(second.await, Answer::Failed));
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    assert!(answers.in_flight(&key(&[])).is_none());
    assert_eq!(answers.in_flight_count(), 1);
    drop(other);
    assert_eq!(
        answers.in_flight_count(),
        0,
        "a call that is not awaited is not in flight"
    );
}
