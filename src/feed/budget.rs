//! Memory budget of all windows and feeds: one bound on bytes, one on the number of feeds.
//!
//! Bytes are counted when they are allocated (`Reservation`, `FeedSlot`, and the windows' own
//! counts) and released on drop, so `used` is exact. After each append the writer calls
//! `Budget::enforce`: while the bound is exceeded, it evicts the older half of the least recently
//! read window, then of the next one. A reader of an evicted window continues from the archive, or
//! receives a gap. The counters are atomics; only the list of windows has a lock, which is held for
//! no longer than a copy of the list.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::encoding::Envelope;
use crate::subject::FilterSet;

/// Bytes of a feed without its window: its state, its table of readers, its entries in the tables
/// of the source. Measured with 20,000 feeds of one filter: 0.9 KiB from JetStream, 7.8 KiB from
/// core subjects.
pub const FEED_BYTES: usize = 1024;

/// Bytes per filter of a feed: the subscription with its queue, and its entries in the tables of
/// the source.
pub const FILTER_BYTES: usize = 8 * 1024;

/// Feeds use at most `1 / FEEDS_SHARE` of [`Budget::max`]; the rest is for events.
const FEEDS_SHARE: usize = 2;

/// Bytes that a feed with these filters reserves.
#[must_use]
pub fn feed_bytes(filters: &FilterSet) -> usize {
    let filters = filters.filters().iter();
    FEED_BYTES
        + filters
            .map(|filter| FILTER_BYTES + 3 * filter.as_str().len())
            .sum::<usize>()
}

/// Number of feeds with one filter that fit into a budget of `bytes_max`: the default of
/// `limits.feeds`.
#[must_use]
pub const fn feeds_of(bytes_max: usize) -> usize {
    let feeds = bytes_max / FEEDS_SHARE / (FEED_BYTES + FILTER_BYTES);
    if feeds == 0 { 1 } else { feeds }
}

/// Bounds and current use of bytes and feeds. The least recently read windows are evicted first.
#[derive(Default)]
pub struct Budget {
    used: AtomicUsize,
    max: AtomicUsize,
    feeds: AtomicUsize,
    feeds_max: AtomicUsize,
    /// Part of `used` that feeds reserve.
    feed_bytes: AtomicUsize,
    windows: Mutex<Vec<Weak<dyn Evict>>>,
    /// Envelope around the encoded events that it counts.
    envelope: Envelope,
}

/// A window that can be evicted.
pub(super) trait Evict: Send + Sync {
    /// Order of the last read: the number of that read among all reads.
    fn last_read(&self) -> u64;
    /// Evicts the older half; false if it was empty.
    fn evict_half(&self) -> bool;
}

/// Bytes of the budget, released on drop.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Budget>,
    bytes: usize,
}

/// Slot of one feed, released on drop.
#[derive(Debug)]
pub(super) struct FeedSlot {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// Creates a budget with these bounds, for events without an envelope.
    #[must_use]
    pub fn new(bytes_max: usize, feeds_max: usize) -> Arc<Self> {
        Self::with_envelope(bytes_max, feeds_max, Envelope::NONE)
    }

    /// Creates a budget with these bounds. Events that it counts are encoded with this envelope.
    #[must_use]
    pub fn with_envelope(bytes_max: usize, feeds_max: usize, envelope: Envelope) -> Arc<Self> {
        let budget = Self {
            envelope,
            ..Self::default()
        };
        budget.set_max(bytes_max, feeds_max);
        Arc::new(budget)
    }

    /// Envelope around encoded events.
    pub(super) fn envelope(&self) -> Envelope {
        self.envelope
    }

    /// Changes the bounds. They apply from the next event and the next feed on.
    pub fn set_max(&self, bytes_max: usize, feeds_max: usize) {
        self.max.store(bytes_max, Ordering::Relaxed);
        self.feeds_max.store(feeds_max, Ordering::Relaxed);
    }

    /// Number of feeds now.
    #[must_use]
    pub fn feeds(&self) -> usize {
        self.feeds.load(Ordering::Relaxed)
    }

    /// Reserves a slot for a feed with these filters, unless a bound is reached. The first feed
    /// always gets one.
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
        // Added before it is compared, so that two concurrent calls cannot both take the last slot.
        let held = self.feed_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.add(bytes);
        let slot = FeedSlot {
            budget: self.clone(),
            bytes,
        };
        (held <= bytes_max || before == 0).then_some(slot)
    }

    /// Bytes used now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Bound on bytes.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    pub(super) fn reserve(self: &Arc<Self>, bytes: usize) -> Reservation {
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

    pub(super) fn register(&self, window: Weak<dyn Evict>) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        // Remove dropped windows before the list grows: its length stays within twice the number of
        // live windows.
        if windows.len() == windows.capacity() {
            windows.retain(|window| window.strong_count() > 0);
        }
        windows.push(window);
    }

    /// Evicts from windows until the bound holds. Called after an append, with no lock held.
    pub(super) fn enforce(&self) {
        if self.used() <= self.max() {
            return;
        }
        let mut windows: Vec<Arc<dyn Evict>> = {
            let mut all = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|window| window.strong_count() > 0);
            all.iter().filter_map(Weak::upgrade).collect()
        };
        // The keys are cached: other threads read meanwhile, and a sort must not see a key change.
        windows.sort_by_cached_key(|window| window.last_read());
        while self.used() > self.max() {
            // One round over all windows, the least recently read first.
            let mut evicted = false;
            for window in &windows {
                evicted |= window.evict_half();
                if self.used() <= self.max() {
                    break;
                }
            }
            if !evicted {
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

impl Reservation {
    /// Reserves more bytes of the same budget.
    pub(super) fn add(&self, bytes: usize) -> Self {
        self.budget.reserve(bytes)
    }

    /// Budget that it is a part of.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Envelope around the encoded events that it counts.
    pub(super) fn envelope(&self) -> Envelope {
        self.budget.envelope
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
    fn feeds_reserve_at_most_half_of_the_budget_and_release_it() {
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
        assert!(held.len() < 10, "a feed with more filters reserves more");
        drop(held);
        let small = Budget::new(1, 1000);
        let first = small.add_feed(&one);
        assert!(
            first.is_some() && small.add_feed(&one).is_none(),
            "the first feed always gets a slot"
        );
        assert_eq!(small.feeds(), 1, "a rejected feed is not counted");
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
