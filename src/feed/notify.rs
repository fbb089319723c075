//! Coalesced wake-ups: one notification per shard, however many of its subscribers have new events.
//!
//! Waking a task of another single-threaded runtime is a system call. A thousand subscribers on
//! other threads would be a thousand system calls per event. Instead, each shard runs one
//! dispatcher task ([`run_dispatcher`](super::run_dispatcher)), and a subscriber's record has its
//! shard:
//!
//! ```text
//! writer: Feed::append -> Subscribers::notify -> WakeList   (under the lock of the feed)
//!         WakeList::wake_all -> ShardNotifier.pending, wake its task   (no lock held)
//! shard:  run_dispatcher -> one Pass per feed -> Dispatcher (dispatch.rs)
//! ```
//!
//! A shard is notified once per feed until its pass starts, even if more events arrive. Subscribers
//! that are not on a shard, as in tests and tools, are woken one by one.
//!
//! The types are generic over the feed `F`, which has both of them among its fields.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use futures_util::task::AtomicWaker;

/// Notifier of one shard.
#[derive(Debug)]
pub(super) struct ShardNotifier<F> {
    /// Feeds with new events, each once until its pass starts.
    pending: Mutex<Vec<Arc<F>>>,
    task: AtomicWaker,
}

impl<F> Default for ShardNotifier<F> {
    fn default() -> Self {
        Self {
            pending: Mutex::default(),
            task: AtomicWaker::new(),
        }
    }
}

impl<F> ShardNotifier<F> {
    pub(super) fn pending(&self) -> MutexGuard<'_, Vec<Arc<F>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the feeds with new events to `passes`; the task is woken for later ones.
    pub(super) fn take_pending<P>(
        &self,
        task: &Context<'_>,
        passes: &mut VecDeque<P>,
        pass: impl Fn(Arc<F>) -> P,
    ) {
        self.task.register(task.waker());
        passes.extend(self.pending().drain(..).map(pass));
    }
}

/// Shard, and its feeds with new events.
type Notification<F> = (Arc<ShardNotifier<F>>, Vec<Arc<F>>);

/// Wake-ups to do after all locks are released. Reused, so it does not allocate.
#[derive(Debug)]
pub(super) struct WakeList<F> {
    /// Subscribers that are not on a shard.
    pub(super) wake: Vec<Waker>,
    shards: Vec<Notification<F>>,
}

impl<F> Default for WakeList<F> {
    fn default() -> Self {
        Self {
            wake: Vec::new(),
            shards: Vec::new(),
        }
    }
}

impl<F> WakeList<F> {
    /// Adds a shard with subscribers of a feed that has new events.
    pub(super) fn notify(&mut self, notifier: &Arc<ShardNotifier<F>>, feed: &Arc<F>) {
        match self
            .shards
            .iter_mut()
            .find(|(known, _)| Arc::ptr_eq(known, notifier))
        {
            Some((_, feeds)) => feeds.push(feed.clone()),
            None => self.shards.push((notifier.clone(), vec![feed.clone()])),
        }
    }

    /// Performs all wake-ups.
    pub(super) fn wake_all(&mut self) {
        self.wake.drain(..).for_each(Waker::wake);
        for (notifier, feeds) in self
            .shards
            .iter_mut()
            .filter(|(_, feeds)| !feeds.is_empty())
        {
            notifier.pending().append(feeds);
            notifier.task.wake();
        }
    }
}
