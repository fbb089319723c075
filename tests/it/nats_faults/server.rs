//! nats-servers that are down, crash, come back, or enter lame duck mode.

use std::time::Duration;

use super::{
    ROUTES, open, publish, publish_core, summaries, until_ready, until_reported, with_stream,
};
use testkit::nats::Nats;
use testkit::proxy::{Fault, Proxy};
use testkit::sidestream::{Sidestream, config, config_for};
use testkit::sse::SseClient;
use testkit::wait::{RECOVERY, eventually};

#[tokio::test]
async fn the_sidecar_starts_without_a_server_and_connects_later() {
    let mut nats = Nats::start().await;
    with_stream(&nats).await;
    nats.kill9();
    let sidestream = Sidestream::builder(config(&nats, ROUTES))
        .without_waiting()
        .start()
        .await;
    let why = until_reported(&sidestream, "nats", &["down", "127.0.0.1"]).await;
    assert!(why.contains("refused"), "{why}");
    assert_eq!(sidestream.admin("/health/ready").await.0, 503);
    assert_eq!(sidestream.admin("/health/live").await.0, 200);
    let refused = SseClient::get(sidestream.url("/stream")).connect().await;
    assert_eq!(
        (refused.status(), refused.header("retry-after").is_some()),
        (503, true)
    );
    let mut browser = SseClient::get(sidestream.url("/stream"))
        .browser()
        .connect()
        .await;
    assert_eq!(
        (browser.status(), browser.next().await.name.as_str()),
        (200, "sidestream.close")
    );

    nats.restart().await;
    until_ready(&sidestream).await;
    let mut client = open(&sidestream, "/both").await;
    publish(&nats.jetstream().await, "a.x", "1").await;
    assert_eq!(client.next().await.data, "1");
}

#[tokio::test]
async fn a_server_crash_is_no_loss_for_jetstream_clients_and_one_gap_for_core_clients() {
    let mut nats = Nats::start().await;
    let context = with_stream(&nats).await;
    let sidestream = Sidestream::start(config(&nats, ROUTES)).await;
    let mut clients = Vec::new();
    for number in 0..50 {
        clients.push(open(&sidestream, ["/stream", "/core"][number % 2]).await);
    }
    let mut both = open(&sidestream, "/both").await;
    publish(&context, "a.x", "before").await;
    publish_core(&nats, "c.y", "core before").await;

    nats.kill9();
    sidestream
        .until_metric("sidestream_nats_connected", &[], |up| up == 0.0)
        .await;
    assert_eq!(
        sidestream.metric("sidestream_streams", &[]).await,
        51.0,
        "every stream stays open"
    );
    nats.restart().await;
    let context = nats.jetstream().await;
    for number in 1..=20 {
        publish(&context, "a.x", &number.to_string()).await;
    }
    until_ready(&sidestream).await;
    let core = nats.client().await;
    for client in clients.iter_mut().skip(1).step_by(2) {
        // Events are covered by one gap until the subscription exists again, and delivered
        // afterwards.
        let gap = client.until(|event| event.name == "sidestream.gap").await;
        assert_eq!(summaries(&gap).last().unwrap(), "gap:upstream");
    }
    core.publish("c.x", "core after".into()).await.unwrap();
    publish(&context, "a.x", "after").await;
    let numbers: Vec<String> = (1..=20).map(|number| number.to_string()).collect();
    let expected = [&["before".to_owned()][..], &numbers, &["after".to_owned()]].concat();
    for (number, client) in clients.iter_mut().enumerate() {
        if number % 2 == 0 {
            assert_eq!(
                summaries(&client.take(22).await),
                expected,
                "no gap, no duplicate, nothing lost"
            );
        } else {
            assert_eq!(
                client.next().await.data,
                "core after",
                "one gap and no second"
            );
        }
    }
    let mut seen = (false, false);
    let rest = both.until(|event| {
        seen = (
            seen.0 || event.data == "after",
            seen.1 || event.data == "core after",
        );
        seen == (true, true)
    });
    let rest = summaries(&rest.await);
    assert_eq!(
        rest.iter()
            .filter(|event| event.starts_with("gap:"))
            .collect::<Vec<_>>(),
        ["gap:upstream"]
    );
    let stream_only: Vec<_> = rest
        .iter()
        .filter(|event| !event.starts_with("gap:") && !event.contains("core"))
        .cloned()
        .collect();
    assert_eq!(stream_only, expected);
    assert_eq!(sidestream.metric("sidestream_streams", &[]).await, 51.0);
    assert!(
        sidestream
            .metric("sidestream_nats_reconnects_total", &[])
            .await
            >= 1.0
    );
}

#[tokio::test]
async fn a_server_in_lame_duck_mode_is_left_without_loss() {
    let mut nats = Nats::start().await;
    let context = with_stream(&nats).await;
    let sidestream = Sidestream::start(config(&nats, ROUTES)).await;
    let mut client = open(&sidestream, "/stream").await;
    publish(&context, "a.x", "1").await;
    assert_eq!(client.next().await.data, "1");
    nats.lame_duck();
    sidestream
        .until_log("lame duck mode is logged", |line| {
            line["message"]
                .as_str()
                .unwrap_or_default()
                .contains("lame duck")
        })
        .await;
    nats.stop().await;
    nats.restart().await;
    publish(&nats.jetstream().await, "a.x", "2").await;
    eventually(RECOVERY, "the sidecar is back", || async {
        sidestream.metric("sidestream_nats_connected", &[]).await == 1.0
    })
    .await;
    assert_eq!(client.next_within(RECOVERY).await.unwrap().data, "2");
}

#[tokio::test]
async fn a_connection_that_is_up_and_does_not_answer_requests_fails_a_check() {
    let nats = Nats::start().await;
    with_stream(&nats).await;
    let proxy = Proxy::to_port(nats.port()).await;
    let config = config_for(&[format!("nats://{}", proxy.address())], ROUTES);
    let sidestream = Sidestream::start(config).await;
    // PING still gets its PONG, so the library keeps the connection; requests time out after 5 s.
    proxy.set(Fault {
        delay: Duration::from_secs(4),
        ..Fault::default()
    });
    until_reported(
        &sidestream,
        "nats",
        &["connection control", "is up", "no answer within 5 s"],
    )
    .await;
    assert_eq!(sidestream.admin("/health/ready").await.0, 503);
    proxy.set(Fault::default());
    until_ready(&sidestream).await;
    assert_eq!(
        sidestream
            .metric("sidestream_nats_reconnects_total", &[])
            .await,
        0.0
    );
}
