//! Blocks of a feed that compresses: events that were appended together, compressed once.
//!
//! ```text
//! window:  | e | e   e   e   e | e | gap | e   e |    entries, each append by the bars
//! blocks:  | 1 |       2       | 3 |     |   4   |    of at most 32 KiB
//! ```
//!
//! The first reader of a block compresses it, with no lock held; all others send the same bytes. Most
//! readers take whole blocks: an idle one always has everything up to the end of one. A reader that
//! takes a part of a block, because it skips events or resumes in the middle, takes single events,
//! whose own blocks are kept with the event for the readers of all feeds ([`CodedEvents::Event`]).
//!
//! Below `min_rate`, the bytes per second that all readers of the feed would receive, blocks are
//! stored: compressing for few readers costs as much as for many.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::encoding::coding::Block;
use crate::encoding::{Coding, Envelope, Framing};
use crate::event::{Position, Tier};

use super::budget::Budget;
use super::compression::{CodedBlock, Compression};
use super::encoded::EncodedEvent;
use super::options::FeedEvent;

/// Events that were appended together, as every reader that takes all of them receives them.
#[derive(Debug)]
pub struct EventBlock {
    events: Box<[FeedEvent]>,
    framing: Framing,
    coding: Coding,
    envelope: Envelope,
    is_compressed: bool,
    /// Index of the first event.
    pub(super) first: u64,
    /// Bytes that count in lag.
    pub(super) counted_bytes: u64,
    /// Earliest time of receipt.
    pub(super) received: Instant,
    pub(super) has_telemetry: bool,
    /// Numbers of the events that traces record.
    pub(super) samples: Box<[NonZeroU32]>,
    budget: Arc<Budget>,
    coded: OnceLock<CodedBlock>,
}

/// Events that a reader receives in one block.
#[derive(Debug)]
pub enum CodedEvents {
    /// All events of a block.
    Block(Arc<EventBlock>),
    /// One event, in a coding.
    Event(Arc<EncodedEvent>, Framing, Coding),
}

/// Blocks of the events in a window.
#[derive(Debug)]
pub(super) struct Blocks {
    compression: Compression,
    framing: Framing,
    envelope: Envelope,
    budget: Arc<Budget>,
    blocks: VecDeque<Arc<EventBlock>>,
    /// Events of the append in progress, and the index of the first.
    open: Vec<FeedEvent>,
    open_from: u64,
    open_bytes: u64,
    /// Number of readers of the feed.
    pub(super) readers: usize,
    rate: Rate,
}

/// Mean rate of bytes, in which recent ones weigh more.
#[derive(Debug, Default)]
struct Rate {
    per_second: f64,
    at: Option<Instant>,
}

/// 32 KiB: the size of one write of an event stream.
const BLOCK_MAX: u64 = 32 * 1024;

/// 10 s: the mean follows a burst after a second, and forgets it within half a minute.
const RATE_SECONDS: f64 = 10.0;

/// Bytes of a block with one event, without what it shares.
pub(super) const BLOCK_BYTES: usize = size_of::<EventBlock>()
    + size_of::<FeedEvent>()
    + size_of::<Arc<EventBlock>>()
    + 2 * size_of::<usize>();

impl EventBlock {
    /// Number of events.
    pub(super) fn len(&self) -> u64 {
        self.events.len() as u64
    }

    /// Index after the last event.
    pub(super) fn end(&self) -> u64 {
        self.first + self.len()
    }

    /// Position of the first event.
    pub(super) fn first_position(&self) -> Option<Position> {
        self.events.first().map(FeedEvent::position)
    }

    /// The last event.
    pub(super) fn last(&self) -> Option<&FeedEvent> {
        self.events.last()
    }

    /// Envelope around its bytes.
    pub(super) fn envelope(&self) -> Envelope {
        self.envelope
    }

    pub(super) fn is_compressed(&self) -> bool {
        self.is_compressed
    }

    /// Bytes that every reader receives. The first call makes them; concurrent ones wait for it.
    #[must_use]
    pub fn coded(&self) -> &Block {
        if let ([event], true) = (&*self.events, self.is_compressed)
            && event.named.is_none()
        {
            // Feeds that overlap share it.
            return event.encoded.coded(self.framing, self.coding);
        }
        let coded = self.coded.get_or_init(|| {
            let events = self.events.iter();
            let bytes = events.map(|event| event.encoding(self.framing).bytes());
            let plain = bytes.collect::<Vec<_>>().concat();
            let block = self.coding.block(&plain, self.is_compressed, self.envelope);
            CodedBlock::new(block, &self.budget.reserve(0))
        });
        coded.block()
    }
}

impl CodedEvents {
    /// Bytes that every reader receives. The first call makes them; the caller holds no lock.
    #[must_use]
    pub fn coded(&self) -> &Block {
        match self {
            Self::Block(block) => block.coded(),
            Self::Event(encoded, framing, coding) => encoded.coded(*framing, *coding),
        }
    }
}

impl Blocks {
    /// Creates the blocks of an empty window.
    pub(super) fn new(
        compression: Compression,
        framing: Framing,
        envelope: Envelope,
        budget: Arc<Budget>,
    ) -> Self {
        Self {
            compression,
            framing,
            envelope,
            budget,
            blocks: VecDeque::new(),
            open: Vec::new(),
            open_from: 0,
            open_bytes: 0,
            readers: 0,
            rate: Rate::default(),
        }
    }

    /// Adds an event to the block of this append. `is_last`: it ends its readers.
    pub(super) fn push(&mut self, index: u64, event: &FeedEvent, is_last: bool) {
        let bytes = event.counted_bytes();
        if self.open_bytes + bytes > BLOCK_MAX {
            self.seal();
        }
        if self.open.is_empty() {
            self.open_from = index;
        }
        self.open_bytes += bytes;
        self.open.push(event.clone());
        if is_last {
            self.seal();
        }
    }

    /// Ends a block: the append is complete, or a gap follows.
    pub(super) fn seal(&mut self) {
        let Some(received) = self.open.iter().map(FeedEvent::received).min() else {
            return;
        };
        let counted_bytes = std::mem::take(&mut self.open_bytes);
        let all_readers = counted_bytes as f64 * self.readers as f64;
        let rate = self.rate.add(all_readers, received);
        let min_rate = self.compression.min_rate;
        let is_telemetry = |event: &FeedEvent| event.tier == Tier::Telemetry;
        self.blocks.push_back(Arc::new(EventBlock {
            has_telemetry: self.open.iter().any(is_telemetry),
            samples: self.open.iter().filter_map(FeedEvent::sample).collect(),
            // No capacity remains that a large append has left.
            events: std::mem::take(&mut self.open).into(),
            framing: self.framing,
            coding: self.compression.coding,
            envelope: self.envelope,
            is_compressed: min_rate == 0 || rate >= min_rate as f64,
            first: self.open_from,
            counted_bytes,
            received,
            budget: Arc::clone(&self.budget),
            coded: OnceLock::new(),
        }));
    }

    /// Removes blocks whose events are all before the index.
    pub(super) fn evict(&mut self, base: u64) {
        while self.blocks.front().is_some_and(|block| block.end() <= base) {
            self.blocks.pop_front();
        }
    }

    /// Returns the block that has the event at this index.
    pub(super) fn of(&self, index: u64) -> Option<&Arc<EventBlock>> {
        let next = self.blocks.partition_point(|block| block.end() <= index);
        self.blocks.get(next).filter(|block| block.first <= index)
    }

    /// Coding of the blocks.
    pub(super) fn coding(&self) -> Coding {
        self.compression.coding
    }
}

impl Rate {
    /// Adds bytes and returns the rate.
    fn add(&mut self, bytes: f64, now: Instant) -> f64 {
        let before = self.at.replace(now).unwrap_or(now);
        let seconds = now.saturating_duration_since(before).as_secs_f64();
        self.per_second *= (-seconds / RATE_SECONDS).exp();
        self.per_second += bytes / RATE_SECONDS;
        self.per_second
    }
}

#[cfg(test)]
mod tests;
