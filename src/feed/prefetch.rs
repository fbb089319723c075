//! Prefetches memory that a loop is about to use, so that its cache misses overlap.
//!
//! Readers of a replay or of a large window touch a million events, one cache miss each, if the
//! memory is not fetched ahead. The same holds for the sinks of ten thousand idle clients. The
//! functions here read one word per cache line into [`black_box`]: the loads of several objects
//! overlap, while updates of reference counts and writes wait for each other.

use std::hint::black_box;
use std::sync::Arc;

use super::batch::COPIED_EVENT_MAX;
use super::encoded::EncodedEvent;
use crate::encoding::Encoding;

/// Size of a cache line.
const CACHE_LINE_BYTES: usize = 64;

/// Number of events to prefetch: more than the loads a core has in flight, and few enough for its
/// L1 cache.
pub(super) const AHEAD: usize = 32;

/// Decides in a loop over a window at which index the next events are prefetched.
pub(super) struct Ahead {
    due: u64,
}

impl Ahead {
    /// Begins after the first event, which is usually the only one.
    pub(super) fn after_first(index: u64) -> Self {
        Self { due: index + 1 }
    }

    /// Prefetches nothing.
    pub(super) fn never() -> Self {
        Self { due: u64::MAX }
    }

    /// Returns true if [`AHEAD`] events from this index on are to be prefetched now.
    pub(super) fn is_due(&mut self, index: u64) -> bool {
        let is_due = index >= self.due;
        if is_due {
            self.due = index + AHEAD as u64;
        }
        is_due
    }
}

/// Prefetches events whose reference counts are about to be changed.
pub(super) fn events<'e>(events: impl Iterator<Item = &'e Arc<EncodedEvent>> + Clone) {
    // Pointers first: they are spread over memory too, and their loads should not wait for the
    // events.
    black_box(
        events
            .clone()
            .map(|encoded| Arc::as_ptr(encoded).addr())
            .fold(0, usize::wrapping_add),
    );
    black_box(
        events
            .map(|encoded| Arc::strong_count(encoded) + usize::from(encoded.event.tier.is_some()))
            .sum::<usize>(),
    );
}

/// Prefetches encodings that are about to be copied, every cache line of them.
pub(super) fn encodings<'e>(encodings: impl Iterator<Item = &'e Encoding>) {
    let touch = |encoding: &Encoding| {
        let bytes = encoding.bytes();
        bytes
            .iter()
            .step_by(CACHE_LINE_BYTES)
            .chain(bytes.last())
            .map(|byte| usize::from(*byte))
            .sum::<usize>()
    };
    // Larger encodings are shared, not copied.
    black_box(
        encodings
            .filter(|encoding| encoding.len() <= COPIED_EVENT_MAX)
            .map(touch)
            .sum::<usize>(),
    );
}

/// Prefetches the first cache line of shared objects: the reference counts and the first fields.
pub(super) fn shared<'s, T: ?Sized + 's>(all: impl Iterator<Item = &'s Arc<T>>) {
    black_box(all.map(Arc::strong_count).sum::<usize>());
}
