//! View of a cursor's lag and position for other tasks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::Position;
use crate::feed::feed::Feed;
use crate::subject::FilterSet;

/// Distance between a reader and the head of its feed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Unread events.
    pub events: u64,
    /// Bytes of the unread events.
    pub bytes: u64,
    /// Age of the oldest unread event.
    pub age: Duration,
}

/// Shared view of a cursor: filters, lag and position.
#[derive(Clone, Debug)]
pub struct CursorProbe {
    pub(super) feed: Arc<Feed>,
    pub(super) key: u32,
}

impl CursorProbe {
    /// Filters of the reader's feed.
    #[must_use]
    pub fn filters(&self) -> &FilterSet {
        &self.feed.filters
    }

    /// Lag of the reader; zero after it has left.
    #[must_use]
    pub fn lag(&self, now: Instant) -> Lag {
        let state = self.feed.lock();
        let Some(offset) = state.subscribers.get(self.key).map(|known| known.offset) else {
            return Lag::default();
        };
        let end = state.window.end_offset();
        let oldest = state
            .window
            .get(offset.index.max(state.window.oldest_offset().index));
        Lag {
            events: end.before.events - offset.before.events,
            bytes: end.before.bytes - offset.before.bytes,
            age: oldest.map_or(Duration::ZERO, |entry| {
                now.saturating_duration_since(entry.received())
            }),
        }
    }

    /// Position of the reader; `None` after it has left.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        let state = self.feed.lock();
        state.subscribers.get(self.key).map(|known| known.position)
    }
}
