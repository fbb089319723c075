//! Throttle: rate limit of one reader, as an interface to the event stream that knows its client.

use crate::event::Tier;

/// Decision for the next event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThrottleDecision {
    /// It is delivered.
    Deliver,
    /// It is skipped and reported as a gap.
    Skip,
    /// It waits, together with all later events: the order never changes.
    Defer,
}

/// Rate limit, asked once per event of a read. Deferred events are not stored: the cursor remains
/// in place.
pub trait Throttle {
    /// Decides on the next event. `is_urgent`: a critical event follows, which must not be delayed.
    fn decide(&mut self, tier: Tier, is_urgent: bool) -> ThrottleDecision;

    /// True if any event may be delivered now. Used in a replay, where the next event is not known.
    fn is_ready(&mut self) -> bool;

    /// Records an event that was delivered without a decision.
    fn record(&mut self);
}
