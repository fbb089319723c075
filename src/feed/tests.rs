//! The waist by hand: what a reader sees of appends, gaps, evictions and beginnings.

use std::sync::Arc;
use std::task::Context;

use futures_util::task::noop_waker;

use super::cursor::Read;
use super::*;
use crate::sse::{Event, Position, SourceTag, Tier};
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
            check: Some(seq as u16),
        },
        subject: subject.into(),
        name: None,
        tier: None,
        message_id: None,
        data: format!("{seq}").into(),
        received: std::time::Instant::now(),
    }
}

fn log(limits: Limits) -> (StreamWriter, Arc<StreamBuffer>) {
    let (mut writer, log) = buffer::channel("S", limits, &Budget::new(1 << 20, 100), None);
    writer.begin(tag(), 0);
    (writer, log)
}

pub(super) fn profile(window: Limits) -> Arc<FeedOptions> {
    FeedOptions {
        window,
        ..FeedOptions::default()
    }
    .into()
}

/// Reads everything that is there: sequence numbers, and gaps as their count.
pub(super) fn drain(cursor: &mut Cursor) -> Vec<Result<u64, Gap>> {
    let waker = noop_waker();
    let mut seen = Vec::new();
    loop {
        let mut batch = Batch::default();
        let read = cursor.poll_read(&mut Context::from_waker(&waker), &mut batch, 100);
        seen.extend(batch.items.iter().map(|item| match item {
            Item::Event { position, .. } => Ok(position.seq),
            Item::Copied { .. } => panic!("not asked for"),
            Item::Gap { gap, .. } => Err(*gap),
        }));
        if read != std::task::Poll::Ready(Read::Some) {
            return seen;
        }
    }
}

/// An opening that has nobody to ask is ready at once.
fn now<T>(opening: impl Future<Output = T>) -> T {
    futures_util::FutureExt::now_or_never(opening).expect("there is nobody to wait for")
}

fn at(seq: u64) -> Start {
    Start::After(Position {
        tag: tag(),
        seq,
        check: None,
    })
}

#[test]
fn a_reader_sees_what_matches_from_where_it_began() {
    let (mut writer, log) = log(Limits::default());
    writer.append(vec![event(1, "a.x"), event(2, "b"), event(3, "a.y")]);
    let open =
        |start| now(log.open(filters(&["a.*"]), &profile(Limits::default()), start)).unwrap();
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
            check: Some(9)
        }
    );
}

#[test]
fn a_reader_that_falls_out_of_the_window_is_told_how_many_it_missed() {
    let limits = Limits {
        events: 3,
        ..Limits::default()
    };
    let (mut writer, log) = log(limits);
    let mut opened = now(log.open(filters(&[">"]), &profile(limits), Start::Live)).unwrap();
    writer.append((1..=10).map(|seq| event(seq, "a")).collect());
    assert_eq!(
        opened
            .cursor
            .standing()
            .lag(std::time::Instant::now())
            .events,
        10
    );
    let gap = Gap {
        reason: GapReason::Slow,
        missed: Some(7),
    };
    assert_eq!(drain(&mut opened.cursor), [Err(gap), Ok(8), Ok(9), Ok(10)]);
    let late = now(log.open(filters(&[">"]), &profile(limits), at(6))).unwrap();
    assert!(matches!(
        late.outcome,
        Outcome::Gap(Gap {
            reason: GapReason::Expired,
            ..
        })
    ));
    let edge = now(log.open(filters(&[">"]), &profile(limits), at(7))).unwrap();
    assert_eq!(edge.outcome, Outcome::Window);
}

#[test]
fn a_gap_is_told_whether_it_stands_in_the_window_fell_out_of_it_or_was_before_the_feed() {
    let limits = Limits {
        events: 2,
        ..Limits::default()
    };
    let (mut writer, log) = log(Limits::default());
    let open = |profile| {
        now(log.open(filters(&["a"]), &profile, at(0)))
            .unwrap()
            .cursor
    };
    let (mut wide, mut tight) = (open(profile(Limits::default())), open(profile(limits)));
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
fn numbers_that_begin_again_are_read_by_whoever_had_the_same_ones_before() {
    let (mut writer, log) = log(Limits::default());
    let mut reader = now(log.open(filters(&["a"]), &profile(Limits::default()), at(0)))
        .unwrap()
        .cursor;
    writer.append((1..=9).map(|seq| event(seq, "a")).collect());
    let mut back = now(log.open(filters(&["a"]), &profile(Limits::default()), at(9)))
        .unwrap()
        .cursor;
    assert_eq!(drain(&mut reader).len(), 9);
    let gap = Gap {
        reason: GapReason::Ahead,
        missed: None,
    };
    for _ in 0..2 {
        writer.renew(tag(), 4, gap);
        writer.append(vec![event(5, "a")]);
    }
    for cursor in [&mut reader, &mut back] {
        assert_eq!(drain(cursor), [Err(gap), Ok(5), Err(gap), Ok(5)]);
    }
}

#[test]
fn another_stream_under_the_same_name_is_told_to_those_who_read_and_to_those_who_come_back() {
    let (mut writer, log) = log(Limits::default());
    writer.append(vec![event(5, "a")]);
    let profile = profile(Limits::default());
    let mut reader = now(log.open(filters(&["a"]), &profile, at(4))).unwrap();
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
            check: None
        }
    );
    writer.append(vec![Event {
        position: Position {
            tag: other,
            seq: 1,
            check: None,
        },
        ..event(1, "a")
    }]);
    assert_eq!(drain(&mut reader.cursor), [Ok(1)]);
    let back = now(log.open(filters(&["a"]), &profile, at(5))).unwrap();
    assert_eq!(back.outcome, Outcome::Gap(gap));
    let mut new = now(log.open(
        filters(&["a"]),
        &profile,
        Start::After(Position {
            tag: other,
            seq: 0,
            check: None,
        }),
    ))
    .unwrap();
    assert_eq!(drain(&mut new.cursor), [Ok(1)]);
}

#[test]
fn a_message_that_is_not_the_one_the_reader_knows_is_another_stream() {
    let (mut writer, log) = log(Limits::default());
    writer.append(vec![event(1, "a"), event(2, "a")]);
    let known = Position {
        tag: tag(),
        seq: 1,
        check: Some(77),
    };
    let opened = now(log.open(
        filters(&["a"]),
        &profile(Limits::default()),
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
fn a_reader_that_is_ahead_of_its_log_sees_nothing_twice() {
    let (mut writer, log) = log(Limits::default());
    let mut opened = now(log.open(filters(&["a"]), &profile(Limits::default()), at(3))).unwrap();
    writer.append((1..=5).map(|seq| event(seq, "a")).collect());
    assert_eq!(drain(&mut opened.cursor), [Ok(4), Ok(5)]);
}

#[test]
fn a_checkpoint_moves_a_silent_reader_and_never_over_an_event() {
    let (mut writer, log) = log(Limits::default());
    let mut opened =
        now(log.open(filters(&["a"]), &profile(Limits::default()), Start::Live)).unwrap();
    writer.append(vec![event(1, "b"), event(2, "b")]);
    assert!(opened.cursor.checkpoint());
    assert_eq!(opened.cursor.position().seq, 2);
    writer.append(vec![event(3, "a"), event(4, "b")]);
    assert!(!opened.cursor.checkpoint(), "an event waits");
    assert_eq!(drain(&mut opened.cursor), [Ok(3)]);
    writer.advance(9);
    assert!(opened.cursor.checkpoint());
    assert_eq!(
        opened.cursor.position(),
        Position {
            tag: tag(),
            seq: 9,
            check: None
        }
    );
}

#[test]
fn a_feed_is_gone_with_its_last_reader_and_all_memory_is_given_back() {
    let budget = Budget::new(1 << 20, 1);
    let (mut writer, log) = buffer::channel("S", Limits::default(), &budget, None);
    let profile = profile(Limits::default());
    assert_eq!(
        now(log.open(filters(&["a"]), &profile, Start::Live)).unwrap_err(),
        OpenError::NotReady
    );
    writer.begin(tag(), 0);
    let one = now(log.open(filters(&["a"]), &profile, Start::Live)).unwrap();
    let two = now(log.open(filters(&["a"]), &profile, Start::Live)).unwrap();
    assert_eq!(
        now(log.open(filters(&["b"]), &profile, Start::Live)).unwrap_err(),
        OpenError::TooManyFeeds
    );
    writer.append((1..=100).map(|seq| event(seq, "a")).collect());
    assert_eq!((log.size().0, log.size().2), (100, 1));
    drop((one, two));
    assert_eq!(log.size().2, 0);
    assert!(budget.used() > 0);
    drop((writer, log));
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_window_holds_and_counts_the_same_whether_events_come_one_by_one_or_together() {
    let events: Vec<Event> = (1..=150).map(|seq| event(seq, "a")).collect();
    let held = |sizes: &[usize]| {
        let budget = Budget::new(1 << 20, 10);
        let (mut writer, log) = buffer::channel("S", Limits::default(), &budget, None);
        writer.begin(tag(), 0);
        let open = |events, start| {
            let profile = profile(Limits {
                events,
                ..Limits::default()
            });
            now(log.open(filters(&["a"]), &profile, start))
                .unwrap()
                .cursor
        };
        let mut readers = vec![open(40, Start::Live), open(500, Start::Live)];
        let mut rest = &events[..];
        for size in sizes {
            let (some, behind) = rest.split_at(*size);
            rest = behind;
            writer.append(some.to_vec());
            if [20, 64, 110].contains(&(events.len() - rest.len())) {
                writer.gap(GapReason::Upstream, None);
            }
        }
        // Made of the log, where gaps stand between its events.
        readers.push(open(501, at(0)));
        let used = budget.used();
        let seen: Vec<_> = readers.iter_mut().map(drain).collect();
        drop((readers, log, writer));
        assert_eq!(budget.used(), 0);
        (used, seen)
    };
    let one_by_one = held(&[1; 150]);
    assert_eq!(
        one_by_one.1[1], one_by_one.1[2],
        "a feed that is made of the log has what one has that was there"
    );
    assert_eq!(one_by_one.1[1].len(), 153);
    assert_eq!(one_by_one.1[0].last(), Some(&Ok(150)));
    assert_eq!(held(&[20, 44, 1, 45, 40]), one_by_one);
}

#[test]
fn all_windows_together_stay_within_the_budget() {
    let budget = Budget::new(20_000, 10);
    let (mut writer, log) = buffer::channel("S", Limits::default(), &budget, None);
    writer.begin(tag(), 0);
    let profile = profile(Limits::default());
    let mut reader = now(log.open(filters(&["a"]), &profile, Start::Live)).unwrap();
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
fn readers_end_when_the_writer_is_gone_and_everything_is_read() {
    let (mut writer, log) = log(Limits::default());
    let mut opened =
        now(log.open(filters(&["a"]), &profile(Limits::default()), Start::Live)).unwrap();
    writer.append(vec![event(1, "a")]);
    drop(writer);
    assert_eq!(drain(&mut opened.cursor), [Ok(1)]);
    let waker = noop_waker();
    let read = opened
        .cursor
        .poll_read(&mut Context::from_waker(&waker), &mut Batch::default(), 1);
    assert_eq!(read, std::task::Poll::Ready(Read::Ended));
}

#[test]
fn a_route_names_events_that_have_no_name_and_ranks_them() {
    let (mut writer, log) = log(Limits::default());
    let profile = Arc::new(FeedOptions {
        event: Some(crate::subject::TextTemplate::parse("{subject.2}").unwrap()),
        priority: vec![(Filter::parse("a.alert").unwrap(), Tier::Critical)],
        ..FeedOptions::default()
    });
    let mut opened = now(log.open(filters(&["a.*"]), &profile, Start::Live)).unwrap();
    writer.append(vec![event(1, "a.alert"), event(2, "a.b")]);
    let mut batch = Batch::default();
    let waker = noop_waker();
    assert!(
        opened
            .cursor
            .poll_read(&mut Context::from_waker(&waker), &mut batch, 1000)
            .is_ready()
    );
    let shown: Vec<_> = batch
        .items
        .iter()
        .map(|item| match item {
            Item::Event { frame, tier, .. } => {
                (String::from_utf8(frame.body().to_vec()).unwrap(), *tier)
            }
            Item::Copied { .. } | Item::Gap { .. } => panic!(),
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
fn small_events_that_wait_together_are_copied_and_large_ones_and_the_last_alone_are_shared() {
    let (mut writer, log) = log(Limits::default());
    let mut opened =
        now(log.open(filters(&["a"]), &profile(Limits::default()), Start::Live)).unwrap();
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
        batch.copies = !sizes.is_empty();
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(
            opened
                .cursor
                .poll_read(&mut context, &mut batch, budget)
                .is_ready()
        );
        let items = batch.items.iter().map(|item| match item {
            Item::Event { .. } => 0,
            Item::Copied { copied, .. } => copied.events,
            Item::Gap { .. } => panic!(),
        });
        items.collect::<Vec<_>>()
    };
    assert_eq!(read(&[10], 32 << 10), [0], "what all wait for is shared");
    assert_eq!(read(&[10, 20, 30], 32 << 10), [3]);
    assert_eq!(
        read(&[10, 5000, 10, 10], 32 << 10),
        [1, 0, 2],
        "a large one is shared between"
    );
    assert_eq!(read(&[10, 10, 5000, 10], 32 << 10), [2, 0, 0]);
    assert_eq!(read(&[900; 40], 64 << 10), [35, 5], "a copy has a bound");
    assert_eq!(read(&[900; 40], 1000), [2], "and the reader's budget holds");
}
