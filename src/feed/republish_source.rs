//! Feeds on demand of a JetStream stream that republishes: in its own numbers, with its archive behind each of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;

use crate::sse::{Event, Position, SourceTag};
use crate::subject::FilterSet;

use super::buffer::History;
use super::core_source::DEMANDS_MAX;
use super::encoded::EncodedEvent;
use super::feed::{self, Feed};
use super::feed_map::{FeedLease, FeedMap};
use super::history::State;
use super::opening;
use super::replay::{ReplayMember, ReplayPool};
use super::resume::{Check, View};
use super::source::Origin;
use super::window::GapSide;
use super::{
    Budget, Cursor, FeedOptions, Gap, GapReason, OpenError, Opened, Outcome, Start,
    SubscribeRequest, SubscribeRequests,
};

/// The reading side of one stream: each feed of it is written by a subscription of its own.
pub struct RepublishSource {
    name: Arc<str>,
    /// The tag of its ids; none before the stream was found fit to be read so.
    tag: Mutex<Option<SourceTag>>,
    /// NATS rejects reading the stream until an operator changes something.
    rejected: AtomicBool,
    feeds: Arc<FeedMap>,
    demands: mpsc::Sender<SubscribeRequest<RepublishWriter>>,
    replayer: Arc<ReplayPool>,
}

/// The writing end of one feed of events that have a position already. Not `Clone`; dropping it ends the feed.
#[derive(Debug)]
pub struct RepublishWriter {
    source: Arc<RepublishSource>,
    lease: FeedLease,
    /// Bytes of [`RepublishWriter::charge`].
    charged: usize,
}

/// A stream and the demands that will come of its readers.
#[must_use]
pub fn channel(
    name: impl Into<Arc<str>>,
    budget: &Arc<Budget>,
    past: History,
) -> (Arc<RepublishSource>, SubscribeRequests<RepublishWriter>) {
    let (demands, received) = mpsc::channel(DEMANDS_MAX);
    let replayer = ReplayPool::new(&past.replays, past.archive, past.reach, budget);
    let (name, tag, rejected, feeds) = (
        name.into(),
        Mutex::default(),
        AtomicBool::new(false),
        FeedMap::new(budget),
    );
    (
        Arc::new(RepublishSource {
            name,
            tag,
            rejected,
            feeds,
            demands,
            replayer,
        }),
        received,
    )
}

// === impl Republished ===

impl RepublishSource {
    /// The name of the stream.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The tag of its ids; none before readers may begin.
    #[must_use]
    pub fn tag(&self) -> Option<SourceTag> {
        *self.tag.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether NATS rejects reading the stream until an operator changes something.
    #[must_use]
    pub fn is_rejected(&self) -> bool {
        self.rejected.load(Ordering::Relaxed)
    }

    /// Admits no reader until [`Self::stands`]: an operator has to change something first.
    pub fn reject(&self) {
        self.rejected.store(true, Ordering::Relaxed);
    }

    /// Says that the stream is fit to be read, and under which tag: readers may begin.
    pub fn stands(&self, tag: SourceTag) {
        self.rejected.store(false, Ordering::Relaxed);
        let before = self
            .tag
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(tag);
        if before.is_some_and(|before| before != tag) {
            // Replays that run are of the old numbers.
            self.replayer.renumber();
        }
    }

    /// Opens a reader; returns when its subscription stands, so that nothing published later is missed.
    ///
    /// # Errors
    /// [`OpenError`] when the stream is not fit to be read, does not say what it has to be asked, or at a limit.
    pub async fn open(
        self: &Arc<Self>,
        filters: FilterSet,
        profile: &Arc<FeedOptions>,
        start: Start,
    ) -> Result<Opened, OpenError> {
        if self.is_rejected() {
            return Err(OpenError::Rejected);
        }
        let tag = self.tag().ok_or(OpenError::NotReady)?;
        // Where a feed begins is known when its subscription stands.
        let found = self.feeds.find(filters, profile, || Position {
            tag,
            seq: 0,
            check: None,
        })?;
        let mut cursor = Cursor::at_end(Origin::Republish(self.clone()), found.feed.clone());
        let writer = |lease| RepublishWriter {
            source: self.clone(),
            lease,
            charged: 0,
        };
        found.stands(&self.demands, writer).await?;
        if !cursor.go_to_end() {
            return Err(OpenError::NotReady);
        }
        let outcome = match start {
            Start::Live => Outcome::Live,
            Start::Lost(reason) => Outcome::Gap(Gap {
                reason,
                missed: None,
            }),
            Start::After(at) => {
                let archive = Some(&**self.replayer.archive());
                opening::place(&mut cursor, at, archive, |cursor, source, check| {
                    view(cursor, at, source, check)
                })
                .await?
            }
        };
        Ok(Opened { cursor, outcome })
    }

    /// Feeds, and the events and bytes in them.
    #[must_use]
    pub fn size(&self) -> (usize, usize, usize) {
        self.feeds.size()
    }

    /// Drops what is too old at this time.
    pub fn sweep(&self, now: Instant) {
        self.feeds.sweep(now);
    }

    /// Serves readers that are behind their window. To be spawned once.
    pub fn replays(&self) -> impl Future<Output = ()> + Send + use<> {
        self.replayer.clone().run()
    }

    pub(super) fn head_at_end(feed: &Feed, index: u64) -> Option<Position> {
        let state = feed.lock();
        (index >= state.window.end())
            .then_some(state.head)
            .flatten()
    }

    pub(super) fn enter(&self, feed: &Arc<Feed>, after: u64) -> Option<Box<ReplayMember>> {
        self.replayer.enter(feed, after)
    }

    pub(super) fn left(&self, feed: &Arc<Feed>) {
        self.feeds.left(feed);
    }
}

impl std::fmt::Debug for RepublishSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Republished({})", self.name)
    }
}

/// How things stand for a reader that was at `at`.
fn view(cursor: &Cursor, at: Position, source: Option<State>, check: Check) -> Option<View> {
    let state = cursor.feed().lock();
    let head = state.head?;
    let check = state.window.check_at(at.seq).map_or(check, Check::Is);
    Some(View {
        tag: head.tag,
        floor: state.window.floor(),
        head: head.seq,
        source,
        check,
    })
}

// === impl PositionedWriter ===

impl RepublishWriter {
    /// Begins behind sequence `head`: the subscription stands, and brings everything that follows. Readers that wait
    /// may begin.
    pub fn begin(&mut self, tag: SourceTag, head: u64) {
        let head = Position {
            tag,
            seq: head,
            check: None,
        };
        {
            let mut state = self.lease.feed().lock();
            state.window.begin(head);
            state.head = Some(head);
        }
        self.lease.established();
    }

    /// Everything up to here was appended, or does not match.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.lease.feed().lock().head.map_or(0, |head| head.seq)
    }

    /// Encodes an event for all feeds of the stream that want it.
    #[must_use]
    pub fn encode(&self, event: Event) -> Arc<EncodedEvent> {
        EncodedEvent::new(event, self.lease.budget())
    }

    /// Appends events in ascending order of sequence, all after the head: one lock and one wake for all of them.
    pub fn append(&mut self, events: Vec<Event>) {
        // Encode before taking the lock: every reader of the feed waits on it.
        let encoded = events.into_iter().map(|event| self.encode(event)).collect();
        self.append_encoded(encoded);
    }

    /// As [`Self::append`], of events that other feeds may share.
    pub fn append_encoded(&mut self, events: Vec<Arc<EncodedEvent>>) {
        let Some(last) = events.last().map(|logged| logged.event.position) else {
            return;
        };
        {
            let feed = self.lease.feed();
            let mut state = feed.lock();
            let feed::State { window, head, .. } = &mut *state;
            window.append(events.iter().map(|one| {
                debug_assert!(
                    head.is_none_or(|head| head.seq < one.event.position.seq),
                    "a feed ascends"
                );
                *head = Some(one.event.position);
                feed.profile.show(one.clone())
            }));
            debug_assert_eq!(state.head, Some(last), "the last event is the head");
        }
        // What a window gives back counts only when nobody else holds it.
        drop(events);
        self.lease.wake();
    }

    /// Charges the budget with what is remembered of the feed elsewhere, in place of the charge before.
    pub fn charge(&mut self, bytes: usize) {
        if bytes != self.charged {
            let budget = self.lease.budget();
            budget.add(bytes);
            budget.sub(std::mem::replace(&mut self.charged, bytes));
        }
    }

    /// Says that nothing up to this sequence number is missing: what was not appended does not match.
    pub fn advance(&mut self, seq: u64) {
        let mut state = self.lease.feed().lock();
        if let Some(head) = &mut state.head
            && head.seq < seq
        {
            *head = Position {
                tag: head.tag,
                seq,
                check: None,
            };
        }
    }

    /// Tells every reader that events are missing behind the head.
    pub fn gap(&mut self, reason: GapReason, missed: Option<u64>) {
        self.push_gap(Gap { reason, missed }, false);
    }

    /// Tells every reader that events are missing before the head. Who comes from further back reads the archive, where
    /// they may be.
    pub fn hole(&mut self, reason: GapReason, missed: Option<u64>) {
        self.push_gap(Gap { reason, missed }, true);
    }

    fn push_gap(&mut self, gap: Gap, is_before: bool) {
        {
            let mut state = self.lease.feed().lock();
            let Some(head) = state.head else { return };
            state
                .window
                .push_gap(gap, head, GapSide::Behind, Instant::now());
            if is_before {
                state.window.forget(head.seq);
            }
        }
        self.lease.wake();
    }

    /// Begins again behind sequence `head`, where nothing that stands in the feed adjoins what will follow; every reader
    /// is told the gap.
    pub fn renew(&mut self, tag: SourceTag, head: u64, gap: Gap) {
        let head = Position {
            tag,
            seq: head,
            check: None,
        };
        let renumbers = gap.reason != GapReason::Expired;
        {
            let mut state = self.lease.feed().lock();
            state.window.renew(gap, head, Instant::now());
            state.head = Some(head);
        }
        if self.source.tag() != Some(tag) {
            self.source.stands(tag);
        } else if renumbers {
            self.source.replayer.renumber();
        }
        self.lease.wake();
    }

    /// Returns when nobody has read the feed for a while ([`super::feed_map::LINGER`]): the subscription may end. Can be
    /// dropped and called again.
    pub async fn unwanted(&mut self) {
        self.lease.unwanted().await;
    }
}

impl Drop for RepublishWriter {
    fn drop(&mut self) {
        self.charge(0);
    }
}
