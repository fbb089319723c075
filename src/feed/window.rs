//! Window of a feed: recent events and gaps in order, bounded, addressed by a running index.
//!
//! ```text
//! index:   base                          epoch.start                       end()
//!          | older epoch: other numbers  | current epoch: `tag`, ascending  |
//! floor:   every matching event after this sequence number of the current epoch is in the window
//! ```
//!
//! Entries are only appended at the end and evicted at the front. Each entry stores the running
//! `Totals` before it, so lag (events, bytes) and the number of missed events are a difference of
//! two `Offset`s, even if the entries in between were evicted. A gap entry lies on one side of
//! its position (`GapSide`): a client that resumes from exactly that position either still has to
//! receive the gap or has received it.
//!
//! An epoch starts when sequence numbers are not continued (stream recreated or restored). Its
//! start is kept apart from the entries, because readers from before it must receive its gap even
//! after eviction.
//!
//! Invariant: `charged` equals the bytes that the window holds whenever a method returns.

mod entry;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::encoding::{Envelope, Framing};
use crate::event::{Fingerprint, Position, SourceTag, Tier};

use super::blocks::{BLOCK_BYTES, Blocks};
use super::budget::Budget;
use super::options::{FeedEvent, FeedOptions, Shown};
use super::prefetch;
use super::{Gap, GapReason, Limits};

pub(super) use entry::{Entry, GapEntry, GapSide};

#[derive(Debug)]
struct Slot {
    entry: Entry,
    /// Totals before this entry since the feed started; lag is a difference of two.
    before: Totals,
}

/// Bytes of an entry without what it shares with the buffer.
const ENTRY_BYTES: usize = size_of::<Slot>();

/// Additional bytes of a gap.
const GAP_BYTES: usize = size_of::<GapEntry>();

/// Entries from `base` to `end`, all with sequence numbers above `floor`.
#[derive(Debug)]
pub(super) struct Window {
    slots: VecDeque<Slot>,
    /// Number of gap entries.
    gaps: usize,
    base: u64,
    end: Totals,
    /// Start of the current epoch, unless it started with the feed.
    epoch: Option<Epoch>,
    /// Tag of the current epoch.
    tag: SourceTag,
    /// Every matching event after this sequence number is in the window.
    floor: u64,
    limits: Limits,
    budget: Arc<Budget>,
    /// Envelope of its events, as in the budget.
    envelope: Envelope,
    /// Framing of the feed.
    framing: Framing,
    /// Readers stop at an event that ends them.
    is_finite: bool,
    /// Bytes charged to the budget.
    charged: usize,
    /// Index of the newest critical event.
    critical: Option<u64>,
    /// Blocks of its events, if the feed compresses.
    blocks: Option<Box<Blocks>>,
}

/// Running totals since the feed started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) events: u64,
    pub(super) bytes: u64,
    /// Missing events of gaps with a known count.
    pub(super) lost: u64,
    /// Gaps without a known count.
    pub(super) unknown: u64,
}

/// Offset of a reader: index of the next entry, and the totals before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offset {
    pub(super) index: u64,
    pub(super) before: Totals,
}

/// Start of the current epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Epoch {
    /// Offset of the entry that reports it.
    pub(super) start: Offset,
    /// Offset after that entry.
    pub(super) after: Offset,
    pub(super) gap: Gap,
    /// Position of a reader after the gap.
    pub(super) position: Position,
}

impl Totals {
    /// Gap between an earlier offset and this one; `None` if nothing is missing.
    pub(super) fn missed_since(self, earlier: Self) -> Option<Gap> {
        let missed = (self.events - earlier.events) + (self.lost - earlier.lost);
        let is_known = self.unknown == earlier.unknown;
        let gap = Gap {
            reason: GapReason::Slow,
            missed: is_known.then_some(missed),
        };
        (missed > 0 || !is_known).then_some(gap)
    }
}

impl Window {
    /// Creates an empty window of everything after `floor`.
    pub(super) fn new(options: &FeedOptions, floor: Position, budget: Arc<Budget>) -> Self {
        let Position {
            tag, seq: floor, ..
        } = floor;
        let (slots, end) = (VecDeque::new(), Totals::default());
        let envelope = options.framing.envelope(budget.envelope());
        let blocks = options.compression.map(|compression| {
            let budget = Arc::clone(&budget);
            Box::new(Blocks::new(compression, options.framing, envelope, budget))
        });
        Self {
            blocks,
            slots,
            gaps: 0,
            base: 0,
            end,
            epoch: None,
            tag,
            floor,
            limits: options.window,
            envelope,
            framing: options.framing,
            is_finite: options.is_finite,
            budget,
            charged: 0,
            critical: None,
        }
    }

    /// Sets the start of an empty window.
    pub(super) fn begin(&mut self, floor: Position) {
        debug_assert!(self.slots.is_empty(), "only an empty window can be started");
        (self.tag, self.floor) = (floor.tag, floor.seq);
    }

    /// Raises the floor: matching events up to this sequence number are missing.
    pub(super) fn raise_floor(&mut self, seq: u64) {
        self.floor = self.floor.max(seq);
    }

    /// Reserves space for more events, up to the limits.
    pub(super) fn reserve(&mut self, events: usize) {
        self.slots
            .reserve(events.min(self.limits.events.saturating_add(prefetch::AHEAD)));
    }

    /// Appends events and evicts older ones, once per [`prefetch::AHEAD`] events.
    pub(super) fn append(&mut self, events: impl IntoIterator<Item = Shown>) {
        let mut newest = None;
        for (nth, shown) in events.into_iter().enumerate() {
            if nth % prefetch::AHEAD == 0 {
                newest.into_iter().for_each(|now| self.evict(now));
            }
            let event = match shown {
                Shown::Event(event) => event,
                Shown::Gap { encoded, reason } => {
                    let (at, received) = (encoded.event.position, encoded.event.received);
                    self.push_gap(Gap::one(reason), at, GapSide::Before, received);
                    newest = newest.max(Some(received));
                    continue;
                }
            };
            newest = newest.max(Some(event.received()));
            let bytes = event.counted_bytes();
            if event.tier == Tier::Critical {
                self.critical = Some(self.end());
            }
            if self.blocks.is_some() {
                self.add_to_block(&event);
            }
            self.push(Entry::Event(event));
            self.end.events += 1;
            self.end.bytes += bytes;
        }
        self.seal_block();
        newest.into_iter().for_each(|now| self.evict(now));
    }

    fn add_to_block(&mut self, event: &FeedEvent) {
        let (index, is_last) = (self.end(), self.ends(event));
        if let Some(blocks) = &mut self.blocks {
            blocks.push(index, event, is_last);
        }
    }

    fn seal_block(&mut self) {
        if let Some(blocks) = &mut self.blocks {
            blocks.seal();
        }
    }

    /// Blocks of its events, if the feed compresses.
    pub(super) fn blocks(&self) -> Option<&Blocks> {
        self.blocks.as_deref()
    }

    /// Counts readers of a feed that compresses.
    pub(super) fn count_readers(&mut self, count: impl FnOnce(usize) -> usize) {
        if let Some(blocks) = &mut self.blocks {
            blocks.readers = count(blocks.readers);
        }
    }

    /// Appends a gap on one side of `position`.
    pub(super) fn push_gap(&mut self, gap: Gap, position: Position, side: GapSide, now: Instant) {
        self.seal_block();
        self.push(Entry::Gap(Box::new(GapEntry {
            gap,
            position,
            side,
            since: now,
        })));
        match gap.missed {
            Some(missed) => self.end.lost += missed,
            None => self.end.unknown += 1,
        }
        self.update_budget();
    }

    fn push(&mut self, entry: Entry) {
        // Sequence numbers may restart with an epoch: a stream restored from an older snapshot.
        debug_assert!(
            self.epoch
                .is_some_and(|epoch| self.end() <= epoch.start.index)
                || self
                    .slots
                    .back()
                    .is_none_or(|last| last.entry.position().seq <= entry.position().seq),
            "sequence numbers in a window ascend"
        );
        self.gaps += usize::from(matches!(entry, Entry::Gap(_)));
        self.slots.push_back(Slot {
            entry,
            before: self.end,
        });
    }

    /// Charges the budget with the difference since the last call; often it is zero.
    fn update_budget(&mut self) {
        let held = self.overhead();
        match held.checked_sub(self.charged) {
            Some(0) => {}
            Some(more) => self.budget.add(more),
            None => self.budget.sub(self.charged - held),
        }
        self.charged = held;
    }

    /// Continues after `floor` with a gap. The entries can still be read, but positions in them are
    /// no longer found.
    pub(super) fn start_epoch(&mut self, gap: Gap, floor: Position, now: Instant) {
        let offset = self.end_offset();
        // Expired events are missing within the same epoch; any other gap starts one, even with the
        // same tag.
        let starts_epoch = gap.reason != GapReason::Expired || floor.tag != self.tag;
        if starts_epoch {
            self.epoch = Some(Epoch {
                start: offset,
                after: offset,
                gap,
                position: floor,
            });
        }
        self.push_gap(
            gap,
            floor,
            if starts_epoch {
                GapSide::NewEpoch
            } else {
                GapSide::Before
            },
            now,
        );
        let after = self.end_offset();
        if let Some(epoch) = self.epoch.as_mut().filter(|_| starts_epoch) {
            epoch.after = after;
        }
        (self.tag, self.floor) = (floor.tag, floor.seq);
    }

    /// Start of the current epoch, unless it started with the feed.
    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// True if a reader at this index is in the current epoch.
    pub(super) fn is_current_epoch(&self, index: u64) -> bool {
        self.epoch.is_none_or(|epoch| epoch.start.index < index)
    }

    /// Evicts entries beyond the limits.
    pub(super) fn evict(&mut self, now: Instant) {
        while let Some(first) = self.slots.front() {
            let events = self.end.events - first.before.events;
            let bytes = self.end.bytes - first.before.bytes;
            let old = now.saturating_duration_since(first.entry.received()) > self.limits.age;
            // One event larger than the window still passes through it.
            let full = events > self.limits.events as u64
                || self.gaps > self.limits.events
                || (bytes > self.limits.bytes as u64 && events > 1);
            if !old && !full {
                break;
            }
            self.pop();
        }
        self.update_budget();
    }

    /// Evicts the older half; false if the window is empty.
    pub(super) fn evict_half(&mut self) -> bool {
        let count = self.slots.len().div_ceil(2);
        for _ in 0..count {
            self.pop();
        }
        self.update_budget();
        count > 0
    }

    fn pop(&mut self) {
        let Some(slot) = self.slots.pop_front() else {
            return;
        };
        if self.base >= self.epoch_index() {
            // After an evicted gap, completeness cannot be promised to a reader before it.
            let passed = u64::from(
                matches!(&slot.entry, Entry::Gap(gap_entry) if gap_entry.side == GapSide::After),
            );
            self.floor = self.floor.max(slot.entry.position().seq + passed);
        }
        self.base += 1;
        self.gaps -= usize::from(matches!(slot.entry, Entry::Gap(_)));
        if let Some(blocks) = &mut self.blocks {
            blocks.evict(self.base);
        }
    }

    /// Offset after the last entry.
    pub(super) fn end_offset(&self) -> Offset {
        Offset {
            index: self.end(),
            before: self.end,
        }
    }

    /// Index after the last entry.
    pub(super) fn end(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    /// Framing of its events.
    pub(super) fn framing(&self) -> Framing {
        self.framing
    }

    /// True if the event ends its readers.
    pub(super) fn ends(&self, event: &FeedEvent) -> bool {
        self.is_finite && event.encoded.event.is_end
    }

    /// Envelope of its events.
    pub(super) fn envelope(&self) -> Envelope {
        self.envelope
    }

    /// Offset of the oldest entry.
    pub(super) fn oldest_offset(&self) -> Offset {
        self.offset_of(self.base)
    }

    fn offset_of(&self, index: u64) -> Offset {
        match self.slot(index) {
            Some(slot) => Offset {
                index,
                before: slot.before,
            },
            None => self.end_offset(),
        }
    }

    fn epoch_index(&self) -> u64 {
        self.epoch.map_or(0, |epoch| epoch.start.index)
    }

    fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots
            .get(usize::try_from(index.checked_sub(self.base)?).ok()?)
    }

    /// Entry at an index.
    pub(super) fn get(&self, index: u64) -> Option<&Entry> {
        self.slot(index).map(|slot| &slot.entry)
    }

    /// Prefetches up to [`prefetch::AHEAD`] events that are about to be copied.
    pub(super) fn prefetch_from(&self, index: u64) {
        let from = usize::try_from(index.saturating_sub(self.base))
            .unwrap_or(usize::MAX)
            .min(self.slots.len());
        let to = from.saturating_add(prefetch::AHEAD).min(self.slots.len());
        let some = self.slots.range(from..to);
        prefetch::events(some.clone().filter_map(|slot| slot.entry.encoded()));
        prefetch::encodings(some.filter_map(|slot| slot.entry.known_encoding(self.framing)));
    }

    /// Indexes of the newest event of each subject, from an index on, latest first.
    pub(super) fn newest(&self, from: u64) -> Vec<u64> {
        let mut subjects = HashSet::new();
        let mut is_newest = |entry: &Entry| match entry {
            Entry::Event(event) => subjects.insert(event.encoded.event.subject.clone()),
            Entry::Gap(_) => false,
        };
        let indexes = (from.max(self.base)..self.end()).rev();
        indexes
            .filter(|index| self.get(*index).is_some_and(&mut is_newest))
            .collect()
    }

    /// True if a critical event follows after this index.
    pub(super) fn has_critical_after(&self, index: u64) -> bool {
        self.critical.is_some_and(|critical| critical > index)
    }

    /// Offset after this sequence number of the current epoch, if every later event is in the
    /// window.
    pub(super) fn offset_after(&self, seq: u64) -> Option<Offset> {
        if seq < self.floor {
            return None;
        }
        let skipped = usize::try_from(self.epoch_index().saturating_sub(self.base))
            .unwrap_or(usize::MAX)
            .min(self.slots.len());
        let (mut low, mut high) = (skipped, self.slots.len());
        while low < high {
            let middle = low.midpoint(high);
            let slot = &self.slots[middle];
            if slot.entry.is_at_or_before(seq) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Some(self.offset_of(self.base + low as u64))
    }

    /// Position directly before the last events of the current epoch, as many as `count`; `None` if
    /// the window has fewer.
    pub(super) fn position_before_last(&self, count: u64) -> Option<Position> {
        let before = self.end.events.checked_sub(count)?;
        let first = self
            .slots
            .partition_point(|slot| slot.before.events < before);
        // Gaps have the same totals as the event after them.
        let (first, event) =
            (first..self.slots.len()).find_map(|nth| match &self.slots[nth].entry {
                Entry::Event(event) => Some((nth, event)),
                Entry::Gap(_) => None,
            })?;
        if self.slots[first].before.events != before
            || self.base + (first as u64) < self.epoch_index()
        {
            return None;
        }
        let previous = first
            .checked_sub(1)
            .filter(|nth| self.base + (*nth as u64) >= self.epoch_index())
            .map(|nth| &self.slots[nth].entry);
        Some(match previous {
            Some(Entry::Event(previous)) => previous.position(),
            _ => Position {
                seq: event.position().seq.saturating_sub(1),
                fingerprint: None,
                ..event.position()
            },
        })
    }

    /// Sequence number after which every matching event is in the window.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// Tag of the current epoch.
    pub(super) fn tag(&self) -> SourceTag {
        self.tag
    }

    /// Fingerprint of the event at this sequence number, if it is in the window.
    pub(super) fn fingerprint_at(&self, seq: u64) -> Option<Fingerprint> {
        let offset = self.offset_after(seq.checked_sub(1)?)?;
        let found = (offset.index..self.end()).map_while(|index| self.get(index));
        let event = found
            .into_iter()
            .find(|entry| matches!(entry, Entry::Event(_)))?;
        Some(event.position())
            .filter(|position| position.seq == seq)?
            .fingerprint
    }

    /// Bytes of the entries, without the encoded events that the feed shares.
    pub(super) fn overhead(&self) -> usize {
        // At most one block for each entry.
        let of_blocks = self.blocks.as_ref().map_or(0, |_| BLOCK_BYTES);
        self.slots.len() * (ENTRY_BYTES + of_blocks) + self.gaps * GAP_BYTES
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of the entries and of their encoded events.
    pub(super) fn bytes(&self) -> usize {
        let frames = self
            .slots
            .front()
            .map_or(0, |first| self.end.bytes - first.before.bytes);
        self.overhead() + usize::try_from(frames).unwrap_or(usize::MAX)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.budget.sub(self.charged);
        while !self.slots.is_empty() {
            let some = self.slots.len().min(prefetch::AHEAD);
            prefetch::events(
                self.slots
                    .range(..some)
                    .filter_map(|slot| slot.entry.encoded()),
            );
            self.slots.drain(..some);
        }
    }
}
