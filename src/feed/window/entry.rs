//! Entries of a window: events, and gaps on one side of their position.

use std::sync::Arc;
use std::time::Instant;

use crate::encoding::{Encoding, Framing};
use crate::event::Position;
use crate::feed::Gap;
use crate::feed::encoded::EncodedEvent;
use crate::feed::options::FeedEvent;

/// One entry of a window.
#[derive(Clone, Debug)]
pub(in crate::feed) enum Entry {
    /// Event as the feed's route shows it.
    Event(FeedEvent),
    /// Events are missing between the neighbours; every reader that passes receives the gap. Boxed,
    /// because gaps are few and larger than events.
    Gap(Box<GapEntry>),
}

/// A gap between entries.
#[derive(Clone, Debug)]
pub(in crate::feed) struct GapEntry {
    pub(in crate::feed) gap: Gap,
    /// Position of a reader after the gap.
    pub(in crate::feed) position: Position,
    pub(in crate::feed) side: GapSide,
    pub(in crate::feed) since: Instant,
}

/// Side of its position on which the missing events are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::feed) enum GapSide {
    /// After it: a reader at that position has not received the gap.
    After,
    /// Before it: a reader at that position has received the gap.
    Before,
    /// Before it, at the start of an epoch: no reader has any of the following events.
    NewEpoch,
}

impl Entry {
    pub(in crate::feed) fn position(&self) -> Position {
        match self {
            Self::Event(event) => event.position(),
            Self::Gap(gap_entry) => gap_entry.position,
        }
    }

    /// True if a reader with everything up to this sequence number does not need the entry.
    pub(in crate::feed) fn is_at_or_before(&self, seq: u64) -> bool {
        match self {
            Self::Event(event) => event.position().seq <= seq,
            Self::Gap(gap_entry) => gap_entry.is_at_or_before(seq),
        }
    }

    /// Encoding as the feed's route shows it, in the framing of the feed. It may be made now.
    pub(in crate::feed) fn encoding(&self, framing: Framing) -> Option<&Encoding> {
        match self {
            Self::Event(event) => Some(event.encoding(framing)),
            Self::Gap(_) => None,
        }
    }

    /// Encoding as the feed's route shows it, if it was made.
    pub(super) fn known_encoding(&self, framing: Framing) -> Option<&Encoding> {
        match self {
            Self::Event(event) => event.known_encoding(framing),
            Self::Gap(_) => None,
        }
    }

    pub(super) fn encoded(&self) -> Option<&Arc<EncodedEvent>> {
        match self {
            Self::Event(event) => Some(&event.encoded),
            Self::Gap(_) => None,
        }
    }

    pub(in crate::feed) fn received(&self) -> Instant {
        match self {
            Self::Event(event) => event.received(),
            Self::Gap(gap_entry) => gap_entry.since,
        }
    }
}

impl GapEntry {
    /// True if a reader with everything up to this sequence number does not need the gap.
    pub(in crate::feed) fn is_at_or_before(&self, seq: u64) -> bool {
        match self.side {
            GapSide::After => self.position.seq < seq,
            GapSide::Before | GapSide::NewEpoch => self.position.seq <= seq,
        }
    }
}
