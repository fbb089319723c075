//! The events of one source that match one set of filters, as one route shows them: what cursors read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::sse::Position;
use crate::subject::FilterSet;

use super::budget::{Budget, Evict, FeedSlot};
use super::notify::WakeList;
use super::options::Appended;
use super::readers::Readers;
use super::window::{GapSide, Offset, Window};
use super::{FeedOptions, Gap};

/// One feed. Its writer is the log (or the subscription) that made it; its readers are cursors.
pub(super) struct Feed {
    pub(super) filters: FilterSet,
    pub(super) profile: Arc<FeedOptions>,
    state: Mutex<State>,
    /// The last reading, in ticks of the budget's order; only compared.
    last_read: AtomicU64,
    _place: FeedSlot,
}

/// Locked for a few lines at a time, never while a task is woken.
pub(super) struct State {
    pub(super) window: Window,
    pub(super) readers: Readers,
    /// Everything up to here is in the window or does not match, of a feed that counts on its own.
    pub(super) head: Option<Position>,
    /// The writer is gone: readers end when they have read what is left.
    pub(super) ended: bool,
}

/// Counts reads of all feeds, so that the least recently read one can be found.
static READS: AtomicU64 = AtomicU64::new(0);

impl Feed {
    /// A feed without events; none if there may be no more feeds.
    pub(super) fn new(
        filters: FilterSet,
        profile: Arc<FeedOptions>,
        floor: Position,
        budget: &Arc<Budget>,
    ) -> Option<Arc<Self>> {
        let place = budget.add_feed(&filters)?;
        let state = State {
            window: Window::new(profile.window, floor, budget.clone()),
            readers: Readers::default(),
            head: None,
            ended: false,
        };
        let (state, last_read) = (Mutex::new(state), AtomicU64::new(0));
        let feed = Arc::new(Self {
            filters,
            profile,
            state,
            last_read,
            _place: place,
        });
        feed.touch();
        let shrink: Arc<dyn Evict> = feed.clone();
        budget.join(Arc::downgrade(&shrink));
        Some(feed)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves a window that is whole: every mutator ends in one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn touch(&self) {
        self.last_read
            .store(READS.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Appends a batch; who waits is to be told when no lock is held.
    pub(super) fn append(
        self: &Arc<Self>,
        events: impl Iterator<Item = Appended>,
        news: &mut WakeList,
    ) {
        let mut state = self.lock();
        state.window.append(events);
        state.readers.tell(self, news);
    }

    /// Marks that events are missing after `position`.
    pub(super) fn append_gap(
        self: &Arc<Self>,
        gap: Gap,
        position: Position,
        now: Instant,
        news: &mut WakeList,
    ) {
        let mut state = self.lock();
        state.window.push_gap(gap, position, GapSide::Behind, now);
        state.readers.tell(self, news);
    }

    /// Goes on behind `floor`, with a gap that tells of it.
    pub(super) fn renew(
        self: &Arc<Self>,
        gap: Gap,
        floor: Position,
        now: Instant,
        news: &mut WakeList,
    ) {
        let mut state = self.lock();
        state.window.renew(gap, floor, now);
        state.readers.tell(self, news);
    }

    /// Says that nothing will ever be appended again.
    pub(super) fn end(self: &Arc<Self>, news: &mut WakeList) {
        let mut state = self.lock();
        state.ended = true;
        state.readers.tell(self, news);
    }

    /// Adds a reader.
    pub(super) fn join(&self, place: Offset, position: Position) -> usize {
        self.touch();
        self.lock().readers.add(place, position)
    }

    /// Bytes that it holds beside the events that it shares with the log.
    pub(super) fn overhead(&self) -> usize {
        self.lock().window.overhead()
    }

    /// Entries and bytes held.
    pub(super) fn size(&self) -> (usize, usize) {
        let state = self.lock();
        (state.window.len(), state.window.bytes())
    }
}

impl Evict for Feed {
    fn last_read(&self) -> u64 {
        self.last_read.load(Ordering::Relaxed)
    }

    fn shrink(&self) -> bool {
        self.lock().window.halve()
    }
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Feed({})", self.filters)
    }
}
