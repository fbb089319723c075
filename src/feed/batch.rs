//! What one read brings: encoded events and gaps, in order.

use std::time::Instant;

use crate::sse::encode::{Chunk, Frame, RunBuilder};
use crate::sse::{Position, Tier};

use super::Gap;

/// The items of one read. Kept by whoever reads and used again: a read allocates nothing.
#[derive(Debug, Default)]
pub struct Batch {
    /// In the order of the source.
    pub items: Vec<Item>,
    /// Small events that stand side by side are copied into one piece, for a reader that hands them out as they are.
    ///
    /// To copy two hundred bytes is less than to count a reference to them up and down: the counts of a million events
    /// are a million places in memory that nobody has looked at for long.
    pub copies: bool,
    copy: RunBuilder,
    /// What the copy that was begun will say.
    begun: Option<Copied>,
}

/// One thing that a reader is given.
#[derive(Debug)]
pub enum Item {
    /// An event.
    Event {
        /// Its encoding.
        frame: Frame,
        /// Where it stands.
        position: Position,
        /// How much it matters.
        tier: Tier,
        /// When this process received it.
        received: Instant,
    },
    /// Small events side by side.
    Copied {
        /// Their encodings, in memory that is lent: it is used again once the chunk is dropped.
        chunk: Chunk,
        /// How many, and where they stand.
        copied: Copied,
    },
    /// Events are missing before the next item.
    Gap {
        /// Why, and how many.
        gap: Gap,
        /// Where the reader stands once it has been told.
        position: Position,
    },
}

/// What is known of events that were copied together.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// How many.
    pub events: u64,
    /// Where the last of them stands.
    pub position: Position,
    /// When this process received the oldest of them.
    pub received: Instant,
}

/// 1 KiB: to copy more costs more than to count references.
pub(super) const COPIED_EVENT_MAX: usize = 1024;

/// 32 KiB: what a turn of an event stream takes, and the first cache of a core holds.
pub(super) const COPIED_MAX: usize = 32 * 1024;

impl Batch {
    /// Adds what is no event.
    pub(super) fn push(&mut self, item: Item) {
        self.seal();
        self.items.push(item);
    }

    /// Adds an event. One that is the last to be had now is shared: what all clients are waiting for is one piece of
    /// memory that all sockets are given.
    pub(super) fn push_event(
        &mut self,
        frame: &Frame,
        (position, tier, received): (Position, Tier, Instant),
        is_last: bool,
    ) {
        let is_copied =
            self.copies && frame.len() <= COPIED_EVENT_MAX && !(is_last && self.begun.is_none());
        if !is_copied {
            self.push(Item::Event {
                frame: frame.clone(),
                position,
                tier,
                received,
            });
            return;
        }
        if self.copy.len() + frame.len() > COPIED_MAX {
            self.seal();
        }
        match &mut self.begun {
            Some(copied) => {
                let received = copied.received.min(received);
                *copied = Copied {
                    events: copied.events + 1,
                    position,
                    received,
                };
            }
            None => {
                self.copy.begin(COPIED_MAX);
                self.begun = Some(Copied {
                    events: 1,
                    position,
                    received,
                });
            }
        }
        self.copy.push(frame);
    }

    /// Ends the copy that was begun: what follows is another item.
    pub(super) fn seal(&mut self) {
        if let Some(copied) = self.begun.take() {
            self.items.push(Item::Copied {
                chunk: self.copy.finish(),
                copied,
            });
        }
    }
}
