//! Losses of subscriptions: repaired from the stream before later events are delivered, or reported
//! as a gap.

use super::*;
use testkit::proxy::Proxy;

/// Publishes without republishing, as if the messages were lost in transit.
async fn publish_without_republishing(
    fixture: &Fixture,
    subject: &str,
    range: std::ops::RangeInclusive<u64>,
) {
    fixture.republish(Some(("a.>", "elsewhere.>"))).await;
    for number in range {
        fixture.publish(subject, number).await;
    }
    fixture.republish(Some(("a.>", "live.>"))).await;
}

#[tokio::test]
async fn connections_that_are_reset_during_delivery_lose_no_event() {
    let fixture = Fixture::start().await;
    let proxy = Proxy::to_port(fixture.nats.port()).await;
    let pod = fixture.pod_through(proxy.address()).await;
    let mut all = live(&pod, "/all").await;
    let mut one = live(&pod, "/named?subject=a.1&subject=a.0").await;
    let publisher = fixture.nats.client().await;
    for number in 1..=3000u64 {
        publisher
            .publish(format!("a.{}", number % 3), number.to_string().into())
            .await
            .unwrap();
        if number % 500 == 250 {
            publisher.flush().await.unwrap();
            proxy.cut();
        }
        if number % 20 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    publisher.flush().await.unwrap();
    assert_eq!(summaries(&all.take(3000).await), numbers(1..=3000));
    let expected: Vec<String> = (1..=3000)
        .filter(|number| number % 3 != 2)
        .map(|number: u64| number.to_string())
        .collect();
    assert_eq!(summaries(&one.take(2000).await), expected);
    assert!(
        pod.metric(
            "sidestream_republish_losses_total",
            &[("source", "A"), ("outcome", "repaired")]
        )
        .await
            >= 1.0
    );
    eventually(RECOVERY, "no reading has left a consumer", || async {
        fixture.consumers().await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_server_crash_and_restart_loses_no_event() {
    let mut fixture = Fixture::start().await;
    let pod = fixture.pod("republish").await;
    let mut client = live(&pod, "/all").await;
    for number in 1..=5 {
        fixture.publish("a.1", number).await;
    }
    fixture.nats.kill9();
    fixture.nats.restart().await;
    let jetstream = fixture.nats.jetstream().await;
    testkit::nats::publish(&jetstream, "a.1", numbers(6..=10)).await;
    assert_eq!(summaries(&client.take(10).await), numbers(1..=10));
}

#[tokio::test]
async fn a_loss_is_read_from_the_stream_before_later_events() {
    let fixture = Fixture::start().await;
    let pod = fixture.pod("republish").await;
    let mut all = live(&pod, "/all").await;
    let mut one = live(&pod, "/one/1").await;
    fixture.publish("a.1", 1).await;
    publish_without_republishing(&fixture, "a.1", 2..=40).await;
    fixture.publish("a.1", 41).await;
    assert_eq!(summaries(&all.take(41).await), numbers(1..=41));
    let events = one.take(41).await;
    assert_eq!(summaries(&events), numbers(1..=41));
    let mut again = resume(&pod, "/one/1", &events[9].id).await;
    assert_eq!(
        again.take(31).await[..],
        events[10..],
        "whatever way an event came, it has one id"
    );
}

#[tokio::test]
async fn a_loss_without_later_messages_is_found_by_comparison() {
    let fixture = Fixture::start().await;
    let pod = fixture.pod("republish").await;
    let mut client = live(&pod, "/one/1").await;
    publish_without_republishing(&fixture, "a.1", 1..=3).await;
    assert_eq!(summaries(&client.take(3).await), numbers(1..=3));
    pod.until_metric(
        "sidestream_republish_losses_total",
        &[("source", "A"), ("outcome", "repaired")],
        |holes| holes >= 1.0,
    )
    .await;
}

#[tokio::test]
async fn a_loss_that_another_subject_has_overtaken_is_a_gap_and_can_be_replayed() {
    let fixture = Fixture::start().await;
    let pod = fixture.pod("republish").await;
    let mut all = live(&pod, "/all").await;
    fixture.publish("a.1", 1).await;
    let first = all.next().await;
    publish_without_republishing(&fixture, "a.1", 2..=2).await;
    fixture.publish("a.2", 3).await;
    fixture.publish("a.1", 4).await;
    let rest = summaries(&all.take(3).await);
    // If a comparison ran in between, nothing is lost.
    assert!(
        rest == ["3", "sidestream.gap:upstream", "4"] || rest == ["2", "3", "4"],
        "{rest:?}"
    );
    let mut again = resume(&pod, "/all", &first.id).await;
    let replayed = summaries(&again.take(3).await);
    assert_eq!(replayed[..2], ["2", "3"], "{replayed:?}");
}

#[tokio::test]
async fn a_loss_before_a_repair_of_another_subject_is_a_gap() {
    let fixture = Fixture::start().await;
    let pod = fixture.pod("republish").await;
    let mut all = live(&pod, "/all").await;
    fixture.publish("a.1", 1).await;
    all.next().await;
    publish_without_republishing(&fixture, "a.1", 2..=2).await;
    fixture.publish("a.2", 3).await;
    publish_without_republishing(&fixture, "a.1", 4..=4).await;
    publish_without_republishing(&fixture, "a.2", 5..=5).await;
    // This message reveals the loss of 5; 4 is read with it, and 7 names 5 as its previous
    // sequence.
    fixture.publish("a.2", 6).await;
    fixture.publish("a.1", 7).await;
    let rest = summaries(&all.take(6).await);
    let with_gap = ["3", "sidestream.gap:upstream", "4", "5", "6", "7"];
    // If a comparison ran in between, nothing is lost.
    assert!(rest == with_gap || rest == numbers(2..=7), "{rest:?}");
}

#[tokio::test]
async fn an_unrepairable_loss_is_one_gap_and_later_events_arrive() {
    let permissions = "authorization { users = [ { user: pub, password: b }, { user: pod, password: b, permissions: { \
        publish: { deny: [\"$JS.API.CONSUMER.CREATE.>\"] } } } ] }";
    let nats = Nats::builder().config(permissions).start().await;
    let user = |user: &str| {
        async_nats::ConnectOptions::with_user_and_password(user.to_owned(), "b".to_owned())
    };
    let jetstream = jetstream::new(nats.client_with(user("pub")).await);
    jetstream
        .create_stream(republishing(Some(("a.>", "live.>"))))
        .await
        .unwrap();
    let server = nats.url().replace("nats://", "nats://pod:b@");
    let fixture = Fixture { nats, jetstream };
    let pod = Sidestream::start(config_for(&[server], &routes("republish"))).await;
    let mut client = live(&pod, "/one/1").await;
    fixture.publish("a.1", 1).await;
    publish_without_republishing(&fixture, "a.1", 2..=3).await;
    fixture.publish("a.1", 4).await;
    assert_eq!(
        summaries(&client.take(3).await),
        ["1", "sidestream.gap:upstream", "4"]
    );
    fixture.publish("a.1", 5).await;
    assert_eq!(client.next().await.data, "5");
    pod.until_metric(
        "sidestream_republish_losses_total",
        &[("source", "A"), ("outcome", "reported")],
        |holes| holes == 1.0,
    )
    .await;
}
