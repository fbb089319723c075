//! Where a cursor stands, seen by others than its reader.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::feed::feed::Feed;
use crate::sse::Position;
use crate::subject::FilterSet;

/// How far a reader is behind the head of its feed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Events that wait.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long the oldest of them has waited.
    pub age: Duration,
}

/// A view of where a cursor stands, for others than its reader.
#[derive(Clone, Debug)]
pub struct CursorProbe {
    pub(super) feed: Arc<Feed>,
    pub(super) key: usize,
}

impl CursorProbe {
    /// What the reader reads.
    #[must_use]
    pub fn filters(&self) -> &FilterSet {
        &self.feed.filters
    }

    /// How far the reader is behind; nothing once it has left.
    #[must_use]
    pub fn lag(&self, now: Instant) -> Lag {
        let state = self.feed.lock();
        let Some((place, _)) = state.readers.standing(self.key) else {
            return Lag::default();
        };
        let end = state.window.end_place();
        let oldest = state
            .window
            .get(place.index.max(state.window.oldest_place().index));
        Lag {
            events: end.before.events - place.before.events,
            bytes: end.before.bytes - place.before.bytes,
            age: oldest.map_or(Duration::ZERO, |entry| {
                now.saturating_duration_since(entry.received())
            }),
        }
    }

    /// The position that the reader has reached; nothing once it has left.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.feed
            .lock()
            .readers
            .standing(self.key)
            .map(|(_, position)| position)
    }
}
