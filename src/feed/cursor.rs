//! A reader's place in a feed: what it reads next, and how far behind it is.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::sse::Component;
use crate::subject::FilterSet;

use super::feed::Feed;
use super::replay::{Ticket, Turn};
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
    /// The reader is behind the window and reads the archive.
    replay: Option<Box<Ticket>>,
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
        Self { standing: Standing { origin, feed, key }, place, position, skip: position, replay: None }
    }

    pub(super) fn feed(&self) -> &Feed {
        &self.standing.feed
    }

    /// Goes to behind a position, if everything after it is in the window.
    pub(super) fn seek(&mut self, position: Component) -> bool {
        let mut state = self.standing.feed.lock();
        let Some(place) = state.window.place_after(position.seq) else { return false };
        (self.place, self.position, self.skip) = (place, position, position);
        state.readers.moved(self.standing.key, place, position);
        true
    }

    /// Begins to read the archive behind a position, or else what is left in the window; false if it can only do that.
    pub(super) fn replay(&mut self, position: Component) -> bool {
        self.replay = self.standing.origin.enter(&self.standing.feed, position.seq);
        (self.position, self.skip) = (position, position);
        let mut state = self.standing.feed.lock();
        if self.replay.is_none() {
            self.place = state.window.oldest_place();
        }
        state.readers.moved(self.standing.key, self.place, position);
        self.replay.is_some()
    }

    /// Whether it reads the archive.
    #[must_use]
    pub fn is_replaying(&self) -> bool {
        self.replay.is_some()
    }

    /// The position of the last event that was read, or where the reader began.
    #[must_use]
    pub fn position(&self) -> Component {
        self.position
    }

    /// Adds items to the batch until it holds `budget` bytes, at least one if there is one; otherwise notes whom to wake.
    pub fn poll_read(&mut self, context: &mut Context<'_>, batch: &mut Batch, budget: usize) -> Poll<Read> {
        if self.replay.is_some() {
            let read = self.poll_replay(context, batch, budget);
            if self.replay.is_some() || read.is_ready() {
                return read;
            }
        }
        self.poll_window(context, batch, budget)
    }

    fn poll_window(&mut self, context: &mut Context<'_>, batch: &mut Batch, budget: usize) -> Poll<Read> {
        let feed = self.standing.feed.clone();
        let mut state = feed.lock();
        let before = batch.items.len();
        if self.place.index < state.window.oldest_place().index {
            let oldest = state.window.oldest_place();
            let missed = oldest.events - self.place.events;
            if missed > 0 && state.window.tag_is(self.position.tag) {
                // Overtaken: what fell out of the window is still in the archive.
                let end = state.window.end_place();
                drop(state);
                if let Some(ticket) = self.standing.origin.enter(&feed, self.position.seq) {
                    self.replay = Some(ticket);
                    self.place = end;
                    return self.poll_replay(context, batch, budget);
                }
                state = feed.lock();
            }
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
            let (index, position) = (self.place.index, entry.position());
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
                    if state.window.begins_at(index) {
                        // The numbers begin again: what is passed by is no longer what the reader has.
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

    /// Reads with a replay until the window is reached. Pending without a ticket: go on in the window.
    fn poll_replay(&mut self, context: &mut Context<'_>, batch: &mut Batch, budget: usize) -> Poll<Read> {
        let feed = self.standing.feed.clone();
        loop {
            let Some(ticket) = &self.replay else { return Poll::Pending };
            let (floor, current) = {
                let mut state = feed.lock();
                // Also woken by the window: it may begin another tag meanwhile.
                state.readers.wait(self.standing.key, context.waker());
                (state.window.floor(), state.window.tag_is(self.position.tag))
            };
            let (mut bytes, position) = (0, &mut self.position);
            let turn = if current {
                ticket.poll(floor, context.waker(), |logged| {
                    let (frame, tier) = feed.profile.show(logged);
                    *position = logged.event.position;
                    bytes += frame.len();
                    batch.items.push(Item::Event { frame, position: *position, tier, received: logged.event.received });
                    bytes < budget
                })
            } else {
                Turn::Changed
            };
            match turn {
                Turn::Some => {
                    feed.lock().readers.moved(self.standing.key, self.place, self.position);
                    return Poll::Ready(Read::Some);
                }
                Turn::Wait => return Poll::Pending,
                Turn::Reached(through) => {
                    let mut state = feed.lock();
                    // The window may have moved on since its floor was read.
                    if let Some(place) = state.window.place_after(through) {
                        self.place = place;
                        self.skip = Component { tag: self.position.tag, seq: through, check: None };
                        state.readers.moved(self.standing.key, place, self.position);
                        drop(state);
                        self.replay = None;
                    }
                }
                Turn::Expired(after) => {
                    self.position = Component { tag: self.position.tag, seq: after, check: None };
                    let gap = Gap { reason: GapReason::Expired, missed: None };
                    batch.items.push(Item::Gap { gap, position: self.position });
                    return Poll::Ready(Read::Some);
                }
                Turn::Changed => {
                    // What the feed holds of the new tag follows; its first entry tells the reader why.
                    self.place = feed.lock().window.epoch_place();
                    self.replay = None;
                }
            }
        }
    }

    /// Whether nothing waits to be read.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        self.replay.is_none() && self.place.index >= self.standing.feed.lock().window.end()
    }

    /// Moves the position of a reader that has everything up to where its source is known to be. True if it moved.
    pub fn checkpoint(&mut self) -> bool {
        if self.replay.is_some() {
            return false;
        }
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
