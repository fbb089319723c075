//! The window of a feed: entries in order, bounded, addressed by a running index.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::sse::encode::Frame;
use crate::sse::{Position, SourceTag, Tier};

use super::budget::Budget;
use super::encoded::{EncodedEvent, LOOKS, look_into};
use super::options::Appended;
use super::{Gap, GapReason, Limits};

/// One entry of a window.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    /// An event as the feed's route shows it.
    Event {
        logged: Arc<EncodedEvent>,
        /// Its encoding under the name that the route gives it, if it gives it one.
        named: Option<Arc<Frame>>,
        tier: Tier,
    },
    /// Events are missing between the neighbours; every reader that passes is told. Apart: there are few, and they are
    /// larger than events.
    Gap(Box<GapEntry>),
}

/// A gap between entries.
#[derive(Clone, Debug)]
pub(super) struct GapEntry {
    pub(super) gap: Gap,
    /// Where a reader stands once it has been told.
    pub(super) position: Position,
    pub(super) place: GapSide,
    pub(super) since: Instant,
}

/// Where the events are that a gap tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GapSide {
    /// Behind its position: whoever stands there has not been told yet.
    Behind,
    /// Before its position: whoever stands there has been told.
    Before,
    /// Before its position, where the numbers begin again: nobody has what follows from elsewhere.
    Renumbered,
}

impl Entry {
    pub(super) fn position(&self) -> Position {
        match self {
            Self::Event { logged, .. } => logged.event.position,
            Self::Gap(marked) => marked.position,
        }
    }

    /// Whether a reader that has everything up to this sequence number needs it no more.
    pub(super) fn is_passed(&self, seq: u64) -> bool {
        match self {
            Self::Gap(marked) if marked.place == GapSide::Behind => marked.position.seq < seq,
            Self::Event { .. } | Self::Gap(_) => self.position().seq <= seq,
        }
    }

    /// The event as it is shown here.
    pub(super) fn frame(&self) -> Option<&Frame> {
        match self {
            Self::Event { logged, named, .. } => Some(named.as_deref().unwrap_or(&logged.frame)),
            Self::Gap(_) => None,
        }
    }

    fn logged(&self) -> Option<&Arc<EncodedEvent>> {
        match self {
            Self::Event { logged, .. } => Some(logged),
            Self::Gap(_) => None,
        }
    }

    pub(super) fn received(&self) -> Instant {
        match self {
            Self::Event { logged, .. } => logged.event.received,
            Self::Gap(marked) => marked.since,
        }
    }
}

#[derive(Debug)]
struct Slot {
    entry: Entry,
    /// Before this entry since the feed began: lag is a difference of two of these.
    before: Totals,
}

/// What an entry costs beside the bytes that it shares with the log.
const ENTRY_BYTES: usize = size_of::<Slot>();

/// What a gap costs more.
const GAP_BYTES: usize = size_of::<GapEntry>();

/// Entries from `base` to `end`, all with sequence numbers above `floor`.
#[derive(Debug)]
pub(super) struct Window {
    slots: VecDeque<Slot>,
    /// How many of them are gaps.
    gaps: usize,
    base: u64,
    end: Totals,
    /// Where the present numbers begin, if they did not begin with the feed; earlier entries are of others.
    epoch: Option<Epoch>,
    /// Which numbers they are now.
    tag: SourceTag,
    /// Everything after this sequence number that ever matched is here.
    floor: u64,
    limits: Limits,
    budget: Arc<Budget>,
    /// What of the budget it has: all that it holds, once a mutator is done.
    counted: usize,
    /// The index of the newest event that is critical.
    critical: Option<u64>,
}

/// Running totals since the feed began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) events: u64,
    pub(super) bytes: u64,
    /// Events that gaps say are missing, where they say how many.
    pub(super) lost: u64,
    /// Gaps that do not.
    pub(super) unknown: u64,
}

/// Where a reader stands: the next entry, and what came before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offset {
    pub(super) index: u64,
    pub(super) before: Totals,
}

/// How the present numbers began: kept apart from the entries, since it must be told to whoever stood before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Epoch {
    /// Of the entry that tells it.
    pub(super) place: Offset,
    /// Behind that entry.
    pub(super) behind: Offset,
    pub(super) gap: Gap,
    /// Where a reader stands once it has been told.
    pub(super) position: Position,
}

impl Totals {
    /// What is missing between an earlier place and this one, if anything.
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
    /// An empty window of everything after `floor`.
    pub(super) fn new(limits: Limits, floor: Position, budget: Arc<Budget>) -> Self {
        let Position {
            tag, seq: floor, ..
        } = floor;
        let (slots, end) = (VecDeque::new(), Totals::default());
        Self {
            slots,
            gaps: 0,
            base: 0,
            end,
            epoch: None,
            tag,
            floor,
            limits,
            budget,
            counted: 0,
            critical: None,
        }
    }

    /// Says where an empty window begins.
    pub(super) fn begin(&mut self, floor: Position) {
        debug_assert!(
            self.slots.is_empty(),
            "what stands in a window is behind its floor"
        );
        (self.tag, self.floor) = (floor.tag, floor.seq);
    }

    /// Promises nothing up to this sequence number any more: something that matched there was never here.
    pub(super) fn forget(&mut self, seq: u64) {
        self.floor = self.floor.max(seq);
    }

    /// Makes room for so many events more, as far as the limits let them stay.
    pub(super) fn reserve(&mut self, events: usize) {
        self.slots
            .reserve(events.min(self.limits.events.saturating_add(LOOKS)));
    }

    /// Appends events; older ones make place, once for some of them.
    pub(super) fn append(&mut self, events: impl IntoIterator<Item = Appended>) {
        let mut newest = None;
        for (
            nth,
            Appended {
                logged,
                named,
                tier,
            },
        ) in events.into_iter().enumerate()
        {
            if nth % LOOKS == 0 {
                newest.into_iter().for_each(|now| self.evict(now));
            }
            newest = newest.max(Some(logged.event.received));
            let bytes = named.as_deref().unwrap_or(&logged.frame).len() as u64;
            if tier == Tier::Critical {
                self.critical = Some(self.end());
            }
            self.push(Entry::Event {
                logged,
                named,
                tier,
            });
            self.end.events += 1;
            self.end.bytes += bytes;
        }
        newest.into_iter().for_each(|now| self.evict(now));
    }

    /// Marks that events are missing beside `position`.
    pub(super) fn push_gap(&mut self, gap: Gap, position: Position, place: GapSide, now: Instant) {
        self.push(Entry::Gap(Box::new(GapEntry {
            gap,
            position,
            place,
            since: now,
        })));
        match gap.missed {
            Some(missed) => self.end.lost += missed,
            None => self.end.unknown += 1,
        }
        self.count();
    }

    fn push(&mut self, entry: Entry) {
        // Where another epoch begins the numbers may too: a stream was restored from an older snapshot.
        debug_assert!(
            self.epoch
                .is_some_and(|epoch| self.end() <= epoch.place.index)
                || self
                    .slots
                    .back()
                    .is_none_or(|last| last.entry.position().seq <= entry.position().seq),
            "a window ascends"
        );
        self.gaps += usize::from(matches!(entry, Entry::Gap(_)));
        self.slots.push_back(Slot {
            entry,
            before: self.end,
        });
    }

    /// Counts what came and went in the budget, in one step: mostly as much has gone as has come.
    fn count(&mut self) {
        let held = self.overhead();
        match held.checked_sub(self.counted) {
            Some(0) => {}
            Some(more) => self.budget.add(more),
            None => self.budget.sub(self.counted - held),
        }
        self.counted = held;
    }

    /// Goes on behind `floor` with a gap that tells of it: what stood here can be read, but no id is found in it.
    pub(super) fn renew(&mut self, gap: Gap, floor: Position, now: Instant) {
        let place = self.end_place();
        // What expired is missing in the same numbers; anything else begins others, be it under the same tag.
        let renumbers = gap.reason != GapReason::Expired || floor.tag != self.tag;
        if renumbers {
            self.epoch = Some(Epoch {
                place,
                behind: place,
                gap,
                position: floor,
            });
        }
        self.push_gap(
            gap,
            floor,
            if renumbers {
                GapSide::Renumbered
            } else {
                GapSide::Before
            },
            now,
        );
        let behind = self.end_place();
        if let Some(epoch) = self.epoch.as_mut().filter(|_| renumbers) {
            epoch.behind = behind;
        }
        (self.tag, self.floor) = (floor.tag, floor.seq);
    }

    /// How the present numbers began, if they did not begin with the feed.
    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// Whether the numbers that a reader at this index has are the present ones.
    pub(super) fn is_present(&self, index: u64) -> bool {
        self.epoch.is_none_or(|epoch| epoch.place.index < index)
    }

    /// Drops what the limits do not allow at this time.
    pub(super) fn evict(&mut self, now: Instant) {
        while let Some(first) = self.slots.front() {
            let events = self.end.events - first.before.events;
            let bytes = self.end.bytes - first.before.bytes;
            let old = now.saturating_duration_since(first.entry.received()) > self.limits.age;
            // One event larger than the whole window still passes through it.
            let full = events > self.limits.events as u64
                || (bytes > self.limits.bytes as u64 && events > 1);
            if !old && !full {
                break;
            }
            self.pop();
        }
        self.count();
    }

    /// Drops the oldest half; false when nothing was there.
    pub(super) fn halve(&mut self) -> bool {
        let count = self.slots.len().div_ceil(2);
        for _ in 0..count {
            self.pop();
        }
        self.count();
        count > 0
    }

    fn pop(&mut self) {
        let Some(slot) = self.slots.pop_front() else {
            return;
        };
        if self.base >= self.epoch_index() {
            // Behind a gap nothing can be promised to a reader that stands before it.
            let passed = u64::from(
                matches!(&slot.entry, Entry::Gap(marked) if marked.place == GapSide::Behind),
            );
            self.floor = self.floor.max(slot.entry.position().seq + passed);
        }
        self.base += 1;
        self.gaps -= usize::from(matches!(slot.entry, Entry::Gap(_)));
    }

    /// The place after the last entry.
    pub(super) fn end_place(&self) -> Offset {
        Offset {
            index: self.end(),
            before: self.end,
        }
    }

    /// The index after the last entry.
    pub(super) fn end(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    /// The place of the oldest entry.
    pub(super) fn oldest_place(&self) -> Offset {
        self.place_of(self.base)
    }

    fn place_of(&self, index: u64) -> Offset {
        match self.slot(index) {
            Some(slot) => Offset {
                index,
                before: slot.before,
            },
            None => self.end_place(),
        }
    }

    fn epoch_index(&self) -> u64 {
        self.epoch.map_or(0, |epoch| epoch.place.index)
    }

    fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots
            .get(usize::try_from(index.checked_sub(self.base)?).ok()?)
    }

    /// The entry at an index.
    pub(super) fn get(&self, index: u64) -> Option<&Entry> {
        self.slot(index).map(|slot| &slot.entry)
    }

    /// Looks at the next events that are about to be copied, so many at most (see [`look_into`]).
    pub(super) fn look_ahead(&self, index: u64) {
        let from = usize::try_from(index.saturating_sub(self.base))
            .unwrap_or(usize::MAX)
            .min(self.slots.len());
        let to = from.saturating_add(LOOKS).min(self.slots.len());
        let some = self.slots.range(from..to);
        EncodedEvent::look_at(some.clone().filter_map(|slot| slot.entry.logged()));
        look_into(some.filter_map(|slot| slot.entry.frame()));
    }

    /// The indexes, latest first, of the newest event of each subject from an index on.
    pub(super) fn newest(&self, from: u64) -> Vec<u64> {
        let mut subjects = HashSet::new();
        let mut is_newest = |entry: &Entry| match entry {
            Entry::Event { logged, .. } => subjects.insert(logged.event.subject.clone()),
            Entry::Gap(_) => false,
        };
        let indexes = (from.max(self.base)..self.end()).rev();
        indexes
            .filter(|index| self.get(*index).is_some_and(&mut is_newest))
            .collect()
    }

    /// Whether a critical event stands behind this index.
    pub(super) fn is_critical_behind(&self, index: u64) -> bool {
        self.critical.is_some_and(|critical| critical > index)
    }

    /// The place behind this sequence number of the present tag, if everything after it is still here.
    pub(super) fn place_after(&self, seq: u64) -> Option<Offset> {
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
            if slot.entry.is_passed(seq) {
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

    /// Which numbers they are now.
    pub(super) fn tag(&self) -> SourceTag {
        self.tag
    }

    /// The check of the event at this sequence number, if it is here.
    pub(super) fn check_at(&self, seq: u64) -> Option<u16> {
        let place = self.place_after(seq.checked_sub(1)?)?;
        let found = (place.index..self.end()).map_while(|index| self.get(index));
        let event = found
            .into_iter()
            .find(|entry| matches!(entry, Entry::Event { .. }))?;
        Some(event.position())
            .filter(|position| position.seq == seq)?
            .check
    }

    /// Bytes of the entries alone: what a feed holds beside the events that it shares.
    pub(super) fn overhead(&self) -> usize {
        self.slots.len() * ENTRY_BYTES + self.gaps * GAP_BYTES
    }

    /// Entries held.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes held: of the entries, and of the encoded events behind them.
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
        self.budget.sub(self.counted);
        while !self.slots.is_empty() {
            let some = self.slots.len().min(LOOKS);
            EncodedEvent::look_at(
                self.slots
                    .range(..some)
                    .filter_map(|slot| slot.entry.logged()),
            );
            self.slots.drain(..some);
        }
    }
}
