//! Streams that are unsuitable for `delivery: republish`: reported with a remedy, served once they
//! are suitable.

use super::*;

/// Asserts that the pod is not ready with a reason that contains these words, and that clients get
/// a rejection.
async fn is_unfit(pod: &Sidestream, words: &[&str]) {
    let why = eventually(RECOVERY, "the reason is reported", || async {
        let health = pod.admin_json("/health").await.to_string();
        words
            .iter()
            .all(|word| health.contains(word))
            .then_some(health)
    })
    .await;
    assert!(why.contains("stream:A"), "{why}");
    assert_eq!(pod.admin("/health/ready").await.0, 503);
    let mut client = SseClient::get(pod.url("/all")).connect().await;
    assert_eq!(client.status(), 503);
    assert!(client.body().await.contains("nats_rejected"));
}

#[tokio::test]
async fn a_stream_that_does_not_republish_the_configured_subjects_is_an_error_until_it_does() {
    let fixture = Fixture::start().await;
    fixture.republish(None).await;
    let builder = Sidestream::builder(config(&fixture.nats, &routes("republish")));
    let mut pod = builder.without_waiting().start().await;
    is_unfit(&pod, &["does not republish", "--republish-destination"]).await;
    fixture.republish(Some(("a.1", "live.1"))).await;
    is_unfit(&pod, &["republishes only a.1", "a.>"]).await;
    let mut headers_only = republishing(Some(("a.>", "live.>")));
    headers_only.republish.as_mut().unwrap().headers_only = true;
    fixture.jetstream.update_stream(headers_only).await.unwrap();
    is_unfit(&pod, &["headers only"]).await;
    fixture.republish(Some(("a.>", "live.>"))).await;
    pod.ready().await;
    let mut client = live(&pod, "/all").await;
    fixture.publish("a.1", 1).await;
    assert_eq!(client.next().await.data, "1");
}

#[tokio::test]
async fn messages_have_the_subject_that_they_were_stored_under() {
    let fixture = Fixture::start().await;
    fixture
        .republish(Some(("a.*.>", "live.x.{{wildcard(1)}}.>")))
        .await;
    let routes = "routes:
  - { path: /named, event: \"{subject.2}\", sources: [{ stream: A, subjects: [\"{query.subject}\"], allow: [\"a.*.>\"], delivery: republish }] }";
    let pod = Sidestream::start(config(&fixture.nats, routes)).await;
    let mut client = live(&pod, "/named?subject=a.7.*.created").await;
    for subject in ["a.8.1.created", "a.7.1.deleted", "a.7.2.created"] {
        fixture.publish(subject, subject).await;
    }
    // Not from the stream: no event, whatever its headers are.
    let forger = fixture.nats.client().await;
    forger
        .publish("live.x.7.3.created", "forged".into())
        .await
        .unwrap();
    forger.flush().await.unwrap();
    fixture.publish("a.7.4.created", "last").await;
    let names: Vec<(String, String)> = client
        .take(2)
        .await
        .into_iter()
        .map(|event| (event.name, event.data))
        .collect();
    assert_eq!(
        names,
        [
            ("7".into(), "a.7.2.created".into()),
            ("7".into(), "last".to_owned())
        ]
    );
    pod.until_metric(
        "sidestream_events_rejected_total",
        &[("source", "A"), ("reason", "not_from_stream")],
        |count| count == 1.0,
    )
    .await;
    // Another destination while clients are connected.
    fixture
        .republish(Some(("a.*.>", "other.{{wildcard(1)}}.>")))
        .await;
    fixture.publish("a.7.5.created", "moved").await;
    assert_eq!(client.next().await.data, "moved");
    pod.until_message("republish configuration of stream changed; subscribing again")
        .await;
    fixture.publish("a.7.6.created", "by the new way").await;
    assert_eq!(client.next().await.data, "by the new way");
}
