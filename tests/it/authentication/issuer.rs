//! Tokens and keys of an OpenID Connect issuer in a running sidecar: rotation, outages, restarts.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::oidc::OidcIssuer;
use testkit::wait::{DEADLINE, RECOVERY, eventually};

use super::{Fixture, bearer};

/// A key id that is not known causes a load this long after the last one.
const LOAD_PAUSE: Duration = Duration::from_millis(10_100);

/// Kind of outage.
#[derive(Clone, Copy)]
enum Outage {
    /// Connections are rejected.
    Down,
    /// Connections are accepted, and nothing is answered.
    Silent,
}

/// A provider that follows in the list of providers, and a route that names it.
fn routes(issuer: &OidcIssuer) -> String {
    format!(
        "    - name: oidc
      jwt: {{ issuer: \"{}\", audience: [sidestream], keys: {{ discovery: true }} }}
routes:
  - path: /orders
    authenticate: [oidc]
    sources: [{{ stream: ORDERS, subjects: [\"orders.{{claim.client_id}}.>\"] }}]
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

/// Waits until a token is accepted; returns the time that it took.
async fn recovered(fixture: &Fixture, token: &str) -> Duration {
    let begun = Instant::now();
    eventually(RECOVERY, "the token is accepted", || async {
        status(fixture, token).await == 200 && check(fixture).await["status"] == "ok"
    })
    .await;
    begun.elapsed()
}

#[tokio::test]
async fn event_streams_and_cached_keys_outlast_an_issuer_that_is_down_or_silent() {
    let duration = Duration::from_secs(10);
    tokio::join!(
        outage(Outage::Down, duration),
        outage(Outage::Silent, duration)
    );
}

#[tokio::test]
#[ignore = "takes ten minutes: `make test-long`"]
async fn event_streams_and_cached_keys_outlast_ten_minutes_without_the_issuer() {
    outage(Outage::Down, Duration::from_secs(600)).await;
}

/// The issuer is away for this time, after it has begun to sign with a new key.
async fn outage(kind: Outage, duration: Duration) {
    let mut issuer = OidcIssuer::start().await;
    let fixture = Fixture::with(&routes(&issuer), "").await;
    let old = issuer.token(3600, &json!({})).await;
    let mut client = fixture.open("/orders", &old).await;
    assert_eq!(check(&fixture).await["status"], "ok");
    issuer.rotate().await;
    let new = issuer.token(3600, &json!({})).await;
    match kind {
        Outage::Down => issuer.stop(),
        Outage::Silent => issuer.pause(),
    }
    let begun = Instant::now();

    tokio::time::sleep(LOAD_PAUSE).await;
    assert_eq!(status(&fixture, &new).await, 503);
    // A silent issuer has failed when its time is over, which a request does not wait for.
    eventually(DEADLINE, "the check is degraded", async || {
        check(&fixture).await["status"] == "degraded"
    })
    .await;
    assert_eq!(fixture.sidestream.admin("/health/ready").await.0, 200);
    let mut number = 0;
    while number == 0 || begun.elapsed() < duration {
        number += 1;
        fixture
            .publish("orders.service.paid", number.to_string())
            .await;
        assert_eq!(client.next().await.data, number.to_string());
        assert_eq!(status(&fixture, &old).await, 200, "the keys are cached");
        assert_eq!(check(&fixture).await["status"], "degraded");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    match kind {
        Outage::Down => issuer.run().await,
        Outage::Silent => issuer.resume(),
    }
    let time = recovered(&fixture, &new).await;
    assert!(time < Duration::from_secs(15), "{time:?}");
    assert_eq!(status(&fixture, &old).await, 200, "its key is published");
    fixture.publish("orders.service.paid", "end").await;
    assert_eq!(client.next().await.data, "end");

    issuer.rotate_and_drop().await;
    let newest = issuer.token(3600, &json!({})).await;
    tokio::time::sleep(LOAD_PAUSE).await;
    assert_eq!(status(&fixture, &newest).await, 200);
    assert_eq!(status(&fixture, &old).await, 401, "its key is withdrawn");
    fixture.publish("orders.service.paid", "after").await;
    assert_eq!(client.next().await.data, "after");
    let log = fixture.sidestream.output().join("\n");
    assert!(!log.contains("eyJ"), "no token is logged");
}

#[tokio::test]
async fn pod_starts_without_its_issuer_and_accepts_tokens_within_seconds_of_its_start() {
    let mut issuer = OidcIssuer::down("");
    let fixture = Fixture::with(&routes(&issuer), "").await;
    assert_eq!(fixture.sidestream.admin("/health/ready").await.0, 200);
    eventually(RECOVERY, "the check is degraded", || async {
        check(&fixture).await["status"] == "degraded"
    })
    .await;
    issuer.run().await;
    let token = issuer.token(300, &json!({})).await;
    let time = recovered(&fixture, &token).await;
    assert!(time < Duration::from_secs(15), "{time:?}");
    // Another process with the same keys.
    issuer.stop();
    issuer.run().await;
    let token = issuer.token(300, &json!({})).await;
    assert_eq!(status(&fixture, &token).await, 200);
    let loads = fixture
        .sidestream
        .metric(
            "sidestream_authentication_key_loads_total",
            &[("result", "succeeded")],
        )
        .await;
    assert_eq!(loads, 1.0, "the keys were known");
}

#[tokio::test]
async fn tokens_of_every_algorithm_are_verified() {
    let algorithms = [
        "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
    ];
    let issuer = OidcIssuer::start().await;
    let all = format!("algorithms: [{}], keys:", algorithms.join(", "));
    let fixture = Fixture::with(&routes(&issuer).replace("keys:", &all), "").await;
    let mut tokens = Vec::new();
    for algorithm in algorithms {
        let token = issuer.token_by(algorithm).await;
        assert_eq!(status(&fixture, &token).await, 200, "{algorithm}");
        tokens.push(token);
    }
    // No signature is one of another token, key or algorithm.
    let signature = |token: &str| token.rsplit_once('.').unwrap().1.to_owned();
    for token in &tokens {
        let (message, own) = token.rsplit_once('.').unwrap();
        for other in tokens.iter().map(|token| signature(token)) {
            let expected = if other == own { 200 } else { 401 };
            let token = format!("{message}.{other}");
            assert_eq!(status(&fixture, &token).await, expected, "{token}");
        }
    }
    // The name of RFC 9864 for EdDSA with this curve.
    let token = issuer.token_by("Ed25519").await;
    assert_eq!(status(&fixture, &token).await, 401);
}
