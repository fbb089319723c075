//! A provider that has never had its keys: answers to programs and browsers, and what an alert sees.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::issuer::{Issuer, Mode};
use testkit::wait::{RECOVERY, eventually};

use super::{Fixture, bearer};

#[tokio::test]
async fn browser_waits_for_the_first_keys_and_a_program_gets_a_503() {
    let issuer = Issuer::start().await;
    issuer.set(Mode::Status(500));
    let url = issuer.url();
    let routes = format!(
        "    - name: oidc
      jwt: {{ issuer: \"{url}\", audience: [sidestream], keys: {{ discovery: true }}, from: [bearer, \"cookie:session\"] }}
routes:
  - path: /orders
    authenticate: [oidc]
    sources: [{{ stream: ORDERS, subjects: [\"orders.{{claim.sub}}.>\"] }}]
"
    );
    let fixture = Fixture::with(&routes, "").await;
    let token = issuer.token(&json!({}));

    let program = fixture.get("/orders");
    let mut program = program
        .header("Authorization", &bearer(&token))
        .connect()
        .await;
    assert_eq!(program.status(), 503);
    assert!(program.header("retry-after").is_some());
    let rejected: Value = serde_json::from_str(&program.body().await).unwrap();
    assert_eq!(rejected["error"]["code"], "authentication_unavailable");

    let cookie = format!("session={token}");
    let browser = || fixture.get("/orders").browser().header("Cookie", &cookie);
    let mut ended = browser().connect().await;
    assert_eq!(ended.status(), 200, "an EventSource stops after a 503");
    let close = ended.next().await;
    assert_eq!(close.name, "sidestream.close");
    let data: Value = serde_json::from_str(&close.data).unwrap();
    assert_eq!(data["reason"], "overload", "{data}");
    let retry = ended.retry().unwrap();
    assert!((1_000..=15_000).contains(&retry), "{retry}");
    ended.closed().await;

    let labels = [("check", "authentication:oidc"), ("status", "degraded")];
    let metric = |name, labels| fixture.sidestream.metric(name, labels);
    assert_eq!(metric("sidestream_health_check", &labels).await, 1.0);
    let loaded = "sidestream_authentication_keys_loaded_timestamp_seconds";
    assert_eq!(metric(loaded, &[]).await, 0.0);
    let code = [("code", "authentication_unavailable")];
    assert_eq!(metric("sidestream_refusals_total", &code).await, 2.0);
    assert_eq!(fixture.sidestream.admin("/health/ready").await.0, 200);

    issuer.set(Mode::Normal);
    eventually(RECOVERY, "the browser is admitted", || async {
        // An admitted client waits for events.
        let mut client = browser().connect().await;
        client.next_within(Duration::from_secs(1)).await.is_none()
    })
    .await;
    assert!(metric(loaded, &[]).await > 0.0);
    assert_eq!(metric("sidestream_health_check", &labels).await, 0.0);
}
