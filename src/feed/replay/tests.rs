//! Readers behind the window, over an archive in memory that can be slow, fail and forget.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::*;
use crate::feed::history::{BoxFuture, Pages, State as SourceState};
use crate::feed::{
    Batch, Cursor, FeedOptions, Gap, GapReason, History, Item, Limits, Outcome, Read, Start,
    StreamBuffer, StreamWriter, buffer,
};
use crate::sse::{Event, Position, SourceTag};
use crate::subject::{Filter, FilterSet};
use crate::telemetry::Metrics;

#[derive(Debug)]
struct Source {
    tag: SourceTag,
    first: AtomicUsize,
    last: AtomicUsize,
    /// So many readings fail before one succeeds.
    failures: AtomicUsize,
    readings: AtomicUsize,
    alive: Arc<AtomicUsize>,
    alive_max: AtomicUsize,
}

struct Reading {
    source: Arc<Source>,
    filters: FilterSet,
    through: u64,
}

/// Every source is published on `s.0` to `s.9` in turn.
fn event(tag: SourceTag, seq: u64) -> Event {
    Event {
        position: Position {
            tag,
            seq,
            check: Some(seq as u16),
        },
        subject: format!("s.{}", seq % 10).into(),
        name: None,
        tier: None,
        message_id: None,
        data: format!("{seq}").into(),
        received: std::time::Instant::now(),
    }
}

impl Archive for Arc<Source> {
    fn state(&self, _: u64) -> BoxFuture<'_, SourceState> {
        let (first, last) = (
            self.first.load(Ordering::Relaxed) as u64,
            self.last.load(Ordering::Relaxed) as u64,
        );
        Box::pin(async move {
            Ok(SourceState {
                tag: self.tag,
                first_seq: first,
                last_seq: last,
            })
        })
    }

    fn check(&self, seq: u64) -> BoxFuture<'_, Option<u16>> {
        Box::pin(async move { Ok(Some(seq as u16)) })
    }

    fn read(&self, filters: &FilterSet, after: u64) -> Box<dyn Pages> {
        self.readings.fetch_add(1, Ordering::Relaxed);
        let alive = self.alive.fetch_add(1, Ordering::Relaxed) + 1;
        self.alive_max.fetch_max(alive, Ordering::Relaxed);
        Box::new(Reading {
            source: self.clone(),
            filters: filters.clone(),
            through: after,
        })
    }
}

impl Pages for Reading {
    fn next(&mut self) -> BoxFuture<'_, Page> {
        Box::pin(async move {
            sleep(Duration::from_millis(1)).await;
            let source = &self.source;
            let fails =
                source
                    .failures
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                        left.checked_sub(1)
                    });
            if fails.is_ok() {
                return Err(Unavailable::Now("cut".into()));
            }
            let after = self
                .through
                .max(source.first.load(Ordering::Relaxed) as u64 - 1);
            let last = source.last.load(Ordering::Relaxed) as u64;
            if after >= last {
                std::future::pending::<()>().await;
            }
            self.through = last.min(after + 100);
            let events = (after + 1..=self.through).map(|seq| event(source.tag, seq));
            let events = events
                .filter(|event| self.filters.matches(&event.subject))
                .collect();
            Ok(Page {
                after,
                events,
                through: self.through,
                ..Page::default()
            })
        })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.source.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

fn filters(text: &str) -> FilterSet {
    FilterSet::new([Filter::parse(text).unwrap()])
}

/// A source of `last` events, the first of which are retained no more, and a log that holds the last 50.
fn source(first: usize, last: u64) -> (Arc<Source>, StreamWriter, Arc<StreamBuffer>) {
    let source = Arc::new(Source {
        tag: SourceTag::of_identity("s"),
        first: first.into(),
        last: (last as usize).into(),
        failures: 0.into(),
        readings: 0.into(),
        alive: Arc::default(),
        alive_max: 0.into(),
    });
    let metrics = Arc::new(Metrics::new().unwrap());
    let past = History {
        archive: Arc::new(source.clone()),
        reach: filters(">"),
        replays: ReplaySlots::new(Config::default(), &metrics),
    };
    let limits = Limits {
        events: 50,
        ..Limits::default()
    };
    let (mut writer, log) = buffer::channel("S", limits, &Budget::new(1 << 24, 10_000), Some(past));
    writer.begin(source.tag, last.saturating_sub(50));
    writer.append(
        (last.saturating_sub(49).max(1)..=last)
            .map(|seq| event(source.tag, seq))
            .collect(),
    );
    tokio::spawn(log.replays());
    (source, writer, log)
}

async fn open(log: &Arc<StreamBuffer>, filter: &str, seq: u64) -> (Cursor, Outcome) {
    let at = Position {
        tag: log.tag().unwrap(),
        seq,
        check: None,
    };
    let window = Limits {
        events: 50,
        ..Limits::default()
    };
    let profile = Arc::new(FeedOptions {
        window,
        ..FeedOptions::default()
    });
    let opened = log
        .open(filters(filter), &profile, Start::After(at))
        .await
        .unwrap();
    (opened.cursor, opened.outcome)
}

/// Reads until this sequence number has come; the numbers, and gaps.
async fn read_to(cursor: &mut Cursor, last: u64) -> Vec<Result<u64, Gap>> {
    let mut seen = Vec::new();
    while seen.last() != Some(&Ok(last)) {
        let mut batch = Batch::default();
        let read = std::future::poll_fn(|task| cursor.poll_read(task, &mut batch, 1));
        let read = timeout(Duration::from_secs(60), read).await;
        assert_eq!(read, Ok(Read::Some), "after {:?}", seen.last());
        seen.extend(batch.items.iter().map(|item| match item {
            Item::Event { position, .. } => Ok(position.seq),
            Item::Copied { .. } => panic!("not asked for"),
            Item::Gap { gap, .. } => Err(*gap),
        }));
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn a_reader_behind_the_window_has_everything_once_from_the_archive_and_then_from_the_window()
{
    let (source, mut writer, log) = source(1, 1000);
    let (mut cursor, outcome) = open(&log, "s.*", 10).await;
    assert_eq!((outcome, cursor.is_replaying()), (Outcome::Archive, true));
    assert_eq!(
        read_to(&mut cursor, 1000).await,
        (11..=1000).map(Ok).collect::<Vec<_>>()
    );
    source.last.store(1001, Ordering::Relaxed);
    writer.append(vec![event(source.tag, 1001)]);
    assert_eq!(read_to(&mut cursor, 1001).await, [Ok(1001)]);
    assert!(!cursor.is_replaying());
    drop(cursor);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(
        source.alive.load(Ordering::Relaxed),
        0,
        "a replay without readers ends"
    );
}

#[tokio::test(start_paused = true)]
async fn a_thousand_readers_share_a_few_readings() {
    let (source, _writer, log) = source(1, 2000);
    let readers = (0..1000u64).map(|number| {
        let log = log.clone();
        tokio::spawn(async move {
            let (mut cursor, _) = open(&log, &format!("s.{}", number % 10), number).await;
            let last = 1990 + number % 10;
            let last = if number % 10 == 0 { 2000 } else { last };
            let seen = read_to(&mut cursor, last).await;
            let expected: Vec<_> = (number + 1..=2000)
                .filter(|seq| seq % 10 == number % 10)
                .map(Ok)
                .collect();
            assert_eq!(seen, expected);
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.unwrap();
    }
    assert!(source.alive_max.load(Ordering::Relaxed) <= 4);
    assert!(source.readings.load(Ordering::Relaxed) <= 8, "{source:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reading_that_fails_goes_on_where_it_was() {
    let (source, _writer, log) = source(1, 1000);
    source.failures.store(5, Ordering::Relaxed);
    let (mut cursor, _) = open(&log, "s.*", 0).await;
    let first = read_to(&mut cursor, 150).await;
    source.failures.store(5, Ordering::Relaxed);
    let second = read_to(&mut cursor, 1000).await;
    assert_eq!(
        [first, second].concat(),
        (1..=1000).map(Ok).collect::<Vec<_>>()
    );
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_nothing_is_left_behind_and_holds_nobody_up() {
    let (source, _writer, log) = source(1, 1000);
    let (mut slow, _) = open(&log, "s.*", 0).await;
    let (mut quick, _) = open(&log, "s.*", 0).await;
    assert_eq!(read_to(&mut quick, 1000).await.len(), 1000);
    assert_eq!(
        read_to(&mut slow, 1000).await,
        (1..=1000).map(Ok).collect::<Vec<_>>()
    );
    assert!(source.readings.load(Ordering::Relaxed) >= 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_retained_no_more_is_told_and_the_rest_is_read() {
    let (source, _writer, log) = source(301, 1000);
    let expired = Gap {
        reason: GapReason::Expired,
        missed: None,
    };
    let (mut cursor, outcome) = open(&log, "s.*", 10).await;
    assert_eq!(outcome, Outcome::Gap(expired));
    assert_eq!(cursor.position().seq, 300);
    assert_eq!(
        read_to(&mut cursor, 1000).await,
        (301..=1000).map(Ok).collect::<Vec<_>>()
    );
    let (_, outcome) = open(&log, "s.*", 300).await;
    assert_eq!(outcome, Outcome::Archive);
    // Overtaken by retention between the answer and the reading.
    let (mut cursor, _) = open(&log, "s.*", 300).await;
    source.first.store(501, Ordering::Relaxed);
    let seen = read_to(&mut cursor, 1000).await;
    assert_eq!(seen[0], Err(expired));
    assert_eq!(seen[1..], (501..=1000).map(Ok).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_the_window_overtakes_reads_on_in_the_archive() {
    let (source, mut writer, log) = source(1, 100);
    let (mut cursor, outcome) = open(&log, "s.*", 100).await;
    assert_eq!(outcome, Outcome::Window);
    for seq in 101..=500 {
        source.last.store(seq as usize, Ordering::Relaxed);
        writer.append(vec![event(source.tag, seq)]);
    }
    assert_eq!(
        read_to(&mut cursor, 500).await,
        (101..=500).map(Ok).collect::<Vec<_>>()
    );
}

#[tokio::test(start_paused = true)]
async fn a_position_that_only_the_source_knows_is_waited_for_or_ahead() {
    let (source, mut writer, log) = source(1, 100);
    source.last.store(105, Ordering::Relaxed);
    let (mut cursor, outcome) = open(&log, "s.*", 105).await;
    assert_eq!(outcome, Outcome::Window);
    source.last.store(106, Ordering::Relaxed);
    writer.append((101..=106).map(|seq| event(source.tag, seq)).collect());
    assert_eq!(read_to(&mut cursor, 106).await, [Ok(106)]);
    let (_, outcome) = open(&log, "s.*", 107).await;
    assert_eq!(
        outcome,
        Outcome::Gap(Gap {
            reason: GapReason::Ahead,
            missed: None
        })
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_recreated_during_a_replay_is_told() {
    let (source, mut writer, log) = source(1, 1000);
    let (mut cursor, _) = open(&log, "s.*", 0).await;
    read_to(&mut cursor, 150).await;
    let other = SourceTag::of_identity("other");
    writer.begin(other, 0);
    source.last.store(1, Ordering::Relaxed);
    writer.append(vec![event(other, 1)]);
    let seen = read_to(&mut cursor, 1).await;
    assert_eq!(
        seen,
        [
            Err(Gap {
                reason: GapReason::Recreated,
                missed: None
            }),
            Ok(1)
        ]
    );
}
