//! Core source: subscriptions subscribed for readers, delivery to feeds, and the end of idle feeds.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;

use crate::event::{Event, EventHeaders, SourceTag};
use crate::feed::tests::{drain, event, filters, options};
use crate::feed::{
    Budget, Change, CoreSource, CoreWriter, FeedOptions, Gap, GapReason, Limits, Opened, Outcome,
    Received,
};
use crate::feed::{Source as _, Start, SubscriptionKey, core_source, feed_map};
use crate::subject::Filter;

/// Opens a reader and applies the subscription changes that `writer` reports meanwhile.
async fn open_core(
    core: &Arc<CoreSource>,
    writer: &mut CoreWriter,
    filter_texts: &[&str],
    options: &Arc<FeedOptions>,
    start: Start,
) -> (Opened, Vec<(SubscriptionKey, Filter)>) {
    let (core, filters, options) = (core.clone(), filters(filter_texts), options.clone());
    let opening = tokio::spawn(async move { core.open(filters, &options, start).await.unwrap() });
    let mut subscribed = Vec::new();
    loop {
        tokio::task::yield_now().await;
        match writer.change().now_or_never() {
            Some(Some(Change::Subscribe { feed, subscribe })) => {
                assert!(
                    !opening.is_finished(),
                    "a reader starts after its subscriptions are confirmed"
                );
                subscribed.extend(subscribe);
                writer.confirm_subscribed(feed);
            }
            Some(Some(Change::Unsubscribe { .. })) => panic!("a subscription ended"),
            Some(None) => panic!("the source still admits readers"),
            None => return (opening.await.unwrap(), subscribed),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn core_feed_subscribes_once_and_unsubscribes_after_the_idle_period() {
    let (core, mut writer) =
        core_source::channel(SourceTag::of_process("p"), &Budget::new(1 << 20, 10));
    let options = options(Limits::default());
    let (mut one, subscribed) = open_core(&core, &mut writer, &["a"], &options, Start::Live).await;
    let [(key, _)] = subscribed[..] else {
        panic!("{subscribed:?}")
    };
    let (two, subscribed) = open_core(&core, &mut writer, &["a"], &options, Start::Live).await;
    assert!(
        subscribed.is_empty(),
        "the second reader shares the feed of the first one"
    );
    let append = |writer: &mut CoreWriter, events: Vec<Event>| {
        writer.append(
            events
                .into_iter()
                .map(|event| (key, Received::Event(event))),
        )
    };
    append(&mut writer, vec![event(0, "a"), event(0, "a")]);
    assert_eq!(drain(&mut one.cursor), [Ok(2), Ok(3)]);
    let named = |name: &str| Event {
        is_end: false,
        headers: EventHeaders::new(Some(name), None),
        ..event(0, "a")
    };
    let duplicates = append(&mut writer, vec![named("x"), named("y"), named("x")]);
    assert_eq!(duplicates, 1, "a duplicate message is delivered once");
    assert_eq!(append(&mut writer, vec![named("y")]), 1);
    assert_eq!(drain(&mut one.cursor), [Ok(4), Ok(5)]);
    let position = one.cursor.position();
    tokio::time::sleep(feed_map::LINGER).await;
    drop((one, two));
    let early = tokio::time::timeout(Duration::from_secs(20), writer.change()).await;
    assert!(early.is_err(), "{early:?}");
    append(&mut writer, vec![event(0, "a")]);
    let (mut back, subscribed) =
        open_core(&core, &mut writer, &["a"], &options, Start::After(position)).await;
    assert!(subscribed.is_empty());
    assert_eq!(
        (back.outcome, drain(&mut back.cursor).last()),
        (Outcome::Window, Some(&Ok(8)))
    );
    let position = back.cursor.position();
    drop(back);
    let Some(Change::Unsubscribe { unsubscribe }) = writer.change().await else {
        panic!("the feed is not idle")
    };
    assert_eq!((unsubscribe, core.size().feeds), (vec![key], 0));
    assert_eq!(
        append(&mut writer, vec![event(0, "a")]),
        0,
        "a late message of an ended subscription is ignored"
    );
    // A feed that is created again takes a new number: messages in between had no subscription.
    let (mut again, subscribed) =
        open_core(&core, &mut writer, &["a"], &options, Start::After(position)).await;
    assert!(matches!(
        again.outcome,
        Outcome::Gap(Gap {
            reason: GapReason::Expired,
            ..
        })
    ));
    assert_ne!(subscribed[0].0, key);
    writer.append([(subscribed[0].0, Received::Event(event(0, "a")))]);
    assert_eq!(drain(&mut again.cursor), [Ok(10)]);
}

#[tokio::test(start_paused = true)]
async fn idle_feed_lingers_as_long_as_it_existed_up_to_the_limit() {
    let (core, mut writer) =
        core_source::channel(SourceTag::of_process("p"), &Budget::new(1 << 20, 10));
    let options = options(Limits::default());
    for (read, lingers) in [(0, 0), (4, 4), (29, 29), (300, 30)]
        .map(|(one, two)| (Duration::from_secs(one), Duration::from_secs(two)))
    {
        let (reader, _) = open_core(&core, &mut writer, &["a"], &options, Start::Live).await;
        tokio::time::sleep(read).await;
        drop(reader);
        let left = tokio::time::Instant::now();
        assert!(matches!(
            writer.change().await,
            Some(Change::Unsubscribe { .. })
        ));
        assert_eq!(
            left.elapsed().as_secs(),
            lingers.as_secs(),
            "after {read:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn feeds_share_subscriptions_and_receive_each_message_once() {
    let (core, mut writer) =
        core_source::channel(SourceTag::of_process("p"), &Budget::new(1 << 20, 10));
    let options = options(Limits::default());
    let (mut wide, subscribed) =
        open_core(&core, &mut writer, &["a.>"], &options, Start::Live).await;
    let wide_key = subscribed[0].0;
    let (mut both, subscribed) =
        open_core(&core, &mut writer, &["a.>", "b"], &options, Start::Live).await;
    let [(other, _)] = subscribed[..] else {
        panic!("the shared filter is subscribed to once: {subscribed:?}")
    };
    let (mut overlapping, subscribed) =
        open_core(&core, &mut writer, &["a.*", "*.x"], &options, Start::Live).await;
    assert_eq!(subscribed.len(), 2);
    // NATS sends one copy of a.x for each of the three matching subscriptions.
    let copies = subscribed.iter().map(|(key, _)| *key).chain([wide_key]);
    writer.append(copies.map(|key| (key, Received::Event(event(0, "a.x")))));
    let (one, two) = (drain(&mut wide.cursor), drain(&mut both.cursor));
    assert_eq!((one.len(), &one), (1, &two), "each message has one number");
    assert_eq!(
        drain(&mut overlapping.cursor).len(),
        1,
        "delivered once although two filters match"
    );
    let named = |subject: &str| {
        Received::Event(Event {
            is_end: false,
            headers: EventHeaders::new(Some("7"), None),
            ..event(0, subject)
        })
    };
    let duplicates = writer.append([
        (wide_key, named("a.x")),
        (other, named("b")),
        (wide_key, named("a.x")),
    ]);
    assert_eq!(duplicates, 1, "a duplicate in two feeds counts once");
    assert_eq!(
        drain(&mut both.cursor).len(),
        2,
        "message ids are scoped by subject"
    );
}
