//! Reloads that change the providers of routes.

use super::{Fixture, PROVIDERS, ROUTES, text, token};
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};

#[tokio::test]
async fn changed_providers_apply_to_new_event_streams_and_close_none() {
    let fixture = Fixture::start().await;
    let mut anonymous = fixture.get("/open").connect().await;
    let mut alice = fixture.open("/orders", &token("alice")).await;
    let routes = ROUTES
        .replace(
            "  - path: /open\n",
            "  - path: /open\n    authenticate: [idp]\n",
        )
        .replace("authenticate: [idp, app]", "authenticate: [app]");
    let changed = text(&fixture.nats, &routes, "");
    fixture.sidestream.rewrite_config(&changed);
    let url = fixture.sidestream.url("/open");
    eventually(DEADLINE, "the route authenticates", async || {
        SseClient::get(&url).connect().await.status() == 401
    })
    .await;
    fixture.publish("orders.alice.paid", "1").await;
    assert_eq!(anonymous.next().await.data, "1");
    assert_eq!(alice.next().await.data, "1");
    let rejected = fixture
        .get("/orders")
        .header("Authorization", &super::bearer(&token("alice")))
        .connect()
        .await;
    assert_eq!(rejected.status(), 401, "the route has another provider");

    // A route whose provider is missing does not become anonymous.
    let wrong = changed.replace(PROVIDERS, "  providers: []\n");
    fixture.sidestream.rewrite_config(&wrong);
    let line = fixture
        .sidestream
        .until_message("configuration problem; reload rejected")
        .await;
    let problem = line["problem"].as_str().unwrap();
    assert!(
        problem.contains("no provider of `authentication.providers`"),
        "{problem}"
    );
    let still = SseClient::get(&url).connect().await;
    assert_eq!(still.status(), 401);
}
