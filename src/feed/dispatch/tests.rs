//! Dispatcher: idle readers are sent runs directly, the others are woken.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::task::{Context, Wake};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;

use super::*;
use crate::event::{Event, Position, SourceTag};
use crate::feed::{
    Batch, Budget, Cursor, GapReason, Limits, Read, ReadPolicy, Source as _, Start, StreamBuffer,
    StreamWriter, buffer,
};
use crate::subject::{Filter, FilterSet};

/// Sink with a fixed outcome that records what it was sent.
#[derive(Debug)]
struct Always(SendOutcome, Mutex<Vec<(u64, String)>>);

impl DirectSink for Always {
    fn admits(&self, _run: &EncodedRun) -> bool {
        true
    }

    fn send(self: Arc<Self>, run: &EncodedRun) -> SendOutcome {
        let text = String::from_utf8(run.bytes.content().to_vec()).unwrap();
        self.1.lock().unwrap().push((run.events, text));
        self.0
    }
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Scene {
    writer: StreamWriter,
    buffer: Arc<StreamBuffer>,
    dispatching: Pin<Box<dyn Future<Output = Infallible>>>,
    seq: u64,
}

struct Reader {
    cursor: Cursor,
    sink: Arc<Always>,
    wakes: Arc<Wakes>,
}

impl Scene {
    fn new() -> Self {
        let (mut writer, buffer) =
            buffer::writer::channel("S", Limits::default(), &Budget::new(1 << 22, 10), None);
        writer.begin(SourceTag::of_stream("S", 1), 0);
        Self {
            writer,
            buffer,
            dispatching: Box::pin(run_dispatcher()),
            seq: 0,
        }
    }

    fn reader(&self, outcome: SendOutcome) -> Reader {
        let filters = FilterSet::new([Filter::parse("a").unwrap()]);
        let opened = self
            .buffer
            .open(filters, &Arc::default(), Start::Live)
            .now_or_never()
            .unwrap()
            .unwrap();
        let sink = Arc::new(Always(outcome, Mutex::default()));
        opened.cursor.set_sink(sink.clone());
        let mut reader = Reader {
            cursor: opened.cursor,
            sink,
            wakes: Arc::default(),
        };
        assert_eq!(reader.read(), None, "an idle reader has nothing to read");
        reader
    }

    fn append(&mut self, data: &[&str]) {
        let event = |data: &&str| {
            self.seq += 1;
            Event {
                position: Position {
                    tag: SourceTag::of_stream("S", 1),
                    seq: self.seq,
                    fingerprint: None,
                },
                subject: "a".into(),
                name: None,
                tier: None,
                is_end: false,
                sample: None,
                version: None,
                headers: Default::default(),
                data: data.as_bytes().to_vec().into(),
                received: Instant::now(),
            }
        };
        let events = data.iter().map(event).collect();
        self.writer.append(events);
    }

    fn turn(&mut self) {
        assert!(
            self.dispatching
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
                .is_pending()
        );
    }
}

impl Reader {
    /// Number of items that a read returns; `None` if it is pending. Then the reader is idle.
    fn read(&mut self) -> Option<usize> {
        let mut batch = Batch::default();
        let waker = Waker::from(self.wakes.clone());
        match self.cursor.poll_read(
            &mut Context::from_waker(&waker),
            &mut batch,
            &mut ReadPolicy::all(1000),
        ) {
            Poll::Ready(Read::Some) => Some(batch.items.len()),
            Poll::Ready(Read::Ended) | Poll::Pending => {
                self.cursor.allow_direct();
                None
            }
        }
    }

    fn received(&self) -> Vec<(u64, String)> {
        std::mem::take(&mut *self.sink.1.lock().unwrap())
    }

    fn wakes(&self) -> usize {
        self.wakes.0.load(Ordering::Relaxed)
    }
}

fn texts(events: &[(u64, String)]) -> Vec<String> {
    let text = |(_, text): &(u64, String)| {
        text.lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .collect::<Vec<_>>()
            .join(",")
    };
    events.iter().map(text).collect()
}

#[test]
fn idle_reader_is_sent_each_event_without_being_woken() {
    let mut scene = Scene::new();
    let mut readers = [
        scene.reader(SendOutcome::Sent),
        scene.reader(SendOutcome::Sent),
    ];
    for data in ["1", "2", "3"] {
        scene.append(&[data]);
        assert!(
            readers.iter().all(|reader| reader.received().is_empty()),
            "the writer does not send"
        );
        scene.turn();
        for reader in &readers {
            assert_eq!(
                (texts(&reader.received()), reader.wakes()),
                (vec![data.to_owned()], 0)
            );
            assert_eq!(
                reader
                    .cursor
                    .probe()
                    .position()
                    .map(|position| position.seq),
                Some(scene.seq)
            );
            assert_eq!(reader.cursor.probe().lag(Instant::now()).events, 0);
        }
    }
    for reader in &mut readers {
        assert_eq!(
            (reader.cursor.position().seq, reader.read()),
            (3, None),
            "the cursor continues after the events that were sent"
        );
    }
}

#[test]
fn events_up_to_32_kib_are_sent_as_one_run() {
    let mut scene = Scene::new();
    let mut reader = scene.reader(SendOutcome::Sent);
    scene.append(&["1", "2"]);
    scene.append(&["3"]);
    scene.turn();
    let received = reader.received();
    assert_eq!(
        (texts(&received), received[0].0, reader.wakes()),
        (vec!["1,2,3".to_owned()], 3, 0)
    );
    let large = "x".repeat(20_000);
    scene.append(&[&large, &large]);
    scene.turn();
    assert_eq!(
        (reader.received().len(), reader.wakes()),
        (0, 1),
        "a larger run is read by the reader's task"
    );
    assert_eq!(reader.read(), Some(1));
}

#[test]
fn rejected_run_is_read_by_the_task_and_partial_run_is_not_read_again() {
    let mut scene = Scene::new();
    let (mut refuses, mut keeps) = (
        scene.reader(SendOutcome::Rejected),
        scene.reader(SendOutcome::Partial),
    );
    scene.append(&["1"]);
    scene.turn();
    assert_eq!((refuses.wakes(), keeps.wakes()), (1, 1));
    scene.append(&["2"]);
    scene.turn();
    assert_eq!(
        (refuses.received().len(), keeps.received().len()),
        (1, 1),
        "neither reader is idle"
    );
    assert_eq!(
        (refuses.cursor.position().seq, keeps.cursor.position().seq),
        (0, 1)
    );
    assert_eq!(
        (refuses.read(), refuses.cursor.position().seq),
        (Some(2), 2)
    );
    assert_eq!((keeps.read(), keeps.cursor.position().seq), (Some(1), 2));
}

#[test]
fn gaps_and_the_end_of_a_feed_are_read_by_the_task() {
    let mut scene = Scene::new();
    let mut reader = scene.reader(SendOutcome::Sent);
    scene.writer.gap(GapReason::Upstream, None);
    scene.append(&["1"]);
    scene.turn();
    assert_eq!((reader.received().len(), reader.wakes()), (0, 1));
    assert_eq!(
        (reader.read(), reader.read()),
        (Some(2), None),
        "the gap, then the event"
    );
    drop(scene.writer);
    scene
        .dispatching
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_pending()
        .then_some(())
        .unwrap();
    assert_eq!(reader.wakes(), 2, "woken for the end of the feed");
}

#[tokio::test]
async fn queued_sends_cost_a_fraction_of_a_step() {
    let mut scene = Scene::new();
    let readers: Vec<_> = (0..10 * SENDS_MAX)
        .map(|_| scene.reader(SendOutcome::Queued))
        .collect();
    scene.append(&["1"]);
    scene.turn();
    let given = readers
        .iter()
        .filter(|reader| (texts(&reader.received()), reader.wakes()) == (vec!["1".into()], 0));
    assert_eq!(given.count(), readers.len());
}

#[tokio::test]
async fn step_sends_to_a_bounded_number_of_readers_and_late_ones_receive_events_together() {
    let mut scene = Scene::new();
    let readers: Vec<_> = (0..SENDS_MAX + 10)
        .map(|_| scene.reader(SendOutcome::Sent))
        .collect();
    scene.append(&["1"]);
    scene.turn();
    let given = readers
        .iter()
        .filter(|reader| !reader.sink.1.lock().unwrap().is_empty())
        .count();
    assert_eq!(given, SENDS_MAX);
    scene.append(&["2"]);
    for _ in 0..8 {
        scene.turn();
    }
    for (nth, reader) in readers.iter().enumerate() {
        let expected = if nth < SENDS_MAX {
            vec!["1", "2"]
        } else {
            vec!["1,2"]
        };
        assert_eq!(
            (texts(&reader.received()), reader.wakes()),
            (expected.iter().map(ToString::to_string).collect(), 0)
        );
    }
}

#[test]
fn readers_of_another_shard_are_notified_once_for_all_of_them() {
    let (mut writer, buffer) =
        buffer::writer::channel("S", Limits::default(), &Budget::new(1 << 20, 10), None);
    let tag = SourceTag::of_stream("S", 1);
    writer.begin(tag, 0);
    let (ready, shard) = mpsc::sync_channel(1);
    let (report, seen) = mpsc::sync_channel(10);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let thread = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let dispatching = run_dispatcher();
        let notifier = current_shard().unwrap();
        runtime.block_on(async {
            tokio::spawn(dispatching);
            for _ in 0..10 {
                let (filters, report) = (
                    FilterSet::new([Filter::parse("a").unwrap()]),
                    report.clone(),
                );
                let opened = buffer
                    .open(filters, &Arc::default(), Start::Live)
                    .now_or_never()
                    .unwrap();
                let mut cursor = opened.unwrap().cursor;
                tokio::spawn(poll_fn::<(), _>(move |task| {
                    let mut batch = Batch::default();
                    while cursor
                        .poll_read(task, &mut batch, &mut ReadPolicy::all(1000))
                        .is_ready()
                    {
                        report
                            .send((thread::current().id(), batch.items.len()))
                            .unwrap();
                        batch.items.clear();
                    }
                    Poll::Pending
                }));
            }
            // The readers have been polled once and are idle.
            tokio::task::yield_now().await;
            ready.send(notifier).unwrap();
            stopped.await
        })
    });
    let (notifier, there) = (shard.recv().unwrap(), thread.thread().id());
    for seq in 1..=100 {
        let position = Position {
            tag,
            seq,
            fingerprint: None,
        };
        let (subject, data, received) = ("a".into(), "x".into(), Instant::now());
        let event = Event {
            position,
            subject,
            name: None,
            tier: None,
            is_end: false,
            sample: None,
            version: None,
            headers: Default::default(),
            data,
            received,
        };
        writer.append(vec![event]);
        assert!(
            notifier.pending().len() <= 1,
            "one notification for ten readers"
        );
        for _ in 0..10 {
            assert_eq!(
                seen.recv_timeout(Duration::from_secs(10)),
                Ok((there, 1)),
                "each reader receives the event once"
            );
        }
    }
    drop(stop);
    assert!(
        thread.join().unwrap().is_err(),
        "the shard ends when it is stopped"
    );
}
