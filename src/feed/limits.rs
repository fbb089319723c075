//! Limits of a window (events, bytes, age), and the size of a source.

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

/// Events, bytes and feeds that a source has in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceSize {
    /// Events in the buffer; in all feeds together, if the source has no buffer.
    pub events: usize,
    /// Bytes of the events and of the entries of all feeds.
    pub bytes: usize,
    /// Number of feeds.
    pub feeds: usize,
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
