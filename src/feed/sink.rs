//! Direct sink: a non-blocking writer for an idle subscriber, used by the dispatcher.
//!
//! A transport implements [`DirectSink`] for a socket, or for the send queue of a stream. The
//! dispatcher calls it only while the subscriber is idle
//! ([`Cursor::allow_direct`](super::Cursor::allow_direct)): nothing else is on its way to the
//! client. The bytes are the same for all subscribers with the same offset ([`EncodedRun`]).

use std::fmt::Debug;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use crate::encoding::coding::BlockSize;
use crate::encoding::{Enveloped, RunBuilder};
use crate::event::{Position, Tier};

use super::batch::COPIED_MAX;
use super::blocks::{Blocks, EventBlock};
use super::window::{Entry, Offset, Window};

/// Non-blocking writer for one subscriber, called on the subscriber's thread.
pub trait DirectSink: Debug + Send + Sync {
    /// Returns true if the client may receive this run: its event stream does not end, and skips
    /// none of these events.
    fn admits(&self, run: &EncodedRun) -> bool;

    /// Accepts all of a run, or nothing. Only after [`Self::admits`].
    fn send(self: Arc<Self>, run: &EncodedRun) -> SendOutcome;
}

/// Result of [`DirectSink::send`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendOutcome {
    /// The run is in the client's socket; the subscriber remains idle.
    Sent,
    /// The run is queued and written with the other runs of the same connection after this step;
    /// the subscriber remains idle.
    Queued,
    /// The run is accepted and only partly in the socket; the task is woken to write the rest.
    Partial,
    /// The run is not accepted; the task is woken and reads it.
    Rejected,
}

/// All events after the offset of an idle subscriber, encoded: the same bytes for all of them there.
#[derive(Debug)]
pub struct EncodedRun {
    /// Encoded events. Those of a feed that compresses are there after `complete`.
    pub bytes: Enveloped,
    /// Sizes of the events of a feed that compresses.
    pub size: Option<BlockSize>,
    blocks: SmallVec<[Arc<EventBlock>; 1]>,
    /// Number of events.
    pub events: u64,
    /// Earliest time of receipt among them.
    pub received: Instant,
    /// Some of them are telemetry, which the load level may skip.
    pub has_telemetry: bool,
    /// Numbers of the events that traces record.
    pub samples: Vec<NonZeroU32>,
    /// Position of the first event.
    pub(super) first: Position,
    /// Position of the last event.
    pub(super) last: Position,
    /// Index of the first event.
    pub(super) index: u64,
    /// Offset after the last event.
    pub(super) end: Offset,
}

impl EncodedRun {
    /// Encodes the events from an index to the end of the window; `None` if a subscriber has to read
    /// them itself.
    pub(super) fn from_window(window: &Window, index: u64, copy: &mut RunBuilder) -> Option<Self> {
        if let Some(blocks) = window.blocks() {
            return Self::from_blocks(window, blocks, index);
        }
        let (end, framing) = (window.end_offset(), window.framing());
        let (events, mut bytes, mut received, mut has_telemetry) =
            (end.index.checked_sub(index)?, 0, None, false);
        let mut samples = Vec::new();
        for index in index..end.index {
            let Some(Entry::Event(event)) = window.get(index) else {
                return None;
            };
            bytes += event.encoding(framing).len();
            if events > 1 && bytes > COPIED_MAX {
                return None;
            }
            has_telemetry |= event.tier == Tier::Telemetry;
            samples.extend(event.sample());
            let oldest = received.get_or_insert(event.received());
            *oldest = (*oldest).min(event.received());
        }
        let encoding = |index| window.get(index)?.encoding(framing);
        let run = if events == 1 {
            encoding(index)?.clone().into_enveloped()
        } else {
            copy.begin(window.envelope(), bytes);
            (index..end.index)
                .filter_map(encoding)
                .for_each(|encoding| copy.push(encoding));
            copy.finish()
        };
        let (first, last) = (
            window.get(index)?.position(),
            window.get(end.index.checked_sub(1)?)?.position(),
        );
        Some(Self {
            bytes: run,
            size: None,
            blocks: SmallVec::new(),
            events,
            received: received?,
            has_telemetry,
            samples,
            first,
            last,
            index,
            end,
        })
    }

    /// Collects the blocks from an index to the end of the window; `None` if a subscriber has to read
    /// them itself.
    fn from_blocks(window: &Window, blocks: &Blocks, index: u64) -> Option<Self> {
        let end = window.end_offset();
        let mut run: SmallVec<[Arc<EventBlock>; 1]> = SmallVec::new();
        let (mut next, mut bytes) = (index, 0);
        while next < end.index {
            let block = blocks.of(next).filter(|block| block.first == next)?;
            (next, bytes) = (block.end(), bytes + block.counted_bytes);
            run.push(Arc::clone(block));
            if run.len() > 1 && bytes > COPIED_MAX as u64 {
                return None;
            }
        }
        let (first, last) = (run.first()?, run.last()?);
        Some(Self {
            bytes: Enveloped::default(),
            size: None,
            events: end.index - index,
            received: run.iter().map(|block| block.received).min()?,
            has_telemetry: run.iter().any(|block| block.has_telemetry),
            first: first.first_position()?,
            last: last.last()?.position(),
            index,
            end,
            samples: run
                .iter()
                .flat_map(|block| block.samples.iter().copied())
                .collect(),
            blocks: run,
        })
    }

    /// Compresses the blocks that no reader has compressed. The caller holds no lock.
    pub(super) fn complete(&mut self, copy: &mut RunBuilder) {
        let (Some(first), None) = (self.blocks.first(), self.size) else {
            return;
        };
        let coded = self.blocks.iter().map(|block| block.coded());
        let sizes = coded.clone().map(|coded| coded.size());
        let size = sizes.reduce(BlockSize::and);
        self.bytes = if self.blocks.len() == 1 {
            first.coded().bytes().clone()
        } else {
            let sent = size.map_or(0, |size| size.sent);
            copy.begin(first.envelope(), sent);
            coded.for_each(|coded| copy.put(coded.bytes().content()));
            copy.finish()
        };
        self.size = size;
    }

    /// True if the run continues from this offset, within the subscriber's epoch.
    pub(super) fn starts_at(&self, offset: Offset, position: Position) -> bool {
        self.index == offset.index
            && position.tag == self.first.tag
            && position.seq < self.first.seq
    }
}
