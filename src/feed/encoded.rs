//! Event in its encoded form, shared by all feeds, and the prefetch of such events from memory.
//!
//! Each event is encoded once, for all routes that do not rename it. Readers of a replay or of a
//! large window touch a million of them, one cache miss each, if the memory is not fetched ahead:
//! the field order of [`EncodedEvent`] and the two prefetch functions are for that. Both read one
//! word per cache line into [`black_box`], because the loads of several events overlap, while the
//! updates of reference counts wait for each other.

use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::encoding::{Encoding, Envelope, EventParts, Framing};
use crate::event::Event;

use super::batch::COPIED_EVENT_MAX;
use super::budget::{Budget, Reservation};

/// Encoded event: the payload, and its encoding without a route's event name.
///
/// The field order is deliberate: the fields that a reader uses are next to the reference counts,
/// and so are the first fields of [`Event`], its position and time of receipt.
#[derive(Debug)]
#[repr(C)]
pub struct EncodedEvent {
    /// Encoding in [`Framing::STORED`], under the event's own name.
    pub frame: Encoding,
    /// The event without its payload, see [`EncodedEvent::data`].
    pub event: Event,
    /// Range of the payload in the encoding; otherwise `event` has the payload.
    payload: Option<Range<u32>>,
    /// Memory budget of this event, released with the last reference.
    reservation: Reservation,
}

impl EncodedEvent {
    /// Encodes an event, with the envelope of the budget. The payload is then kept only inside the
    /// encoding, if it is in one piece there.
    #[must_use]
    pub(super) fn new(mut event: Event, budget: &Arc<Budget>) -> Arc<Self> {
        let encoder = Framing::STORED.encoder();
        let frame = encoder.event(EventParts::of(&event), budget.envelope());
        let narrow =
            |range: Range<usize>| Some(range.start.try_into().ok()?..range.end.try_into().ok()?);
        let payload = encoder.payload_range(&frame, &event.data).and_then(narrow);
        if payload.is_some() {
            event.data = Bytes::new();
        }
        let bytes = frame.len() + event.data.len() + event.subject.len() + size_of::<Self>();
        Arc::new(Self {
            frame,
            event,
            payload,
            reservation: budget.reserve(bytes),
        })
    }

    /// Payload as published.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        match &self.payload {
            Some(range) => self.frame.slice(range.start as usize..range.end as usize),
            None => &self.event.data,
        }
    }

    /// Envelope of its encodings.
    pub(super) fn envelope(&self) -> Envelope {
        self.reservation.envelope()
    }

    /// Prefetches events whose reference counts are about to be changed.
    pub(super) fn prefetch<'l>(events: impl Iterator<Item = &'l Arc<Self>> + Clone) {
        // Pointers first: they are spread over memory too, and their loads should not wait for the
        // events.
        black_box(
            events
                .clone()
                .map(|encoded| Arc::as_ptr(encoded).addr())
                .fold(0, usize::wrapping_add),
        );
        black_box(
            events
                .map(|encoded| {
                    Arc::strong_count(encoded) + usize::from(encoded.event.tier.is_some())
                })
                .sum::<usize>(),
        );
    }
}

/// Prefetches encodings that are about to be copied, every cache line of them.
pub(super) fn prefetch_frames<'f>(frames: impl Iterator<Item = &'f Encoding>) {
    let touch = |frame: &Encoding| {
        let bytes = frame.bytes();
        bytes
            .iter()
            .step_by(CACHE_LINE_BYTES)
            .chain(bytes.last())
            .map(|byte| usize::from(*byte))
            .sum::<usize>()
    };
    // Larger encodings are shared, not copied.
    black_box(
        frames
            .filter(|frame| frame.len() <= COPIED_EVENT_MAX)
            .map(touch)
            .sum::<usize>(),
    );
}

/// Size of a cache line.
const CACHE_LINE_BYTES: usize = 64;

/// Number of events to prefetch: more than the loads a core has in flight, and few enough for its
/// L1 cache.
pub(super) const PREFETCH_AHEAD: usize = 32;
