//! How much of the past stays in memory.

use std::time::Duration;

/// The bounds of a window; whichever is reached first evicts the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// The most events.
    pub events: usize,
    /// The most bytes of encoded events.
    pub bytes: usize,
    /// The oldest event.
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
