//! Sessions of two users in Chromium, with each shop.

use testkit::nats::Nats;

use super::pod::{Language, Pod, script};

/// 60 s: Chromium takes seconds to start, and longer on a busy machine.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

#[tokio::test]
async fn users_of_the_shop_in_node_see_their_own_orders_until_they_log_out() {
    sessions(Language::Node).await;
}

#[tokio::test]
async fn users_of_the_shop_in_python_see_their_own_orders_until_they_log_out() {
    sessions(Language::Python).await;
}

#[tokio::test]
async fn users_of_the_shop_in_go_see_their_own_orders_until_they_log_out() {
    sessions(Language::Go).await;
}

async fn sessions(language: Language) {
    let nats = Nats::start().await;
    let pod = Pod::start(language, &nats).await;
    let mut users = script("sessions.js", &pod.sidestream.url(""));
    let status = users.wait_exit(DEADLINE).await;
    assert!(status.success(), "{:#?}", users.lines());
    let labels = [("code", "revoked")];
    let rejected = pod.sidestream.metric("sidestream_refusals_total", &labels);
    assert!(rejected.await >= 1.0);
}
