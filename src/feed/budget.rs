//! What all windows and feeds take together: bytes, counted exactly, and feeds, each within one bound.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::subject::FilterSet;

/// What a feed costs beside what is in its window: its own state, its readers' table, its entry in the tables of its
/// source. Measured with 20,000 feeds of one filter: 0.9 KiB from JetStream, 7.8 KiB from core subjects.
pub const FEED_BYTES: usize = 1024;

/// What each filter of a feed costs: its subscription with its queue, its entries in the tables of its source.
pub const FILTER_BYTES: usize = 8 * 1024;

/// Feeds take at most this part of [`Budget::max`]: the rest is left for events.
const FEEDS_SHARE: usize = 2;

/// Bytes of the budget that a feed of these filters takes.
#[must_use]
pub fn feed_bytes(filters: &FilterSet) -> usize {
    let filters = filters.filters().iter();
    FEED_BYTES
        + filters
            .map(|filter| FILTER_BYTES + 3 * filter.as_str().len())
            .sum::<usize>()
}

/// The most feeds of one filter that fit into a budget of so many bytes: the default of `limits.feeds`.
#[must_use]
pub const fn feeds_of(bytes_max: usize) -> usize {
    let feeds = bytes_max / FEEDS_SHARE / (FEED_BYTES + FILTER_BYTES);
    if feeds == 0 { 1 } else { feeds }
}

/// How many bytes all windows and feeds may hold, the least recently read of which shrink first; and how many feeds there
/// may be.
#[derive(Default)]
pub struct Budget {
    used: AtomicUsize,
    max: AtomicUsize,
    feeds: AtomicUsize,
    feeds_max: AtomicUsize,
    /// What of `used` is taken by feeds.
    feed_bytes: AtomicUsize,
    windows: Mutex<Vec<Weak<dyn Evict>>>,
}

/// A window that can give memory back.
pub(super) trait Evict: Send + Sync {
    /// When it was last read, as the number of that read among all.
    fn last_read(&self) -> u64;
    /// Drops the oldest half of what it holds; false if nothing was left to drop.
    fn shrink(&self) -> bool;
}

/// Bytes taken from the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Budget>,
    bytes: usize,
}

/// The place of one feed, given back when dropped.
#[derive(Debug)]
pub(super) struct FeedSlot {
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

    /// A place for a new feed of these filters, if there may be one more. The first one always may.
    pub(super) fn add_feed(self: &Arc<Self>, filters: &FilterSet) -> Option<FeedSlot> {
        let (feeds_max, bytes_max) = (
            self.feeds_max.load(Ordering::Relaxed),
            self.max() / FEEDS_SHARE,
        );
        let one_more = |feeds| (feeds < feeds_max).then_some(feeds + 1);
        let before = self
            .feeds
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()?;
        let bytes = feed_bytes(filters);
        // Counted before it is compared: two that come at once are not both the last.
        let held = self.feed_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.add(bytes);
        let place = FeedSlot {
            budget: self.clone(),
            bytes,
        };
        (held <= bytes_max || before == 0).then_some(place)
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

    pub(super) fn charge(self: &Arc<Self>, bytes: usize) -> Reservation {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Reservation {
            budget: self.clone(),
            bytes,
        }
    }

    pub(super) fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn join(&self, window: Weak<dyn Evict>) {
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
        let mut windows: Vec<Arc<dyn Evict>> = {
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

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.sub(self.bytes);
    }
}

impl Drop for FeedSlot {
    fn drop(&mut self) {
        self.budget.feeds.fetch_sub(1, Ordering::Relaxed);
        self.budget
            .feed_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
        self.budget.sub(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::Filter;

    fn filters(texts: &[&str]) -> FilterSet {
        FilterSet::new(texts.iter().map(|text| Filter::parse(text).unwrap()))
    }

    #[test]
    fn feeds_take_half_of_the_budget_and_give_it_back() {
        let (one, wide) = (filters(&["a"]), filters(&["a", "b", "c", "d"]));
        let budget = Budget::new(20 * feed_bytes(&one), 1000);
        let held: Vec<FeedSlot> = std::iter::from_fn(|| budget.add_feed(&one)).collect();
        assert_eq!(
            (held.len(), budget.feeds(), budget.used()),
            (10, 10, 10 * feed_bytes(&one))
        );
        drop(held);
        assert_eq!((budget.feeds(), budget.used()), (0, 0));
        let held: Vec<FeedSlot> = std::iter::from_fn(|| budget.add_feed(&wide)).collect();
        assert!(held.len() < 10, "a feed of more filters takes more");
        drop(held);
        let small = Budget::new(1, 1000);
        let first = small.add_feed(&one);
        assert!(
            first.is_some() && small.add_feed(&one).is_none(),
            "the first feed always has a place"
        );
        assert_eq!(small.feeds(), 1, "a feed that has none is not counted");
    }

    #[test]
    fn the_default_number_of_feeds_fits_into_the_budget() {
        let one = filters(&["orders.42"]);
        let budget = Budget::new(256 << 20, usize::MAX);
        let bytes = feeds_of(256 << 20) * feed_bytes(&one);
        assert!(
            bytes.abs_diff(budget.max() / 2) < budget.max() / 50,
            "{bytes}"
        );
        assert_eq!(feeds_of(0), 1);
    }
}
