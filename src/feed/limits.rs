//! Limits of a window: events, bytes and age.

use std::time::Duration;

/// Limits of a window. The first one reached evicts the oldest entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Number of events.
    pub events: usize,
    /// Bytes of encoded events.
    pub bytes: usize,
    /// Age of the oldest event.
    pub age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            events: 10_000,
            bytes: 16 << 20,
            age: Duration::from_secs(300),
        }
    }
}
