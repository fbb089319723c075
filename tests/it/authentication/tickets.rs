//! Tickets: bought on one pod, redeemed once on any pod.

mod browser;
mod faults;

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use testkit::h2::H2Client;
use testkit::http1::{self, Answer};
use testkit::sidestream::Sidestream;
use testkit::sse::{Builder, SseClient};
use testkit::transport::Connector;

use super::token::{Token, now};
use super::{APP_SECRET, Fixture, ROUTES, SECRET, bearer, text, token};

const TICKETS: &str = "  tickets: { path: /tickets, bucket: tickets, authenticate: [idp, app],
    cors: { origins: [\"https://app.example\"], credentials: true } }
";

const REDEMPTIONS: &str = "sidestream_ticket_redemptions_total";
const ISSUES: &str = "sidestream_ticket_issues_total";

/// Starts one pod with tickets and the usual routes.
async fn one_pod() -> Fixture {
    Fixture::with(ROUTES, TICKETS).await
}

/// Starts another pod with the usual configuration.
async fn another_pod(fixture: &Fixture) -> Sidestream {
    another_pod_with(fixture, ROUTES, TICKETS).await
}

async fn another_pod_with(fixture: &Fixture, routes: &str, tickets: &str) -> Sidestream {
    Sidestream::builder(text(&fixture.nats, routes, tickets))
        .env("JWT_SECRET", SECRET)
        .env("APP_SECRET", APP_SECRET)
        .start()
        .await
}

/// Sends a request for a ticket with this token.
async fn buy(pod: &Sidestream, token: &str) -> Answer {
    let bearer = bearer(token);
    let headers = [("Authorization", bearer.as_str())];
    let url = pod.url("/tickets");
    http1::request("POST", &url, &headers).await.unwrap()
}

/// Buys a ticket with this token.
async fn ticket(pod: &Sidestream, token: &str) -> String {
    let answer = buy(pod, token).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["ticket"].as_str().unwrap().to_owned()
}

fn get(pod: &Sidestream, path: &str, ticket: &str) -> Builder {
    let separator = if path.contains('?') { '&' } else { '?' };
    SseClient::get(pod.url(&format!("{path}{separator}ticket={ticket}")))
}

/// Returns status and code of a rejected request.
async fn rejected(request: Builder) -> (u16, String) {
    let mut client = request.connect().await;
    let body = client.body().await;
    let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}"));
    let code = body["error"]["code"].as_str().unwrap().to_owned();
    (client.status(), code)
}

fn invalid() -> (u16, String) {
    (401, "invalid_token".to_owned())
}

#[tokio::test]
async fn ticket_of_one_pod_opens_one_event_stream_on_another() {
    let fixture = one_pod().await;
    let other = another_pod(&fixture).await;
    let expires = now() + 6;
    let alice = Token::of("alice").claim("exp", expires).signed();
    let bought = buy(&fixture.sidestream, &alice).await;
    assert_eq!(bought.status, 200, "{}", bought.body);
    assert_eq!(bought.header("cache-control").as_deref(), Some("no-store"));
    let json = Some("application/json");
    assert_eq!(bought.header("content-type").as_deref(), json);
    let left = bought.json()["expires_in"].as_u64().unwrap();
    assert!((1..=6).contains(&left), "not longer than its token: {left}");
    let ticket = bought.json()["ticket"].as_str().unwrap().to_owned();
    assert_eq!(ticket.len(), 43);

    let mut client = get(&other, "/orders", &ticket).connect().await;
    assert_eq!(client.status(), 200, "{:?}", client.headers());
    let has_position = |parser: &testkit::sse_parser::Parser| parser.positions() > 0;
    client.until_seen("its position", has_position).await;
    fixture.publish("orders.bob.paid", "another").await;
    fixture.publish("orders.alice.paid", "1").await;
    client.until(|event| event.data == "1").await;
    assert_eq!(client.rest().len(), 0);
    let connections = other.admin_json("/connections").await;
    assert_eq!(connections["connections"][0]["client"], "idp:alice");

    for pod in [&other, &fixture.sidestream] {
        assert_eq!(rejected(get(pod, "/orders", &ticket)).await, invalid());
    }
    let end = client.until(|event| event.name == "sidestream.close").await;
    let close: Value = serde_json::from_str(&end.last().unwrap().data).unwrap();
    assert_eq!(close["reason"], "expired");
    assert!(now() >= expires, "it ends with the token that bought it");
    for pod in [&other, &fixture.sidestream] {
        let log = pod.output().join("\n");
        assert!(!log.contains(&ticket), "the log has a ticket");
        let (_, metrics) = pod.admin("/metrics").await;
        assert!(!metrics.contains(&ticket), "the metrics have a ticket");
    }
}

#[tokio::test]
async fn one_of_a_hundred_requests_at_the_same_moment_gets_the_ticket() {
    let fixture = one_pod().await;
    let other = another_pod(&fixture).await;
    for _ in 0..5 {
        let ticket = ticket(&fixture.sidestream, &token("alice")).await;
        let all = (0..100).map(|number| {
            let pod = [&fixture.sidestream, &other][number % 2];
            get(pod, "/orders", &ticket).connect()
        });
        let mut statuses: Vec<u16> = (join_all(all).await.iter())
            .map(SseClient::status)
            .collect();
        statuses.sort_unstable();
        assert_eq!((statuses[0], statuses[1], statuses[99]), (200, 401, 401));
    }
    let mut redeemed = 0.0;
    for pod in [&fixture.sidestream, &other] {
        redeemed += pod.metric(REDEMPTIONS, &[("result", "redeemed")]).await;
    }
    assert_eq!(redeemed, 5.0);
}

#[tokio::test]
async fn tickets_over_http2_are_bought_and_redeemed_on_one_connection() {
    let fixture = one_pod().await;
    let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
    let bearer = bearer(&token("alice"));
    let headers = [("authorization", bearer.as_str())];
    let mut bought = connection.request("POST", "/tickets", &headers).await;
    assert_eq!(bought.status(), 200);
    let body: Value = serde_json::from_str(&bought.body().await).unwrap();
    assert_eq!(body["expires_in"], 30);
    let ticket = body["ticket"].as_str().unwrap();
    let path = format!("/orders?ticket={ticket}");
    let accept = [("accept", "text/event-stream")];
    let mut stream = connection.request("GET", &path, &accept).await;
    assert_eq!(stream.status(), 200);
    let has_position = |parser: &testkit::sse_parser::Parser| parser.positions() > 0;
    stream.until_seen("its position", has_position).await;
    fixture.publish("orders.alice.paid", "1").await;
    assert_eq!(stream.next().await.data, "1");
    let again = connection.request("GET", &path, &accept).await;
    assert_eq!(again.status(), 401);
    let none = connection.request("POST", "/tickets", &[]).await;
    assert_eq!(none.status(), 401);
    assert!(!connection.going_away(), "the event stream continues");
}

#[tokio::test]
async fn invalid_tickets_are_rejected_as_other_credentials_are() {
    let fixture = one_pod().await;
    let pod = &fixture.sidestream;
    let unknown = "A".repeat(43);
    for invalid_ticket in [
        "",
        "undefined",
        &unknown,
        &token("alice"),
        &"x".repeat(8000),
    ] {
        let found = rejected(get(pod, "/orders", invalid_ticket)).await;
        assert_eq!(found, invalid(), "{invalid_ticket:.20}");
        // The ticket decides, whatever else the request has.
        let with_token =
            get(pod, "/orders", invalid_ticket).header("Authorization", &bearer(&token("alice")));
        assert_eq!(rejected(with_token).await, invalid());
    }
    let url = pod.url(&format!("/orders?ticket={unknown}"));
    let answer = http1::get(&url).await.unwrap();
    let challenge = answer.header("www-authenticate").unwrap();
    assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    assert!(!answer.body.contains(&unknown));

    let mut browser = get(pod, "/orders", &unknown).browser().connect().await;
    assert_eq!(browser.status(), 200);
    let close = browser.next().await;
    let data: Value = serde_json::from_str(&close.data).unwrap();
    assert_eq!(
        (&*close.name, &data["reason"]),
        ("sidestream.close", &Value::from("unauthenticated"))
    );
    assert!(browser.retry().unwrap() >= 15_000);
    browser.closed().await;

    let one = ticket(pod, &token("alice")).await;
    let two = format!("/orders?ticket={one}");
    assert_eq!(rejected(get(pod, &two, &one)).await, invalid());
    let valid = get(pod, "/orders", &one).connect().await;
    assert_eq!(valid.status(), 200, "the one of two is not spent");
    let open = get(pod, "/open", "undefined").connect().await;
    assert_eq!(open.status(), 200, "without `authenticate` it is ignored");
}

#[tokio::test]
async fn ticket_is_valid_on_routes_that_list_its_provider() {
    let only_idp = TICKETS.replace("[idp, app]", "[idp]");
    let routes = format!(
        "{ROUTES}  - path: /app
    authenticate: [app]
    sources: [{{ stream: ORDERS, subjects: [\"orders.>\"] }}]
"
    );
    let fixture = Fixture::with(&routes, &only_idp).await;
    let pod = &fixture.sidestream;
    let bought = ticket(pod, &token("alice")).await;
    assert_eq!(rejected(get(pod, "/app", &bought)).await, invalid());
    let valid = get(pod, "/status", &bought).connect().await;
    assert_eq!(
        valid.status(),
        200,
        "a route without tickets does not spend it"
    );
    let app = Token::of("carol")
        .claim("iss", Value::Null)
        .signed_with(APP_SECRET);
    let cookie = format!("app={app}");
    let headers = [("Cookie", cookie.as_str())];
    let other = http1::request("POST", &pod.url("/tickets"), &headers).await;
    assert_eq!(other.unwrap().json()["error"]["code"], "unauthenticated");

    fixture
        .sidestream
        .rewrite_config(&text(&fixture.nats, &routes, TICKETS));
    let message = "configuration applied";
    fixture.sidestream.until_message(message).await;
    let bought = http1::request("POST", &pod.url("/tickets"), &headers)
        .await
        .unwrap();
    assert_eq!(bought.status, 200, "the reload added the provider");
    let bought = bought.json()["ticket"].as_str().unwrap().to_owned();
    assert_eq!(rejected(get(pod, "/status", &bought)).await, invalid());
    let spent = rejected(get(pod, "/app", &bought)).await;
    assert_eq!(spent, invalid(), "a route with other tickets spends it");
    let labels = [("result", "other_provider")];
    assert_eq!(pod.metric(REDEMPTIONS, &labels).await, 1.0);
}

#[tokio::test]
async fn ticket_expires() {
    let short = TICKETS.replace("bucket: tickets", "bucket: tickets, ttl: 1s");
    let fixture = Fixture::with(ROUTES, &short).await;
    let pod = &fixture.sidestream;
    let bought = buy(pod, &token("alice")).await.json();
    assert_eq!(bought["expires_in"], 1);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let ticket = bought["ticket"].as_str().unwrap();
    assert_eq!(rejected(get(pod, "/orders", ticket)).await, invalid());
}

#[tokio::test]
async fn path_of_tickets_accepts_post_with_any_body_and_nothing_else() {
    let fixture = one_pod().await;
    let pod = &fixture.sidestream;
    let url = pod.url("/tickets");
    for method in ["GET", "HEAD", "PUT", "DELETE"] {
        let answer = http1::request(method, &url, &[]).await.unwrap();
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.header("allow").as_deref(), Some("POST, OPTIONS"));
    }
    let address = pod.address();
    let bearer = bearer(&token("alice"));
    for body in ["{}".to_owned(), "a\nb\n\n".to_owned(), "x".repeat(100_000)] {
        let request = format!(
            "POST /tickets HTTP/1.1\r\nHost: {address}\r\nAuthorization: {bearer}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let transport = Connector::default()
            .connect(&url.parse().unwrap())
            .await
            .unwrap();
        let answer = http1::Response::exchange(transport, request.as_bytes(), false).await;
        let mut answer = answer.unwrap();
        assert_eq!(answer.status, 200, "{:.10}", body);
        assert_eq!(answer.header("connection").as_deref(), Some("close"));
        let (text, _) = answer.body().await;
        assert!(String::from_utf8(text).unwrap().contains("\"ticket\""));
    }
    // Without a body the connection stays open: a page opens its event stream on it.
    let request = format!(
        "POST /tickets HTTP/1.1\r\nHost: {address}\r\nAuthorization: {bearer}\r\nContent-Length: 0\r\n\r\n"
    );
    let transport = Connector::default()
        .connect(&url.parse().unwrap())
        .await
        .unwrap();
    let first = http1::Response::exchange(transport, request.as_bytes(), false).await;
    let mut first = first.unwrap();
    first.body().await;
    let second = first.again(request.as_bytes()).await.unwrap();
    assert_eq!(second.status, 200);
    // A ticket buys no ticket.
    let ticket = ticket(pod, &token("alice")).await;
    let url = pod.url(&format!("/tickets?ticket={ticket}"));
    let answer = http1::request("POST", &url, &[]).await.unwrap();
    assert_eq!(
        (answer.status, &answer.json()["error"]["code"]),
        (401, &"unauthenticated".into())
    );
    assert_eq!(
        answer.header("www-authenticate").as_deref(),
        Some("Bearer realm=\"sidestream\"")
    );
}

#[tokio::test]
async fn pages_of_allowed_origins_buy_tickets() {
    let fixture = one_pod().await;
    let url = fixture.sidestream.url("/tickets");
    let headers = [
        ("Origin", "https://app.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization"),
    ];
    let preflight = http1::request("OPTIONS", &url, &headers).await.unwrap();
    assert_eq!(preflight.status, 204);
    let header = |name| preflight.header(name).unwrap_or_default();
    assert_eq!(header("access-control-allow-methods"), "POST");
    assert!(header("access-control-allow-headers").contains("authorization"));
    assert_eq!(header("access-control-allow-credentials"), "true");
    let rejected = http1::request("POST", &url, &headers[..1]).await.unwrap();
    assert_eq!(rejected.status, 401);
    let origin = rejected.header("access-control-allow-origin");
    assert_eq!(origin.as_deref(), Some("https://app.example"));
    let evil = [("Origin", "https://evil.example")];
    let rejected = http1::request("OPTIONS", &url, &evil).await.unwrap();
    assert_eq!(rejected.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn principal_that_buys_too_many_tickets_is_limited_and_others_are_not() {
    let fixture = one_pod().await;
    let pod = &fixture.sidestream;
    let mut client = H2Client::connect(pod.url("/")).await;
    // A temporary rejection closes a connection without an event stream.
    let _open = client.get("/open").await;
    let (alice, bob) = (bearer(&token("alice")), bearer(&token("bob")));
    let mut bought = 0;
    let limited = loop {
        let headers = [("authorization", alice.as_str())];
        let mut answer = client.request("POST", "/tickets", &headers).await;
        let body = answer.body().await;
        if answer.status() != 200 {
            assert!(body.contains("\"too_many_tickets\""), "{body}");
            break answer;
        }
        bought += 1;
        assert!(bought < 5000, "the limit is never reached");
    };
    assert!(bought >= 100, "{bought}");
    assert_eq!(limited.status(), 429);
    assert!(limited.header("retry-after").is_some());
    let headers = [("authorization", bob.as_str())];
    let other = client.request("POST", "/tickets", &headers).await;
    assert_eq!(other.status(), 200);
    assert_eq!(pod.metric(ISSUES, &[("result", "throttled")]).await, 1.0);
    let issued = pod.metric(ISSUES, &[("result", "issued")]).await;
    assert_eq!(issued, f64::from(bought) + 1.0);
}
