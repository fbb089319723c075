//! Sessions of an application: accepted requests, rejections, claims and expiry.

use serde_json::{Value, json};
use testkit::endpoint::Reply;
use testkit::h2::H2Client;
use testkit::http1;
use testkit::wait::DEADLINE;

use super::super::token::now;
use super::super::{bearer, token};
use super::{App, sessions};

#[tokio::test]
async fn session_cookie_opens_the_event_stream_of_its_user() {
    let app = App::start("", sessions).await;
    let fixture = &app.fixture;
    let request = fixture.get("/events/a").header("Cookie", "session=alice");
    let mut alice = request.connect().await;
    assert_eq!(alice.status(), 200, "{:?}", alice.headers());
    alice.positioned().await;
    let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
    // HTTP/2 permits one field per cookie.
    let headers = [
        ("accept", "text/event-stream"),
        ("cookie", "theme=dark"),
        ("cookie", "session=bob"),
    ];
    let mut bob = connection.request("GET", "/events/a", &headers).await;
    assert_eq!(bob.status(), 200, "{:?}", bob.headers());
    bob.positioned().await;
    fixture.publish("orders.alice.paid", "1").await;
    fixture.publish("orders.bob.paid", "2").await;
    assert_eq!(alice.next().await.data, "1");
    assert_eq!(bob.next().await.data, "2");
    assert_eq!(
        app.endpoint.calls()[1].all("cookie"),
        ["theme=dark; session=bob"]
    );

    let connections = fixture.sidestream.admin_json("/connections").await;
    let list = connections["connections"].as_array().unwrap();
    let mut clients: Vec<_> = list
        .iter()
        .map(|one| one["client"].as_str().unwrap())
        .collect();
    clients.sort_unstable();
    assert_eq!(clients, ["session:alice", "session:bob"]);
    assert_eq!(app.count("allowed").await, 2.0);
    let name = "sidestream_authentication_forward_seconds_count";
    let calls = fixture.sidestream.metric(name, &[("provider", "session")]);
    assert_eq!(calls.await, 2.0);
    assert_eq!(app.check().await["status"], "ok");
}

#[tokio::test]
async fn endpoint_receives_the_request_and_nothing_that_a_client_forges() {
    let app = App::start("send: [authorization, cookie, x-api-key],", sessions).await;
    let forged = [
        ("Cookie", "session=alice"),
        ("Authorization", "Basic YTpi"),
        ("X-Api-Key", "one"),
        ("X-Api-Key", "two"),
        ("X-Other", "not sent"),
        ("Sidestream-Claim-Sub", "evil"),
        ("Sidestream-Expires", "9999999999"),
        ("X-Forwarded-Method", "DELETE"),
        ("X-Forwarded-Uri", "/events/evil"),
        ("X-Forwarded-User", "evil"),
        ("Forwarded", "for=6.6.6.6;host=evil.example;proto=https"),
        ("X-Real-IP", "6.6.6.6"),
    ];
    // Of a trusted proxy: address, scheme and host.
    let proxied = [
        ("X-Forwarded-For", "6.6.6.6, 192.0.2.7"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "shop.example"),
    ];
    let target = "/events/a?b=%2f&last_event_id=x&c";
    let headers: Vec<_> = forged.into_iter().chain(proxied).collect();
    assert_eq!(app.head(target, &headers).await.status, 200);
    // From a peer that is not a trusted proxy, the same three are forged too.
    let text = super::text(&app.endpoint, "send: [cookie],").replace("[127.0.0.1]", "[]");
    let direct = super::super::Fixture::with(&text, "").await;
    let url = direct.sidestream.url(target);
    let answer = http1::request("HEAD", &url, &headers).await.unwrap();
    assert_eq!(answer.status, 200);

    let calls = app.endpoint.calls();
    assert_eq!(calls.len(), 2);
    let host = direct.sidestream.address().to_string();
    for (call, expected) in calls.iter().zip([
        ["192.0.2.7", "https", "shop.example"],
        ["127.0.0.1", "http", &host],
    ]) {
        let made = ["for", "proto", "host"].map(|name| call.all(&format!("x-forwarded-{name}")));
        assert_eq!(made, expected.map(|value| vec![value]));
        assert_eq!(call.all("x-forwarded-method"), ["HEAD"]);
        assert_eq!(call.all("x-forwarded-uri"), ["/events/a?b=%2f&c"]);
        assert_eq!((&*call.method, &*call.target), ("GET", "/authorize"));
        assert_eq!(call.body_bytes, 0);
        let names = call.headers.iter().map(|(name, _)| name.as_str());
        let known = [
            "accept",
            "authorization",
            "cookie",
            "host",
            "user-agent",
            "x-api-key",
        ];
        let others: Vec<_> = names
            .filter(|name| !known.contains(name) && !name.starts_with("x-forwarded-"))
            .collect();
        assert!(others.is_empty(), "{others:?}");
        assert!(call.all("x-forwarded-user").is_empty());
    }
    assert_eq!(calls[0].all("x-api-key"), ["one", "two"]);
    assert!(calls[1].all("authorization").is_empty());
}

#[tokio::test]
async fn rejections_have_the_status_of_the_endpoint_for_programs() {
    let app = App::start("", sessions).await;
    let url = app.fixture.sidestream.url("/events/a");
    for (cookie, status, code, challenge) in [
        (
            "session=expired",
            401,
            "unauthenticated",
            Some("Session realm=\"shop\""),
        ),
        ("", 401, "unauthenticated", Some("Session realm=\"shop\"")),
        ("session=blocked", 403, "forbidden", None),
    ] {
        let answer = http1::request("GET", &url, &[("Cookie", cookie)])
            .await
            .unwrap();
        assert_eq!(answer.status, status, "{cookie}");
        assert_eq!(answer.json()["error"]["code"], code, "{cookie}");
        let sent = answer.header("www-authenticate");
        assert_eq!(sent.as_deref(), challenge, "{cookie}");
    }
    assert_eq!(app.count("rejected").await, 3.0);
    let log = app.fixture.sidestream.output().join("\n");
    assert!(
        !log.contains("expired") && !log.contains("blocked"),
        "{log}"
    );
    assert_eq!(app.check().await["status"], "ok");
}

#[tokio::test]
async fn browser_without_a_session_receives_an_event_stream_that_asks_it_to_wait() {
    let app = App::start("", sessions).await;
    for cookie in ["session=expired", "session=blocked"] {
        let request = app.fixture.get("/events/a").browser();
        let mut client = request.header("Cookie", cookie).connect().await;
        assert_eq!(client.status(), 200, "{cookie}");
        let close = client.next().await;
        assert_eq!(close.name, "sidestream.close", "{cookie}");
        let data: Value = serde_json::from_str(&close.data).unwrap();
        assert_eq!(data["reason"], "unauthenticated", "{cookie}");
        let retry = client.retry().unwrap();
        assert!((15_000..=45_000).contains(&retry), "{retry}");
        client.closed().await;
    }
}

#[tokio::test]
async fn endpoint_decides_if_its_header_is_present_or_no_provider_follows() {
    let app = App::start("send: [cookie],", sessions).await;
    let alice = bearer(&token("alice"));
    let by_token = [("Authorization", alice.as_str())];
    assert_eq!(app.head("/both", &by_token).await.status, 200);
    assert_eq!(app.endpoint.calls().len(), 0, "the next provider decides");
    // A rejected session is not offered to the next provider.
    let both = [by_token[0], ("Cookie", "session=expired")];
    assert_eq!(app.head("/both", &both).await.status, 401);
    assert_eq!(app.endpoint.calls().len(), 1);
    assert_eq!(app.head("/both", &[]).await.status, 401);
    assert_eq!(app.endpoint.calls().len(), 1);
    assert_eq!(app.head("/events/a", &by_token).await.status, 401);
    assert_eq!(app.endpoint.calls().len(), 2, "the last provider decides");
}

#[tokio::test]
async fn endpoint_without_credentials_can_decide_by_address_and_client_is_named_by_it() {
    let app = App::start("send: [],", |call| {
        let is_known = call.header("x-forwarded-for") == "192.0.2.7";
        let status = if is_known { 204 } else { 403 };
        Reply::status(status).header("Sidestream-Claim-Tenant", "blue")
    })
    .await;
    let text = super::text(&app.endpoint, "send: [],").replace("{claim.sub}", "{claim.tenant}");
    let fixture = super::super::Fixture::with(&text, "").await;
    let request = fixture.get("/events/a");
    let request = request.header("X-Forwarded-For", "192.0.2.7");
    let mut client = request.connect().await;
    assert_eq!(client.status(), 200);
    client.positioned().await;
    fixture.publish("orders.blue.paid", "1").await;
    assert_eq!(client.next().await.data, "1");
    let connections = fixture.sidestream.admin_json("/connections").await;
    assert_eq!(connections["connections"][0]["client"], "session:192.0.2.7");
    assert_eq!(app.head("/events/a", &[]).await.status, 403);
    // The route needs a claim that the answer does not have.
    let known = [("X-Forwarded-For", "192.0.2.7")];
    assert_eq!(app.head("/events/a", &known).await.status, 403);
}

#[tokio::test]
async fn expiry_of_an_answer_ends_the_event_stream_and_its_place_in_the_cache() {
    let expires = now() + 3;
    let app = App::start("cache: { for: 1h },", move |call| {
        sessions(call).header("Sidestream-Expires", expires.to_string())
    })
    .await;
    let request = || app.fixture.get("/events/a").header("Cookie", "session=a");
    let mut client = request().connect().await;
    let renew = client.next_within(DEADLINE).await.unwrap();
    assert_eq!(renew.name, "sidestream.renew");
    let data: Value = serde_json::from_str(&renew.data).unwrap();
    assert_eq!(data, json!({ "expires": expires }));
    assert_eq!(app.status("a").await, 200);
    let close = client.next_within(DEADLINE).await.unwrap();
    assert_eq!(close.name, "sidestream.close");
    let data: Value = serde_json::from_str(&close.data).unwrap();
    assert_eq!(data["reason"], "expired");
    assert!(now() >= expires, "not before the expiry");
    client.closed().await;
    // HEAD has an entry of its own; neither outlives the expiry.
    let calls = app.endpoint.calls().len();
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    assert_eq!(app.status("a").await, 401);
    assert_eq!(app.endpoint.calls().len(), calls + 1);
}
