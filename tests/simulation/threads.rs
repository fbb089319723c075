//! The feed core with real threads, whose interleavings the simulation cannot produce.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use sidestream::event::{Event, Fingerprint, Position, SourceTag};
use sidestream::feed::{
    Budget, FeedOptions, Item, Limits, Read, ReadPolicy, Source as _, Start, StreamBuffer, buffer,
};
use sidestream::subject::{Filter, FilterSet};

use super::items;

const EVENTS: u64 = 4_000;

/// A missing wake-up leaves a reader idle; the test then fails by this deadline.
const DEADLINE: Duration = Duration::from_secs(20);

struct Signal(SyncSender<()>);

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        // Full: a wake-up is already on its way.
        self.0.try_send(()).unwrap_or(());
    }
}

fn event(seq: u64, tag: SourceTag) -> Event {
    Event {
        position: Position {
            tag,
            seq,
            fingerprint: Some(Fingerprint::of_publish_time(seq.into())),
        },
        subject: if seq.is_multiple_of(3) {
            "b".into()
        } else {
            "a".into()
        },
        name: None,
        tier: None,
        is_end: false,
        sample: None,
        version: None,
        headers: Default::default(),
        data: format!("{seq}").into(),
        received: Instant::now(),
    }
}

/// Reads to the end, only when woken, and reopens now and then. Returns the number of events
/// received or reported.
fn read(
    buffer: &Arc<StreamBuffer>,
    filter: &str,
    options: &Arc<FeedOptions>,
    turns: u64,
    opened: &Barrier,
) -> u64 {
    let (send, woken) = sync_channel(1);
    let waker = Waker::from(Arc::new(Signal(send)));
    let filters = FilterSet::new([Filter::parse(filter).unwrap()]);
    let open = |start| {
        buffer
            .open(filters.clone(), options, start)
            .now_or_never()
            .unwrap()
    };
    let begin = Position {
        tag: SourceTag::of_stream("S", 1),
        seq: 0,
        fingerprint: None,
    };
    let mut cursor = open(Start::After(begin)).unwrap().cursor;
    opened.wait();
    let (mut seen, mut last) = (0, 0);
    loop {
        let mut batch = items::batch();
        let read = cursor.poll_read(
            &mut Context::from_waker(&waker),
            &mut batch,
            &mut ReadPolicy::all(200),
        );
        for item in &batch.items {
            match item {
                Item::Event { position, .. } => {
                    assert!(position.seq > last, "{} after {last}", position.seq);
                    (seen, last) = (seen + 1, position.seq);
                }
                Item::Copied { copied, .. } | Item::Coded { copied, .. } => {
                    assert!(
                        copied.position.seq > last,
                        "{} after {last}",
                        copied.position.seq
                    );
                    (seen, last) = (seen + copied.events, copied.position.seq);
                }
                Item::Gap { gap, .. } => seen += gap.missed.expect("a count"),
            }
        }
        match read {
            Poll::Ready(Read::Ended) => return seen,
            Poll::Ready(Read::Some) if seen.is_multiple_of(turns) => {
                // A new reader takes over, possibly as the last one of its feed.
                let position = cursor.position();
                drop(cursor);
                match open(Start::After(position)) {
                    Ok(opened) => {
                        assert_eq!(opened.outcome.as_str(), "window");
                        cursor = opened.cursor;
                    }
                    Err(_) => return u64::MAX, // The buffer has ended meanwhile.
                }
            }
            Poll::Ready(Read::Some) => {}
            Poll::Pending => {
                if cursor.checkpoint() {
                    last = cursor.position().seq;
                }
                match woken.recv_timeout(DEADLINE) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Timeout) => panic!("the reader at {last} was not woken"),
                    Err(RecvTimeoutError::Disconnected) => unreachable!("the waker is held here"),
                }
            }
        }
    }
}

#[test]
fn readers_on_other_threads_are_woken_and_checkpoints_skip_no_event() {
    let budget = Budget::new(64 << 20, 100);
    let (mut writer, buffer) = buffer::writer::channel("S", Limits::default(), &budget, None);
    let tag = SourceTag::of_stream("S", 1);
    writer.begin(tag, 0);
    let wide = Arc::new(FeedOptions::default());
    let tight = Arc::new(FeedOptions {
        window: Limits {
            events: 50,
            ..Limits::default()
        },
        ..FeedOptions::default()
    });
    let cases = [
        ("a", &wide, 7),
        ("a", &wide, u64::MAX),
        ("b", &wide, u64::MAX),
        (">", &wide, 50),
        ("b", &tight, u64::MAX),
    ];
    let opened = Barrier::new(cases.len() + 1);
    thread::scope(|scope| {
        let readers: Vec<_> = cases
            .iter()
            .map(|(filter, options, turns)| {
                (
                    *filter,
                    scope.spawn(|| read(&buffer, filter, options, *turns, &opened)),
                )
            })
            .collect();
        opened.wait();
        let mut seq = 0;
        while seq < EVENTS {
            let through = EVENTS.min(seq + 1 + seq % 4);
            writer.append((seq + 1..=through).map(|seq| event(seq, tag)).collect());
            seq = through;
        }
        drop(writer);
        for (filter, reader) in readers {
            let seen = reader.join().unwrap();
            let all = match filter {
                "b" => EVENTS / 3,
                "a" => EVENTS - EVENTS / 3,
                _ => EVENTS,
            };
            assert!(seen == all || seen == u64::MAX, "{filter}: {seen} of {all}");
        }
    });
    drop(buffer);
    assert_eq!((budget.used(), budget.feeds()), (0, 0));
}
