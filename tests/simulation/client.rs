//! One client of the feed core: a cursor that is read directly, and the model that checks it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use sidestream::feed::{Cursor, FeedOptions, Outcome, Read, ReadPolicy, Shedder, Slow};
use sidestream::subject::FilterSet;

use super::dispatcher::RandomSink;
use super::items::{self, Seen};
use super::model::{Model, encode_stored};
use super::pod::{Kind, Pod};
use super::source::lock;

#[derive(Default)]
pub(crate) struct Wakes(AtomicU64);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Wakes {
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

pub(crate) struct Client {
    pub(crate) model: Model,
    pub(crate) cursor: Cursor,
    pub(crate) wakes: Arc<Wakes>,
    sink: Arc<RandomSink>,
    /// Wake count at the last read that returned nothing.
    idle_since: Option<u64>,
}

impl Client {
    pub(crate) fn new(
        number: usize,
        pod: (usize, &Pod),
        feed: (FilterSet, Arc<FeedOptions>),
        cursor: Cursor,
        outcome: Outcome,
    ) -> Self {
        let mut model = Model::new(number, pod, feed, cursor.position(), outcome);
        model.has_replayed = cursor.is_replaying();
        let sink = Arc::<RandomSink>::default();
        cursor.set_sink(sink.clone());
        Self {
            model,
            cursor,
            wakes: Arc::default(),
            sink,
            idle_since: None,
        }
    }

    /// Takes events that were sent directly.
    pub(crate) fn receive(&mut self, pod: &Pod) {
        for (text, position) in self.sink.take(self.model.position.tag) {
            assert!(
                self.idle_since.is_some(),
                "{self}: was sent {position} while it was not idle"
            );
            self.model.take_event(pod, &text, position, None);
        }
        assert_eq!(
            self.cursor.probe().position(),
            Some(self.model.position),
            "{self}: position after direct sends"
        );
    }

    /// Reads once, as a slow client with `slow`, and checks everything that the read
    /// returns.
    pub(crate) fn read(
        &mut self,
        pod: &Pod,
        budget: usize,
        slow: Option<&Slow>,
        now: Instant,
    ) -> Poll<Read> {
        assert_eq!(
            self.cursor.position(),
            self.model.position,
            "{self}: position before a read"
        );
        let mut batch = items::batch();
        let was_replaying = self.cursor.is_replaying();
        let waker = Waker::from(self.wakes.clone());
        let mut context = Context::from_waker(&waker);
        let mut shedder = slow.map(|slow| Shedder::new(slow, self.cursor.probe().lag(now).events));
        let mut policy = ReadPolicy {
            budget,
            shedder: shedder.as_mut(),
            throttle: None,
        };
        let read = self.cursor.poll_read(&mut context, &mut batch, &mut policy);
        let seen = items::unfold(&batch);
        let is_replaying = self.cursor.is_replaying();
        let shed = shedder.as_ref();
        let expected_skips = self
            .model
            .expected_skips(pod, slow, shed, is_replaying, &seen);
        self.model.skipped_entries.clear();
        self.model.has_replayed |= was_replaying || is_replaying;
        self.idle_since = None;
        let events = seen
            .iter()
            .filter(|seen| matches!(seen, Seen::Event { .. }))
            .count();
        assert!(
            self.model.has_replayed || events <= self.model.options.window.events,
            "{self}: {events} events in a window of {}",
            self.model.options.window.events
        );
        let mut bytes = 0;
        for seen in &seen {
            // A block is read as a whole.
            let is_within = bytes < budget || self.model.options.compression.is_some();
            assert!(is_within, "{self}: more than the budget");
            match seen {
                Seen::Event {
                    text,
                    position,
                    tier,
                } => {
                    bytes += text.len();
                    self.model.take_event(pod, text, *position, *tier);
                }
                Seen::Gap { gap, position } => {
                    self.model.take_gap(pod, *gap, *position, shedder.is_some())
                }
            }
        }
        if let Some(expected_skips) = expected_skips {
            assert_eq!(
                self.model.skipped_entries, expected_skips,
                "{self}: skipped, and expected by {slow:?}"
            );
        }
        self.model.conflated = 0;
        assert_eq!(
            self.cursor.position(),
            self.model.position,
            "{self}: position of the last item"
        );
        assert_eq!(
            self.cursor.probe().position(),
            Some(self.model.position),
            "{self}: position in the probe"
        );
        if self.model.has_replayed && !is_replaying && read == Poll::Pending {
            self.model.assert_has_all(pod);
            (self.model.has_replayed, self.model.is_ahead) = (false, true);
            self.model.next = pod.history.len();
        }
        match read {
            Poll::Ready(Read::Some) => {
                assert!(
                    !batch.items.is_empty(),
                    "{self}: a ready read returns items"
                )
            }
            Poll::Ready(Read::Ended) => self.model.assert_has_all(pod),
            Poll::Pending => {
                assert!(
                    batch.items.is_empty(),
                    "{self}: a pending read returns nothing"
                );
                self.idle_since = Some(self.wakes.count());
                if self.cursor.is_waiting() && fastrand::bool() {
                    self.cursor.allow_direct();
                }
                if !is_replaying {
                    self.model.assert_has_all(pod);
                    assert!(
                        self.cursor.is_caught_up(),
                        "{self}: is idle only when caught up"
                    );
                }
            }
        }
        read
    }

    /// Asserts that an idle client was woken, once, if it has something to read.
    pub(crate) fn assert_woken(&self, pod: &Pod) {
        let Some(before) = self.idle_since else {
            return;
        };
        let woken = self.wakes.count() - before;
        let is_unreceived = self
            .model
            .unreceived(pod, pod.history.len())
            .next()
            .is_some();
        if self.cursor.is_replaying() {
            return;
        }
        assert!(
            woken > 0 || !is_unreceived,
            "{self}: is idle and has not received {:?}",
            self.model.unreceived(pod, pod.history.len()).next()
        );
        assert!(woken <= 2, "{self}: woken {woken} times");
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.idle_since
            .is_none_or(|before| self.wakes.count() > before)
    }

    /// Asserts the exact lag, if the model is exact.
    pub(crate) fn assert_lag(&self, pod: &Pod, now: Instant) {
        if self.model.has_replayed
            || self.model.is_ahead
            || self.model.is_uncertain
            || self.model.slow > 0
            || self.cursor.is_replaying()
        {
            return;
        }
        let lag = self.cursor.probe().lag(now);
        let (mut events, mut bytes) = (0, 0);
        for (_, entry) in self.model.unreceived(pod, pod.history.len()) {
            if let Kind::Event { content, .. } = &entry.kind {
                events += 1;
                bytes += encode_stored(*content, entry.position).len() as u64;
            }
        }
        assert_eq!((lag.events, lag.bytes), (events, bytes), "{self}: lag");
    }

    pub(crate) fn checkpoint(&mut self, pod: &Pod) {
        let is_replaying = self.cursor.is_replaying();
        if !is_replaying && self.cursor.is_caught_up() {
            self.model.assert_has_all(pod);
        }
        let has_all = self
            .model
            .unreceived(pod, pod.history.len())
            .next()
            .is_none()
            && self.model.slow == 0
            && !self.model.is_uncertain;
        let is_exact = !is_replaying && !self.model.has_replayed && !self.model.is_ahead;
        let moved = self.cursor.checkpoint();
        let head_is_later =
            pod.tag == self.model.position.tag && pod.head > self.model.position.seq;
        if is_exact {
            assert_eq!(
                moved,
                has_all && head_is_later,
                "{self}: checkpoint at {}",
                pod.head
            );
        }
        if moved {
            assert!(
                has_all && !is_replaying,
                "{self}: a checkpoint skipped an event"
            );
            let source = lock(&pod.source);
            self.model
                .skip_to(pod, &source, pod.history.len(), pod.head);
            let head = self.cursor.position();
            assert_eq!((head.tag, head.seq), (pod.tag, pod.head));
            (self.model.position, self.model.seq) = (head, head.seq);
        }
    }
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.model.fmt(f)
    }
}
