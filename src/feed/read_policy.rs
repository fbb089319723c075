//! Policy of one read: how much it returns, and what it may skip or defer.

use super::shed::Shedder;
use super::throttle::Throttle;

/// Limits of one read.
pub struct ReadPolicy<'p> {
    /// Bytes after which the read ends; it returns at least one item if there is one.
    pub budget: usize,
    /// For a slow client: events in the window that are skipped. A gap before the next item reports
    /// them.
    pub shedder: Option<&'p mut Shedder>,
    /// Rate limit. With it a read can be pending although events are available: the throttle's
    /// owner knows until when.
    pub throttle: Option<&'p mut dyn Throttle>,
}

impl ReadPolicy<'_> {
    /// Policy of a client that receives every event.
    #[must_use]
    pub fn all(budget: usize) -> Self {
        Self {
            budget,
            shedder: None,
            throttle: None,
        }
    }
}
