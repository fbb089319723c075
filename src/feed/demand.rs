//! Feeds on demand: core subjects, subscribed to when the first reader comes and kept for a while after the last.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::sse::{Component, Event, Tag};
use crate::subject::FilterSet;

use super::feed::Feed;
use super::repeats::Repeats;
use super::source::Origin;
use super::window::{Logged, Missing};
use super::{Budget, Cursor, Gap, GapReason, OpenError, Opened, Outcome, Profile, Start};

/// How long a feed outlives its last reader.
///
/// 30 s: a client that comes back after the longest usual wait (its `retry:`, a proxy's own) still finds its window.
pub const LINGER: Duration = Duration::from_secs(30);

/// How long a reader waits for its subscription to stand.
const ESTABLISH_MAX: Duration = Duration::from_secs(5);

/// This set of filters is wanted from core NATS.
#[derive(Debug)]
pub struct Demand {
    /// What to subscribe to (see [`FilterSet::disjoint`]).
    pub filters: FilterSet,
    /// Where its events go.
    pub writer: FeedWriter,
}

/// Demands as the upstream side receives them; bounded.
pub type Demands = mpsc::Receiver<Demand>;

/// The reading side of core subjects: all of one process count in one sequence under one tag.
#[derive(Debug)]
pub struct OnDemand {
    tag: Tag,
    /// The sequence number given last. Never reused: a feed that is made again goes on counting.
    counter: AtomicU64,
    budget: Arc<Budget>,
    demands: mpsc::Sender<Demand>,
    feeds: Mutex<HashMap<Key, Wanted>>,
}

type Key = (FilterSet, Arc<Profile>);

#[derive(Debug)]
struct Wanted {
    feed: Arc<Feed>,
    /// Whether it has readers.
    wanted: watch::Sender<bool>,
    /// Whether the subscription stands.
    established: watch::Receiver<bool>,
}

/// The writing end of one feed. Not `Clone`; dropping it ends the feed.
#[derive(Debug)]
pub struct FeedWriter {
    core: Arc<OnDemand>,
    feed: Arc<Feed>,
    wanted: watch::Receiver<bool>,
    established: watch::Sender<bool>,
    /// When the linger began: it goes on over calls of [`FeedWriter::unwanted`] that are not waited for to the end.
    unwanted_since: Option<tokio::time::Instant>,
    repeats: Repeats,
    wakers: Vec<Waker>,
}

/// Core subjects under a tag, and the demands that will come of their readers.
#[must_use]
pub fn channel(tag: Tag, budget: &Arc<Budget>) -> (Arc<OnDemand>, Demands) {
    // 1024: demands of a reconnect storm wait here; readers wait in turn.
    let (demands, received) = mpsc::channel(1024);
    let core = OnDemand {
        tag,
        counter: AtomicU64::new(0),
        budget: budget.clone(),
        demands,
        feeds: Mutex::new(HashMap::new()),
    };
    (Arc::new(core), received)
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
        let (feed, mut established, demand) = self.feed((filters, profile.clone()))?;
        // The reader joins before it waits: a feed with a reader is not given up.
        let opened = self.join(feed, start);
        let stands = async {
            if let Some(demand) = demand {
                self.demands.send(demand).await.map_err(|_| OpenError::NotReady)?;
            }
            established.wait_for(|stands| *stands).await.map(drop).map_err(|_| OpenError::NotReady)
        };
        tokio::time::timeout(ESTABLISH_MAX, stands).await.map_err(|_| OpenError::NotReady)??;
        Ok(opened)
    }

    /// Feeds, and the events and bytes in them.
    #[must_use]
    pub fn size(&self) -> (usize, usize, usize) {
        let feeds = self.lock();
        let (events, bytes) =
            feeds.values().map(|wanted| wanted.feed.size()).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        (events, bytes, feeds.len())
    }

    /// Drops what is too old at this time.
    pub fn sweep(&self, now: Instant) {
        for wanted in self.lock().values() {
            wanted.feed.lock().window.evict(now);
        }
    }

    pub(super) fn head_at_end(&self, feed: &Feed, index: u64) -> Option<Component> {
        let state = feed.lock();
        // Numbers of this feed are given under its lock.
        (index >= state.window.end()).then(|| self.head())
    }

    pub(super) fn left(&self, feed: &Arc<Feed>) {
        let feeds = self.lock();
        if let Some(wanted) = feeds.get(&(feed.filters.clone(), feed.profile.clone()))
            && Arc::ptr_eq(&wanted.feed, feed)
            && feed.lock().readers.is_empty()
        {
            wanted.wanted.send_replace(false);
        }
    }

    fn head(&self) -> Component {
        Component { tag: self.tag, seq: self.counter.load(Ordering::Relaxed), check: None }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Wanted>> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[allow(clippy::type_complexity, reason = "three things that are taken apart at the only call")]
    fn feed(self: &Arc<Self>, key: Key) -> Result<(Arc<Feed>, watch::Receiver<bool>, Option<Demand>), OpenError> {
        let mut feeds = self.lock();
        if let Some(known) = feeds.get(&key) {
            known.wanted.send_replace(true);
            return Ok((known.feed.clone(), known.established.clone(), None));
        }
        // A number of its own: whoever was here before may have missed what nobody was subscribed to.
        let seq = self.counter.fetch_add(1, Ordering::Relaxed) + 1;
        let floor = Component { seq, ..self.head() };
        let feed = Feed::new(key.0.clone(), key.1.clone(), floor, &self.budget).ok_or(OpenError::TooManyFeeds)?;
        let (wanted, wanted_seen) = watch::channel(true);
        let (established, established_seen) = watch::channel(false);
        let writer = FeedWriter {
            core: self.clone(),
            feed: feed.clone(),
            wanted: wanted_seen,
            established,
            unwanted_since: None,
            repeats: Repeats::default(),
            wakers: Vec::new(),
        };
        let demand = Demand { filters: key.0.clone(), writer };
        feeds.insert(key, Wanted { feed: feed.clone(), wanted, established: established_seen.clone() });
        Ok((feed, established_seen, Some(demand)))
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
        self.established.send_replace(true);
    }

    /// Appends events in the order of their receipt. Their positions are given here. Returns how many were left out,
    /// since they stand in the window already by what their publisher calls them.
    pub fn append(&mut self, events: Vec<Event>) -> usize {
        let (mut repeated, all) = (0, events.len());
        let mut state = self.feed.lock();
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
            let logged = Logged::new(event, &self.core.budget);
            let profile = &self.feed.profile;
            let (frame, tier) = (profile.frame(&logged), profile.tier(&logged.event));
            state.window.push_event(logged, frame, tier);
        }
        if repeated < all {
            state.readers.take_waiting(&mut self.wakers);
        }
        drop(state);
        self.wake();
        self.core.budget.enforce();
        repeated
    }

    /// Tells every reader that events are missing here.
    pub fn gap(&mut self, reason: GapReason, missed: Option<u64>) {
        let mut state = self.feed.lock();
        // A number of its own, so that a reader that stops before the gap is told when it comes back.
        let seq = self.core.counter.fetch_add(1, Ordering::Relaxed) + 1;
        let position = Component { tag: self.core.tag, seq, check: None };
        state.window.push_gap(Gap { reason, missed }, position, Missing::Before, Instant::now());
        state.readers.take_waiting(&mut self.wakers);
        drop(state);
        self.wake();
        self.core.budget.enforce();
    }

    /// Returns when nobody has read the feed for [`LINGER`]: the subscription may end. Can be dropped and called again.
    pub async fn unwanted(&mut self) {
        loop {
            // An error means that the feed was taken out already.
            if self.wanted.wait_for(|wanted| !wanted).await.is_err() {
                return;
            }
            let since = *self.unwanted_since.get_or_insert_with(tokio::time::Instant::now);
            let back = tokio::time::timeout_at(since + LINGER, self.wanted.wait_for(|wanted| *wanted)).await.is_ok();
            self.unwanted_since = None;
            if !back && self.give_up() {
                return;
            }
        }
    }

    /// Takes the feed out, unless a reader has come meanwhile.
    fn give_up(&self) -> bool {
        let mut feeds = self.core.lock();
        let key = (self.feed.filters.clone(), self.feed.profile.clone());
        let unread = self.feed.lock().readers.is_empty();
        // A reader that has found the feed but not joined it yet has set `wanted` under this lock.
        let unwanted = feeds.get(&key).is_some_and(|known| !*known.wanted.borrow());
        if unread && unwanted {
            feeds.remove(&key);
        }
        unread && unwanted
    }

    fn wake(&mut self) {
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
    }
}

impl Drop for FeedWriter {
    fn drop(&mut self) {
        {
            let mut feeds = self.core.lock();
            let key = (self.feed.filters.clone(), self.feed.profile.clone());
            if feeds.get(&key).is_some_and(|known| Arc::ptr_eq(&known.feed, &self.feed)) {
                feeds.remove(&key);
            }
        }
        self.feed.end(&mut self.wakers);
        self.wake();
    }
}
