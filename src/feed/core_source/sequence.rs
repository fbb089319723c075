//! Sequence numbers of the core source, allocated by several threads and completed by one writer.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::event::{Position, SourceTag};

/// Sequence of one process. A number is never reused: a feed that is created again continues the
/// sequence.
#[derive(Debug)]
pub(super) struct SequenceCounter {
    tag: SourceTag,
    /// Number allocated last.
    last: AtomicU64,
    /// Every event up to this number is in the windows of all feeds that match it.
    complete: AtomicU64,
}

impl SequenceCounter {
    /// Creates a sequence that starts at 1.
    pub(super) fn new(tag: SourceTag) -> Self {
        Self {
            tag,
            last: AtomicU64::new(0),
            complete: AtomicU64::new(0),
        }
    }

    /// Tag of the sequence.
    pub(super) fn tag(&self) -> SourceTag {
        self.tag
    }

    /// Allocates the next number.
    pub(super) fn take(&self) -> Position {
        let seq = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        Position {
            tag: self.tag,
            seq,
            fingerprint: None,
        }
    }

    /// Returns the number allocated last.
    pub(super) fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// Returns the last complete number as a position.
    pub(super) fn complete(&self) -> Position {
        Position {
            tag: self.tag,
            seq: self.complete.load(Ordering::Acquire),
            fingerprint: None,
        }
    }

    /// Marks everything up to this number as complete. Called only by the writer, in ascending
    /// order.
    pub(super) fn set_complete(&self, seq: u64) {
        self.complete.store(seq, Ordering::Release);
    }
}
