//! Claims in the names of events.

use serde_json::{Value, json};

use super::token::Token;
use super::{Fixture, bearer, open_h2};
use testkit::h2::H2Client;
use testkit::http1;

const ROUTES: &str = "routes:
  - path: /events
    authenticate: [idp]
    event: \"{claim.tenant.name}-{subject.2}\"
    sources: [{ stream: ORDERS, subjects: [\"orders.>\"] }]
";

/// Token of a client of a tenant.
fn of_tenant(subject: &str, tenant: &str) -> String {
    Token::of(subject)
        .claim("tenant", json!({ "name": tenant }))
        .signed()
}

#[tokio::test]
async fn clients_with_equal_claims_share_the_feed_and_its_names() {
    let fixture = Fixture::with(ROUTES, "").await;
    let mut alice = fixture.open("/events", &of_tenant("alice", "blue")).await;
    let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
    let mut bob = open_h2(&mut connection, "/events", &of_tenant("bob", "blue")).await;
    let feeds = [("source", "ORDERS")];
    fixture
        .sidestream
        .until_metric("sidestream_feeds", &feeds, |feeds| feeds == 1.0)
        .await;
    let mut carol = open_h2(&mut connection, "/events", &of_tenant("carol", "red")).await;
    fixture
        .sidestream
        .until_metric("sidestream_feeds", &feeds, |feeds| feeds == 2.0)
        .await;
    fixture.publish("orders.paid", "1").await;
    fixture.publish("orders.sent", "2").await;
    for (name, data) in [("paid", "1"), ("sent", "2")] {
        let events = [alice.next().await, bob.next().await, carol.next().await];
        let names = ["blue", "blue", "red"].map(|tenant| format!("{tenant}-{name}"));
        assert_eq!(events.each_ref().map(|event| event.name.clone()), names);
        assert!(events.iter().all(|event| event.data == data));
    }

    // The position does not depend on the name: a client of another tenant continues there.
    fixture.publish("orders.back", "3").await;
    let token = bearer(&of_tenant("dave", "green"));
    let mut dave = fixture
        .get("/events")
        .header("Authorization", &token)
        .last_event_id(alice.last_event_id())
        .connect()
        .await;
    let event = dave.next().await;
    assert_eq!((&*event.name, &*event.data), ("green-back", "3"));
}

#[tokio::test]
async fn missing_claim_is_forbidden_and_no_claim_makes_an_invalid_name() {
    let routes = ROUTES.replace("{claim.tenant.name}-{subject.2}", "{claim.kind}");
    let fixture = Fixture::with(&routes, "").await;
    let rejection = async |kind: Value| {
        let token = bearer(&Token::of("alice").claim("kind", kind).signed());
        let headers = [("Authorization", token.as_str())];
        let url = fixture.sidestream.url("/events");
        let answer = http1::request("GET", &url, &headers).await.unwrap();
        let code = answer.json()["error"]["code"].as_str().unwrap().to_owned();
        (answer.status, code)
    };
    for missing in [Value::Null, json!(["a"]), json!({ "a": 1 }), json!(true)] {
        let rejected = rejection(missing).await;
        assert_eq!(rejected, (403, "claim_missing".into()));
    }
    for invalid in [
        "",
        "a\nid: 1",
        "a\rdata: x",
        "a\0",
        " a",
        "sidestream.close",
        "a;base64",
        &"x".repeat(129),
    ] {
        let rejected = rejection(json!(invalid)).await;
        assert_eq!(rejected, (400, "bad_variable".into()), "{invalid:?}");
    }
    let token = Token::of("alice").claim("kind", "{subject.1} order");
    let mut client = fixture.open("/events", &token.signed()).await;
    fixture.publish("orders.paid", "1").await;
    assert_eq!(client.next().await.name, "{subject.1} order");
}
