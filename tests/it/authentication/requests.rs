//! Requests that are accepted, and each rejection with its status, challenge and event stream.

use serde_json::Value;

use super::token::{SECRET, Token, now};
use super::{APP_SECRET, Fixture, bearer, open_h2, token};
use testkit::h2::H2Client;
use testkit::http1;
use testkit::ndjson;

#[tokio::test]
async fn valid_token_opens_the_event_stream_of_its_subject() {
    let fixture = Fixture::start().await;
    let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
    let mut alice = fixture.open("/orders", &token("alice")).await;
    let mut bob = open_h2(&mut connection, "/orders", &token("bob")).await;
    fixture.publish("orders.alice.paid", "1").await;
    fixture.publish("orders.bob.paid", "2").await;
    assert_eq!(alice.next().await.data, "1");
    assert_eq!(bob.next().await.data, "2");
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_refusals_total", &[])
            .await,
        0.0
    );

    let connections = fixture.sidestream.admin_json("/connections").await;
    let mut clients: Vec<_> = connections["connections"]
        .as_array()
        .unwrap_or_else(|| panic!("{connections}"))
        .iter()
        .map(|one| one["client"].as_str().unwrap().to_owned())
        .collect();
    clients.sort();
    assert_eq!(clients, ["idp:alice", "idp:bob"]);
}

#[tokio::test]
async fn credentials_are_found_in_header_cookie_and_query() {
    let fixture = Fixture::start().await;
    let token = token("alice");
    let by_cookie = fixture
        .get("/orders")
        .header("Cookie", &format!("theme=dark; session={token}"));
    let by_query = fixture.get(&format!("/orders?access_token={token}"));
    let by_scheme = fixture
        .get("/orders")
        .header("Authorization", &format!("bearer {token}"));
    for request in [by_cookie, by_query, by_scheme] {
        assert_eq!(request.connect().await.status(), 200);
    }
    let log = fixture.sidestream.output().join("\n");
    let signature = token.rsplit('.').next().unwrap();
    assert!(!log.contains(signature), "the log has a token");
    assert!(!log.contains("access_token="), "the log has a query");
}

#[tokio::test]
async fn first_provider_that_finds_its_credentials_decides() {
    let fixture = Fixture::start().await;
    let app = Token::of("carol")
        .claim("iss", Value::Null)
        .signed_with(APP_SECRET);
    let cookie = format!("app={app}");
    let mut client = fixture
        .get("/orders")
        .header("Cookie", &cookie)
        .connect()
        .await;
    assert_eq!(client.status(), 200);
    client.positioned().await;
    fixture.publish("orders.carol.paid", "1").await;
    assert_eq!(client.next().await.data, "1");
    // The second provider does not repair what the first one rejects.
    let rejected = fixture
        .get("/orders")
        .header("Cookie", &cookie)
        .header("Authorization", &bearer("no token"))
        .connect()
        .await;
    assert_eq!(rejected.status(), 401);
    // A route without the provider does not accept its credentials.
    let rejected = fixture
        .get("/status")
        .header("Cookie", &cookie)
        .connect()
        .await;
    assert_eq!(rejected.status(), 401);
}

#[tokio::test]
async fn invalid_credentials_are_rejected_with_a_challenge() {
    let fixture = Fixture::start().await;
    let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
    let url = fixture.sidestream.url("/orders");
    let valid = Token::of("alice");
    let cut = valid.signed();
    let (cut, _) = cut.split_at(cut.len() - 4);
    for (fault, token) in [
        ("another secret", valid.signed_with(APP_SECRET)),
        ("expired", Token::of("alice").expires_in(-5).signed()),
        (
            "not valid yet",
            Token::of("alice").claim("nbf", now() + 60).signed(),
        ),
        (
            "issuer",
            Token::of("alice")
                .claim("iss", "https://evil.example")
                .signed(),
        ),
        (
            "audience",
            Token::of("alice").claim("aud", "other").signed(),
        ),
        (
            "no subject",
            Token::of("alice").claim("sub", Value::Null).signed(),
        ),
        ("none", Token::of("alice").algorithm("none").signed()),
        (
            "another algorithm",
            Token::of("alice").algorithm("RS256").signed(),
        ),
        ("truncated", cut.to_owned()),
        ("not a token", "abc".to_owned()),
        ("12 KiB of parts", "a.".repeat(6 * 1024)),
    ] {
        let bearer = bearer(&token);
        let headers = [("Authorization", bearer.as_str())];
        let answer = http1::request("GET", &url, &headers).await.unwrap();
        assert_eq!(answer.status, 401, "{fault}");
        assert_eq!(answer.json()["error"]["code"], "invalid_token", "{fault}");
        let challenge = answer.header("www-authenticate").unwrap();
        let start = "Bearer realm=\"sidestream\", error=\"invalid_token\", error_description=\"";
        assert!(challenge.starts_with(start), "{fault}: {challenge}");
        assert!(!answer.body.contains(&token), "{fault}");

        let lower = [
            ("authorization", bearer.as_str()),
            ("accept", "text/event-stream"),
        ];
        let mut over_h2 = connection.request("GET", "/orders", &lower).await;
        assert_eq!(over_h2.status(), 401, "{fault}");
        assert_eq!(over_h2.header("www-authenticate"), Some(challenge.as_str()));
        assert_eq!(over_h2.body().await, answer.body);
    }
    assert!(!connection.going_away(), "other event streams continue");
    let labels = [("code", "invalid_token")];
    let count = fixture
        .sidestream
        .metric("sidestream_refusals_total", &labels)
        .await;
    assert_eq!(count, 22.0);
    let log = fixture.sidestream.output().join("\n");
    assert!(!log.contains("eyJ"), "the log has a token");
}

#[tokio::test]
async fn secrets_tokens_and_claims_appear_neither_in_logs_nor_on_the_admin_port() {
    let fixture = Fixture::start().await;
    let private = "private-7f3a";
    let token = Token::of("alice")
        .claim("email", private)
        .claim("tenant", serde_json::json!({ "name": private }));
    let (valid, invalid) = (token.signed(), token.signed_with(APP_SECRET));
    fixture.open("/orders", &valid).await;
    let mut by_query = fixture
        .get(&format!("/orders?access_token={valid}"))
        .connect()
        .await;
    assert_eq!(by_query.status(), 200);
    by_query.positioned().await;
    for path in [
        format!("/orders?access_token={invalid}"),
        format!("/chosen?subject=a&access_token={valid}"),
    ] {
        let answer = http1::get(&fixture.sidestream.url(&path)).await.unwrap();
        assert!(matches!(answer.status, 401 | 403), "{}", answer.status);
        assert!(!answer.body.contains(private) && !answer.body.contains("eyJ"));
    }
    let mut texts = vec![fixture.sidestream.output().join("\n")];
    for path in ["/config", "/connections", "/health", "/metrics", "/"] {
        texts.push(fixture.sidestream.admin(path).await.1);
    }
    let connections = &texts[2];
    assert!(connections.contains("idp:alice"), "{connections}");
    for text in texts {
        for secret in [SECRET, APP_SECRET, private, "eyJ", "access_token="] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}

#[tokio::test]
async fn request_without_credentials_is_challenged_without_an_error() {
    let fixture = Fixture::start().await;
    let none = http1::get(&fixture.sidestream.url("/orders"))
        .await
        .unwrap();
    assert_eq!(none.status, 401);
    assert_eq!(none.json()["error"]["code"], "unauthenticated");
    assert_eq!(
        none.header("www-authenticate").as_deref(),
        Some("Bearer realm=\"sidestream\"")
    );
    let basic = [("Authorization", "Basic YTpi")];
    let basic = http1::request("GET", &fixture.sidestream.url("/orders"), &basic).await;
    assert_eq!(basic.unwrap().json()["error"]["code"], "unauthenticated");
    // Proxies in front may have verified only one of two headers.
    let valid = bearer(&token("alice"));
    let two = [
        ("Authorization", valid.as_str()),
        ("Authorization", "Bearer x"),
    ];
    let two = http1::request("GET", &fixture.sidestream.url("/orders"), &two).await;
    assert_eq!(two.unwrap().json()["error"]["code"], "invalid_token");
    let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
    let two = [("authorization", &*valid), ("authorization", &*valid)];
    let mut over_h2 = connection.request("GET", "/orders", &two).await;
    assert_eq!(over_h2.status(), 401, "also if they are equal");
    let why = over_h2.header("www-authenticate").unwrap_or_default();
    assert!(why.contains("more than one Authorization header"), "{why}");
    assert!(over_h2.body().await.contains("invalid_token"));
    // What the client can correct first comes first.
    let post = http1::request("POST", &fixture.sidestream.url("/orders"), &[]).await;
    assert_eq!(post.unwrap().status, 405);
    let open = fixture.get("/open").connect().await;
    assert_eq!(open.status(), 200, "other routes stay anonymous");
}

#[tokio::test]
async fn browser_receives_an_event_stream_that_ends_and_returns_slowly() {
    let fixture = Fixture::start().await;
    let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
    let mut other = open_h2(&mut connection, "/orders", &token("alice")).await;
    for cookie in ["", "session=expired"] {
        let request = fixture.get("/orders").browser().header("Cookie", cookie);
        let mut client = request.connect().await;
        assert_eq!(client.status(), 200);
        assert_eq!(
            client.header("content-type").as_deref(),
            Some("text/event-stream")
        );
        let close = client.next().await;
        assert_eq!(close.name, "sidestream.close");
        let data: Value = serde_json::from_str(&close.data).unwrap();
        assert_eq!(data["reason"], "unauthenticated");
        let retry = client.retry().unwrap();
        assert!((15_000..=45_000).contains(&retry), "{retry}");
        client.closed().await;
    }
    let headers = [
        ("accept", "text/event-stream"),
        ("user-agent", "Mozilla/5.0 (test)"),
    ];
    let mut rejected = connection.request("GET", "/orders", &headers).await;
    assert_eq!(rejected.next().await.name, "sidestream.close");
    assert!(!connection.going_away(), "other event streams continue");
    fixture.publish("orders.alice.paid", "1").await;
    assert_eq!(other.next().await.data, "1");
    // `unauthenticated` of the route decides.
    let browser = fixture.get("/status").browser().connect().await;
    assert_eq!(browser.status(), 401);
    let mut program = fixture.get("/stream").connect().await;
    assert_eq!(program.next().await.name, "sidestream.close");
    let head = fixture.get("/stream").head().connect().await;
    assert_eq!(head.status(), 401);
    let url = fixture.sidestream.url("/stream");
    let mut lines = ndjson::Request::new(&url).send().await;
    assert_eq!(lines.status(), 200);
    let close = lines.next().await;
    assert_eq!(
        (&close["control"], &close["reason"]),
        (&"close".into(), &"unauthenticated".into())
    );
}

#[tokio::test]
async fn preflight_allows_the_authorization_header() {
    let routes = super::ROUTES.replace(
        "    unauthenticated: status\n",
        "    cors: { origins: [\"https://app.example\"] }\n",
    );
    let fixture = Fixture::with(&routes, "").await;
    let headers = [
        ("Origin", "https://app.example"),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "authorization"),
    ];
    let url = fixture.sidestream.url("/status");
    let answer = http1::request("OPTIONS", &url, &headers).await.unwrap();
    assert_eq!(answer.status, 204, "a preflight has no credentials");
    let allowed = answer.header("access-control-allow-headers").unwrap();
    assert!(
        allowed.split(", ").any(|name| name == "authorization"),
        "{allowed}"
    );
    let rejected = http1::request("GET", &url, &headers[..1]).await.unwrap();
    assert_eq!(rejected.status, 401);
    assert!(rejected.header("access-control-allow-origin").is_some());
}
