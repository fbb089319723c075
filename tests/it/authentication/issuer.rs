//! Keys of an OpenID Connect issuer: rotation, outage and a start without it, in a running sidecar.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::issuer::{Issuer, Mode};
use testkit::wait::{RECOVERY, eventually};

use super::{Fixture, bearer};

/// A provider that follows in the list of providers, and a route that names it.
fn routes(issuer: &Issuer) -> String {
    format!(
        "    - name: oidc
      jwt: {{ issuer: \"{}\", audience: [sidestream], keys: {{ discovery: true }} }}
routes:
  - path: /orders
    authenticate: [oidc]
    sources: [{{ stream: ORDERS, subjects: [\"orders.{{claim.sub}}.>\"] }}]
",
        issuer.url()
    )
}

async fn check(fixture: &Fixture) -> Value {
    fixture.sidestream.admin_json("/health").await["checks"]["authentication:oidc"].clone()
}

async fn status(fixture: &Fixture, token: &str) -> u16 {
    let request = fixture
        .get("/orders")
        .header("Authorization", &bearer(token));
    request.connect().await.status()
}

async fn recovered(fixture: &Fixture, token: &str) {
    eventually(RECOVERY, "the token is accepted", || async {
        status(fixture, token).await == 200 && check(fixture).await["status"] == "ok"
    })
    .await;
}

#[tokio::test]
async fn event_streams_and_cached_keys_outlast_an_outage_of_the_issuer() {
    let issuer = Issuer::start().await;
    let fixture = Fixture::with(&routes(&issuer), "").await;
    let old = issuer.token(&json!({}));
    let mut client = fixture.open("/orders", &old).await;
    assert_eq!(check(&fixture).await["status"], "ok");

    issuer.set(Mode::Down);
    issuer.rotate();
    let new = issuer.token(&json!({}));
    // A fetch follows the last one after ten seconds at the earliest.
    tokio::time::sleep(Duration::from_millis(10_100)).await;
    assert_eq!(status(&fixture, &new).await, 503);
    let degraded = check(&fixture).await;
    assert_eq!(degraded["status"], "degraded", "{degraded}");
    assert_eq!(fixture.sidestream.admin("/health/ready").await.0, 200);
    assert_eq!(status(&fixture, &old).await, 200);
    fixture.publish("orders.alice.paid", "1").await;
    client.until(|event| event.data == "1").await;

    issuer.set(Mode::Normal);
    recovered(&fixture, &new).await;
    fixture.publish("orders.alice.paid", "2").await;
    client.until(|event| event.data == "2").await;
    assert_eq!(status(&fixture, &old).await, 401);
    let log = format!("{:?}", fixture.sidestream.log());
    assert!(
        !log.contains(&old) && !log.contains(&new),
        "no token is logged"
    );
}

#[tokio::test]
async fn pod_starts_without_its_issuer_and_accepts_tokens_within_seconds_of_its_return() {
    let issuer = Issuer::start().await;
    issuer.set(Mode::Down);
    let fixture = Fixture::with(&routes(&issuer), "").await;
    let token = issuer.token(&json!({}));
    assert_eq!(status(&fixture, &token).await, 503);
    assert_eq!(check(&fixture).await["status"], "degraded");
    issuer.set(Mode::Normal);
    recovered(&fixture, &token).await;
    for (token, why) in [
        (issuer.token(&json!({ "aud": "other" })), "audience"),
        (issuer.token(&json!({ "iss": "https://other" })), "issuer"),
        (issuer.token(&json!({ "exp": 1 })), "expired"),
        (issuer.sign(&json!({ "alg": "none" }), "{}"), "signed"),
    ] {
        let request = fixture
            .get("/orders")
            .header("Authorization", &bearer(&token));
        let response = request.connect().await;
        assert_eq!(response.status(), 401, "{why}");
        let challenge = response.header("www-authenticate").unwrap_or_default();
        assert!(challenge.contains(why), "{why}: {challenge}");
    }
}
