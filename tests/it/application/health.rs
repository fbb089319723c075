//! Readiness in front of an application: neither side makes the other one unreachable.

use serde_json::Value;
use testkit::application::Application;
use testkit::http1;
use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, config};
use testkit::wait::{RECOVERY, eventually};

/// Waits for a status of the check; `None`: there is no check. The pod is ready all the time.
async fn until(sidestream: &Sidestream, wanted: Option<&str>) -> Value {
    eventually(RECOVERY, &format!("the check is {wanted:?}"), async || {
        assert_eq!(sidestream.admin("/health/ready").await.0, 200);
        let check = sidestream.admin_json("/health").await["checks"]["application"].clone();
        (check["status"].as_str() == wanted).then_some(check)
    })
    .await
}

#[tokio::test]
async fn application_that_cannot_be_connected_is_a_degraded_check() {
    let nats = Nats::start().await;
    let mut application = Application::down();
    let routes = "routes: [{ path: /events, sources: [{ subjects: [events] }] }]";
    let text = format!(
        "application: {{ address: \"http://{}\" }}\n{routes}",
        application.address()
    );
    let sidestream = Sidestream::start(config(&nats, &text)).await;
    let check = until(&sidestream, Some("degraded")).await;
    assert!(
        check.to_string().contains(&application.address()),
        "the check names the address: {check}"
    );
    application.run().await;
    until(&sidestream, Some("ok")).await;
    application.stop();
    until(&sidestream, Some("degraded")).await;
    sidestream.rewrite_config(&config(&nats, routes));
    until(&sidestream, None).await;
    sidestream.rewrite_config(&config(&nats, &text));
    until(&sidestream, Some("degraded")).await;
}

#[tokio::test]
async fn pages_are_served_while_nats_is_away() {
    let mut nats = Nats::start().await;
    let application = Application::start().await;
    let text = format!(
        "application: {{ address: \"{}\" }}
routes: [{{ path: /events, sources: [{{ subjects: [events] }}] }}]",
        application.url()
    );
    let sidestream = Sidestream::start(config(&nats, &text)).await;
    let status = async |path: &str| {
        let answer = http1::request("GET", &sidestream.url(path), &[]).await;
        answer.unwrap().status
    };
    nats.kill9();
    eventually(RECOVERY, "event streams are rejected", async || {
        status("/events").await == 503
    })
    .await;
    let health = sidestream.admin_json("/health").await;
    assert_eq!(health["checks"]["nats"]["status"], "failing");
    assert_eq!(sidestream.admin("/health/ready").await.0, 200);
    assert_eq!(status("/echo").await, 200);
    nats.restart().await;
    eventually(RECOVERY, "event streams are accepted", async || {
        http1::request("HEAD", &sidestream.url("/events"), &[])
            .await
            .is_ok_and(|answer| answer.status == 200)
            && sidestream.admin_json("/health").await["checks"]["nats"]["status"] == "ok"
    })
    .await;
}
