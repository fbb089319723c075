//! Where a reader that waits can be given what it waits for without a turn of its task.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use crate::sse::encode::{Chunk, RunBuilder};
use crate::sse::{Position, Tier};

use super::batch::COPIED_MAX;
use super::window::{Entry, Offset, Window};

/// Takes the events of one reader, on the thread that it reads on.
///
/// Only whoever reads knows whether they may be given past it: whether something else is still under way to its client,
/// whether it is to end, or is given less than everything.
pub trait DirectSink: Debug + Send + Sync {
    /// Looks at what it needs to take a piece: the memory of several outlets is fetched at once, while each that is used
    /// waits for its own. Whether it would take one; it may change its mind.
    fn look(&self) -> bool;

    /// Takes all of a piece or nothing of it.
    fn hand(self: Arc<Self>, piece: &EncodedRun) -> SendOutcome;
}

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendOutcome {
    /// It has reached the client's socket: the reader goes on waiting.
    Sent,
    /// It goes out with what others on the same connection are handed in this turn: the reader goes on waiting.
    Queued,
    /// It is taken, and not all of it has reached the socket: the reader is woken for the rest.
    Kept,
    /// The reader is woken, and reads it.
    Refused,
}

/// Events side by side, all that came since a reader began to wait: the same bytes for everyone that waits there.
#[derive(Debug)]
pub struct EncodedRun {
    /// Their encodings.
    pub chunk: Chunk,
    /// How many.
    pub events: u64,
    /// When this process received the oldest of them.
    pub received: Instant,
    /// Some of them are telemetry, which pressure thins.
    pub has_telemetry: bool,
    /// Where the first of them stands.
    pub(super) first: Position,
    /// Where the last of them stands.
    pub(super) last: Position,
    /// The index of the first.
    pub(super) index: u64,
    /// Behind the last.
    pub(super) end: Offset,
}

impl EncodedRun {
    /// What stands in a window from an index to its end; none where a reader must look at it itself.
    pub(super) fn cut(window: &Window, index: u64, copy: &mut RunBuilder) -> Option<Self> {
        let end = window.end_place();
        let (events, mut bytes, mut received, mut has_telemetry) =
            (end.index.checked_sub(index)?, 0, None, false);
        for index in index..end.index {
            let Some(entry @ Entry::Event { logged, tier, .. }) = window.get(index) else {
                return None;
            };
            bytes += entry.frame()?.len();
            if events > 1 && bytes > COPIED_MAX {
                return None;
            }
            has_telemetry |= *tier == Tier::Telemetry;
            let oldest = received.get_or_insert(logged.event.received);
            *oldest = (*oldest).min(logged.event.received);
        }
        let frame = |index| window.get(index).and_then(Entry::frame);
        let chunk = if events == 1 {
            frame(index)?.clone().into_chunk()
        } else {
            copy.begin(bytes);
            (index..end.index)
                .filter_map(frame)
                .for_each(|frame| copy.push(frame));
            copy.finish()
        };
        let (first, last) = (
            window.get(index)?.position(),
            window.get(end.index.checked_sub(1)?)?.position(),
        );
        Some(Self {
            chunk,
            events,
            received: received?,
            has_telemetry,
            first,
            last,
            index,
            end,
        })
    }

    /// Whether it is what a reader waits for that stands there, in the numbers that it has.
    pub(super) fn follows(&self, place: Offset, position: Position) -> bool {
        self.index == place.index && position.tag == self.first.tag && position.seq < self.first.seq
    }
}
