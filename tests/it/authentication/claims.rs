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
