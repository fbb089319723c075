//! Claims in subjects, in `allow` and in the client's name.

use serde_json::{Value, json};

use super::token::Token;
use super::{Fixture, bearer, token};
use testkit::http1;

/// Token of a principal that may read these filters.
fn reader(subscribe: Value) -> String {
    Token::of("alice")
        .claim("tenant", json!({ "name": "blue" }))
        .claim("subscribe", subscribe)
        .signed()
}

/// Returns status and code of a request.
async fn code(fixture: &Fixture, path: &str, token: &str) -> (u16, String, String) {
    let bearer = bearer(token);
    let headers = [("Authorization", bearer.as_str())];
    let url = fixture.sidestream.url(path);
    let answer = http1::request("GET", &url, &headers).await.unwrap();
    let code = answer.json()["error"]["code"].as_str().unwrap().to_owned();
    let challenge = answer.header("www-authenticate").unwrap_or_default();
    (answer.status, code, challenge)
}

#[tokio::test]
async fn claim_of_filters_narrows_the_filters_of_the_route() {
    let fixture = Fixture::start().await;
    let token = reader(json!(["orders.42.>", "users.>", 7, "not..valid"]));
    let mut client = fixture.open("/chosen?subject=orders.42.%3E", &token).await;
    fixture.publish("orders.7.paid", "another").await;
    fixture.publish("orders.42.paid", "1").await;
    assert_eq!(client.next().await.data, "1");
    let connections = fixture.sidestream.admin_json("/connections").await;
    assert_eq!(
        connections["connections"][0]["client"], "blue",
        "{connections}"
    );
    for (subject, reason) in [
        ("orders.7.paid", "outside of the claim"),
        ("orders.%3E", "wider than the claim"),
        ("users.alice", "outside of the route, within the claim"),
        ("%3E", "wider than both"),
    ] {
        let path = format!("/chosen?subject={subject}");
        let (status, code, challenge) = code(&fixture, &path, &token).await;
        assert_eq!((status, &*code), (403, "subject_not_allowed"), "{reason}");
        assert!(
            challenge.ends_with("error=\"insufficient_scope\""),
            "{challenge}"
        );
    }
    let one = reader(json!("orders.*.paid"));
    fixture.open("/chosen?subject=orders.7.paid", &one).await;
    let none = reader(json!([]));
    let rejected = code(&fixture, "/chosen?subject=orders.7.paid", &none).await;
    assert_eq!((rejected.0, &*rejected.1), (403, "subject_not_allowed"));
}

#[tokio::test]
async fn missing_claim_is_forbidden_and_an_invalid_one_is_a_bad_variable() {
    let fixture = Fixture::start().await;
    let path = "/chosen?subject=orders.7.paid";
    let no_filters = Token::of("alice")
        .claim("tenant", json!({ "name": "blue" }))
        .signed();
    let no_name = Token::of("alice").claim("subscribe", "orders.>").signed();
    for token in [
        no_filters,
        no_name,
        reader(json!(42)),
        reader(json!({ "a": 1 })),
    ] {
        let (status, code, challenge) = code(&fixture, path, &token).await;
        assert_eq!((status, &*code), (403, "claim_missing"));
        assert!(
            challenge.ends_with("error=\"insufficient_scope\""),
            "{challenge}"
        );
    }
    for subject in ["a.b", "*", ">", "a b"] {
        let (status, code, _) = code(&fixture, "/orders", &token(subject)).await;
        assert_eq!((status, &*code), (400, "bad_variable"), "{subject}");
    }
    let labels = [("code", "claim_missing")];
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_refusals_total", &labels)
            .await,
        4.0
    );
}

#[tokio::test]
async fn without_filters_the_claim_alone_bounds_the_subjects() {
    let routes = "routes:
  - path: /any
    authenticate: [idp]
    sources: [{ stream: ORDERS, subjects: [\"{query.subject}\"], allow: [\"{claim.subscribe}\"] }]
";
    let fixture = Fixture::with(routes, "").await;
    let token = reader(json!(["users.alice"]));
    let mut client = fixture.open("/any?subject=users.alice", &token).await;
    fixture.publish("users.alice", "1").await;
    assert_eq!(client.next().await.data, "1");
    let rejected = code(&fixture, "/any?subject=orders.1", &token).await;
    assert_eq!((rejected.0, &*rejected.1), (403, "subject_not_allowed"));
    let is_warned = |line: &Value| {
        let problem = line["problem"].as_str().unwrap_or_default();
        problem.contains("only claims bound the subjects")
    };
    fixture.sidestream.until_log("a warning", is_warned).await;
}

#[tokio::test]
async fn value_of_a_claim_never_widens_a_subject() {
    let routes = "routes:
  - path: /desk
    authenticate: [idp]
    sources: [{ stream: ORDERS, subjects: [\"orders.{claim.desk}.>\"] }]
";
    let fixture = Fixture::with(routes, "").await;
    let desk = |value: &Value| {
        let claim = Token::of("alice").claim("desk", value.clone());
        claim.signed()
    };
    for value in [
        json!(""),
        json!("a.b"),
        json!("."),
        json!("*"),
        json!(">"),
        json!("a*"),
        json!("a>"),
        json!(" "),
        json!("a b"),
        json!("a\tb"),
        json!("a\r\nb"),
        json!("a\u{0}b"),
        json!("a\u{7f}b"),
        json!("a\u{85}b"),
        json!("a\u{a0}b"),
        json!("a\u{2028}b"),
        json!("a\u{3000}b"),
        json!(1.5),
        json!(-0.25),
    ] {
        let (status, code, _) = code(&fixture, "/desk", &desk(&value)).await;
        assert_eq!((status, &*code), (400, "bad_variable"), "{value}");
    }
    for value in [
        json!(true),
        json!([]),
        json!(["a"]),
        json!({}),
        json!({ "a": "b" }),
        Value::Null,
    ] {
        let (status, code, _) = code(&fixture, "/desk", &desk(&value)).await;
        assert_eq!((status, &*code), (403, "claim_missing"), "{value}");
    }
    // Each is one token, and nothing else.
    fixture.publish("orders.other.paid", "another").await;
    for (value, subject) in [
        (json!("$JS"), "orders.$JS.paid"),
        (json!(7), "orders.7.paid"),
        (json!(-7), "orders.-7.paid"),
        (json!(1e300), "orders.1e+300.paid"),
        (json!("{sub}"), "orders.{sub}.paid"),
        (json!("%2A"), "orders.%2A.paid"),
        (json!("\u{ff0e}"), "orders.\u{ff0e}.paid"),
        (json!("auth0|abc"), "orders.auth0|abc.paid"),
    ] {
        let mut client = fixture.open("/desk", &desk(&value)).await;
        fixture.publish("orders.other.paid", "another").await;
        fixture.publish(subject, value.to_string()).await;
        assert_eq!(client.next().await.data, value.to_string());
    }
    let long = desk(&json!("x".repeat(8000)));
    let (status, code, _) = code(&fixture, "/desk", &long).await;
    assert_eq!((status, &*code), (400, "bad_subject"));
}

#[tokio::test]
async fn claim_wider_than_the_filters_of_the_route_does_not_widen_them() {
    let routes = "routes:
  - path: /orders
    authenticate: [idp]
    sources: [{ stream: ORDERS, subjects: [\"{query.subject}\"], allow: [\"orders.*.public\", \"{claim.subscribe}\"] }]
  - path: /any
    authenticate: [idp]
    sources: [{ stream: ORDERS, subjects: [\"{query.subject}\"], allow: [\"{claim.subscribe}\"] }]
";
    let fixture = Fixture::with(routes, "").await;
    let wide = reader(json!([
        ">", "*", "*.*", "*.*.*", "orders.>", "users.>", "$JS.>", "$SYS.>"
    ]));
    for subject in [
        ">",
        "*.*.*",
        "orders.>",
        "orders.*.*",
        "orders.7.private",
        "*.7.public",
        "users.alice",
        "orders.7.public.more",
    ] {
        let path = format!("/orders?subject={}", subject.replace('>', "%3E"));
        let (status, code, _) = code(&fixture, &path, &wide).await;
        assert_eq!((status, &*code), (403, "subject_not_allowed"), "{path}");
    }
    // Subjects of the server itself are no subjects of a route, whatever a claim says.
    for path in [
        "/orders?subject=$JS.%3E",
        "/any?subject=$SYS.%3E",
        "/any?subject=$JS.API.INFO",
    ] {
        let (status, code, _) = code(&fixture, path, &wide).await;
        assert_eq!((status, &*code), (400, "bad_subject"), "{path}");
    }
    let mut client = fixture.open("/orders?subject=orders.*.public", &wide).await;
    fixture.publish("orders.7.private", "private").await;
    fixture.publish("users.alice", "user").await;
    fixture.publish("orders.7.public", "public").await;
    assert_eq!(client.next().await.data, "public");

    // Invalid filters, and filters that are nearly the subject.
    for (claim, subject) in [
        (json!("orders"), "orders.7.paid"),
        (json!("orders."), "orders.7.paid"),
        (json!("orders.7"), "orders.7.paid"),
        (json!("orders.7.>.x"), "orders.7.paid"),
        (json!("orders.7*"), "orders.7.paid"),
        (json!("Orders.>"), "orders.7.paid"),
        (json!(" orders.>"), "orders.7.paid"),
        (json!("orders.7.paid orders.8.paid"), "orders.7.paid"),
        (json!("orders.*"), "orders.>"),
        (json!("orders.*.paid"), "orders.*.*"),
        (json!("orders.7.paid"), "orders.*.paid"),
        (json!(["orders.7.*", "orders.8.*"]), "orders.*.*"),
        (json!([["orders.>"]]), "orders.7.paid"),
        (json!([{ "subject": "orders.>" }]), "orders.7.paid"),
        (json!([7, null, true]), "orders.7.paid"),
    ] {
        let path = format!("/any?subject={}", subject.replace('>', "%3E"));
        let (status, code, _) = code(&fixture, &path, &reader(claim.clone())).await;
        assert_eq!(
            (status, &*code),
            (403, "subject_not_allowed"),
            "{claim}: {subject}"
        );
    }
    // Requests cannot pass a claim.
    let mine = reader(json!("orders.7.>"));
    for query in [
        "subject=orders.8.paid&claim.subscribe=orders.8.%3E",
        "subject=orders.7.paid&subject=orders.8.paid",
    ] {
        let rejected = code(&fixture, &format!("/any?{query}"), &mine).await;
        assert_eq!(
            (rejected.0, &*rejected.1),
            (403, "subject_not_allowed"),
            "{query}"
        );
    }
}
