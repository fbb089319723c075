//! Delay before the next attempt of `tail`: exponential back-off with full jitter.
//!
//! The server's `retry:` field sets the first delay, a `Retry-After` header a minimum. Full jitter
//! spreads ten thousand clients of an ended pod over the whole delay.

use std::time::Duration;

use fastrand::Rng;

use crate::lifecycle::backoff::{Backoff, Jitter};

/// Delays between the attempts of one client.
#[derive(Debug)]
pub(super) struct RetryDelays {
    base: Duration,
    failures: u32,
    random: Rng,
}

impl RetryDelays {
    /// Delays before the first failure, and before a `retry:` field.
    pub(super) fn new(random: Rng) -> Self {
        Self {
            base: BASE,
            failures: 0,
            random,
        }
    }

    /// Sets the first delay from the server's `retry:` field.
    pub(super) fn set_base(&mut self, base: Duration) {
        self.base = base.min(BASE_MAX);
    }

    /// Resets the failures: the connection delivered something.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Returns the delay before the next attempt. `Retry-After` is a minimum; jitter is added.
    pub(super) fn next_delay(&mut self, retry_after: Option<Duration>) -> Duration {
        // A server may request more than the cap.
        let delays = Backoff::new(self.base, CAP.max(self.base), Jitter::Full);
        let random = self.random.f64();
        let delay = match retry_after {
            Some(after) => after + self.base.mul_f64(random),
            None => delays.delay(self.failures, random),
        };
        self.failures = self.failures.saturating_add(1);
        delay
    }
}

/// 3 s: "a few seconds" in the HTML standard, and the default of `retry` in this project.
const BASE: Duration = Duration::from_secs(3);

/// 30 s: a person is waiting for the next attempt.
const CAP: Duration = Duration::from_secs(30);

/// 1 h: a longer `retry:` is a mistake, and could overflow.
const BASE_MAX: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the longest of many delays after `failures` failures.
    fn largest(base: Duration, failures: u32) -> Duration {
        let longest = |seed| {
            let mut backoff = RetryDelays::new(Rng::with_seed(seed));
            backoff.set_base(base);
            for _ in 0..failures {
                backoff.next_delay(None);
            }
            backoff.next_delay(None)
        };
        (0..500).map(longest).max().unwrap()
    }

    #[test]
    fn delay_doubles_up_to_the_cap() {
        let second = Duration::from_secs(1);
        for (failures, bound) in [(0, 1), (1, 2), (2, 4), (4, 16), (5, 30), (40, 30)] {
            let largest = largest(second, failures);
            assert!(
                largest <= second * bound,
                "{failures} failures: {largest:?}"
            );
            assert!(
                largest > second * bound * 9 / 10,
                "{failures} failures: {largest:?} uses the whole range"
            );
        }
    }

    #[test]
    fn server_may_request_a_base_above_the_cap() {
        let minute = Duration::from_secs(60);
        let largest = largest(minute, 3);
        assert!(
            largest > minute * 9 / 10 && largest <= minute,
            "{largest:?}"
        );
    }

    #[test]
    fn success_resets_the_delay() {
        let mut backoff = RetryDelays::new(Rng::with_seed(1));
        for _ in 0..10 {
            backoff.next_delay(None);
        }
        backoff.succeeded();
        assert!(backoff.next_delay(None) <= BASE);
    }

    #[test]
    fn retry_after_is_a_minimum_with_jitter_added() {
        let mut backoff = RetryDelays::new(Rng::with_seed(1));
        let after = Duration::from_secs(120);
        for _ in 0..100 {
            let delay = backoff.next_delay(Some(after));
            assert!(delay >= after && delay <= after + BASE, "{delay:?}");
        }
    }

    #[test]
    fn retry_field_is_bounded() {
        assert!(largest(Duration::from_millis(u64::MAX), 50) <= BASE_MAX);
    }
}
