//! Stream buffer, feed and cursor: appends, gaps, evictions and starts, as a reader sees them.

mod versions;

use std::sync::Arc;
use std::task::Context;

use futures_util::task::noop_waker;

use super::cursor::Read;
use super::*;
use crate::event::{Event, Fingerprint, Position, SourceTag, Tier};
use crate::subject::{Filter, FilterSet};

pub(super) fn filters(texts: &[&str]) -> FilterSet {
    FilterSet::new(texts.iter().map(|text| Filter::parse(text).unwrap()))
}

fn tag() -> SourceTag {
    SourceTag::of_stream("S", 1)
}

pub(super) fn event(seq: u64, subject: &str) -> Event {
    Event {
        position: Position {
            tag: tag(),
            seq,
            fingerprint: Some(Fingerprint::of_publish_time(seq.into())),
        },
        subject: subject.into(),
        name: None,
        tier: None,
        is_end: false,
        sample: None,
        version: None,
        headers: Default::default(),
        data: format!("{seq}").into(),
        received: std::time::Instant::now(),
    }
}

fn buffer(limits: Limits) -> (StreamWriter, Arc<StreamBuffer>) {
    let (mut writer, buffer) =
        buffer::writer::channel("S", limits, &Budget::new(1 << 20, 100), None);
    writer.begin(tag(), 0);
    (writer, buffer)
}

pub(super) fn options(window: Limits) -> Arc<FeedOptions> {
    FeedOptions {
        window,
        ..FeedOptions::default()
    }
    .into()
}

/// Reads until nothing is left; returns sequence numbers and gaps.
pub(super) fn drain(cursor: &mut Cursor) -> Vec<Result<u64, Gap>> {
    let waker = noop_waker();
    let mut seen = Vec::new();
    loop {
        let mut batch = Batch::default();
        let read = cursor.poll_read(
            &mut Context::from_waker(&waker),
            &mut batch,
            &mut ReadPolicy::all(100),
        );
        seen.extend(batch.items.iter().map(|item| match item {
            Item::Event { position, .. } => Ok(position.seq),
            Item::Coded { .. } => panic!("the feed does not compress"),
            Item::Copied { .. } => panic!("copies were not requested"),
            Item::Gap { gap, .. } => Err(*gap),
        }));
        if read != std::task::Poll::Ready(Read::Some) {
            return seen;
        }
    }
}

/// Opening without an archive completes at once.
fn now<T>(opening: impl Future<Output = T>) -> T {
    futures_util::FutureExt::now_or_never(opening)
        .expect("opening without an archive does not wait")
}

fn at(seq: u64) -> Start {
    Start::After(Position {
        tag: tag(),
        seq,
        fingerprint: None,
    })
}

#[test]
fn reader_receives_matching_events_from_its_start() {
    let (mut writer, buffer) = buffer(Limits::default());
    writer.append(vec![event(1, "a.x"), event(2, "b"), event(3, "a.y")]);
    let open =
        |start| now(buffer.open(filters(&["a.*"]), &options(Limits::default()), start)).unwrap();
    let (mut live, mut resumed, mut all) = (open(Start::Live), open(at(1)), open(at(0)));
    assert_eq!(
        (live.outcome, resumed.outcome),
        (Outcome::Live, Outcome::Window)
    );
    assert_eq!(drain(&mut live.cursor), []);
    assert_eq!(drain(&mut resumed.cursor), [Ok(3)]);
    writer.append(vec![event(4, "c"), event(9, "a.z")]);
    assert_eq!(drain(&mut live.cursor), [Ok(9)]);
    assert_eq!(drain(&mut resumed.cursor), [Ok(9)]);
    assert_eq!(drain(&mut all.cursor), [Ok(1), Ok(3), Ok(9)]);
    assert_eq!(
        all.cursor.position(),
        Position {
            tag: tag(),
            seq: 9,
            fingerprint: Some(Fingerprint::of_publish_time(9))
        }
    );
}

#[test]
fn reader_overtaken_by_eviction_receives_a_counted_gap() {
    let limits = Limits {
        events: 3,
        ..Limits::default()
    };
    let (mut writer, buffer) = buffer(limits);
    let mut opened = now(buffer.open(filters(&[">"]), &options(limits), Start::Live)).unwrap();
    writer.append((1..=10).map(|seq| event(seq, "a")).collect());
    assert_eq!(
        opened.cursor.probe().lag(std::time::Instant::now()).events,
        10
    );
    let gap = Gap {
        reason: GapReason::Slow,
        missed: Some(7),
    };
    assert_eq!(drain(&mut opened.cursor), [Err(gap), Ok(8), Ok(9), Ok(10)]);
    let late = now(buffer.open(filters(&[">"]), &options(limits), at(6))).unwrap();
    assert!(matches!(
        late.outcome,
        Outcome::Gap(Gap {
            reason: GapReason::Expired,
            ..
        })
    ));
    let edge = now(buffer.open(filters(&[">"]), &options(limits), at(7))).unwrap();
    assert_eq!(edge.outcome, Outcome::Window);
}

#[test]
fn gap_is_reported_from_the_window_after_eviction_and_to_later_feeds() {
    let limits = Limits {
        events: 2,
        ..Limits::default()
    };
    let (mut writer, buffer) = buffer(Limits::default());
    let open = |options| {
        now(buffer.open(filters(&["a"]), &options, at(0)))
            .unwrap()
            .cursor
    };
    let (mut wide, mut tight) = (open(options(Limits::default())), open(options(limits)));
    writer.append(vec![event(1, "a")]);
    writer.gap(GapReason::Upstream, Some(5));
    writer.append(vec![event(7, "a"), event(8, "a")]);
    let gap = |reason, missed| {
        Err(Gap {
            reason,
            missed: Some(missed),
        })
    };
    let all = [Ok(1), gap(GapReason::Upstream, 5), Ok(7), Ok(8)];
    assert_eq!(drain(&mut wide), all);
    assert_eq!(
        drain(&mut tight),
        [
            gap(GapReason::Slow, 1),
            gap(GapReason::Upstream, 5),
            Ok(7),
            Ok(8)
        ]
    );
    let mut late = open(
        FeedOptions {
            event: Some(crate::subject::TextTemplate::parse("x").unwrap()),
            ..FeedOptions::default()
        }
        .into(),
    );
    assert_eq!(drain(&mut late), all);
    writer.gap(GapReason::Upstream, Some(3));
    writer.append((12..=14).map(|seq| event(seq, "a")).collect());
    assert_eq!(drain(&mut tight), [gap(GapReason::Slow, 4), Ok(13), Ok(14)]);
}

#[test]
fn reused_sequence_numbers_are_delivered_to_readers_that_had_the_old_ones() {
    let (mut writer, buffer) = buffer(Limits::default());
    let mut reader = now(buffer.open(filters(&["a"]), &options(Limits::default()), at(0)))
        .unwrap()
        .cursor;
    writer.append((1..=9).map(|seq| event(seq, "a")).collect());
    let mut back = now(buffer.open(filters(&["a"]), &options(Limits::default()), at(9)))
        .unwrap()
        .cursor;
    assert_eq!(drain(&mut reader).len(), 9);
    let gap = Gap {
        reason: GapReason::Ahead,
        missed: None,
    };
    for _ in 0..2 {
        writer.start_epoch(tag(), 4, gap);
        writer.append(vec![event(5, "a")]);
    }
    for cursor in [&mut reader, &mut back] {
        assert_eq!(drain(cursor), [Err(gap), Ok(5), Err(gap), Ok(5)]);
    }
}

#[test]
fn recreated_stream_is_reported_to_readers_and_to_returning_clients() {
    let (mut writer, buffer) = buffer(Limits::default());
    writer.append(vec![event(5, "a")]);
    let options = options(Limits::default());
    let mut reader = now(buffer.open(filters(&["a"]), &options, at(4))).unwrap();
    assert_eq!(drain(&mut reader.cursor), [Ok(5)]);
    let other = SourceTag::of_stream("S", 2);
    writer.begin(other, 0);
    let gap = Gap {
        reason: GapReason::Recreated,
        missed: None,
    };
    assert_eq!(drain(&mut reader.cursor), [Err(gap)]);
    assert_eq!(
        reader.cursor.position(),
        Position {
            tag: other,
            seq: 0,
            fingerprint: None
        }
    );
    writer.append(vec![Event {
        position: Position {
            tag: other,
            seq: 1,
            fingerprint: None,
        },
        ..event(1, "a")
    }]);
    assert_eq!(drain(&mut reader.cursor), [Ok(1)]);
    let back = now(buffer.open(filters(&["a"]), &options, at(5))).unwrap();
    assert_eq!(back.outcome, Outcome::Gap(gap));
    let mut new = now(buffer.open(
        filters(&["a"]),
        &options,
        Start::After(Position {
            tag: other,
            seq: 0,
            fingerprint: None,
        }),
    ))
    .unwrap();
    assert_eq!(drain(&mut new.cursor), [Ok(1)]);
}

#[test]
fn different_fingerprint_is_reported_as_recreated() {
    let (mut writer, buffer) = buffer(Limits::default());
    writer.append(vec![event(1, "a"), event(2, "a")]);
    let known = Position {
        tag: tag(),
        seq: 1,
        fingerprint: Some(Fingerprint::of_publish_time(77)),
    };
    let opened = now(buffer.open(
        filters(&["a"]),
        &options(Limits::default()),
        Start::After(known),
    ))
    .unwrap();
    assert!(matches!(
        opened.outcome,
        Outcome::Gap(Gap {
            reason: GapReason::Recreated,
            ..
        })
    ));
}

#[test]
fn id_of_version_0_1_continues_with_the_full_fingerprint() {
    let (mut writer, buffer) = buffer(Limits::default());
    writer.append(vec![event(1, "a"), event(2, "a")]);
    let full = Fingerprint::of_publish_time(1);
    let at = |fingerprint| Position {
        tag: tag(),
        seq: 1,
        fingerprint: Some(fingerprint),
    };
    let mut opened = now(buffer.open(
        filters(&["a"]),
        &options(Limits::default()),
        Start::After(at(full.to_short())),
    ))
    .unwrap();
    assert_eq!(opened.outcome, Outcome::Window);
    assert_eq!(opened.cursor.position(), at(full));
    assert_eq!(drain(&mut opened.cursor), [Ok(2)]);
}

#[test]
fn reader_ahead_of_the_buffer_receives_no_event_twice() {
    let (mut writer, buffer) = buffer(Limits::default());
    let mut opened = now(buffer.open(filters(&["a"]), &options(Limits::default()), at(3))).unwrap();
    writer.append((1..=5).map(|seq| event(seq, "a")).collect());
    assert_eq!(drain(&mut opened.cursor), [Ok(4), Ok(5)]);
}

#[test]
fn reader_ahead_of_the_buffer_misses_nothing_if_only_events_that_it_has_are_evicted() {
    let (mut writer, buffer) = buffer(Limits::default());
    let window = Limits {
        events: 2,
        ..Limits::default()
    };
    let mut opened = now(buffer.open(filters(&["a"]), &options(window), at(3))).unwrap();
    writer.append((1..=5).map(|seq| event(seq, "a")).collect());
    assert_eq!(drain(&mut opened.cursor), [Ok(4), Ok(5)]);
    writer.append((6..=8).map(|seq| event(seq, "a")).collect());
    let missed = Gap {
        reason: GapReason::Slow,
        missed: Some(1),
    };
    assert_eq!(drain(&mut opened.cursor), [Err(missed), Ok(7), Ok(8)]);
}

#[test]
fn checkpoint_advances_an_idle_reader_and_never_skips_an_event() {
    let (mut writer, buffer) = buffer(Limits::default());
    let mut opened =
        now(buffer.open(filters(&["a"]), &options(Limits::default()), Start::Live)).unwrap();
    writer.append(vec![event(1, "b"), event(2, "b")]);
    assert!(opened.cursor.checkpoint());
    assert_eq!(opened.cursor.position().seq, 2);
    writer.append(vec![event(3, "a"), event(4, "b")]);
    assert!(!opened.cursor.checkpoint(), "an event is unread");
    assert_eq!(drain(&mut opened.cursor), [Ok(3)]);
    writer.advance(9);
    assert!(opened.cursor.checkpoint());
    assert_eq!(
        opened.cursor.position(),
        Position {
            tag: tag(),
            seq: 9,
            fingerprint: None
        }
    );
}

#[test]
fn last_reader_removes_the_feed_and_all_memory_is_released() {
    let budget = Budget::new(1 << 20, 1);
    let (mut writer, buffer) = buffer::writer::channel("S", Limits::default(), &budget, None);
    let options = options(Limits::default());
    assert_eq!(
        now(buffer.open(filters(&["a"]), &options, Start::Live)).unwrap_err(),
        OpenError::NotReady
    );
    writer.begin(tag(), 0);
    let one = now(buffer.open(filters(&["a"]), &options, Start::Live)).unwrap();
    let two = now(buffer.open(filters(&["a"]), &options, Start::Live)).unwrap();
    assert_eq!(
        now(buffer.open(filters(&["b"]), &options, Start::Live)).unwrap_err(),
        OpenError::TooManyFeeds
    );
    writer.append((1..=100).map(|seq| event(seq, "a")).collect());
    assert_eq!((buffer.size().events, buffer.size().feeds), (100, 1));
    drop((one, two));
    assert_eq!(buffer.size().feeds, 0);
    assert!(budget.used() > 0);
    drop((writer, buffer));
    assert_eq!(budget.used(), 0);
}

#[test]
fn window_is_the_same_for_single_and_batched_appends() {
    let events: Vec<Event> = (1..=150).map(|seq| event(seq, "a")).collect();
    let held = |sizes: &[usize]| {
        let budget = Budget::new(1 << 20, 10);
        let (mut writer, buffer) = buffer::writer::channel("S", Limits::default(), &budget, None);
        writer.begin(tag(), 0);
        let open = |events, start| {
            let options = options(Limits {
                events,
                ..Limits::default()
            });
            now(buffer.open(filters(&["a"]), &options, start))
                .unwrap()
                .cursor
        };
        let mut readers = vec![open(40, Start::Live), open(500, Start::Live)];
        let mut rest = &events[..];
        for size in sizes {
            let (some, after) = rest.split_at(*size);
            rest = after;
            writer.append(some.to_vec());
            if [20, 64, 110].contains(&(events.len() - rest.len())) {
                writer.gap(GapReason::Upstream, None);
            }
        }
        // Created from the buffer, with gaps between its events.
        readers.push(open(501, at(0)));
        let used = budget.used();
        let seen: Vec<_> = readers.iter_mut().map(drain).collect();
        drop((readers, buffer, writer));
        assert_eq!(budget.used(), 0);
        (used, seen)
    };
    let one_by_one = held(&[1; 150]);
    assert_eq!(
        one_by_one.1[1], one_by_one.1[2],
        "a feed created from the buffer equals one that existed before"
    );
    assert_eq!(one_by_one.1[1].len(), 153);
    assert_eq!(one_by_one.1[0].last(), Some(&Ok(150)));
    assert_eq!(held(&[20, 44, 1, 45, 40]), one_by_one);
}

#[test]
fn all_windows_together_stay_within_the_budget() {
    let budget = Budget::new(20_000, 10);
    let (mut writer, buffer) = buffer::writer::channel("S", Limits::default(), &budget, None);
    writer.begin(tag(), 0);
    let options = options(Limits::default());
    let mut reader = now(buffer.open(filters(&["a"]), &options, Start::Live)).unwrap();
    for seq in 1..=1000 {
        writer.append(vec![event(seq, "a")]);
        assert!(budget.used() <= 20_000, "{budget:?}");
    }
    let seen = drain(&mut reader.cursor);
    let Some(Err(Gap {
        reason: GapReason::Slow,
        missed: Some(missed),
    })) = seen.first()
    else {
        panic!("{seen:?}")
    };
    assert_eq!(*missed as usize + seen.len() - 1, 1000);
    assert_eq!(seen.last(), Some(&Ok(1000)));
}

#[test]
fn readers_end_after_the_writer_is_dropped_and_everything_is_read() {
    let (mut writer, buffer) = buffer(Limits::default());
    let mut opened =
        now(buffer.open(filters(&["a"]), &options(Limits::default()), Start::Live)).unwrap();
    writer.append(vec![event(1, "a")]);
    drop(writer);
    assert_eq!(drain(&mut opened.cursor), [Ok(1)]);
    let waker = noop_waker();
    let read = opened.cursor.poll_read(
        &mut Context::from_waker(&waker),
        &mut Batch::default(),
        &mut ReadPolicy::all(1),
    );
    assert_eq!(read, std::task::Poll::Ready(Read::Ended));
}

#[test]
fn route_options_set_event_names_and_tiers() {
    let (mut writer, buffer) = buffer(Limits::default());
    let options = Arc::new(FeedOptions {
        event: Some(crate::subject::TextTemplate::parse("{subject.2}").unwrap()),
        priority: vec![(Filter::parse("a.alert").unwrap(), Tier::Critical)],
        ..FeedOptions::default()
    });
    let mut opened = now(buffer.open(filters(&["a.*"]), &options, Start::Live)).unwrap();
    writer.append(vec![event(1, "a.alert"), event(2, "a.b")]);
    let mut batch = Batch::default();
    let waker = noop_waker();
    assert!(
        opened
            .cursor
            .poll_read(
                &mut Context::from_waker(&waker),
                &mut batch,
                &mut ReadPolicy::all(1000)
            )
            .is_ready()
    );
    let shown: Vec<_> = batch
        .items
        .iter()
        .map(|item| match item {
            Item::Event { encoding, tier, .. } => (
                String::from_utf8(encoding.shared().to_vec()).unwrap(),
                *tier,
            ),
            Item::Copied { .. } | Item::Coded { .. } | Item::Gap { .. } => panic!(),
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("event: alert\ndata: 1\n".into(), Tier::Critical),
            ("event: b\ndata: 2\n".into(), Tier::Normal)
        ]
    );
}

#[test]
fn small_neighbouring_events_are_copied_and_large_or_single_newest_ones_are_shared() {
    let (mut writer, buffer) = buffer(Limits::default());
    let mut opened =
        now(buffer.open(filters(&["a"]), &options(Limits::default()), Start::Live)).unwrap();
    let event = |seq, bytes: usize| Event {
        data: vec![b'x'; bytes].into(),
        ..event(seq, "a")
    };
    let mut read = |sizes: &[usize], budget| {
        let (_, head) = writer.head().unwrap();
        writer.append(
            (head + 1..)
                .zip(sizes)
                .map(|(seq, bytes)| event(seq, *bytes))
                .collect(),
        );
        let mut batch = Batch::default();
        batch.copy_small = !sizes.is_empty();
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(
            opened
                .cursor
                .poll_read(&mut context, &mut batch, &mut ReadPolicy::all(budget))
                .is_ready()
        );
        let items = batch.items.iter().map(|item| match item {
            Item::Event { .. } => 0,
            Item::Copied { copied, .. } | Item::Coded { copied, .. } => copied.events,
            Item::Gap { .. } => panic!(),
        });
        items.collect::<Vec<_>>()
    };
    assert_eq!(read(&[10], 32 << 10), [0], "the newest event is shared");
    assert_eq!(read(&[10, 20, 30], 32 << 10), [3]);
    assert_eq!(
        read(&[10, 5000, 10, 10], 32 << 10),
        [1, 0, 2],
        "a large event between copies is shared"
    );
    assert_eq!(read(&[10, 10, 5000, 10], 32 << 10), [2, 0, 0]);
    assert_eq!(
        read(&[900; 40], 64 << 10),
        [35, 5],
        "a copy is at most 32 KiB"
    );
    assert_eq!(
        read(&[900; 40], 1000),
        [2],
        "the reader's budget limits the read"
    );
}
