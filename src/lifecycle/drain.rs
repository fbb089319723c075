//! Timing of a drain, as the `drain:` section of the configuration sets it.
//!
//! [`Schedule`](super::schedule::Schedule) turns these durations into the moments of one drain.

use std::time::Duration;

use sidestream_common::drain;

/// Durations of a graceful shutdown (`drain:` in the configuration).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Time after readiness fails in which the pod still accepts and serves everything.
    pub accept_for: Duration,
    /// Time over which the ends of the event streams are spread.
    pub spread: Duration,
    /// Time after which the event streams that are left are cut.
    pub timeout: Duration,
    /// Shortest `retry:` that a drained client receives.
    pub retry_min: Duration,
    /// Longest `retry:` that a drained client receives.
    pub retry_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            accept_for: drain::ACCEPT_FOR,
            spread: drain::SPREAD,
            timeout: drain::TIMEOUT,
            retry_min: Duration::from_millis(500),
            retry_max: Duration::from_secs(3),
        }
    }
}
