//! Table of the sampled events whose spans are open: what deliveries write into, by number.
//!
//! An event carries only the number of its sample, in four bytes that every event has free
//! (`event::Event::sample`), because a reference would enlarge all events. The table is therefore one
//! of the process, as the queue of the log is. A number names one slot; a slot that was reused has
//! another number and ignores late deliveries.
//!
//! ```text
//! Tracer::sample_event -> open    feed, http -> deliver, ids    exporter -> close
//! ```

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// 4,096 spans of events are open at most; a span is open for a second.
pub(super) const OPEN_MAX: usize = 4096;

/// Number of the next sample.
static NEXT: AtomicU32 = AtomicU32::new(1);

static SLOTS: [Slot; OPEN_MAX] = [const { Slot::new() }; OPEN_MAX];

/// State of one sampled event.
#[derive(Debug)]
struct Slot {
    /// Number of the sample; 0 while the slot is free.
    number: AtomicU32,
    event_streams: AtomicU32,
    /// Nanoseconds from the receipt until the last delivery.
    last_nanos: AtomicU64,
    trace_id_high: AtomicU64,
    trace_id_low: AtomicU64,
    span_id: AtomicU64,
}

/// Ids of the span of a sampled event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanIds {
    /// Trace id.
    pub trace_id: u128,
    /// Span id.
    pub span_id: u64,
}

/// Deliveries of a sampled event until its span ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Deliveries {
    pub(super) event_streams: u32,
    /// Time from the receipt until the last one.
    pub(super) last: Duration,
}

impl Slot {
    const fn new() -> Self {
        Self {
            number: AtomicU32::new(0),
            event_streams: AtomicU32::new(0),
            last_nanos: AtomicU64::new(0),
            trace_id_high: AtomicU64::new(0),
            trace_id_low: AtomicU64::new(0),
            span_id: AtomicU64::new(0),
        }
    }

    fn is(&self, number: NonZeroU32) -> bool {
        self.number.load(Ordering::Acquire) == number.get()
    }
}

fn slot(number: NonZeroU32) -> &'static Slot {
    &SLOTS[number.get() as usize % OPEN_MAX]
}

/// Opens the next slot and returns its number; `None` if that slot is not closed yet.
pub(super) fn open(ids: SpanIds) -> Option<NonZeroU32> {
    let number = NonZeroU32::new(NEXT.fetch_add(1, Ordering::Relaxed))?;
    let slot = slot(number);
    slot.number
        .compare_exchange(0, number.get(), Ordering::Acquire, Ordering::Relaxed)
        .ok()?;
    // The caller alone knows the number yet.
    slot.event_streams.store(0, Ordering::Relaxed);
    slot.last_nanos.store(0, Ordering::Relaxed);
    let high = (ids.trace_id >> 64) as u64;
    slot.trace_id_high.store(high, Ordering::Relaxed);
    slot.trace_id_low
        .store(ids.trace_id as u64, Ordering::Relaxed);
    slot.span_id.store(ids.span_id, Ordering::Relaxed);
    Some(number)
}

/// Closes a slot and returns what was delivered.
pub(super) fn close(number: NonZeroU32) -> Deliveries {
    let slot = slot(number);
    slot.number.store(0, Ordering::Release);
    Deliveries {
        event_streams: slot.event_streams.load(Ordering::Relaxed),
        last: Duration::from_nanos(slot.last_nanos.load(Ordering::Relaxed)),
    }
}

/// Counts event streams that a sampled event was written to, this long after its receipt. Ignored
/// after its span has ended.
#[cold]
pub fn deliver(number: NonZeroU32, event_streams: u32, after: Duration) {
    let slot = slot(number);
    if slot.is(number) {
        let nanos = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        slot.last_nanos.fetch_max(nanos, Ordering::Relaxed);
        slot.event_streams
            .fetch_add(event_streams, Ordering::Relaxed);
    }
}

/// Returns the ids of the span of a sampled event; `None` after it has ended.
#[cold]
#[must_use]
pub fn ids(number: NonZeroU32) -> Option<SpanIds> {
    let slot = slot(number);
    if !slot.is(number) {
        return None;
    }
    let high = u128::from(slot.trace_id_high.load(Ordering::Relaxed));
    let low = u128::from(slot.trace_id_low.load(Ordering::Relaxed));
    let ids = SpanIds {
        trace_id: high << 64 | low,
        span_id: slot.span_id.load(Ordering::Acquire),
    };
    // The slot may have been reused meanwhile.
    slot.is(number).then_some(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_delivery_does_not_reach_another_sample() {
        let of = |span_id| SpanIds {
            trace_id: u128::MAX - 3,
            span_id,
        };
        let first = open(of(1)).unwrap();
        deliver(first, 3, Duration::from_millis(2));
        deliver(first, 1, Duration::from_millis(1));
        assert_eq!(ids(first), Some(of(1)));
        let deliveries = close(first);
        assert_eq!(deliveries.event_streams, 4);
        assert_eq!(deliveries.last, Duration::from_millis(2));
        let next = open(of(2)).unwrap();
        deliver(first, 1, Duration::from_secs(1));
        assert_eq!((ids(first), ids(next)), (None, Some(of(2))));
        assert_eq!(close(next), Deliveries::default());
    }
}
