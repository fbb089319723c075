//! Responses are shared by the requests for which the application permits it, and by no others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::{Fixture, HIT, MINUTE, MISS, STORED, VERSIONS, Version, get};

#[tokio::test]
async fn responses_for_one_client_are_never_stored() {
    let fixture = Fixture::start().await;
    for fields in [
        "cache-control=no-store",
        "cache-control=private,max-age%3D60",
        "cache-control=no-cache&etag=%22a%22",
        "cache-control=max-age%3D60&set-cookie=a%3D1",
        "cache-control=max-age%3D60&sidestream-client=a",
        "cache-control=max-age%3D60&sidestream-subscribe=a",
        "cache-control=max-age%3D60&vary=*",
        "cache-control=max-age%3D60&vary=Accept,*",
        "last-modified=Sun,%2006%20Nov%201994%2008:49:37%20GMT",
        "cache-control=public",
    ] {
        let path = format!("/cached/a?{fields}");
        for _ in 0..2 {
            let (answer, status) = get(&fixture, &path, &[]).await;
            assert_eq!((answer.status, &*status), (200, MISS), "{fields}");
            assert!(answer.header("sidestream-client").is_none());
        }
        assert_eq!(fixture.application.requests(&path), 2, "{fields}");
    }
    let path = format!("/cached/b?{MINUTE}");
    let (alice, bob) = ("Bearer alice", "Bearer bob");
    for user in [alice, bob, alice] {
        let (answer, status) = get(&fixture, &path, &[("Authorization", user)]).await;
        assert_eq!(status, "sidestream; fwd=bypass");
        assert!(answer.body.contains(user), "{}", answer.body);
    }
    assert_eq!(fixture.application.requests(&path), 3);
}

#[tokio::test]
async fn vary_selects_the_response() {
    let fixture = Fixture::start().await;
    let path = format!("/cached/a?{MINUTE}&vary=Cookie,%20Accept-Language");
    for round in 0..2 {
        for user in ["a=1", "a=2"] {
            for language in ["de", "en"] {
                let fields = [("Cookie", user), ("Accept-Language", language)];
                let (answer, status) = get(&fixture, &path, &fields).await;
                let expected = match (round, user, language) {
                    (0, "a=1", "de") => STORED,
                    (0, ..) => "sidestream; fwd=vary-miss; stored",
                    _ => HIT,
                };
                assert_eq!(status, expected);
                let text = format!("{user} {language}");
                assert!(answer.body.contains(&text), "{}", answer.body);
            }
        }
    }
    assert_eq!(fixture.application.requests(&path), 4);
}

#[tokio::test]
async fn request_with_another_host_does_not_poison() {
    let fixture = Fixture::start().await;
    let path = format!("/cached/a?{MINUTE}");
    let from = |host: &str, more: &str| {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n");
        let fixture = &fixture;
        async move { fixture.raw(request.as_bytes()).await }
    };
    // The application sees no host that a client only claims.
    let more = "X-Forwarded-Host: evil.example\r\nX-Forwarded-Proto: https\r\nForwarded: host=evil.example\r\n";
    for expected in [STORED, HIT] {
        let answer = from("evil.example", "").await;
        assert!(answer.contains(expected), "{answer}");
    }
    for (more, expected) in [(more, STORED), ("", HIT)] {
        let answer = from("shop.example", more).await;
        assert!(answer.contains(expected), "{answer}");
        assert!(answer.contains("shop.example shop.example"), "{answer}");
    }
    assert_eq!(fixture.application.requests(&path), 2);
}

#[tokio::test]
async fn requests_at_once_are_one_request_to_the_application() {
    let fixture = Fixture::start().await;
    let path = format!("/cached/a?{MINUTE}&delay=500");
    let answers = join_all((0..100).map(|_| get(&fixture, &path, &[]))).await;
    let body = &answers[0].0.body;
    assert!(answers.iter().all(|(answer, _)| answer.body == *body));
    let hits = answers.iter().filter(|(_, status)| status == HIT).count();
    assert_eq!(hits, 99);
    assert_eq!(fixture.application.requests(&path), 1);
    // Revalidations, too.
    let path = "/cached/b?cache-control=max-age%3D1&etag=%22a%22&304-cache-control=max-age%3D60";
    let path = format!("{path}&delay=300");
    get(&fixture, &path, &[]).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let conditional = [("If-None-Match", "\"a\"")];
    let whole = (0..20).map(|_| get(&fixture, &path, &[]));
    let conditional = (0..20).map(|_| get(&fixture, &path, &conditional));
    let (whole, conditional) = tokio::join!(join_all(whole), join_all(conditional));
    assert!(whole.iter().all(|(answer, _)| answer.status == 200));
    assert!(conditional.iter().all(|(answer, _)| answer.status == 304));
    assert_eq!(fixture.application.requests(&path), 2);
}

#[tokio::test]
async fn waiting_requests_are_sent_when_the_first_one_is_not_shared() {
    let fixture = Fixture::start().await;
    // Each by itself, at the same time.
    for (fields, status) in [
        ("cache-control=private", 200),
        ("cache-control=max-age%3D60&set-cookie=a%3D1", 200),
        ("cache-control=max-age%3D60&cut=1", 502),
    ] {
        let path = format!("/cached/a?{fields}&delay=600");
        let began = Instant::now();
        let answers = join_all((0..10).map(|_| get(&fixture, &path, &[]))).await;
        // One after the other takes six.
        assert!(began.elapsed() < Duration::from_secs(5), "{fields}");
        for (answer, _) in &answers {
            assert_eq!(answer.status, status, "{fields}");
        }
        assert_eq!(fixture.application.requests(&path), 10, "{fields}");
    }
}

#[tokio::test]
async fn one_of_the_waiting_requests_is_sent_when_the_first_client_leaves() {
    let fixture = Fixture::start().await;
    for pause in ["delay=1500", "pause=700"] {
        let path = format!("/cached/a?{MINUTE}&{pause}");
        let mut first = TcpStream::connect(fixture.sidestream.address())
            .await
            .unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n",
            fixture.sidestream.address()
        );
        first.write_all(request.as_bytes()).await.unwrap();
        fixture
            .application
            .until("the first request arrives", |reports| {
                reports.iter().any(|report| report["url"] == *path)
            })
            .await;
        let leave = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            drop(first);
        };
        let waiting = join_all((0..10).map(|_| get(&fixture, &path, &[])));
        let (answers, ()) = tokio::join!(waiting, leave);
        let body = &answers[0].0.body;
        for (answer, _) in &answers {
            assert_eq!((answer.status, &answer.body), (200, body), "{pause}");
        }
        assert_eq!(fixture.application.requests(&path), 2, "{pause}");
    }
}

#[tokio::test]
async fn client_that_does_not_read_delays_no_other() {
    let fixture = Fixture::start().await;
    let path = format!("/cached/a?{MINUTE}&size=3000000");
    let mut first = TcpStream::connect(fixture.sidestream.address())
        .await
        .unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n",
        fixture.sidestream.address()
    );
    first.write_all(request.as_bytes()).await.unwrap();
    first.readable().await.unwrap();
    let began = Instant::now();
    let (answer, status) = get(&fixture, &path, &[]).await;
    assert_eq!((answer.body.len(), &*status), (3_000_000, HIT));
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(fixture.application.requests(&path), 1);
}

/// Page that two users request at the same time.
struct Page {
    query: &'static str,
    /// Field of the request with the name of the user.
    field: &'static str,
    /// The answer is for one user.
    is_own: bool,
}

const PAGES: [Page; 7] = [
    Page {
        query: "cache-control=private,max-age%3D60&own=1",
        field: "Cookie",
        is_own: true,
    },
    Page {
        query: "cache-control=max-age%3D60&own=1",
        field: "Cookie",
        is_own: true,
    },
    Page {
        query: "cache-control=max-age%3D60&vary=Cookie",
        field: "Cookie",
        is_own: true,
    },
    Page {
        query: "cache-control=max-age%3D60&sidestream-client=a",
        field: "Cookie",
        is_own: true,
    },
    Page {
        query: "cache-control=public,max-age%3D60",
        field: "Authorization",
        is_own: true,
    },
    Page {
        query: "etag=%22a%22&own=1",
        field: "Cookie",
        is_own: true,
    },
    Page {
        query: "cache-control=max-age%3D60&size=100",
        field: "Cookie",
        is_own: false,
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_never_get_the_response_or_cookie_of_each_other() {
    const ROUNDS: usize = 1400;
    let fixture = Arc::new(Fixture::start().await);
    for batch in 0..ROUNDS / 20 {
        let rounds = (0..20).map(|round| interleaving(Arc::clone(&fixture), batch * 20 + round));
        join_all(rounds).await;
    }
}

/// Sends requests of two users for one URL, twice each, at about the same time.
async fn interleaving(fixture: Arc<Fixture>, round: usize) {
    let page = &PAGES[round % PAGES.len()];
    let path = format!("/cached/{round}?{}&delay={}", page.query, round % 4);
    let of = |user: &'static str, wait: usize, version: Version| {
        let (fixture, path) = (&fixture, &path);
        async move {
            tokio::time::sleep(Duration::from_micros(700 * wait as u64)).await;
            let request = Request::get(fixture.sidestream.url(path)).header(page.field, user);
            let request = request.body(Empty::new().boxed()).unwrap();
            let answer = fixture.send(version, request).await;
            let body = String::from_utf8_lossy(answer.body()).into_owned();
            assert_eq!(body.contains(user), page.is_own, "{path}: {body}");
            let cookie = answer.headers().get("set-cookie");
            let is_own_cookie = page.query.contains("own=1");
            assert_eq!(cookie.is_some(), is_own_cookie, "{path}");
            assert!(cookie.is_none_or(|cookie| cookie == user), "{path}");
        }
    };
    let [first, second] = VERSIONS;
    tokio::join!(
        of("user=alice", 0, first),
        of("user=bob", round % 3, second),
        of("user=alice", round % 5, second),
        of("user=bob", round % 7, first),
    );
}
