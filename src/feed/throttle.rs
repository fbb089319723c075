//! How fast a reader is given events: an interface, with whoever knows its client behind it.

use crate::sse::Tier;

/// What becomes of the next event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThrottleDecision {
    /// It is given.
    Give,
    /// It is not, and told.
    PassBy,
    /// It waits, and all behind it: order is never changed.
    Wait,
}

/// Asked for each event of one turn of a reader. Nothing is kept for those that wait: the cursor stays where it is.
pub trait Throttle {
    /// Whether the next event is given. `hurried`: something critical waits behind it, and must not wait for it.
    fn ask(&mut self, tier: Tier, hurried: bool) -> ThrottleDecision;

    /// Whether an event may be given now, whatever it is: what comes out of a replay is not known before it is given.
    fn is_ready(&mut self) -> bool;

    /// An event was given without being asked for.
    fn charge(&mut self);
}
