//! Core subjects on demand: subscribed to when the first reader comes, numbered by one counter of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::mpsc;

use crate::sse::{Component, Event, Tag};
use crate::subject::FilterSet;

use super::feed::Feed;
use super::lease::{Feeds, Lease};
use super::logged::Logged;
use super::repeats::Repeats;
use super::source::Origin;
use super::window::Missing;
use super::{Budget, Cursor, Gap, GapReason, OpenError, Opened, Outcome, Profile, Start};

/// This set of filters is wanted from NATS.
#[derive(Debug)]
pub struct Demand<W = FeedWriter> {
    /// What to subscribe to (see [`FilterSet::disjoint`]).
    pub filters: FilterSet,
    /// Where its events go.
    pub writer: W,
}

/// Demands as the upstream side receives them; bounded.
pub type Demands<W = FeedWriter> = mpsc::Receiver<Demand<W>>;

/// How many demands wait to be received: those of a reconnect storm; readers wait in turn.
pub(super) const DEMANDS_MAX: usize = 1024;

/// The reading side of core subjects: all of one process count in one sequence under one tag.
#[derive(Debug)]
pub struct OnDemand {
    tag: Tag,
    /// The sequence number given last. Never reused: a feed that is made again goes on counting.
    counter: AtomicU64,
    demands: mpsc::Sender<Demand>,
    feeds: Arc<Feeds>,
}

/// The writing end of one feed. Not `Clone`; dropping it ends the feed.
#[derive(Debug)]
pub struct FeedWriter {
    core: Arc<OnDemand>,
    lease: Lease,
    repeats: Repeats,
}

/// Core subjects under a tag, and the demands that will come of their readers.
#[must_use]
pub fn channel(tag: Tag, budget: &Arc<Budget>) -> (Arc<OnDemand>, Demands) {
    let (demands, received) = mpsc::channel(DEMANDS_MAX);
    (Arc::new(OnDemand { tag, counter: AtomicU64::new(0), demands, feeds: Feeds::new(budget) }), received)
}

// === impl OnDemand ===

impl OnDemand {
    /// The tag of this process's ids.
    #[must_use]
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// Opens a reader; returns when its subscription stands, so that nothing published later is missed.
    ///
    /// # Errors
    /// [`OpenError::NotReady`] when the subscription did not stand in time, [`OpenError::TooManyFeeds`] at the limit.
    pub async fn open(
        self: &Arc<Self>,
        filters: FilterSet,
        profile: &Arc<Profile>,
        start: Start,
    ) -> Result<Opened, OpenError> {
        // A number of its own: whoever was here before may have missed what nobody was subscribed to.
        let floor = || Component { seq: self.counter.fetch_add(1, Ordering::Relaxed) + 1, ..self.head() };
        let found = self.feeds.find(filters, profile, floor)?;
        let opened = self.join(found.feed.clone(), start);
        let writer = |lease| FeedWriter { core: self.clone(), lease, repeats: Repeats::default() };
        found.stands(&self.demands, writer).await?;
        Ok(opened)
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

    pub(super) fn head_at_end(&self, feed: &Feed, index: u64) -> Option<Component> {
        let state = feed.lock();
        // Numbers of this feed are given under its lock.
        (index >= state.window.end()).then(|| self.head())
    }

    pub(super) fn left(&self, feed: &Arc<Feed>) {
        self.feeds.left(feed);
    }

    fn head(&self) -> Component {
        Component { tag: self.tag, seq: self.counter.load(Ordering::Relaxed), check: None }
    }

    fn join(self: &Arc<Self>, feed: Arc<Feed>, start: Start) -> Opened {
        let state = feed.lock();
        let live = (state.window.end_place(), self.head());
        let gap = |reason| Outcome::Gap(Gap { reason, missed: None });
        let (outcome, (place, position)) = match start {
            Start::Live => (Outcome::Live, live),
            Start::Lost(reason) => (gap(reason), live),
            Start::After(at) if at.tag != self.tag => (gap(GapReason::Restarted), live),
            Start::After(at) if at.seq > self.head().seq => (gap(GapReason::Ahead), live),
            Start::After(at) => match state.window.place_after(at.seq) {
                Some(place) => (Outcome::Window, (place, at)),
                None => {
                    let position = Component { tag: self.tag, seq: state.window.floor(), check: None };
                    (gap(GapReason::Expired), (state.window.oldest_place(), position))
                }
            },
        };
        drop(state);
        let key = feed.join(place, position);
        Opened { cursor: Cursor::new(Origin::OnDemand(self.clone()), feed, key, place, position), outcome }
    }
}

// === impl FeedWriter ===

impl FeedWriter {
    /// Says that the subscription stands at the server: readers that wait to begin may begin.
    pub fn established(&mut self) {
        self.lease.established();
    }

    /// Appends events in the order of their receipt. Their positions are given here. Returns how many were left out,
    /// since they stand in the window already by what their publisher calls them.
    pub fn append(&mut self, events: Vec<Event>) -> usize {
        let (mut repeated, all) = (0, events.len());
        let feed = self.lease.feed().clone();
        let mut state = feed.lock();
        for mut event in events {
            self.repeats.forget(state.window.floor());
            let id = event.message_id.take();
            if id.as_ref().is_some_and(|id| self.repeats.is_known(id)) {
                repeated += 1;
                continue;
            }
            // Numbered under the feed's lock: whoever opens sees the number and the event, or neither.
            let seq = self.core.counter.fetch_add(1, Ordering::Relaxed) + 1;
            event.position = Component { tag: self.core.tag, seq, check: event.position.check };
            if let Some(id) = id {
                self.repeats.note(id, seq);
            }
            let logged = Logged::new(event, self.lease.budget());
            state.window.append([feed.profile.show(logged)]);
        }
        drop(state);
        if repeated < all {
            self.lease.wake();
        }
        repeated
    }

    /// Tells every reader that events are missing here.
    pub fn gap(&mut self, reason: GapReason, missed: Option<u64>) {
        let mut state = self.lease.feed().lock();
        // A number of its own, so that a reader that stops before the gap is told when it comes back.
        let seq = self.core.counter.fetch_add(1, Ordering::Relaxed) + 1;
        let position = Component { tag: self.core.tag, seq, check: None };
        state.window.push_gap(Gap { reason, missed }, position, Missing::Before, Instant::now());
        drop(state);
        self.lease.wake();
    }

    /// Returns when nobody has read the feed for a while ([`super::lease::LINGER`]): the subscription may end. Can be
    /// dropped and called again.
    pub async fn unwanted(&mut self) {
        self.lease.unwanted().await;
    }
}
