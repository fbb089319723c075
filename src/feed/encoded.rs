//! Event in its encoded form, shared by all feeds.
//!
//! Each event is encoded once, for all routes that do not rename it. The field order of
//! [`EncodedEvent`] is for [`prefetch`](super::prefetch).

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::encoding::{Encoding, Envelope, EventParts, Framing};
use crate::event::Event;

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
}
