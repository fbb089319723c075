//! Feed: the events of one source that match one set of filters, shared by all their readers.
//!
//! A feed holds one [`Window`] and the table of its [`Subscribers`] under one mutex. Its writer (the
//! stream buffer or a subscription) appends and collects the shards to notify; after the lock is
//! released, the caller wakes them. Readers lock the feed for one read or one checkpoint. The lock
//! is held for a few lines at a time and never while a task is woken or a socket is written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::event::Position;
use crate::subject::FilterSet;

use super::budget::{Budget, Evict, FeedSlot};
use super::notify::{self, ShardNotifier};
use super::options::Shown;
use super::subscribers::{Subscriber, Subscribers};
use super::window::{GapSide, Offset, Window};
use super::{FeedOptions, Gap};

/// Wake-ups of the shards with subscribers of feeds.
pub(super) type WakeList = notify::WakeList<Feed>;

/// One feed. It is written by the source that created it and read through cursors.
pub(super) struct Feed {
    pub(super) filters: FilterSet,
    pub(super) options: Arc<FeedOptions>,
    state: Mutex<State>,
    /// Number of the last read, for the order of eviction.
    last_read: AtomicU64,
    _slot: FeedSlot,
}

/// State under the lock, which is never held while a task is woken.
pub(super) struct State {
    pub(super) window: Window,
    pub(super) subscribers: Subscribers<Feed>,
    /// Of a feed with its own head: every event up to here is in the window or does not match.
    pub(super) head: Option<Position>,
    /// The writer is gone: readers end after the last entry.
    pub(super) ended: bool,
}

/// Numbers the reads of all feeds, to find the least recently read one.
static READS: AtomicU64 = AtomicU64::new(0);

impl Feed {
    /// Creates an empty feed; `None` if the budget has no slot.
    pub(super) fn new(
        filters: FilterSet,
        options: Arc<FeedOptions>,
        floor: Position,
        budget: &Arc<Budget>,
    ) -> Option<Arc<Self>> {
        let slot = budget.add_feed(&filters)?;
        let state = State {
            window: Window::new(&options, floor, budget.clone()),
            subscribers: Subscribers::default(),
            head: None,
            ended: false,
        };
        let (state, last_read) = (Mutex::new(state), AtomicU64::new(0));
        let feed = Arc::new(Self {
            filters,
            options,
            state,
            last_read,
            _slot: slot,
        });
        feed.touch();
        let evictable: Arc<dyn Evict> = feed.clone();
        budget.register(Arc::downgrade(&evictable));
        Some(feed)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves the window consistent: every mutator ends in one
        // assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn touch(&self) {
        self.last_read
            .store(READS.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Appends events. The caller wakes `wake_list` after all locks are released.
    pub(super) fn append(
        self: &Arc<Self>,
        events: impl Iterator<Item = Shown>,
        wake_list: &mut WakeList,
    ) {
        let mut state = self.lock();
        state.window.append(events);
        state.subscribers.notify(self, wake_list);
    }

    /// Appends a gap: events are missing after `position`.
    pub(super) fn append_gap(
        self: &Arc<Self>,
        gap: Gap,
        position: Position,
        now: Instant,
        wake_list: &mut WakeList,
    ) {
        let mut state = self.lock();
        state.window.push_gap(gap, position, GapSide::After, now);
        state.subscribers.notify(self, wake_list);
    }

    /// Continues after `floor` with a gap.
    pub(super) fn start_epoch(
        self: &Arc<Self>,
        gap: Gap,
        floor: Position,
        now: Instant,
        wake_list: &mut WakeList,
    ) {
        let mut state = self.lock();
        state.window.start_epoch(gap, floor, now);
        state.subscribers.notify(self, wake_list);
    }

    /// Marks the feed as ended: nothing is appended any longer.
    pub(super) fn end(self: &Arc<Self>, wake_list: &mut WakeList) {
        let mut state = self.lock();
        state.ended = true;
        state.subscribers.notify(self, wake_list);
    }

    /// Adds a subscriber of a shard and returns its key.
    pub(super) fn join(
        &self,
        offset: Offset,
        position: Position,
        notifier: Option<Arc<ShardNotifier<Self>>>,
    ) -> u32 {
        self.touch();
        let mut state = self.lock();
        state.window.count_readers(|readers| readers + 1);
        state.subscribers.add(offset, position, notifier)
    }

    /// Bytes of the feed without the events that it shares with the buffer.
    pub(super) fn overhead(&self) -> usize {
        self.lock().window.overhead()
    }

    /// Number of entries and bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        let state = self.lock();
        (state.window.len(), state.window.bytes())
    }
}

impl State {
    /// Position after which every event is in the window.
    pub(super) fn floor(&self) -> Position {
        Position {
            tag: self.window.tag(),
            seq: self.window.floor(),
            fingerprint: None,
        }
    }

    /// Returns the window and the record of a cursor.
    pub(super) fn of_cursor(&mut self, key: u32) -> (&Window, &mut Subscriber) {
        (&self.window, self.subscribers.of_cursor(key))
    }
}

impl Evict for Feed {
    fn last_read(&self) -> u64 {
        self.last_read.load(Ordering::Relaxed)
    }

    fn evict_half(&self) -> bool {
        self.lock().window.evict_half()
    }
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Feed({})", self.filters)
    }
}
