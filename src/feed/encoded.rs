//! One event as a log holds it: encoded once, counted in the budget, and laid out for those who read a million of them.

use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::sse::Event;
use crate::sse::encode::Frame;

use super::batch::COPIED_EVENT_MAX;
use super::budget::{Budget, Reservation};

/// An event as the log holds it: the payload and its encoding without a route's name, shared by all who want it.
///
/// In this order: what a reader looks at stands beside the counts of the references, and so do an event's position and
/// receipt, which are its first.
#[derive(Debug)]
#[repr(C)]
pub struct EncodedEvent {
    /// Its encoding under its own name.
    pub frame: Frame,
    /// The event, without its payload: see [`EncodedEvent::data`].
    pub event: Event,
    /// Where the payload stands in the encoding; otherwise the event has it.
    payload: Option<Range<u32>>,
    /// What it takes of the budget; given back when the last holder lets go.
    _charge: Reservation,
}

impl EncodedEvent {
    /// Encodes an event, once for everyone. The payload then lies in the frame's own bytes where it can.
    #[must_use]
    pub(super) fn new(mut event: Event, budget: &Arc<Budget>) -> Arc<Self> {
        let frame = Frame::event(event.name.as_ref(), &event.data, event.position);
        let place =
            |range: Range<usize>| Some(range.start.try_into().ok()?..range.end.try_into().ok()?);
        let payload = frame.find(&event.data).and_then(place);
        if payload.is_some() {
            event.data = Bytes::new();
        }
        let bytes = frame.len() + event.data.len() + event.subject.len() + size_of::<Self>();
        Arc::new(Self {
            frame,
            event,
            payload,
            _charge: budget.charge(bytes),
        })
    }

    /// The payload as published.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        match &self.payload {
            Some(range) => self.frame.found(range.start as usize..range.end as usize),
            None => &self.event.data,
        }
    }

    /// Looks at events whose references are about to be counted, a few at a time: a look does not wait for the look
    /// before, so that the memory of all of them is fetched at once, while each count waits for its own.
    pub(super) fn look_at<'l>(events: impl Iterator<Item = &'l Arc<Self>> + Clone) {
        // Where they are first: those places, too, lie apart from each other, and none is to wait for what lies behind it.
        black_box(
            events
                .clone()
                .map(|logged| Arc::as_ptr(logged).addr())
                .fold(0, usize::wrapping_add),
        );
        black_box(
            events
                .map(|logged| Arc::strong_count(logged) + usize::from(logged.event.tier.is_some()))
                .sum::<usize>(),
        );
    }
}

/// The same of encodings that are about to be copied: at each line of memory that they take.
pub(super) fn look_into<'f>(frames: impl Iterator<Item = &'f Frame>) {
    let look = |frame: &Frame| {
        let bytes = frame.bytes();
        bytes
            .iter()
            .step_by(LINE_BYTES)
            .chain(bytes.last())
            .map(|byte| usize::from(*byte))
            .sum::<usize>()
    };
    // What is larger is shared.
    black_box(
        frames
            .filter(|frame| frame.len() <= COPIED_EVENT_MAX)
            .map(look)
            .sum::<usize>(),
    );
}

/// What a core fetches at once.
const LINE_BYTES: usize = 64;

/// How many events are looked at ahead: more than a core fetches at once, few enough for its first cache.
pub(super) const LOOKS: usize = 32;
