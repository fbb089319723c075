//! The rig tests itself, so that a failing test means a failing product.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use futures_util::StreamExt;
use support::nats::{Cluster, Nats};
use support::wait::{DEADLINE, within};

#[tokio::test]
async fn a_nats_server_that_is_killed_and_restarted_has_its_port_and_its_messages() {
    let mut nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    let stream = async_nats::jetstream::stream::Config {
        name: "A".into(),
        subjects: vec!["a.>".into()],
        ..Default::default()
    };
    jetstream.create_stream(stream).await.unwrap();
    jetstream
        .publish("a.1", "one".into())
        .await
        .unwrap()
        .await
        .unwrap();
    let url = nats.url();

    nats.kill9();
    nats.restart().await;

    assert_eq!(nats.url(), url);
    let stream = nats.jetstream().await.get_stream("A").await.unwrap();
    assert_eq!(stream.get_raw_message(1).await.unwrap().payload, "one");
}

#[tokio::test]
async fn a_nats_server_takes_the_configuration_it_is_given() {
    let nats = Nats::builder()
        .config("max_payload: 100\nauthorization { token: secret }")
        .without_jetstream()
        .start()
        .await;
    let refused = async_nats::connect(nats.url()).await;
    assert!(refused.is_err(), "without the token");
    let client = nats
        .client_with(async_nats::ConnectOptions::with_token("secret".into()))
        .await;
    assert_eq!(client.server_info().max_payload, 100);
    assert!(!client.server_info().jetstream);
}

#[tokio::test]
async fn a_lame_duck_announces_its_end() {
    let mut nats = Nats::start().await;
    let (told, mut events) = tokio::sync::mpsc::channel(16);
    let options = async_nats::ConnectOptions::new().event_callback(move |event| {
        let told = told.clone();
        async move {
            let _full = told.try_send(event);
        }
    });
    let _client = nats.client_with(options).await;
    nats.lame_duck();
    within(DEADLINE, "the client hears of lame duck mode", async {
        while events.recv().await != Some(async_nats::Event::LameDuckMode) {}
    })
    .await;
}

#[tokio::test]
async fn a_cluster_keeps_a_replicated_stream_over_the_loss_of_one_server() {
    let mut cluster = Cluster::start().await;
    let jetstream = async_nats::jetstream::new(cluster.client().await);
    let stream = async_nats::jetstream::stream::Config {
        name: "A".into(),
        subjects: vec!["a".into()],
        num_replicas: 3,
        ..Default::default()
    };
    support::wait::eventually(
        Duration::from_secs(30),
        "the cluster places a stream",
        || async { jetstream.create_stream(stream.clone()).await.is_ok() },
    )
    .await;
    jetstream
        .publish("a", "one".into())
        .await
        .unwrap()
        .await
        .unwrap();
    cluster.node(1).kill9();
    support::wait::eventually(
        Duration::from_secs(30),
        "two of three take a message",
        || async {
            match jetstream.publish("a", "two".into()).await {
                Ok(ack) => ack.await.is_ok(),
                Err(_) => false,
            }
        },
    )
    .await;
}

#[tokio::test]
async fn core_messages_arrive() {
    let nats = Nats::start().await;
    let client = nats.client().await;
    let mut subscription = client.subscribe("x").await.unwrap();
    client.publish("x", "1".into()).await.unwrap();
    assert_eq!(
        within(DEADLINE, "the message arrives", subscription.next())
            .await
            .unwrap()
            .payload,
        "1"
    );
}
