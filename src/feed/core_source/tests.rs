//! Core subjects by hand: what is subscribed to for readers, what they receive, and when a feed ends.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;

use crate::feed::tests::{drain, event, filters, profile};
use crate::feed::{
    Budget, Change, CoreSource, CoreWriter, FeedOptions, Gap, GapReason, Limits, Opened, Outcome,
    Received,
};
use crate::feed::{Start, SubscriptionKey, core_source, feed_map};
use crate::sse::{Event, SourceTag};
use crate::subject::Filter;

/// A reader of core subjects while `writer` is asked what to subscribe to.
async fn open_core(
    core: &Arc<CoreSource>,
    writer: &mut CoreWriter,
    filter_texts: &[&str],
    profile: &Arc<FeedOptions>,
    start: Start,
) -> (Opened, Vec<(SubscriptionKey, Filter)>) {
    let (core, filters, profile) = (core.clone(), filters(filter_texts), profile.clone());
    let opening = tokio::spawn(async move { core.open(filters, &profile, start).await.unwrap() });
    let mut made = Vec::new();
    loop {
        tokio::task::yield_now().await;
        match writer.change().now_or_never() {
            Some(Some(Change::Wanted { feed, subscribe })) => {
                assert!(
                    !opening.is_finished(),
                    "a reader begins when its subscriptions are confirmed"
                );
                made.extend(subscribe);
                writer.established(feed);
            }
            Some(Some(Change::Unwanted { .. })) => panic!("a subscription ended"),
            Some(None) => panic!("readers may come"),
            None => return (opening.await.unwrap(), made),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn core_subjects_are_subscribed_to_once_and_given_up_a_while_after_the_last_reader() {
    let (core, mut writer) =
        core_source::channel(SourceTag::of_process("p"), &Budget::new(1 << 20, 10));
    let profile = profile(Limits::default());
    let (mut one, made) = open_core(&core, &mut writer, &["a"], &profile, Start::Live).await;
    let [(key, _)] = made[..] else {
        panic!("{made:?}")
    };
    let (two, made) = open_core(&core, &mut writer, &["a"], &profile, Start::Live).await;
    assert!(
        made.is_empty(),
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
        message_id: Some(name.into()),
        ..event(0, "a")
    };
    let repeated = append(&mut writer, vec![named("x"), named("y"), named("x")]);
    assert_eq!(repeated, 1, "a repeated message is delivered once");
    assert_eq!(append(&mut writer, vec![named("y")]), 1);
    assert_eq!(drain(&mut one.cursor), [Ok(4), Ok(5)]);
    let position = one.cursor.position();
    tokio::time::sleep(feed_map::LINGER).await;
    drop((one, two));
    let early = tokio::time::timeout(Duration::from_secs(20), writer.change()).await;
    assert!(early.is_err(), "{early:?}");
    append(&mut writer, vec![event(0, "a")]);
    let (mut back, made) =
        open_core(&core, &mut writer, &["a"], &profile, Start::After(position)).await;
    assert!(made.is_empty());
    assert_eq!(
        (back.outcome, drain(&mut back.cursor).last()),
        (Outcome::Window, Some(&Ok(8)))
    );
    let position = back.cursor.position();
    drop(back);
    let Some(Change::Unwanted { unsubscribe }) = writer.change().await else {
        panic!("wanted")
    };
    assert_eq!((unsubscribe, core.size().2), (vec![key], 0));
    assert_eq!(
        append(&mut writer, vec![event(0, "a")]),
        0,
        "a message that is late for an ended subscription"
    );
    // A feed that is made again never reuses a number, and takes one: what came meanwhile had no subscription.
    let (mut again, made) =
        open_core(&core, &mut writer, &["a"], &profile, Start::After(position)).await;
    assert!(matches!(
        again.outcome,
        Outcome::Gap(Gap {
            reason: GapReason::Expired,
            ..
        })
    ));
    assert_ne!(made[0].0, key);
    writer.append([(made[0].0, Received::Event(event(0, "a")))]);
    assert_eq!(drain(&mut again.cursor), [Ok(10)]);
}

#[tokio::test(start_paused = true)]
async fn a_feed_lingers_for_as_long_as_it_was_read_and_no_longer_than_the_bound() {
    let (core, mut writer) =
        core_source::channel(SourceTag::of_process("p"), &Budget::new(1 << 20, 10));
    let profile = profile(Limits::default());
    for (read, lingers) in [(0, 0), (4, 4), (29, 29), (300, 30)]
        .map(|(one, two)| (Duration::from_secs(one), Duration::from_secs(two)))
    {
        let (reader, _) = open_core(&core, &mut writer, &["a"], &profile, Start::Live).await;
        tokio::time::sleep(read).await;
        drop(reader);
        let left = tokio::time::Instant::now();
        assert!(matches!(
            writer.change().await,
            Some(Change::Unwanted { .. })
        ));
        assert_eq!(
            left.elapsed().as_secs(),
            lingers.as_secs(),
            "after {read:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn feeds_that_share_a_filter_share_its_subscription_and_each_has_a_message_once() {
    let (core, mut writer) =
        core_source::channel(SourceTag::of_process("p"), &Budget::new(1 << 20, 10));
    let profile = profile(Limits::default());
    let (mut wide, made) = open_core(&core, &mut writer, &["a.>"], &profile, Start::Live).await;
    let wide_key = made[0].0;
    let (mut both, made) =
        open_core(&core, &mut writer, &["a.>", "b"], &profile, Start::Live).await;
    let [(other, _)] = made[..] else {
        panic!("the shared filter is subscribed to once: {made:?}")
    };
    let (mut overlapping, made) =
        open_core(&core, &mut writer, &["a.*", "*.x"], &profile, Start::Live).await;
    assert_eq!(made.len(), 2);
    // NATS sends one copy of a.x for each of the three subscriptions that match.
    let copies = made.iter().map(|(key, _)| *key).chain([wide_key]);
    writer.append(copies.map(|key| (key, Received::Event(event(0, "a.x")))));
    let (one, two) = (drain(&mut wide.cursor), drain(&mut both.cursor));
    assert_eq!((one.len(), &one), (1, &two), "one number for one message");
    assert_eq!(
        drain(&mut overlapping.cursor).len(),
        1,
        "once, though both of its filters match"
    );
    let named = |subject: &str| {
        Received::Event(Event {
            message_id: Some("7".into()),
            ..event(0, subject)
        })
    };
    let repeated = writer.append([
        (wide_key, named("a.x")),
        (other, named("b")),
        (wide_key, named("a.x")),
    ]);
    assert_eq!(repeated, 1, "counted once for two feeds");
    assert_eq!(
        drain(&mut both.cursor).len(),
        2,
        "another subject has its own ids"
    );
}
