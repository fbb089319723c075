//! Replays over an archive in memory that can be slow, fail and expire events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::event::{Event, Fingerprint, Position, SourceTag};
use crate::feed::Begin;
use crate::feed::archive::{BoxFuture, Latest, Page, Pages, State as SourceState};
use crate::feed::{
    ArchiveAccess, Batch, Cursor, FeedOptions, Gap, GapReason, Item, Limits, Outcome, Read,
    ReadPolicy, Source as _, Start, StreamBuffer, StreamWriter, buffer,
};
use crate::subject::{Filter, FilterSet};
use crate::telemetry::Metrics;

#[derive(Debug)]
struct Source {
    tag: SourceTag,
    first: AtomicUsize,
    last: AtomicUsize,
    /// Number of reads that fail before one succeeds.
    failures: AtomicUsize,
    /// Sequence number of a message that cannot be decoded; 0 without one.
    unreadable: AtomicUsize,
    /// The source is another one than the buffer follows.
    has_changed: AtomicBool,
    readings: AtomicUsize,
    alive: Arc<AtomicUsize>,
    alive_max: AtomicUsize,
}

struct Reading {
    source: Arc<Source>,
    filters: FilterSet,
    through: u64,
}

/// Event published on `s.0` to `s.9` in turn.
fn event(tag: SourceTag, seq: u64) -> Event {
    Event {
        position: Position {
            tag,
            seq,
            fingerprint: Some(Fingerprint::of_publish_time(seq.into())),
        },
        subject: format!("s.{}", seq % 10).into(),
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

    fn fingerprint(&self, seq: u64) -> BoxFuture<'_, Option<Fingerprint>> {
        Box::pin(async move { Ok(Some(Fingerprint::of_publish_time(seq.into()))) })
    }

    fn locate<'a>(&'a self, _: Begin, _: &'a FilterSet) -> BoxFuture<'a, Position> {
        let first = self.first.load(Ordering::Relaxed) as u64;
        Box::pin(async move {
            Ok(Position {
                tag: self.tag,
                seq: first - 1,
                fingerprint: None,
            })
        })
    }

    fn latest<'a>(&'a self, _: &'a FilterSet, _: usize) -> BoxFuture<'a, Latest> {
        Box::pin(async { Err(Unavailable::Temporary("not stored".into())) })
    }

    fn end<'a>(&'a self, _: &'a FilterSet) -> BoxFuture<'a, Option<u64>> {
        Box::pin(async { Ok(None) })
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
            if source.has_changed.load(Ordering::Relaxed) {
                return Err(Unavailable::Changed);
            }
            let fails =
                source
                    .failures
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                        left.checked_sub(1)
                    });
            if fails.is_ok() {
                return Err(Unavailable::Temporary("cut".into()));
            }
            let mut after = self
                .through
                .max(source.first.load(Ordering::Relaxed) as u64 - 1);
            let unreadable = source.unreadable.load(Ordering::Relaxed) as u64;
            let is_unreadable = after + 1 == unreadable;
            after += u64::from(is_unreadable);
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
                is_unreadable,
                events,
                through: self.through,
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

/// Creates a source with events up to `last`, retained from `first` on, and a buffer with the last
/// 50.
fn source(first: usize, last: u64) -> (Arc<Source>, StreamWriter, Arc<StreamBuffer>) {
    let source = Arc::new(Source {
        tag: SourceTag::of_identity("s"),
        first: first.into(),
        last: (last as usize).into(),
        failures: 0.into(),
        unreadable: 0.into(),
        has_changed: false.into(),
        readings: 0.into(),
        alive: Arc::default(),
        alive_max: 0.into(),
    });
    let metrics = Arc::new(Metrics::new().unwrap());
    let access = ArchiveAccess {
        archive: Arc::new(source.clone()),
        reach: filters(">"),
        replays: ReplaySlots::new(ReplayLimits::default(), &metrics),
    };
    let limits = Limits {
        events: 50,
        ..Limits::default()
    };
    let (mut writer, buffer) =
        buffer::writer::channel("S", limits, &Budget::new(1 << 24, 10_000), Some(access));
    writer.begin(source.tag, last.saturating_sub(50));
    writer.append(
        (last.saturating_sub(49).max(1)..=last)
            .map(|seq| event(source.tag, seq))
            .collect(),
    );
    tokio::spawn(buffer.replays());
    (source, writer, buffer)
}

async fn open(buffer: &Arc<StreamBuffer>, filter: &str, seq: u64) -> (Cursor, Outcome) {
    let at = Position {
        tag: buffer.tag().unwrap(),
        seq,
        fingerprint: None,
    };
    let window = Limits {
        events: 50,
        ..Limits::default()
    };
    let options = Arc::new(FeedOptions {
        window,
        ..FeedOptions::default()
    });
    let opened = buffer
        .open(filters(filter), &options, Start::After(at))
        .await
        .unwrap();
    (opened.cursor, opened.outcome)
}

/// Reads until this sequence number; returns sequence numbers and gaps.
async fn read_to(cursor: &mut Cursor, last: u64) -> Vec<Result<u64, Gap>> {
    let mut seen = Vec::new();
    while seen.last() != Some(&Ok(last)) {
        let mut batch = Batch::default();
        let read = std::future::poll_fn(|task| {
            cursor.poll_read(task, &mut batch, &mut ReadPolicy::all(1))
        });
        let read = timeout(Duration::from_secs(60), read).await;
        assert_eq!(read, Ok(Read::Some), "after {:?}", seen.last());
        seen.extend(batch.items.iter().map(|item| match item {
            Item::Event { position, .. } => Ok(position.seq),
            Item::Coded { .. } => panic!("the feed does not compress"),
            Item::Copied { .. } => panic!("copies were not requested"),
            Item::Gap { gap, .. } => Err(*gap),
        }));
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn reader_older_than_the_window_reads_the_archive_then_the_window_without_loss_or_duplicates()
{
    let (source, mut writer, buffer) = source(1, 1000);
    let (mut cursor, outcome) = open(&buffer, "s.*", 10).await;
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
        "a session without members ends"
    );
}

#[tokio::test(start_paused = true)]
async fn a_thousand_readers_share_a_few_sessions() {
    let (source, _writer, buffer) = source(1, 2000);
    let readers = (0..1000u64).map(|number| {
        let buffer = buffer.clone();
        tokio::spawn(async move {
            let (mut cursor, _) = open(&buffer, &format!("s.{}", number % 10), number).await;
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
async fn readers_of_a_subject_each_get_many_events_at_once() {
    let (_source, _writer, buffer) = source(1, 10_000);
    let readers = (0..10u64).map(|number| {
        let buffer = buffer.clone();
        tokio::spawn(async move {
            let (mut cursor, _) = open(&buffer, &format!("s.{number}"), 0).await;
            let (mut reads, mut events) = (0, 0);
            // The last 50 events are in the window.
            while events < 995 {
                let mut batch = Batch::default();
                let read = std::future::poll_fn(|task| {
                    cursor.poll_read(task, &mut batch, &mut ReadPolicy::all(1 << 20))
                });
                assert_eq!(read.await, Read::Some);
                reads += 1;
                events += batch.items.len();
            }
            events / reads
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        let events_per_read = reader.await.unwrap();
        // A page of the source has ten events for each reader.
        assert!(events_per_read > 12, "{events_per_read}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_crowd_that_arrives_within_a_quarter_of_a_second_reads_the_range_once() {
    let (source, _writer, buffer) = source(1, 5_000);
    let readers = (0..500u64).map(|number| {
        let buffer = buffer.clone();
        tokio::spawn(async move {
            sleep(Duration::from_micros(number * 400)).await;
            let (mut cursor, _) = open(&buffer, &format!("s.{}", number % 10), 0).await;
            read_to(&mut cursor, 4_990 + number % 10).await.len()
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        assert!((499..=500).contains(&reader.await.unwrap()));
    }
    assert_eq!(source.readings.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn failed_read_continues_from_its_position() {
    let (source, _writer, buffer) = source(1, 1000);
    source.failures.store(5, Ordering::Relaxed);
    let (mut cursor, _) = open(&buffer, "s.*", 0).await;
    let first = read_to(&mut cursor, 150).await;
    source.failures.store(5, Ordering::Relaxed);
    let second = read_to(&mut cursor, 1000).await;
    assert_eq!(
        [first, second].concat(),
        (1..=1000).map(Ok).collect::<Vec<_>>()
    );
}

#[tokio::test(start_paused = true)]
async fn reader_that_takes_nothing_does_not_delay_others() {
    let (source, _writer, buffer) = source(1, 1000);
    let (mut slow, _) = open(&buffer, "s.*", 0).await;
    let (mut quick, _) = open(&buffer, "s.*", 0).await;
    assert_eq!(read_to(&mut quick, 1000).await.len(), 1000);
    assert_eq!(
        read_to(&mut slow, 1000).await,
        (1..=1000).map(Ok).collect::<Vec<_>>()
    );
    assert!(source.readings.load(Ordering::Relaxed) >= 2);
}

#[tokio::test(start_paused = true)]
async fn expired_events_are_reported_and_the_rest_is_read() {
    let (source, _writer, buffer) = source(301, 1000);
    let expired = Gap {
        reason: GapReason::Expired,
        missed: None,
    };
    let (mut cursor, outcome) = open(&buffer, "s.*", 10).await;
    assert_eq!(outcome, Outcome::Gap(expired));
    assert_eq!(cursor.position().seq, 300);
    assert_eq!(
        read_to(&mut cursor, 1000).await,
        (301..=1000).map(Ok).collect::<Vec<_>>()
    );
    let (_, outcome) = open(&buffer, "s.*", 300).await;
    assert_eq!(outcome, Outcome::Archive);
    // Retention advances between the answer and the read.
    let (mut cursor, _) = open(&buffer, "s.*", 300).await;
    source.first.store(501, Ordering::Relaxed);
    let seen = read_to(&mut cursor, 1000).await;
    assert_eq!(seen[0], Err(expired));
    assert_eq!(seen[1..], (501..=1000).map(Ok).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn reader_overtaken_by_the_window_continues_in_the_archive() {
    let (source, mut writer, buffer) = source(1, 100);
    let (mut cursor, outcome) = open(&buffer, "s.*", 100).await;
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
async fn reader_ahead_of_the_buffer_does_not_occupy_a_replay_for_events_that_it_has() {
    let (source, mut writer, buffer) = source(1, 100);
    source.last.store(200, Ordering::Relaxed);
    let (mut cursor, outcome) = open(&buffer, "s.*", 200).await;
    assert_eq!(outcome, Outcome::Window);
    writer.append((101..=200).map(|seq| event(source.tag, seq)).collect());
    let mut batch = Batch::default();
    let read = std::future::poll_fn(|task| {
        let mut policy = ReadPolicy::all(1);
        std::task::Poll::Ready(cursor.poll_read(task, &mut batch, &mut policy))
    });
    assert_eq!(read.await, std::task::Poll::Pending);
    assert!(!cursor.is_replaying() && cursor.is_waiting());
    assert_eq!(source.readings.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn gap_of_an_undecodable_message_is_not_repeated_by_the_archive() {
    let (source, mut writer, buffer) = source(1, 100);
    let (mut cursor, _) = open(&buffer, "s.*", 100).await;
    source.unreadable.store(101, Ordering::Relaxed);
    writer.gap(GapReason::Upstream, Some(1));
    writer.advance(101);
    let mut batch = Batch::default();
    let mut policy = ReadPolicy::all(1);
    let read = std::future::poll_fn(|task| cursor.poll_read(task, &mut batch, &mut policy));
    assert_eq!(read.await, Read::Some);
    assert!(matches!(&batch.items[..], [Item::Gap { position, .. }] if position.seq == 100));
    source.last.store(500, Ordering::Relaxed);
    writer.append((102..=500).map(|seq| event(source.tag, seq)).collect());
    assert_eq!(
        read_to(&mut cursor, 500).await,
        (102..=500).map(Ok).collect::<Vec<_>>()
    );
    assert!(source.readings.load(Ordering::Relaxed) > 0);
}

/// Gap of one message that cannot be decoded.
const UNDECODABLE: Gap = Gap {
    reason: GapReason::Upstream,
    missed: Some(1),
};

#[tokio::test(start_paused = true)]
async fn reader_that_takes_its_gap_in_another_session_receives_nothing_twice() {
    let (source, _writer, buffer) = source(1, 1000);
    source.unreadable.store(101, Ordering::Relaxed);
    let (mut slow, _) = open(&buffer, "s.*", 100).await;
    // It takes neither the gap nor the events of its page, and waits for another session.
    sleep(GATHER + PAGE_MAX + Duration::from_millis(5)).await;
    source.failures.store(1, Ordering::Relaxed);
    let (mut other, _) = open(&buffer, "s.*", 0).await;
    // Both are in one session, which begins before the gap and has no page yet.
    sleep(2 * GATHER).await;
    let mut batch = Batch::default();
    let mut policy = ReadPolicy::all(1);
    let read = std::future::poll_fn(|task| slow.poll_read(task, &mut batch, &mut policy));
    assert_eq!(read.await, Read::Some);
    assert!(matches!(&batch.items[..], [Item::Gap { gap, .. }] if *gap == UNDECODABLE));
    assert_eq!(source.readings.load(Ordering::Relaxed), 2);
    let (seen, _) = tokio::join!(read_to(&mut slow, 1000), read_to(&mut other, 1000));
    assert_eq!(seen, (102..=1000).map(Ok).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn page_after_a_gap_that_was_not_taken_yet_is_not_reported_as_expired() {
    let (source, _writer, buffer) = source(1, 1000);
    source.unreadable.store(101, Ordering::Relaxed);
    let (mut cursor, _) = open(&buffer, "t", 100).await;
    // No page has an event for it, so none waits for it.
    sleep(PAGE_MAX).await;
    let mut batch = Batch::default();
    let mut policy = ReadPolicy::all(1);
    let read = std::future::poll_fn(|task| cursor.poll_read(task, &mut batch, &mut policy));
    assert_eq!(read.await, Read::Some);
    assert!(
        matches!(&batch.items[..], [Item::Gap { gap, position }] if (*gap, position.seq) == (UNDECODABLE, 101)),
        "{batch:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn position_ahead_of_the_buffer_is_accepted_up_to_the_end_of_the_source() {
    let (source, mut writer, buffer) = source(1, 100);
    source.last.store(105, Ordering::Relaxed);
    let (mut cursor, outcome) = open(&buffer, "s.*", 105).await;
    assert_eq!(outcome, Outcome::Window);
    source.last.store(106, Ordering::Relaxed);
    writer.append((101..=106).map(|seq| event(source.tag, seq)).collect());
    assert_eq!(read_to(&mut cursor, 106).await, [Ok(106)]);
    let (_, outcome) = open(&buffer, "s.*", 107).await;
    assert_eq!(
        outcome,
        Outcome::Gap(Gap {
            reason: GapReason::Ahead,
            missed: None
        })
    );
}

#[tokio::test(start_paused = true)]
async fn stream_recreated_during_a_replay_is_reported() {
    let (source, mut writer, buffer) = source(1, 1000);
    let (mut cursor, _) = open(&buffer, "s.*", 0).await;
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

#[tokio::test(start_paused = true)]
async fn change_found_by_a_replay_is_reported_once_and_ends_the_lag() {
    let (source, mut writer, buffer) = source(1, 100);
    let (mut cursor, _) = open(&buffer, "s.*", 100).await;
    writer.append((101..=500).map(|seq| event(source.tag, seq)).collect());
    source.has_changed.store(true, Ordering::Relaxed);
    let mut batch = Batch::default();
    let read =
        std::future::poll_fn(|task| cursor.poll_read(task, &mut batch, &mut ReadPolicy::all(1)));
    assert_eq!(timeout(Duration::from_secs(60), read).await, Ok(Read::Some));
    assert!(
        matches!(&batch.items[..], [Item::Gap { gap, .. }] if *gap == Gap::uncounted(GapReason::Recreated))
    );
    // The gap covers everything appended until here, although the writer has not noticed the change.
    let lag = cursor.probe().lag(std::time::Instant::now());
    assert_eq!(lag.events, 0);
    writer.append(vec![event(source.tag, 501)]);
    assert_eq!(read_to(&mut cursor, 501).await, [Ok(501)]);
}
