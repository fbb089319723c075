//! JetStream streams that are missing, unsuitable, purged, deleted or recreated; and deleted
//! consumers.

use async_nats::jetstream::stream;

use super::{
    ROUTES, create_stream, open, publish, summaries, until_ready, until_reported, with_stream,
};
use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, config};
use testkit::sse::SseClient;
use testkit::wait::{RECOVERY, eventually};

#[tokio::test]
async fn a_missing_stream_is_named_and_served_once_it_exists() {
    let nats = Nats::start().await;
    let sidestream = Sidestream::builder(config(&nats, ROUTES))
        .without_waiting()
        .start()
        .await;
    until_reported(
        &sidestream,
        "stream:A",
        &["stream A", "no such stream", "waiting"],
    )
    .await;
    assert_eq!(sidestream.admin("/health/ready").await.0, 503);
    assert_eq!(
        SseClient::get(sidestream.url("/stream"))
            .connect()
            .await
            .status(),
        503
    );
    let _core = open(&sidestream, "/core").await;
    let context = with_stream(&nats).await;
    until_ready(&sidestream).await;
    let mut client = open(&sidestream, "/stream").await;
    publish(&context, "a.x", "1").await;
    assert_eq!(client.next().await.data, "1");
}

#[tokio::test]
async fn a_work_queue_stream_is_an_error_and_not_consumed() {
    let nats = Nats::start().await;
    let context = nats.jetstream().await;
    let retention = stream::RetentionPolicy::WorkQueue;
    let queue = stream::Config {
        name: "A".into(),
        subjects: vec!["a.>".into()],
        retention,
        ..Default::default()
    };
    context.create_stream(queue).await.unwrap();
    publish(&context, "a.job", "1").await;
    let sidestream = Sidestream::builder(config(&nats, ROUTES))
        .without_waiting()
        .start()
        .await;
    until_reported(
        &sidestream,
        "stream:A",
        &["stream A", "work-queue", "mirror"],
    )
    .await;
    assert_eq!(sidestream.admin("/health/ready").await.0, 503);
    assert_eq!(
        SseClient::get(sidestream.url("/stream"))
            .connect()
            .await
            .status(),
        503
    );
    let info = context
        .get_stream("A")
        .await
        .unwrap()
        .get_info()
        .await
        .unwrap();
    assert_eq!((info.state.messages, info.state.consumer_count), (1, 0));
}

#[tokio::test]
async fn a_deleted_consumer_and_a_purge_lose_nothing() {
    let nats = Nats::start().await;
    let context = with_stream(&nats).await;
    let sidestream = Sidestream::start(config(&nats, ROUTES)).await;
    let mut client = open(&sidestream, "/stream").await;
    publish(&context, "a.x", "1").await;
    assert_eq!(client.next().await.data, "1");
    let stream = context.get_stream("A").await.unwrap();
    let names = {
        use futures_util::TryStreamExt as _;
        stream
            .consumer_names()
            .try_collect::<Vec<String>>()
            .await
            .unwrap()
    };
    assert_eq!(names.len(), 1, "one consumer per stream and pod");
    stream.delete_consumer(&names[0]).await.unwrap();
    publish(&context, "a.x", "2").await;
    assert_eq!(client.next_within(RECOVERY).await.unwrap().data, "2");

    stream.purge().await.unwrap();
    publish(&context, "a.x", "3").await;
    assert_eq!(client.next().await.data, "3");
    let mut resumed = SseClient::get(sidestream.url("/stream"))
        .last_event_id(client.last_event_id())
        .connect()
        .await;
    publish(&context, "a.x", "4").await;
    assert_eq!(resumed.next().await.data, "4");
    assert_eq!(client.next().await.data, "4");
    assert_eq!(sidestream.metric("sidestream_gaps_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_recreated_stream_is_one_gap_and_then_live() {
    let nats = Nats::start().await;
    let context = with_stream(&nats).await;
    let sidestream = Sidestream::start(config(&nats, ROUTES)).await;
    for number in 1..=5 {
        publish(&context, "a.x", &number.to_string()).await;
    }
    // A live start is at the head that the sidecar knows.
    sidestream
        .until_metric("sidestream_window_events", &[("source", "A")], |events| {
            events >= 5.0
        })
        .await;
    let mut client = open(&sidestream, "/stream").await;
    publish(&context, "a.x", "6").await;
    let before = client.next().await;
    assert_eq!(before.data, "6");
    context.delete_stream("A").await.unwrap();
    until_reported(&sidestream, "stream:A", &["stream A", "no such stream"]).await;
    create_stream(&context, "A", &["a.>"]).await;
    until_ready(&sidestream).await;
    publish(&context, "a.x", "new").await;
    let events = summaries(&client.until(|event| event.data == "new").await);
    assert_eq!(events, ["gap:recreated", "new"]);
    assert_ne!(
        client.last_event_id().split('-').next(),
        before.id.split('-').next(),
        "ids are never reused"
    );
    let mut old = SseClient::get(sidestream.url("/stream"))
        .last_event_id(&before.id)
        .connect()
        .await;
    publish(&context, "a.x", "newer").await;
    let events = summaries(&old.until(|event| event.data == "newer").await);
    assert_eq!(events, ["gap:recreated", "newer"]);
    assert_eq!(client.next().await.data, "newer");
    eventually(RECOVERY, "the check passes", || async {
        sidestream.admin_json("/health").await["checks"]["stream:A"]["status"] == "ok"
    })
    .await;
}
