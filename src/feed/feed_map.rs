//! Feeds that live while somebody wants them: made when the first reader comes, kept for a while after the last.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::sse::Position;
use crate::subject::FilterSet;

use super::feed::Feed;
use super::notify::WakeList;
use super::{Budget, FeedOptions, OpenError, SubscribeRequest};

/// How long a feed outlives its last reader at most. It lingers for as long as it has existed, so that feeds that are
/// opened and left at once do not add up.
///
/// 30 s: a client that comes back after the longest usual wait (its `retry:`, a proxy's own) still finds its window.
pub const LINGER: Duration = Duration::from_secs(30);

/// How long a reader waits for its subscription to stand.
const ESTABLISH_MAX: Duration = Duration::from_secs(5);

/// The feeds of one source that are wanted.
#[derive(Debug)]
pub(super) struct FeedMap {
    budget: Arc<Budget>,
    wanted: Mutex<HashMap<Key, FeedEntry>>,
}

type Key = (FilterSet, Arc<FeedOptions>);

#[derive(Debug)]
struct FeedEntry {
    feed: Arc<Feed>,
    /// Whether it has readers.
    wanted: watch::Sender<bool>,
    /// Whether the subscription stands.
    established: watch::Receiver<bool>,
}

/// A feed for a reader that has come.
pub(super) struct FeedHandle {
    pub(super) feed: Arc<Feed>,
    established: watch::Receiver<bool>,
    /// For whoever will write it, if it was made just now.
    pub(super) lease: Option<FeedLease>,
}

/// The writer's hold on one feed. Dropping it ends the feed.
#[derive(Debug)]
pub(super) struct FeedLease {
    established: watch::Sender<bool>,
    watch: IdleWatch,
    news: WakeList,
}

/// Notices that a feed has had no reader for long enough, and takes it out.
#[derive(Clone, Debug)]
pub(super) struct IdleWatch {
    feeds: Arc<FeedMap>,
    feed: Arc<Feed>,
    wanted: watch::Receiver<bool>,
    /// When the feed was made.
    made: tokio::time::Instant,
    /// When the linger began: it goes on over calls of [`IdleWatch::unwanted`] that are not waited for to the end.
    unwanted_since: Option<tokio::time::Instant>,
}

// === impl Feeds ===

impl FeedMap {
    pub(super) fn new(budget: &Arc<Budget>) -> Arc<Self> {
        Arc::new(Self {
            budget: budget.clone(),
            wanted: Mutex::default(),
        })
    }

    /// The feed of these filters as this profile shows it; made, and begun behind `floor`, if there is none.
    pub(super) fn find(
        self: &Arc<Self>,
        filters: FilterSet,
        profile: &Arc<FeedOptions>,
        floor: impl FnOnce() -> Position,
    ) -> Result<FeedHandle, OpenError> {
        let key = (filters, profile.clone());
        let mut feeds = self.lock();
        if let Some(known) = feeds.get(&key) {
            known.wanted.send_replace(true);
            return Ok(FeedHandle {
                feed: known.feed.clone(),
                established: known.established.clone(),
                lease: None,
            });
        }
        let feed = Feed::new(key.0.clone(), key.1.clone(), floor(), &self.budget)
            .ok_or(OpenError::TooManyFeeds)?;
        let (wanted, wanted_seen) = watch::channel(true);
        let (stands, established) = watch::channel(false);
        let watch = IdleWatch {
            feeds: self.clone(),
            feed: feed.clone(),
            wanted: wanted_seen,
            made: tokio::time::Instant::now(),
            unwanted_since: None,
        };
        let lease = FeedLease {
            established: stands,
            watch,
            news: WakeList::default(),
        };
        feeds.insert(
            key,
            FeedEntry {
                feed: feed.clone(),
                wanted,
                established: established.clone(),
            },
        );
        Ok(FeedHandle {
            feed,
            established,
            lease: Some(lease),
        })
    }

    /// Feeds, and the events and bytes in them.
    pub(super) fn size(&self) -> (usize, usize, usize) {
        let feeds = self.lock();
        let (events, bytes) = feeds
            .values()
            .map(|wanted| wanted.feed.size())
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        (events, bytes, feeds.len())
    }

    /// Drops what is too old at this time.
    pub(super) fn sweep(&self, now: Instant) {
        for wanted in self.lock().values() {
            wanted.feed.lock().window.evict(now);
        }
    }

    /// The last reader of this feed has left.
    pub(super) fn left(&self, feed: &Arc<Feed>) {
        let feeds = self.lock();
        if let Some(wanted) = feeds.get(&(feed.filters.clone(), feed.profile.clone()))
            && Arc::ptr_eq(&wanted.feed, feed)
            && feed.lock().readers.is_empty()
        {
            wanted.wanted.send_replace(false);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, FeedEntry>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Found ===

impl FeedHandle {
    /// Hands a new feed over to whoever writes it, and returns when the subscription stands. The reader has joined
    /// before it waits: a feed with a reader is not given up.
    pub(super) async fn stands<W>(
        mut self,
        demands: &mpsc::Sender<SubscribeRequest<W>>,
        writer: impl FnOnce(FeedLease) -> W,
    ) -> Result<(), OpenError> {
        let stands = async {
            if let Some(lease) = self.lease.take() {
                let demand = SubscribeRequest {
                    filters: self.feed.filters.clone(),
                    writer: writer(lease),
                };
                demands
                    .send(demand)
                    .await
                    .map_err(|_| OpenError::NotReady)?;
            }
            self.established
                .wait_for(|stands| *stands)
                .await
                .map(drop)
                .map_err(|_| OpenError::NotReady)
        };
        tokio::time::timeout(ESTABLISH_MAX, stands)
            .await
            .map_err(|_| OpenError::NotReady)?
    }
}

// === impl Lease ===

impl FeedLease {
    pub(super) fn feed(&self) -> &Arc<Feed> {
        &self.watch.feed
    }

    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.watch.feeds.budget
    }

    /// Says that the subscription stands at the server: readers that wait to begin may begin.
    pub(super) fn established(&self) {
        self.established.send_replace(true);
    }

    /// Wakes who waits, with no lock held, after something was written.
    pub(super) fn wake(&mut self) {
        self.watch
            .feed
            .lock()
            .readers
            .tell(&self.watch.feed, &mut self.news);
        self.news.tell();
        self.watch.feeds.budget.enforce();
    }

    /// Returns when nobody has read the feed for a while ([`LINGER`]): the subscription may end. Can be dropped and
    /// called again.
    pub(super) async fn unwanted(&mut self) {
        self.watch.unwanted().await;
    }

    /// The same for a task that does not hold the lease.
    pub(super) fn watch(&self) -> IdleWatch {
        self.watch.clone()
    }
}

impl Drop for FeedLease {
    fn drop(&mut self) {
        self.watch.take_out();
        self.watch.feed.end(&mut self.news);
        self.news.tell();
    }
}

// === impl Watching ===

impl IdleWatch {
    /// Returns when the feed had no reader for as long as it existed before, at most [`LINGER`]. Can be dropped and
    /// called again.
    pub(super) async fn unwanted(&mut self) {
        loop {
            // An error means that the feed was taken out already.
            if self.wanted.wait_for(|wanted| !wanted).await.is_err() {
                return;
            }
            let since = *self
                .unwanted_since
                .get_or_insert_with(tokio::time::Instant::now);
            let linger = LINGER.min(since - self.made);
            let back =
                tokio::time::timeout_at(since + linger, self.wanted.wait_for(|wanted| *wanted))
                    .await
                    .is_ok();
            self.unwanted_since = None;
            if !back && self.give_up() {
                return;
            }
        }
    }

    /// Takes the feed out, unless a reader has come meanwhile.
    fn give_up(&self) -> bool {
        let mut feeds = self.feeds.lock();
        let key = (self.feed.filters.clone(), self.feed.profile.clone());
        let unread = self.feed.lock().readers.is_empty();
        // A reader that has found the feed but not joined it yet has set `wanted` under this lock.
        let unwanted = feeds.get(&key).is_some_and(|known| !*known.wanted.borrow());
        if unread && unwanted {
            feeds.remove(&key);
        }
        unread && unwanted
    }

    fn take_out(&self) {
        let mut feeds = self.feeds.lock();
        let key = (self.feed.filters.clone(), self.feed.profile.clone());
        if feeds
            .get(&key)
            .is_some_and(|known| Arc::ptr_eq(&known.feed, &self.feed))
        {
            feeds.remove(&key);
        }
    }
}
