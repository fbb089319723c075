//! Feeds that exist while they have readers: created on demand, removed after an idle period.
//!
//! The core source and each republished stream have one `FeedMap`. The first reader of a set of
//! filters creates the feed and sends a [`SubscribeRequest`] with a `FeedLease` to the writer's
//! task; all its readers wait until the writer confirms the subscription. When the last reader
//! leaves, the idle period starts ([`LINGER`] at most); the writer's `IdleWatch` then removes the
//! feed, unless a reader has joined meanwhile. Dropping the lease ends the feed.
//!
//! Lock order: the map before a feed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::event::Position;
use crate::subject::FilterSet;

use super::budget::Budget;
use super::feed::{Feed, WakeList};
use super::limits::SourceSize;
use super::open_error::OpenError;
use super::options::FeedOptions;

/// Maximum idle period of a feed. A feed lingers for as long as it has existed, so that feeds which
/// are opened and left at once do not accumulate; not shorter than the options of the feed say.
///
/// 30 s: a client that returns after the longest usual wait (its `retry:`, a proxy's own) still
/// finds its window.
pub const LINGER: Duration = Duration::from_secs(30);

/// 5 s for the server to confirm a subscription.
const SUBSCRIBE_MAX: Duration = Duration::from_secs(5);

/// Request to subscribe for a new feed, sent to the side that owns the NATS connection.
#[derive(Debug)]
pub struct SubscribeRequest<W> {
    /// Filters of the feed.
    pub filters: FilterSet,
    /// Writer of the feed's events.
    pub writer: W,
}

/// Receiving end of the subscribe requests; bounded.
pub type SubscribeRequests<W> = mpsc::Receiver<SubscribeRequest<W>>;

/// 1024 subscribe requests wait to be received: those of a reconnect storm. Further readers wait in
/// turn.
pub(super) const REQUESTS_MAX: usize = 1024;

/// Feeds of one source.
#[derive(Debug)]
pub(super) struct FeedMap {
    budget: Arc<Budget>,
    feeds: Mutex<HashMap<Key, FeedEntry>>,
}

type Key = (FilterSet, Arc<FeedOptions>);

#[derive(Debug)]
struct FeedEntry {
    feed: Arc<Feed>,
    /// True while the feed has readers.
    has_readers: watch::Sender<bool>,
    /// True after the subscription is confirmed.
    subscribed: watch::Receiver<bool>,
}

/// Feed for a new reader.
pub(super) struct FeedHandle {
    pub(super) feed: Arc<Feed>,
    subscribed: watch::Receiver<bool>,
    /// For the writer, if this reader created the feed.
    pub(super) lease: Option<FeedLease>,
}

/// Write access to one feed. Dropping it ends the feed.
#[derive(Debug)]
pub(super) struct FeedLease {
    subscribed: watch::Sender<bool>,
    watch: IdleWatch,
    wake_list: WakeList,
}

/// Watches for the end of a feed's idle period and then removes the feed.
#[derive(Clone, Debug)]
pub(super) struct IdleWatch {
    feeds: Arc<FeedMap>,
    feed: Arc<Feed>,
    has_readers: watch::Receiver<bool>,
    /// Time of creation.
    created: tokio::time::Instant,
    /// Start of the idle period; kept across calls of [`IdleWatch::wait_idle`] that are cancelled.
    idle_since: Option<tokio::time::Instant>,
}

// === impl FeedMap ===

impl FeedMap {
    pub(super) fn new(budget: &Arc<Budget>) -> Arc<Self> {
        Arc::new(Self {
            budget: budget.clone(),
            feeds: Mutex::default(),
        })
    }

    /// Returns the feed with these filters and options. Creates it, starting after `floor`, if it
    /// does not exist.
    pub(super) fn find(
        self: &Arc<Self>,
        filters: FilterSet,
        options: &Arc<FeedOptions>,
        floor: impl FnOnce() -> Position,
    ) -> Result<FeedHandle, OpenError> {
        let handle = self.find_or_create(filters, options, floor)?;
        if handle.lease.is_some() {
            // A new feed reserves memory; evict for it without the lock held.
            self.budget.enforce();
        }
        Ok(handle)
    }

    fn find_or_create(
        self: &Arc<Self>,
        filters: FilterSet,
        options: &Arc<FeedOptions>,
        floor: impl FnOnce() -> Position,
    ) -> Result<FeedHandle, OpenError> {
        let key = (filters, options.clone());
        let mut feeds = self.lock();
        if let Some(known) = feeds.get(&key) {
            known.has_readers.send_replace(true);
            return Ok(FeedHandle {
                feed: known.feed.clone(),
                subscribed: known.subscribed.clone(),
                lease: None,
            });
        }
        let feed = Feed::new(key.0.clone(), key.1.clone(), floor(), &self.budget)
            .ok_or(OpenError::TooManyFeeds)?;
        let (has_readers, readers_seen) = watch::channel(true);
        let (subscribed_sender, subscribed) = watch::channel(false);
        let watch = IdleWatch {
            feeds: self.clone(),
            feed: feed.clone(),
            has_readers: readers_seen,
            created: tokio::time::Instant::now(),
            idle_since: None,
        };
        let lease = FeedLease {
            subscribed: subscribed_sender,
            watch,
            wake_list: WakeList::default(),
        };
        feeds.insert(
            key,
            FeedEntry {
                feed: feed.clone(),
                has_readers,
                subscribed: subscribed.clone(),
            },
        );
        Ok(FeedHandle {
            feed,
            subscribed,
            lease: Some(lease),
        })
    }

    /// Number of events, bytes and feeds.
    pub(super) fn size(&self) -> SourceSize {
        let feeds = self.lock();
        let (events, bytes) = feeds
            .values()
            .map(|entry| entry.feed.size())
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        SourceSize {
            events,
            bytes,
            feeds: feeds.len(),
        }
    }

    /// Evicts events older than the age limit.
    pub(super) fn sweep(&self, now: Instant) {
        for entry in self.lock().values() {
            entry.feed.lock().window.evict(now);
        }
    }

    /// Starts the idle period of a feed whose last reader has left.
    pub(super) fn reader_left(&self, feed: &Arc<Feed>) {
        let feeds = self.lock();
        if let Some(entry) = feeds.get(&(feed.filters.clone(), feed.options.clone()))
            && Arc::ptr_eq(&entry.feed, feed)
            && feed.lock().subscribers.is_empty()
        {
            entry.has_readers.send_replace(false);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, FeedEntry>> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl FeedHandle ===

impl FeedHandle {
    /// Sends the subscribe request of a new feed and returns after the subscription is confirmed.
    /// Join the feed before; otherwise the idle period could remove it.
    pub(super) async fn wait_subscribed<W>(
        mut self,
        requests: &mpsc::Sender<SubscribeRequest<W>>,
        writer: impl FnOnce(FeedLease) -> W,
    ) -> Result<(), OpenError> {
        let subscribed = async {
            if let Some(lease) = self.lease.take() {
                let request = SubscribeRequest {
                    filters: self.feed.filters.clone(),
                    writer: writer(lease),
                };
                requests
                    .send(request)
                    .await
                    .map_err(|_| OpenError::NotReady)?;
            }
            self.subscribed
                .wait_for(|subscribed| *subscribed)
                .await
                .map(drop)
                .map_err(|_| OpenError::NotReady)
        };
        tokio::time::timeout(SUBSCRIBE_MAX, subscribed)
            .await
            .map_err(|_| OpenError::NotReady)?
    }
}

// === impl FeedLease ===

impl FeedLease {
    pub(super) fn feed(&self) -> &Arc<Feed> {
        &self.watch.feed
    }

    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.watch.feeds.budget
    }

    /// Confirms the subscription: waiting readers may start.
    pub(super) fn confirm_subscribed(&self) {
        self.subscribed.send_replace(true);
    }

    /// Wakes waiting readers after a write, with no lock held.
    pub(super) fn wake(&mut self) {
        self.watch
            .feed
            .lock()
            .subscribers
            .notify(&self.watch.feed, &mut self.wake_list);
        self.wake_list.wake_all();
        self.watch.feeds.budget.enforce();
    }

    /// Returns when the feed has been without readers for its idle period ([`LINGER`] at most).
    /// Cancel safe.
    pub(super) async fn wait_idle(&mut self) {
        self.watch.wait_idle().await;
    }

    /// Returns a watch for a task that does not own the lease.
    pub(super) fn watch(&self) -> IdleWatch {
        self.watch.clone()
    }
}

impl Drop for FeedLease {
    fn drop(&mut self) {
        self.watch.remove();
        self.watch.feed.end(&mut self.wake_list);
        self.wake_list.wake_all();
    }
}

// === impl IdleWatch ===

impl IdleWatch {
    /// Returns when the feed has been without readers for as long as it existed before, at most
    /// [`LINGER`]. Cancel safe.
    pub(super) async fn wait_idle(&mut self) {
        loop {
            // An error means that the feed was removed already.
            if self
                .has_readers
                .wait_for(|has_readers| !has_readers)
                .await
                .is_err()
            {
                return;
            }
            let since = *self
                .idle_since
                .get_or_insert_with(tokio::time::Instant::now);
            let existed = since - self.created;
            let linger = LINGER.min(existed).max(self.feed.options.linger_min);
            let back = tokio::time::timeout_at(
                since + linger,
                self.has_readers.wait_for(|has_readers| *has_readers),
            )
            .await
            .is_ok();
            self.idle_since = None;
            if !back && self.remove_idle() {
                return;
            }
        }
    }

    /// Removes the feed, unless a reader has joined meanwhile.
    fn remove_idle(&self) -> bool {
        let mut feeds = self.feeds.lock();
        let key = (self.feed.filters.clone(), self.feed.options.clone());
        let has_no_reader = self.feed.lock().subscribers.is_empty();
        // A reader that found the feed but has not joined yet has set `has_readers` under this
        // lock.
        let is_idle = feeds
            .get(&key)
            .is_some_and(|known| !*known.has_readers.borrow());
        if has_no_reader && is_idle {
            feeds.remove(&key);
        }
        has_no_reader && is_idle
    }

    fn remove(&self) {
        let mut feeds = self.feeds.lock();
        let key = (self.feed.filters.clone(), self.feed.options.clone());
        if feeds
            .get(&key)
            .is_some_and(|known| Arc::ptr_eq(&known.feed, &self.feed))
        {
            feeds.remove(&key);
        }
    }
}
