//! The window of a feed: entries in order, bounded, addressed by a running index.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::sse::encode::Frame;
use crate::sse::{Component, Event, Tag, Tier};

use super::budget::{Budget, Charge};
use super::{Gap, Limits};

/// An event as the log holds it: the payload and its encoding without a route's name, shared by all who want it.
#[derive(Debug)]
pub struct Logged {
    /// The event.
    pub event: Event,
    /// Its encoding under its own name.
    pub frame: Frame,
    /// What it takes of the budget; given back when the last holder lets go.
    _charge: Charge,
}

impl Logged {
    /// Encodes an event, once for everyone. The payload then lies in the frame's own bytes where it can.
    #[must_use]
    pub(super) fn new(mut event: Event, budget: &Arc<Budget>) -> Arc<Self> {
        let frame = Frame::event(event.name.as_ref(), &event.data, event.position);
        let own = match frame.payload(&event.data) {
            Some(payload) => {
                event.data = payload;
                0
            }
            None => event.data.len(),
        };
        let bytes = frame.len() + own + event.subject.len() + size_of::<Self>();
        Arc::new(Self { event, frame, _charge: budget.charge(bytes) })
    }
}

/// One entry of a window.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    /// An event as the feed's route shows it.
    Event { logged: Arc<Logged>, frame: Frame, tier: Tier },
    /// Events are missing between the neighbours; every reader that passes is told.
    Gap {
        gap: Gap,
        /// Where a reader stands once it has been told.
        position: Component,
        since: Instant,
    },
}

impl Entry {
    pub(super) fn position(&self) -> Component {
        match self {
            Self::Event { logged, .. } => logged.event.position,
            Self::Gap { position, .. } => *position,
        }
    }

    pub(super) fn received(&self) -> Instant {
        match self {
            Self::Event { logged, .. } => logged.event.received,
            Self::Gap { since, .. } => *since,
        }
    }
}

#[derive(Debug)]
struct Slot {
    entry: Entry,
    /// Events before this entry since the feed began: lag is a difference of two of these.
    events_before: u64,
    /// Bytes before this entry since the feed began.
    bytes_before: u64,
}

/// What an entry costs beside the bytes that it shares with the log.
const ENTRY_BYTES: usize = size_of::<Slot>();

/// Entries from `base` to `end`, all with sequence numbers above `floor`.
#[derive(Debug)]
pub(super) struct Window {
    slots: VecDeque<Slot>,
    base: u64,
    events_end: u64,
    bytes_end: u64,
    /// The first index of the present tag; earlier entries are of a stream that is gone.
    epoch: u64,
    /// Which numbers they are now.
    tag: Tag,
    /// Everything after this sequence number that ever matched is here.
    floor: u64,
    limits: Limits,
    budget: Arc<Budget>,
}

/// Where a reader stands, in running totals: the next entry, and what came before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) index: u64,
    pub(super) events: u64,
    pub(super) bytes: u64,
}

impl Window {
    /// An empty window of everything after `floor`.
    pub(super) fn new(limits: Limits, floor: Component, budget: Arc<Budget>) -> Self {
        let Component { tag, seq: floor, .. } = floor;
        Self { slots: VecDeque::new(), base: 0, events_end: 0, bytes_end: 0, epoch: 0, tag, floor, limits, budget }
    }

    /// Appends an event; older ones make place.
    pub(super) fn push_event(&mut self, logged: Arc<Logged>, frame: Frame, tier: Tier) {
        let (received, bytes) = (logged.event.received, frame.len() as u64);
        self.push(Entry::Event { logged, frame, tier });
        self.events_end += 1;
        self.bytes_end += bytes;
        self.evict(received);
    }

    /// Marks a place where events are missing. `position` is where a reader stands once it has been told.
    pub(super) fn push_gap(&mut self, gap: Gap, position: Component, now: Instant) {
        self.push(Entry::Gap { gap, position, since: now });
    }

    fn push(&mut self, entry: Entry) {
        // Where another epoch begins the numbers may too: a stream was restored from an older snapshot.
        debug_assert!(
            self.end() <= self.epoch
                || self.slots.back().is_none_or(|last| last.entry.position().seq <= entry.position().seq),
            "a window ascends"
        );
        self.budget.add(ENTRY_BYTES);
        let (events_before, bytes_before) = (self.events_end, self.bytes_end);
        self.slots.push_back(Slot { entry, events_before, bytes_before });
    }

    /// Begins another tag with a gap that tells of it: what stood here can be read, but no id of the new tag is found
    /// in it.
    pub(super) fn begin_epoch(&mut self, gap: Gap, floor: Component, now: Instant) {
        self.epoch = self.end();
        self.tag = floor.tag;
        self.push_gap(gap, floor, now);
        self.floor = floor.seq;
    }

    /// The place where the present tag begins, or the oldest that is left of it.
    pub(super) fn epoch_place(&self) -> Place {
        self.place_of(self.epoch.max(self.base))
    }

    /// Whether the present numbers begin with this entry.
    pub(super) fn begins_at(&self, index: u64) -> bool {
        index == self.epoch
    }

    /// Whether the present numbers are of this tag.
    pub(super) fn tag_is(&self, tag: Tag) -> bool {
        self.tag == tag
    }

    /// Drops what the limits do not allow at this time.
    pub(super) fn evict(&mut self, now: Instant) {
        while let Some(first) = self.slots.front() {
            let events = self.events_end - first.events_before;
            let bytes = self.bytes_end - first.bytes_before;
            let old = now.saturating_duration_since(first.entry.received()) > self.limits.age;
            // One event larger than the whole window still passes through it.
            let full = events > self.limits.events as u64 || (bytes > self.limits.bytes as u64 && events > 1);
            if !old && !full {
                return;
            }
            self.pop();
        }
    }

    /// Drops the oldest half; false when nothing was there.
    pub(super) fn halve(&mut self) -> bool {
        let count = self.slots.len().div_ceil(2);
        for _ in 0..count {
            self.pop();
        }
        count > 0
    }

    fn pop(&mut self) {
        let Some(slot) = self.slots.pop_front() else { return };
        if self.base >= self.epoch {
            // Behind a gap nothing can be promised to a reader that stands before it.
            let passed = u64::from(matches!(slot.entry, Entry::Gap { .. }) && self.base > self.epoch);
            self.floor = self.floor.max(slot.entry.position().seq + passed);
        }
        self.base += 1;
        self.budget.sub(ENTRY_BYTES);
    }

    /// The place after the last entry.
    pub(super) fn end_place(&self) -> Place {
        Place { index: self.end(), events: self.events_end, bytes: self.bytes_end }
    }

    /// The index after the last entry.
    pub(super) fn end(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    /// The place of the oldest entry.
    pub(super) fn oldest_place(&self) -> Place {
        self.place_of(self.base)
    }

    fn place_of(&self, index: u64) -> Place {
        match self.slot(index) {
            Some(slot) => Place { index, events: slot.events_before, bytes: slot.bytes_before },
            None => self.end_place(),
        }
    }

    fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(index.checked_sub(self.base)?).ok()?)
    }

    /// The entry at an index.
    pub(super) fn get(&self, index: u64) -> Option<&Entry> {
        self.slot(index).map(|slot| &slot.entry)
    }

    /// The place behind this sequence number of the present tag, if everything after it is still here.
    pub(super) fn place_after(&self, seq: u64) -> Option<Place> {
        if seq < self.floor {
            return None;
        }
        let skipped = usize::try_from(self.epoch.saturating_sub(self.base)).unwrap_or(usize::MAX).min(self.slots.len());
        let (mut low, mut high) = (skipped, self.slots.len());
        while low < high {
            let middle = low.midpoint(high);
            let slot = &self.slots[middle];
            // A gap stands behind its position: a reader that stopped there has not been told yet.
            let passed = match slot.entry {
                Entry::Event { .. } => slot.entry.position().seq <= seq,
                // Whoever has an id of this tag has been told how it began.
                Entry::Gap { .. } if self.base + middle as u64 == self.epoch => true,
                Entry::Gap { .. } => slot.entry.position().seq < seq,
            };
            if passed {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Some(self.place_of(self.base + low as u64))
    }

    /// Everything after this sequence number that ever matched is here.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// Bytes of the entries alone: what a feed holds beside the events that it shares.
    pub(super) fn overhead(&self) -> usize {
        self.slots.len() * ENTRY_BYTES
    }

    /// Entries held.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes held: of the entries, and of the encoded events behind them.
    pub(super) fn bytes(&self) -> usize {
        let frames = self.slots.front().map_or(0, |first| self.bytes_end - first.bytes_before);
        self.slots.len() * ENTRY_BYTES + usize::try_from(frames).unwrap_or(usize::MAX)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.budget.sub(self.slots.len() * ENTRY_BYTES);
    }
}
