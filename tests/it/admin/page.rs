//! The page on the admin port: its form and sessions, its files, its event stream. `tap` and
//! `page_browser` test the rest.

use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use rustls::ClientConfig;
use serde_json::Value;
use testkit::certs::Authority;
use testkit::http1::{self, Answer, Response};
use testkit::nats::Nats;
use testkit::sidestream::Sidestream;
use testkit::sse::SseClient;
use testkit::transport::Connector;
use testkit::wait::{DEADLINE, eventually};

const TOKEN: &str = "the-token-of-the-admin-port-2026";
const ROUTE: &str = "routes:\n  - path: /a\n    sources: [{ subjects: [a] }]\n";

/// Starts a sidecar with these keys of `admin`.
async fn start(nats: &Nats, admin: &str) -> Sidestream {
    Sidestream::start(format!(
        "listen:\n  - address: 127.0.0.1:0\nadmin: {{ address: '127.0.0.1:0', {admin} }}\n\
         nats:\n  servers: ['{}']\n{ROUTE}",
        nats.url()
    ))
    .await
}

async fn get(sidestream: &Sidestream, path: &str, headers: &[(&str, &str)]) -> Answer {
    http1::request("GET", &sidestream.url_admin(path), headers)
        .await
        .unwrap()
}

/// Sends a form as a browser does.
async fn post(sidestream: &Sidestream, path: &str, headers: &[(&str, &str)], form: &str) -> Answer {
    let url: Uri = sidestream.url_admin(path).parse().unwrap();
    let length = form.len().to_string();
    let mut all = vec![
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Content-Length", &*length),
    ];
    all.extend_from_slice(headers);
    let request = http1::head("POST", &url, 1, &all) + form;
    let transport = Connector::default().connect(&url).await.unwrap();
    let mut response = Response::exchange(transport, request.as_bytes(), false)
        .await
        .unwrap();
    let (body, end) = response.body().await;
    Answer {
        status: response.status,
        headers: response.headers,
        body: String::from_utf8(body).unwrap(),
        end,
    }
}

fn code(answer: &Answer) -> (u16, String) {
    let code = answer.json()["error"]["code"].as_str().unwrap().to_owned();
    (answer.status, code)
}

/// Name and value of the cookie that an answer sets.
fn cookie(answer: &Answer) -> String {
    let cookie = answer.header("set-cookie").expect("a cookie");
    cookie.split_once(';').unwrap().0.to_owned()
}

async fn log_in(sidestream: &Sidestream) -> String {
    let answer = post(sidestream, "/page/login", &[], &format!("token={TOKEN}")).await;
    assert_eq!(answer.status, 303, "{answer:?}");
    cookie(&answer)
}

fn is_form(answer: &Answer) -> bool {
    answer.body.contains("action=\"/page/login\"")
}

#[tokio::test]
async fn page_without_a_token_is_a_form_that_opens_a_session() {
    let nats = Nats::start().await;
    let sidestream = start(&nats, &format!("token: {TOKEN}")).await;
    let form = get(&sidestream, "/", &[]).await;
    assert!(form.status == 401 && is_form(&form), "{form:?}");
    let policy = form.header("content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self';"),
        "{policy}"
    );
    for file in ["style.css", "theme.js", "main.js"] {
        let path = format!("/page/{file}");
        let file = get(&sidestream, &path, &[]).await;
        assert_eq!(file.status, 200, "{path} has no data of the pod");
    }
    for path in ["/page/events", "/page/routes", "/page/tap?route=/a"] {
        let rejected = get(&sidestream, path, &[]).await;
        assert_eq!(code(&rejected), (401, "unauthenticated".into()), "{path}");
    }

    let wrong = post(&sidestream, "/page/login", &[], "token=wrong").await;
    assert!(wrong.status == 401 && is_form(&wrong));
    assert!(wrong.body.contains("The token is wrong."));
    assert_eq!(wrong.header("set-cookie"), None);

    let right = post(&sidestream, "/page/login", &[], &format!("token={TOKEN}")).await;
    assert_eq!(
        (right.status, right.header("location").as_deref()),
        (303, Some("/"))
    );
    let set = right.header("set-cookie").unwrap();
    for attribute in [
        "; HttpOnly",
        "; SameSite=Strict",
        "; Path=/",
        "; Max-Age=43200",
    ] {
        assert!(set.contains(attribute), "{set}");
    }
    let session = cookie(&right);
    let headers = [("Cookie", &*session)];
    let page = get(&sidestream, "/", &headers).await;
    assert!(page.status == 200 && !is_form(&page) && page.body.contains("id=\"drain\""));
    for path in ["/connections", "/config", "/page/routes"] {
        assert_eq!(get(&sidestream, path, &headers).await.status, 200, "{path}");
    }
    assert!(!sidestream.output().join("\n").contains(TOKEN));

    let (name, value) = session.split_once('=').unwrap();
    let (end, signature) = value.split_once('.').unwrap();
    for forged in [
        format!("{name}={}.{signature}", end.parse::<u64>().unwrap() + 1),
        format!("{name}={end}."),
        format!("sidestream_admin_1={value}"),
        format!("{name}="),
    ] {
        let answer = get(&sidestream, "/connections", &[("Cookie", &forged)]).await;
        assert_eq!(answer.status, 401, "{forged}");
    }

    let out = post(&sidestream, "/page/logout", &headers, "").await;
    assert_eq!(out.status, 303);
    assert!(
        out.header("set-cookie")
            .unwrap()
            .contains("=; Path=/; Max-Age=0;")
    );
}

#[tokio::test]
async fn forms_are_limited_bounded_and_of_the_same_origin() {
    let nats = Nats::start().await;
    let sidestream = start(&nats, &format!("token: {TOKEN}")).await;
    let right = format!("token={TOKEN}");
    for headers in [
        [("Origin", "https://evil.example")],
        [("Origin", "null")],
        [("Sec-Fetch-Site", "cross-site")],
    ] {
        let rejected = post(&sidestream, "/page/login", &headers, &right).await;
        assert_eq!(code(&rejected), (403, "cross_origin".into()), "{headers:?}");
    }
    let origin = sidestream.url_admin("");
    let own = [("Origin", &*origin), ("Sec-Fetch-Site", "same-origin")];
    assert_eq!(
        post(&sidestream, "/page/login", &own, &right).await.status,
        303
    );

    let long = format!("token={}", "x".repeat(10_000));
    let rejected = post(&sidestream, "/page/login", &[], &long).await;
    assert_eq!(code(&rejected), (400, "bad_form".into()));
    let read = get(&sidestream, "/page/login", &[]).await;
    assert_eq!(
        (read.status, read.header("allow").as_deref()),
        (405, Some("POST"))
    );
    let written = post(&sidestream, "/page/events", &[], "").await;
    assert_eq!(code(&written), (405, "method_not_allowed".into()));

    let mut denied = post(&sidestream, "/page/login", &[], "token=wrong").await;
    for _ in 0..40 {
        if denied.status == 429 {
            break;
        }
        denied = post(&sidestream, "/page/login", &[], "token=wrong").await;
    }
    assert!(denied.status == 429 && is_form(&denied), "{denied:?}");
    assert!(denied.header("retry-after").is_some());
    let labels = [("port", "admin"), ("code", "cross_origin")];
    let counted = sidestream
        .metric("sidestream_admin_refusals_total", &labels)
        .await;
    assert_eq!(counted, 3.0);
}

#[tokio::test]
async fn new_token_ends_the_sessions_of_the_old_one() {
    let nats = Nats::start().await;
    let with = |token: &str| {
        format!(
            "listen:\n  - address: 127.0.0.1:0\nadmin: {{ address: '127.0.0.1:0', token: {token} }}\n\
             nats:\n  servers: ['{}']\n{ROUTE}",
            nats.url()
        )
    };
    let sidestream = Sidestream::start(with(TOKEN)).await;
    let session = log_in(&sidestream).await;
    let headers = [("Cookie", &*session)];
    assert_eq!(get(&sidestream, "/", &headers).await.status, 200);
    sidestream.rewrite_config(&with("another-token-of-the-admin-port1"));
    eventually(DEADLINE, "the session has ended", || async {
        get(&sidestream, "/", &headers).await.status == 401
    })
    .await;
}

#[tokio::test]
async fn event_stream_has_a_snapshot_per_second_for_a_bounded_number_of_viewers() {
    let nats = Nats::start().await;
    let sidestream = start(&nats, &format!("token: {TOKEN}")).await;
    let session = log_in(&sidestream).await;
    let url = sidestream.url_admin("/page/events");
    let open = || {
        SseClient::get(&url)
            .header("Cookie", &session)
            .try_connect()
    };
    let mut viewers = Vec::new();
    for _ in 0..8 {
        viewers.push(open().await.unwrap());
    }
    let mut client = SseClient::get(sidestream.url("/a")).connect().await;
    client.positioned().await;
    let shown = viewers[0]
        .until(|event| serde_json::from_str::<Value>(&event.data).unwrap()["clients"]["total"] == 1)
        .await;
    let snapshot: Value = serde_json::from_str(&shown.last().unwrap().data).unwrap();
    assert_eq!(shown.last().unwrap().name, "snapshot");
    assert_eq!(snapshot["status"], "ok");
    assert_eq!(snapshot["nats"]["connected"], true);
    assert_eq!(snapshot["load"], "none");
    assert_eq!(snapshot["drain"]["phase"], "running");
    assert_eq!(snapshot["clients"]["shown"][0]["client"], "127.0.0.1");
    assert_eq!(snapshot["streams"][0]["route"], "/a");
    // The same computed snapshot, not one per viewer.
    let second = viewers[1].until(|event| event.data == shown.last().unwrap().data);
    second.await;

    let ninth = get(&sidestream, "/page/events", &[("Cookie", &session)]).await;
    assert_eq!(code(&ninth), (503, "too_many_viewers".into()));
    assert_eq!(get(&sidestream, "/health/ready", &[]).await.status, 200);
    assert_eq!(
        get(&sidestream, "/metrics", &[]).await.status,
        200,
        "viewers leave the requests of their address alone"
    );
    drop(viewers);
    eventually(DEADLINE, "a viewer that leaves is replaced", || async {
        open().await.is_ok_and(|viewer| viewer.status() == 200)
    })
    .await;
}

#[tokio::test]
async fn page_over_tls_has_a_secure_cookie_or_a_client_certificate() {
    let nats = Nats::start().await;
    let authority = Authority::new();
    let identity = authority.server("admin");
    let tls = format!(
        "tls: {{ certificate: {:?}, key: {:?}, client_ca: {:?} }}",
        identity.certificate,
        identity.key,
        authority.file()
    );
    let page = async |sidestream: &Sidestream, client: Arc<ClientConfig>, request: &str| {
        let url: Uri = sidestream
            .url_admin("/")
            .replace("http:", "https:")
            .parse()
            .unwrap();
        let transport = Connector::default()
            .tls(client)
            .connect(&url)
            .await
            .unwrap();
        let mut response = Response::exchange(transport, request.as_bytes(), false)
            .await
            .unwrap();
        let (body, end) = response.body().await;
        Answer {
            status: response.status,
            headers: response.headers,
            body: String::from_utf8(body).unwrap(),
            end,
        }
    };
    let request = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    let with = async |admin: &str| {
        let config = format!(
            "listen:\n  - address: 127.0.0.1:0\nadmin: {{ address: '127.0.0.1:0', {admin} }}\n\
             nats:\n  servers: ['{}']\n{ROUTE}",
            nats.url()
        );
        Sidestream::builder(config).without_waiting().start().await
    };
    let certificate_only = with(&tls).await;
    let anonymous = page(&certificate_only, authority.trusting(&[]), request).await;
    assert_eq!(anonymous.status, 403);
    assert!(
        anonymous.body.contains("client certificate"),
        "{anonymous:?}"
    );
    assert!(!is_form(&anonymous));
    let operator = authority.trusting_as(&[], &authority.client("operator"));
    let shown = page(&certificate_only, operator, request).await;
    assert!(shown.status == 200 && shown.body.contains("id=\"drain\""));

    let both = with(&format!("{tls}, token: {TOKEN}")).await;
    let form = format!("token={TOKEN}");
    let request = format!(
        "POST /page/login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    );
    let opened = page(&both, authority.trusting(&[]), &request).await;
    assert_eq!(opened.status, 303, "{opened:?}");
    assert!(opened.header("set-cookie").unwrap().ends_with("; Secure"));
}

#[tokio::test]
async fn viewer_sees_the_end_of_a_drain() {
    let nats = Nats::start().await;
    let mut sidestream = start(&nats, "hosts: []").await;
    let mut viewer = SseClient::get(sidestream.url_admin("/page/events"))
        .connect()
        .await;
    viewer.next().await;
    sidestream.terminate();
    assert_eq!(sidestream.wait_exit(Duration::from_secs(30)).await, 0);
    viewer.closed().await;
    let last = viewer.rest().into_iter().next_back().unwrap();
    let last: Value = serde_json::from_str(&last.data).unwrap();
    assert_eq!(last["drain"]["phase"], "done", "{last}");
}

#[tokio::test]
#[ignore = "17 s: longer than the deadline of other responses"]
async fn viewer_outlives_the_deadline_of_other_responses() {
    let nats = Nats::start().await;
    let sidestream = start(&nats, "hosts: []").await;
    let mut viewer = SseClient::get(sidestream.url_admin("/page/events"))
        .connect()
        .await;
    viewer.take(17).await;
}
