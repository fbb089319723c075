//! A reader's place in a feed: what it reads next, and how far behind it is.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::sse::Component;
use crate::subject::FilterSet;

use super::feed::Feed;
use super::source::Origin;
use super::window::{Entry, Place};
use super::{Batch, Gap, GapReason, Item};

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

/// One reader of one feed. It moves only when a read returns.
#[derive(Debug)]
pub struct Cursor {
    standing: Standing,
    place: Place,
    position: Component,
    /// Events up to here are passed in silence: the reader has them from elsewhere.
    skip: Component,
}

/// A view of where a cursor stands, for others than its reader.
#[derive(Clone, Debug)]
pub struct Standing {
    origin: Origin,
    feed: Arc<Feed>,
    key: usize,
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Items were added to the batch.
    Some,
    /// The reader has everything there will ever be.
    Ended,
}

impl Cursor {
    pub(super) fn new(origin: Origin, feed: Arc<Feed>, key: usize, place: Place, position: Component) -> Self {
        Self { standing: Standing { origin, feed, key }, place, position, skip: position }
    }

    /// The position of the last event that was read, or where the reader began.
    #[must_use]
    pub fn position(&self) -> Component {
        self.position
    }

    /// Adds items to the batch until it holds `budget` bytes, at least one if there is one; otherwise notes whom to wake.
    pub fn poll_read(&mut self, context: &mut Context<'_>, batch: &mut Batch, budget: usize) -> Poll<Read> {
        let feed = &self.standing.feed;
        let mut state = feed.lock();
        let before = batch.items.len();
        if self.place.index < state.window.oldest_place().index {
            let oldest = state.window.oldest_place();
            let missed = oldest.events - self.place.events;
            self.place = oldest;
            if missed > 0 {
                let gap = Gap { reason: GapReason::Slow, missed: Some(missed) };
                batch.items.push(Item::Gap { gap, position: self.position });
            }
        }
        let mut bytes = 0;
        while bytes < budget {
            let Some(entry) = state.window.get(self.place.index) else { break };
            let position = entry.position();
            self.place.index += 1;
            match entry {
                Entry::Event { frame, tier, .. } => {
                    self.place.events += 1;
                    self.place.bytes += frame.len() as u64;
                    if position.tag == self.skip.tag && position.seq <= self.skip.seq {
                        continue;
                    }
                    self.position = position;
                    bytes += frame.len();
                    batch.items.push(Item::Event {
                        frame: frame.clone(),
                        position,
                        tier: *tier,
                        received: entry.received(),
                    });
                }
                Entry::Gap { gap, .. } => {
                    self.position = position;
                    if position.seq < self.skip.seq {
                        // The numbers began again: what is passed by is no longer what the reader has.
                        self.skip = position;
                    }
                    batch.items.push(Item::Gap { gap: *gap, position });
                }
            }
        }
        debug_assert!(self.place.index <= state.window.end(), "a cursor never passes the head");
        state.readers.moved(self.standing.key, self.place, self.position);
        if batch.items.len() > before {
            drop(state);
            feed.touch();
            return Poll::Ready(Read::Some);
        }
        if state.ended {
            return Poll::Ready(Read::Ended);
        }
        state.readers.wait(self.standing.key, context.waker());
        Poll::Pending
    }

    /// Whether nothing waits to be read.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        self.place.index >= self.standing.feed.lock().window.end()
    }

    /// Moves the position of a reader that has everything up to where its source is known to be. True if it moved.
    pub fn checkpoint(&mut self) -> bool {
        let Some(head) = self.standing.origin.head_at_end(&self.standing.feed, self.place.index) else { return false };
        let moved = head.tag == self.position.tag && head.seq > self.position.seq;
        if moved {
            self.position = head;
            self.standing.feed.lock().readers.moved(self.standing.key, self.place, head);
        }
        moved
    }

    /// A view for others.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing.clone()
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        let last = {
            let mut state = self.standing.feed.lock();
            state.readers.remove(self.standing.key);
            state.readers.is_empty()
        };
        if last {
            self.standing.origin.left(&self.standing.feed);
        }
    }
}

impl Standing {
    /// What the reader reads.
    #[must_use]
    pub fn filters(&self) -> &FilterSet {
        &self.feed.filters
    }

    /// How far the reader is behind; nothing once it has left.
    #[must_use]
    pub fn lag(&self, now: Instant) -> Lag {
        let state = self.feed.lock();
        let Some((place, _)) = state.readers.standing(self.key) else { return Lag::default() };
        let end = state.window.end_place();
        let oldest = state.window.get(place.index.max(state.window.oldest_place().index));
        Lag {
            events: end.events - place.events,
            bytes: end.bytes - place.bytes,
            age: oldest.map_or(Duration::ZERO, |entry| now.saturating_duration_since(entry.received())),
        }
    }

    /// The position that the reader has reached; nothing once it has left.
    #[must_use]
    pub fn position(&self) -> Option<Component> {
        self.feed.lock().readers.standing(self.key).map(|(_, position)| position)
    }
}
