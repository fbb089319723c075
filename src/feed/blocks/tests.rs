//! Blocks as readers and direct runs share them.

use std::task::{Context, Waker};
use std::time::Duration;

use futures_util::FutureExt as _;

use super::*;
use crate::encoding::RunBuilder;
use crate::feed::sink::EncodedRun;
use crate::feed::tests::{event, filters};
use crate::feed::{
    Batch, Cursor, FeedOptions, Item, Limits, ReadPolicy, Shedder, Slow, SlowPolicy, Source as _,
    Start, StreamBuffer, StreamWriter, buffer,
};

/// Stream buffer with one feed that compresses.
struct World {
    writer: StreamWriter,
    buffer: Arc<StreamBuffer>,
    options: Arc<FeedOptions>,
}

impl World {
    fn new(min_rate: usize) -> Self {
        let budget = Budget::new(1 << 20, 10);
        let (mut writer, buffer) = buffer::writer::channel("S", Limits::default(), &budget, None);
        writer.begin(event(1, "a").position.tag, 0);
        let compression = Some(Compression {
            coding: Coding::Gzip,
            min_rate,
        });
        let options = Arc::new(FeedOptions {
            compression,
            ..FeedOptions::default()
        });
        Self {
            writer,
            buffer,
            options,
        }
    }

    fn open(&self, start: Start) -> Cursor {
        let opened = self.buffer.open(filters(&["a"]), &self.options, start);
        opened.now_or_never().unwrap().unwrap().cursor
    }

    fn append(&mut self, seqs: std::ops::RangeInclusive<u64>) {
        self.writer
            .append(seqs.map(|seq| event(seq, "a")).collect());
    }
}

/// Number of events and address of the bytes of each item.
fn read(cursor: &mut Cursor, policy: &mut ReadPolicy<'_>) -> Vec<(u64, usize)> {
    let mut batch = Batch::default();
    batch.copy_small = true;
    let read = cursor.poll_read(&mut Context::from_waker(Waker::noop()), &mut batch, policy);
    assert!(read.is_ready());
    let items = batch.items.iter().map(|item| match item {
        Item::Coded { events, copied, .. } => (
            copied.events,
            events.coded().bytes().content().as_ptr().addr(),
        ),
        Item::Copied { copied, .. } => (copied.events, 0),
        Item::Event { .. } => (1, 0),
        Item::Gap { .. } => (0, 0),
    });
    items.collect()
}

fn counts(items: &[(u64, usize)]) -> Vec<u64> {
    items.iter().map(|(events, _)| *events).collect()
}

#[test]
fn readers_of_a_whole_append_share_one_block() {
    let mut world = World::new(0);
    let mut readers = [world.open(Start::Live), world.open(Start::Live)];
    world.append(1..=5);
    world.append(6..=6);
    let items = readers
        .each_mut()
        .map(|reader| read(reader, &mut ReadPolicy::all(100_000)));
    assert_eq!(counts(&items[0]), [5, 1]);
    assert_eq!(items[0], items[1], "the same bytes in memory");
    assert!(
        items[0].iter().all(|(_, address)| *address != 0),
        "compressed"
    );
}

#[test]
fn a_reader_that_resumes_in_a_block_receives_shared_single_events() {
    let mut world = World::new(0);
    let mut live = world.open(Start::Live);
    world.append(1..=3);
    world.append(4..=5);
    let start = Start::After(event(1, "a").position);
    let mut readers = [world.open(start), world.open(start)];
    let items = readers
        .each_mut()
        .map(|reader| read(reader, &mut ReadPolicy::all(100_000)));
    assert_eq!(
        counts(&items[0]),
        [1, 1, 2],
        "two single events, then a block"
    );
    assert_eq!(items[0], items[1]);
    let whole = read(&mut live, &mut ReadPolicy::all(100_000));
    assert_eq!(whole[1], items[0][2], "the block of all readers");
}

#[test]
fn a_reader_that_skips_events_receives_a_gap_and_no_event_twice() {
    let mut world = World::new(0);
    let mut reader = world.open(Start::Live);
    world.append(1..=20);
    let slow = Slow {
        policy: SlowPolicy::Conflate,
        ..Slow::default()
    };
    let mut shedder = Shedder::new(&slow, 20);
    let mut policy = ReadPolicy {
        shedder: Some(&mut shedder),
        ..ReadPolicy::all(100_000)
    };
    let items = read(&mut reader, &mut policy);
    assert_eq!(
        counts(&items),
        [0, 1],
        "the newest event of the subject, after the gap"
    );
    assert_ne!(items[1].1, 0, "compressed alone");
}

#[test]
fn a_direct_run_has_the_blocks_of_the_readers() {
    let mut world = World::new(0);
    let mut reader = world.open(Start::Live);
    world.append(1..=5);
    world.append(6..=8);
    let mut copy = RunBuilder::default();
    let direct = |index, copy: &mut RunBuilder| {
        let state = reader.feed().lock();
        EncodedRun::from_window(&state.window, index, copy)
    };
    let mut all = direct(0, &mut copy).unwrap();
    let mut last = direct(5, &mut copy).unwrap();
    assert!(
        direct(2, &mut copy).is_none(),
        "not at the beginning of a block"
    );
    all.complete(&mut copy);
    last.complete(&mut copy);
    assert_eq!((all.events, last.events), (8, 3));
    let blocks = read(&mut reader, &mut ReadPolicy::all(100_000));
    assert_eq!(last.bytes.content().as_ptr().addr(), blocks[1].1);
    let (all, last) = (all.size.unwrap(), last.size.unwrap());
    assert!(all.sent > last.sent && all.plain > last.plain);
}

#[test]
fn below_the_rate_blocks_are_stored() {
    let mut world = World::new(1000);
    let mut readers = [world.open(Start::Live), world.open(Start::Live)];
    let is_shorter = |world: &World, index| {
        let reader = world.open(Start::Live);
        let mut copy = RunBuilder::default();
        let run = EncodedRun::from_window(&reader.feed().lock().window, index, &mut copy);
        let mut run = run.unwrap();
        run.complete(&mut copy);
        let size = run.size.unwrap();
        size.sent < size.plain
    };
    world.append(1..=5);
    assert!(!is_shorter(&world, 0), "a few bytes for two readers");
    world.append(6..=305);
    assert!(is_shorter(&world, 5), "ten thousand bytes at once");
    let items = readers
        .each_mut()
        .map(|reader| read(reader, &mut ReadPolicy::all(100_000)));
    assert_eq!(items[0], items[1], "stored blocks are shared, too");
}

#[test]
fn rate_is_a_mean_of_the_recent_past() {
    let mut rate = Rate::default();
    let start = Instant::now();
    for second in 0..100 {
        rate.add(500.0, start + Duration::from_secs(second));
    }
    let at = |seconds| start + Duration::from_secs(seconds);
    assert!((450.0..550.0).contains(&rate.add(0.0, at(99))));
    assert!(rate.add(0.0, at(130)) < 50.0);
}
