//! Limits of a client by the claims of its principal.

use serde_json::{Value, json};

use super::token::Token;
use super::{Fixture, bearer, open_h2, text};
use testkit::h2::H2Client;
use testkit::http1;
use testkit::wait::{DEADLINE, eventually};

const ROUTES: &str = "routes:
  - path: /events
    authenticate: [idp]
    sources: [{ stream: ORDERS, subjects: [\"orders.>\"] }]
limits:
  per_client:
    connections: [\"{claim.limits.streams}\", \"{claim.plan.streams}\", 1]
    events: [\"{claim.limits.events}\", { rate: 1, burst: 1 }]
";

/// Token of a subject with the claim `limits`.
fn limited(subject: &str, limits: Value) -> String {
    Token::of(subject).claim("limits", limits).signed()
}

/// Returns status and code of a rejected request.
async fn rejection(fixture: &Fixture, token: &str) -> (u16, String) {
    let bearer = bearer(token);
    let headers = [("Authorization", bearer.as_str())];
    let url = fixture.sidestream.url("/events");
    let answer = http1::request("GET", &url, &headers).await.unwrap();
    let code = answer.json()["error"]["code"].as_str().unwrap().to_owned();
    (answer.status, code)
}

#[tokio::test]
async fn principals_of_one_route_have_the_limits_of_their_claims() {
    let fixture = Fixture::with(ROUTES, "").await;
    let fast = json!({ "rate": 1000, "burst": 1000 });
    let premium = limited("premium", json!({ "streams": 3, "events": fast }));
    let basic = limited("basic", json!({ "streams": "many", "events": 1000 }));
    let mut one = fixture.open("/events", &premium).await;
    let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
    let mut two = open_h2(&mut connection, "/events", &premium).await;
    let _three = open_h2(&mut connection, "/events", &premium).await;
    let full = (503, "too_many_connections_of_client".to_owned());
    assert_eq!(rejection(&fixture, &premium).await, full);
    // Values of another form count as missing: the fixed limits apply.
    let mut slow = open_h2(&mut connection, "/events", &basic).await;
    assert_eq!(rejection(&fixture, &basic).await, full);
    let planned = Token::of("planned").claim("plan", json!({ "streams": 2 }));
    let planned = planned.signed();
    let _first = fixture.open("/events", &planned).await;
    let _second = fixture.open("/events", &planned).await;
    assert_eq!(rejection(&fixture, &planned).await, full);

    for number in 0..30 {
        fixture.publish("orders.1.paid", number.to_string()).await;
    }
    for number in 0..30 {
        assert_eq!(one.next().await.data, number.to_string());
        assert_eq!(two.next().await.data, number.to_string());
    }
    assert_eq!(slow.next().await.data, "0");
    let throttled = [("limit", "events")];
    let waits = fixture
        .sidestream
        .metric("sidestream_throttled_total", &throttled);
    assert!(waits.await > 0.0);
    let received = 1 + slow.rest().len();
    assert!(received < 20, "{received} of 30 events at 1 per second");
}

#[tokio::test]
async fn reload_changes_fixed_limits_and_no_open_event_stream_loses_its_claims() {
    let fixture = Fixture::with(ROUTES, "").await;
    let fast = json!({ "rate": 1000, "burst": 1000 });
    let premium = limited("premium", json!({ "streams": 2, "events": fast }));
    let basic = limited("basic", json!({}));
    let mut one = fixture.open("/events", &premium).await;
    let _basic = fixture.open("/events", &basic).await;
    let full = (503, "too_many_connections_of_client".to_owned());
    assert_eq!(rejection(&fixture, &basic).await, full);

    let routes = ROUTES
        .replace("\"{claim.plan.streams}\", 1]", "5]")
        .replace("rate: 1,", "rate: 2,");
    let changed = text(&fixture.nats, &routes, "");
    fixture.sidestream.rewrite_config(&changed);
    eventually(DEADLINE, "the fixed limit is larger", async || {
        let request = fixture.get("/events");
        let request = request.header("Authorization", &bearer(&basic));
        request.connect().await.status() == 200
    })
    .await;
    let _two = fixture.open("/events", &premium).await;
    assert_eq!(rejection(&fixture, &premium).await, full);
    for number in 0..30 {
        fixture.publish("orders.1.paid", number.to_string()).await;
    }
    for number in 0..30 {
        assert_eq!(one.next().await.data, number.to_string());
    }
}
