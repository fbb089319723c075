//! Core subjects: subscribed while they have readers; losses in NATS become gaps.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::upstream::{Reader, Seen, Upstream};
use async_nats::client::RequestErrorKind;
use futures_util::future::join_all;
use futures_util::{FutureExt as _, StreamExt as _};
use sidestream::feed::{GapReason, Source as _};
use sidestream::nats::config::{Credentials, Secret};
use testkit::nats::{Nats, publish_raw};
use testkit::wait::{RECOVERY, eventually, within};

/// Returns true if the server has a subscription to this subject.
async fn is_subscribed(client: &async_nats::Client, subject: &str) -> bool {
    let request = client.request(subject.to_owned(), "probe".into());
    match tokio::time::timeout(Duration::from_millis(200), request).await {
        Ok(Err(error)) => error.kind() != RequestErrorKind::NoResponders,
        _ => true,
    }
}

#[tokio::test]
async fn messages_published_after_open_reach_every_matching_reader() {
    let nats = Nats::builder().without_jetstream().start().await;
    let client = nats.client().await;
    let upstream = Upstream::connect(&nats.url()).await;
    let core = upstream.core();
    assert!(!is_subscribed(&client, "a.1").await);
    let mut one = Reader::of_core(&core, &["a.>"]).await;
    let mut two = Reader::of_core(&core, &["a.1", "b"]).await;
    // Publish at once: the subscription exists when the reader is open.
    for subject in ["a.1", "a.2", "b"] {
        client.publish(subject, subject.into()).await.unwrap();
    }
    one.until_seen(2).await;
    two.until_seen(2).await;
    assert_eq!(one.data(), ["a.1", "a.2"]);
    let mut data = two.data();
    data.sort_unstable();
    assert_eq!(data, ["a.1", "b"]);
    assert!(is_subscribed(&client, "a.1").await);
    upstream.shut_down().await;
    assert!(!is_subscribed(&client, "a.1").await);
}

#[tokio::test]
async fn a_lost_connection_is_one_gap_for_every_reader_before_later_events() {
    let mut nats = Nats::builder().without_jetstream().start().await;
    let upstream = Upstream::connect(&nats.url()).await;
    let core = upstream.core();
    let mut readers = vec![
        Reader::of_core(&core, &["a.>"]).await,
        Reader::of_core(&core, &["a.x"]).await,
    ];
    let client = nats.client().await;
    client.publish("a.x", "1".into()).await.unwrap();
    for reader in &mut readers {
        reader.until_seen(1).await;
    }
    nats.kill9();
    nats.restart().await;
    upstream.until_ok("nats").await;
    eventually(RECOVERY, "the subscription is made again", || {
        is_subscribed(&client, "a.x")
    })
    .await;
    client.publish("a.x", "last".into()).await.unwrap();
    for reader in &mut readers {
        let is_last =
            |seen: &[Seen]| matches!(seen.last(), Some(Seen::Event(_, _, data)) if data == "last");
        reader.until("the last event is read", is_last).await;
        assert_eq!(reader.gaps(), [GapReason::Upstream]);
        assert_eq!(reader.seen[1], Seen::Gap(GapReason::Upstream, None));
    }
}

#[tokio::test]
async fn a_thousand_readers_of_different_subjects_share_few_round_trips() {
    let nats = Nats::builder().without_jetstream().start().await;
    let upstream = Upstream::connect(&nats.url()).await;
    upstream.until_ok("nats").await;
    let core = upstream.core();
    let start = Instant::now();
    let filters: Vec<String> = (0..1000).map(|number| format!("a.{number}")).collect();
    let mut readers = join_all(
        filters
            .iter()
            .map(|filter| Reader::of_core(&core, std::slice::from_ref(filter))),
    )
    .await;
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    let client = nats.client().await;
    for filter in &filters {
        client
            .publish(filter.clone(), filter.clone().into())
            .await
            .unwrap();
    }
    for (reader, filter) in readers.iter_mut().zip(&filters) {
        reader.until_seen(1).await;
        assert_eq!(reader.data(), [filter]);
    }
}

#[tokio::test]
async fn a_forbidden_subject_is_reported_and_affects_no_other() {
    let permissions = "authorization { users = [ { user: a, password: b, permissions: { \
        subscribe: { allow: [\"_INBOX_sse.>\", \"a.>\"] }, publish: { deny: [\">\"] } } }, { user: pub, password: b } ] }";
    let nats = Nats::builder()
        .without_jetstream()
        .config(permissions)
        .start()
        .await;
    let credentials = Credentials::Password {
        user: "a".into(),
        password: Secret("b".into()),
    };
    let upstream = Upstream::connect_with(&nats.url(), credentials, None).await;
    let core = upstream.core();
    // Without permission to publish, the permission error of the round trip is its reply.
    let start = Instant::now();
    let mut allowed = Reader::of_core(&core, &["a.x"]).await;
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    let mut refused = Reader::of_core(&core, &["b.x"]).await;
    refused.until_seen(1).await;
    assert_eq!(refused.seen, [Seen::Gap(GapReason::Upstream, None)]);
    let why = upstream.until_reported("nats", &["denies", "b.x"]).await;
    assert!(!why.contains("_INBOX"), "{why}");
    assert!(upstream.health.is_ready());
    let options = async_nats::ConnectOptions::with_user_and_password("pub".into(), "b".into());
    let client = nats.client_with(options).await;
    client.publish("a.x", "1".into()).await.unwrap();
    allowed.until_seen(1).await;
    assert_eq!(allowed.gaps(), []);
}

#[tokio::test]
async fn names_tiers_and_payloads_of_core_messages_are_kept() {
    let nats = Nats::builder().without_jetstream().start().await;
    let upstream = Upstream::connect(&nats.url()).await;
    let core = upstream.core();
    let mut reader = Reader::of_core(&core, &["a.>"]).await;
    publish_raw(
        nats.port(),
        b"a.x",
        b"NATS/1.0\r\nSidestream-Event: created\r\n\r\n",
        b"1",
    )
    .await;
    publish_raw(
        nats.port(),
        b"a.x",
        b"NATS/1.0\r\nSidestream-Event: sidestream.gap\r\n\r\n",
        b"2",
    )
    .await;
    publish_raw(nats.port(), b"a.x", b"", b"\xff").await;
    let seen = reader.until_seen(3).await;
    // The feed used the first number when it began.
    assert_eq!(seen[0], Seen::Event(2, "created".into(), "1".into()));
    assert_eq!(seen[1], Seen::Event(3, "message".into(), "2".into()));
    assert_eq!(
        seen[2],
        Seen::Event(4, "message;base64".into(), "/w==".into())
    );
    let rejected = upstream
        .metrics
        .events_rejected_total
        .with_label_values(&["core", "event_name"]);
    assert_eq!(rejected.get(), 1);
}

#[tokio::test]
async fn a_burst_in_the_socket_buffer_is_delivered() {
    let nats = Nats::builder().without_jetstream().start().await;
    let upstream = Upstream::connect(&nats.url()).await;
    let core = upstream.core();
    let mut reader = Reader::of_core(&core, &["a.>"]).await;
    let url = nats.url();
    // This thread, with all tasks under test, does not run before everything is published.
    let publisher = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let client = async_nats::connect(url).await.unwrap();
            for number in 1..=100_000 {
                client
                    .publish("a.x", number.to_string().into())
                    .await
                    .unwrap();
            }
            client.flush().await.unwrap();
        });
    });
    publisher.join().unwrap();
    reader.until_seen(100_000).await;
    assert_eq!(
        (
            reader.gaps(),
            upstream.metrics.nats_slow_consumer_total.get()
        ),
        (vec![], 0)
    );
}

#[tokio::test]
async fn subscriptions_of_a_group_share_a_queue_in_the_order_of_the_server() {
    let nats = Nats::builder().without_jetstream().start().await;
    let client = nats.client().await;
    let mut group = client.subscriber_group();
    let subscribe = group.sender().clone();
    let first = subscribe.subscribe("a", 1).await.unwrap();
    let _second = subscribe.subscribe("b", u128::MAX).await.unwrap();
    client.flush().await.unwrap();
    let publisher = nats.client().await;
    let publish = async |subjects: &[&'static str]| {
        for subject in subjects {
            publisher.publish(*subject, "1".into()).await.unwrap();
        }
        publisher.flush().await.unwrap();
    };
    let mut received = async |count| {
        let mut all = Vec::new();
        while all.len() < count {
            let (tag, message) = within(RECOVERY, "a message arrives", group.next()).await;
            all.push((tag, message.subject.to_string()));
        }
        assert!(group.try_next().is_none());
        all
    };
    publish(&["a", "b", "b", "a"]).await;
    let (a, b) = ((1, "a".to_owned()), (u128::MAX, "b".to_owned()));
    assert_eq!(
        received(4).await,
        [a.clone(), b.clone(), b.clone(), a.clone()]
    );
    let pending = &client.statistics().pending_bytes;
    assert_eq!(pending.load(Ordering::Relaxed), 0);

    drop(first);
    client.flush().await.unwrap();
    publish(&["a", "b"]).await;
    assert_eq!(received(1).await, [b]);

    assert!(!subscribe.has_ended());
    client.drain().await.unwrap();
    eventually(RECOVERY, "the group reports the end of the client", || {
        std::future::ready(subscribe.has_ended())
    })
    .await;
    assert!(subscribe.subscribe("c", 3).await.is_err());
}

#[tokio::test]
async fn the_patched_client_drops_and_counts_messages_above_its_byte_limit() {
    const BOUND: u64 = 1 << 20;
    let nats = Nats::builder().without_jetstream().start().await;
    let client = nats
        .client_with(async_nats::ConnectOptions::new().max_pending_bytes(BOUND))
        .await;
    let (mut read, unread) = (
        client.subscribe("a.>").await.unwrap(),
        client.subscribe("a.x").await.unwrap(),
    );
    client.flush().await.unwrap();
    let statistics = client.statistics();
    let pending = || statistics.pending_bytes.load(Ordering::Relaxed);
    let dropped = || statistics.dropped_messages.load(Ordering::Relaxed);
    let publisher = nats.client().await;
    for _ in 0..100 {
        publisher
            .publish("a.x", vec![b'x'; 64 << 10].into())
            .await
            .unwrap();
    }
    publisher.flush().await.unwrap();
    eventually(RECOVERY, "all messages have arrived", || {
        std::future::ready(statistics.in_messages.load(Ordering::Relaxed) == 200)
    })
    .await;
    assert!(
        pending() <= BOUND && pending() > BOUND / 2,
        "{} bytes of {BOUND}",
        pending()
    );
    let held = 200 - dropped();
    assert!(
        (8..=16).contains(&held),
        "{held} messages of 64 KiB within 1 MiB"
    );
    let mut count = 0;
    while let Some(Some(message)) = read.next().now_or_never() {
        assert_eq!(message.payload.len(), 64 << 10);
        count += 1;
    }
    assert!(
        count > 0 && count < held && pending() > 0,
        "{count} of {held}, {} bytes",
        pending()
    );
    // Both subscriptions share the limit. Unread messages are dropped with their subscription.
    drop(unread);
    assert_eq!(pending(), 0);
    // A message above the limit is delivered if the queue is empty.
    publisher
        .publish("a.x", vec![b'x'; 1 << 20].into())
        .await
        .unwrap();
    publisher.flush().await.unwrap();
    assert_eq!(
        within(RECOVERY, "the large message arrives", read.next())
            .await
            .unwrap()
            .payload
            .len(),
        1 << 20
    );
}

#[tokio::test]
async fn filter_sets_that_share_a_filter_receive_one_copy_of_each_message_from_nats() {
    let nats = Nats::builder().without_jetstream().start().await;
    let upstream = Upstream::connect(&nats.url()).await;
    let core = upstream.core();
    let sets: Vec<[String; 2]> = (0..50)
        .map(|number| ["a.>".to_owned(), format!("z.{number}")])
        .collect();
    let mut readers = join_all(sets.iter().map(|set| Reader::of_core(&core, set))).await;
    // Filters of this set overlap each other and the shared one: NATS sends two copies for it.
    readers.push(Reader::of_core(&core, &["a.*", "*.x"]).await);
    let client = nats.client().await;
    for number in 0..20 {
        client
            .publish("a.x", number.to_string().into())
            .await
            .unwrap();
    }
    let expected: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    for reader in &mut readers {
        reader.until_seen(20).await;
        assert_eq!(reader.data(), expected, "each message once, in order");
    }
    client.publish("z.49", "of one set".into()).await.unwrap();
    readers[49].until_seen(21).await;
    assert_eq!(readers[49].data()[20..], ["of one set"]);
    let received = upstream
        .metrics
        .events_received_total
        .with_label_values(&["core"])
        .get();
    assert_eq!(
        received,
        3 * 20 + 1,
        "a copy for each filter that matches, not for each set"
    );
    // The last set with a filter ends its subscription; the shared one remains.
    let kept = readers.swap_remove(0);
    drop(readers);
    eventually(RECOVERY, "the other sets are released", || async {
        core.size().feeds == 1
    })
    .await;
    eventually(RECOVERY, "their subscriptions end", || async {
        !is_subscribed(&client, "z.49").await
    })
    .await;
    assert!(is_subscribed(&client, "a.x").await && is_subscribed(&client, "z.0").await);
    drop(kept);
}

#[tokio::test]
async fn the_same_message_id_on_another_subject_is_another_message() {
    let nats = Nats::builder().without_jetstream().start().await;
    let upstream = Upstream::connect(&nats.url()).await;
    let core = upstream.core();
    let (mut all, mut one) = (
        Reader::of_core(&core, &["a.>"]).await,
        Reader::of_core(&core, &["a.paid"]).await,
    );
    let headers = b"NATS/1.0\r\nNats-Msg-Id: 7\r\n\r\n";
    for subject in ["a.created", "a.created", "a.paid", "a.paid"] {
        publish_raw(nats.port(), subject.as_bytes(), headers, subject.as_bytes()).await;
    }
    publish_raw(nats.port(), b"a.paid", b"", b"end").await;
    all.until_seen(3).await;
    one.until_seen(2).await;
    assert_eq!(all.data(), ["a.created", "a.paid", "end"]);
    assert_eq!(one.data(), ["a.paid", "end"]);
}
