//! One event as a log holds it: encoded once, counted in the budget, and laid out for those who read a million of them.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::sse::Event;
use crate::sse::encode::Frame;

use super::budget::{Budget, Charge};

/// An event as the log holds it: the payload and its encoding without a route's name, shared by all who want it.
///
/// In this order: what a reader looks at stands beside the counts of the references, and so do an event's position and
/// receipt, which are its first.
#[derive(Debug)]
#[repr(C)]
pub struct Logged {
    /// Its encoding under its own name.
    pub frame: Frame,
    /// The event, without its payload: see [`Logged::data`].
    pub event: Event,
    /// Where the payload stands in the encoding; otherwise the event has it.
    payload: Option<Range<u32>>,
    /// What it takes of the budget; given back when the last holder lets go.
    _charge: Charge,
}

impl Logged {
    /// Encodes an event, once for everyone. The payload then lies in the frame's own bytes where it can.
    #[must_use]
    pub(super) fn new(mut event: Event, budget: &Arc<Budget>) -> Arc<Self> {
        let frame = Frame::event(event.name.as_ref(), &event.data, event.position);
        let place = |range: Range<usize>| Some(range.start.try_into().ok()?..range.end.try_into().ok()?);
        let payload = frame.find(&event.data).and_then(place);
        if payload.is_some() {
            event.data = Bytes::new();
        }
        let bytes = frame.len() + event.data.len() + event.subject.len() + size_of::<Self>();
        Arc::new(Self { frame, event, payload, _charge: budget.charge(bytes) })
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
    pub(super) fn look_at<'l>(events: impl Iterator<Item = &'l Arc<Self>>) {
        let look = |logged: &Arc<Self>| Arc::strong_count(logged) + usize::from(logged.event.tier.is_some());
        std::hint::black_box(events.map(look).sum::<usize>());
    }

    /// The same of events that are about to be copied: at their first, middle and last byte.
    pub(super) fn look_into<'l>(events: impl Iterator<Item = &'l Arc<Self>>) {
        let look = |logged: &Arc<Self>| {
            let bytes = logged.frame.bytes();
            let at = |place: usize| usize::from(bytes.get(place).copied().unwrap_or_default());
            at(0) + at(bytes.len() / 2) + at(bytes.len().saturating_sub(1)) + usize::from(logged.event.tier.is_some())
        };
        std::hint::black_box(events.map(look).sum::<usize>());
    }
}

/// How many events are looked at ahead: more than a core fetches at once, few enough for its first cache.
pub(super) const LOOKS: usize = 32;
