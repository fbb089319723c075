//! What all windows take together: bytes, counted exactly, and feeds, each within one bound.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// How many bytes all windows may hold, the least recently read of which shrink first; and how many feeds there may be.
#[derive(Default)]
pub struct Budget {
    used: AtomicUsize,
    max: AtomicUsize,
    feeds: AtomicUsize,
    feeds_max: AtomicUsize,
    windows: Mutex<Vec<Weak<dyn Shrink>>>,
}

/// A window that can give memory back.
pub(super) trait Shrink: Send + Sync {
    /// When it was last read, as the number of that read among all.
    fn last_read(&self) -> u64;
    /// Drops the oldest half of what it holds; false if nothing was left to drop.
    fn shrink(&self) -> bool;
}

/// Bytes taken from the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// A budget of so many bytes and feeds.
    #[must_use]
    pub fn new(bytes_max: usize, feeds_max: usize) -> Arc<Self> {
        let budget = Self::default();
        budget.set_max(bytes_max, feeds_max);
        Arc::new(budget)
    }

    /// Changes the bounds; they take effect with the next event and the next feed.
    pub fn set_max(&self, bytes_max: usize, feeds_max: usize) {
        self.max.store(bytes_max, Ordering::Relaxed);
        self.feeds_max.store(feeds_max, Ordering::Relaxed);
    }

    /// Feeds that live now.
    #[must_use]
    pub fn feeds(&self) -> usize {
        self.feeds.load(Ordering::Relaxed)
    }

    /// Counts a new feed in, if there may be one more.
    pub(super) fn add_feed(&self) -> bool {
        let most = self.feeds_max.load(Ordering::Relaxed);
        let counted =
            self.feeds.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |feeds| (feeds < most).then_some(feeds + 1));
        counted.is_ok()
    }

    pub(super) fn sub_feed(&self) {
        self.feeds.fetch_sub(1, Ordering::Relaxed);
    }

    /// Bytes held now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The bound.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    pub(super) fn charge(self: &Arc<Self>, bytes: usize) -> Charge {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Charge { budget: self.clone(), bytes }
    }

    pub(super) fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn join(&self, window: Weak<dyn Shrink>) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        // Forget the dead before the list grows: its length stays within twice the living.
        if windows.len() == windows.capacity() {
            windows.retain(|window| window.strong_count() > 0);
        }
        windows.push(window);
    }

    /// Shrinks windows until the bound holds. Called after appending, with no lock held.
    pub(super) fn enforce(&self) {
        if self.used() <= self.max() {
            return;
        }
        let mut windows: Vec<Arc<dyn Shrink>> = {
            let mut all = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|window| window.strong_count() > 0);
            all.iter().filter_map(Weak::upgrade).collect()
        };
        // Cached: others read meanwhile, and a sort must not see a key change.
        windows.sort_by_cached_key(|window| window.last_read());
        while self.used() > self.max() {
            // One round over all, the least recently read first; the most recently read gives last.
            let mut gave = false;
            for window in &windows {
                gave |= window.shrink();
                if self.used() <= self.max() {
                    break;
                }
            }
            if !gave {
                return;
            }
        }
    }
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Budget({} of {})", self.used(), self.max())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.sub(self.bytes);
    }
}
