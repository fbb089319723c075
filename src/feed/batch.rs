//! Result of one read: encoded events and gaps, in order.
//!
//! The event stream owns the batch and reuses it, so a read allocates nothing. An event is either
//! shared (a reference to the bytes that all clients of the feed use) or copied together with its
//! neighbours into one run. Copying is cheaper for a replay of small events; sharing is cheaper
//! for the newest event, which all clients receive at the same time.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use crate::encoding::{Coding, Encoding, Envelope, Enveloped, Framing, RunBuilder};
use crate::event::{Position, Tier};
use crate::telemetry::trace::samples;

use super::Gap;
use super::blocks::CodedEvents;
use super::options::FeedEvent;

/// Items of one read.
#[derive(Debug, Default)]
pub struct Batch {
    /// Events and gaps, in the order of the source.
    pub items: Vec<Item>,
    /// Copy small neighbouring events into one run instead of sharing each. For readers that
    /// write the bytes unchanged.
    ///
    /// Copying 200 bytes costs less than incrementing and decrementing a reference count: the
    /// counts of a million events are a million cold cache lines.
    pub copy_small: bool,
    copy: RunBuilder,
    /// Envelope of copies: that of the feed that is read.
    pub(super) envelope: Envelope,
    /// Description of the copy in progress.
    copied_events: Option<Copied>,
}

/// One item of a batch.
#[derive(Debug)]
pub enum Item {
    /// One event, shared.
    Event {
        /// Encoded event.
        encoding: Encoding,
        /// Position of the event.
        position: Position,
        /// Tier on this route.
        tier: Tier,
        /// The reader of a finite event stream has everything.
        is_end: bool,
        /// Time of receipt from NATS.
        received: Instant,
        /// Number of its sample, if traces record it.
        sample: Option<NonZeroU32>,
    },
    /// Small neighbouring events, copied into one run.
    Copied {
        /// The encoded events, in pooled memory that is reused once the run is dropped.
        run: Enveloped,
        /// Count and position.
        copied: Copied,
    },
    /// Events that a feed has compressed, or one of them.
    Coded {
        /// The events, which the reader encodes with no lock held.
        events: CodedEvents,
        /// Count, position and time of receipt.
        copied: Copied,
        /// The reader of a finite event stream has everything.
        is_end: bool,
    },
    /// Events are missing before the next item.
    Gap {
        /// Reason and count.
        gap: Gap,
        /// Position of the reader after the gap.
        position: Position,
    },
}

/// Description of events that are sent together.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// Number of events.
    pub events: u64,
    /// Position of the last event.
    pub position: Position,
    /// Earliest time of receipt among them.
    pub received: Instant,
    /// Number of the first sample among them.
    pub sample: Option<NonZeroU32>,
}

/// 1 KiB: copying a larger event costs more than counting a reference.
pub(super) const COPIED_EVENT_MAX: usize = 1024;

/// 32 KiB: the size of one write of an event stream, and of a core's L1 data cache.
pub(super) const COPIED_MAX: usize = 32 * 1024;

impl Batch {
    /// Appends an item that is not a copied event.
    pub(super) fn push(&mut self, item: Item) {
        self.seal();
        self.items.push(item);
    }

    /// Appends an event. The last one available is shared, not copied: all clients wait for it, and
    /// all sockets send the same memory.
    pub(super) fn push_event(
        &mut self,
        event: &FeedEvent,
        encoding: &Encoding,
        is_last: bool,
        is_end: bool,
    ) {
        let (position, received) = (event.position(), event.received());
        let sample = event.sample();
        if let Some(number) = sample {
            samples::deliver(number, 1, received.elapsed());
        }
        let is_copied = self.copy_small
            && !is_end
            && encoding.len() <= COPIED_EVENT_MAX
            && !(is_last && self.copied_events.is_none());
        if !is_copied {
            self.push(Item::Event {
                encoding: encoding.clone(),
                position,
                tier: event.tier,
                is_end,
                received,
                sample,
            });
            return;
        }
        if self.copy.len() + encoding.len() > COPIED_MAX {
            self.seal();
        }
        match &mut self.copied_events {
            Some(copied) => {
                let received = copied.received.min(received);
                *copied = Copied {
                    events: copied.events + 1,
                    position,
                    received,
                    sample: copied.sample.or(sample),
                };
            }
            None => {
                self.copy.begin(self.envelope, COPIED_MAX);
                self.copied_events = Some(Copied {
                    events: 1,
                    position,
                    received,
                    sample,
                });
            }
        }
        self.copy.push(encoding);
    }

    /// Makes the last item, if it is this event, one that is compressed alone.
    pub(super) fn code_last(&mut self, event: &FeedEvent, framing: Framing, coding: Coding) {
        let Some(last) = self.items.last_mut() else {
            return;
        };
        let (copied, is_end) = match last {
            Item::Event {
                position,
                received,
                sample,
                is_end,
                ..
            } => {
                let copied = Copied {
                    events: 1,
                    position: *position,
                    received: *received,
                    sample: *sample,
                };
                (copied, *is_end)
            }
            Item::Copied { copied, .. } => (*copied, false),
            Item::Coded { .. } | Item::Gap { .. } => return,
        };
        if copied.position == event.position() {
            *last = Item::Coded {
                events: CodedEvents::Event(Arc::clone(&event.encoded), framing, coding),
                copied,
                is_end,
            };
        }
    }

    /// Ends the copy in progress; the next event starts another item.
    pub(super) fn seal(&mut self) {
        if let Some(copied) = self.copied_events.take() {
            self.items.push(Item::Copied {
                run: self.copy.finish(),
                copied,
            });
        }
    }
}
