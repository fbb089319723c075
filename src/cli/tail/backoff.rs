//! How long to wait before the next attempt: capped exponential backoff with full jitter.

use std::time::Duration;

use fastrand::Rng;

use crate::lifecycle::backoff::{self, Jitter};

/// Full jitter: a random part of a delay that doubles with each failure. Ten thousand clients of one pod that ends come
/// back spread over the whole delay, not in step.
#[derive(Debug)]
pub(super) struct Backoff {
    base: Duration,
    failures: u32,
    random: Rng,
}

impl Backoff {
    /// No failure so far, and the server has not said how long to wait.
    pub(super) fn new(random: Rng) -> Self {
        Self {
            base: BASE,
            failures: 0,
            random,
        }
    }

    /// The server's `retry:`: the base of what follows.
    pub(super) fn set_base(&mut self, base: Duration) {
        self.base = base.min(BASE_MAX);
    }

    /// The connection was worth something: the next delay is a first one again.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// The delay before the next attempt. `Retry-After` is a lower bound; the jitter comes on top of it.
    pub(super) fn next_delay(&mut self, retry_after: Option<Duration>) -> Duration {
        // A server that asks for more than the cap gets it.
        let delays = backoff::Backoff::new(self.base, CAP.max(self.base), Jitter::Full);
        let random = self.random.f64();
        let delay = match retry_after {
            Some(after) => after + self.base.mul_f64(random),
            None => delays.delay(self.failures, random),
        };
        self.failures = self.failures.saturating_add(1);
        delay
    }
}

/// What the HTML standard calls "a few seconds", and this project's default for `retry`.
const BASE: Duration = Duration::from_secs(3);

/// A person is waiting: half a minute is the most between two looks.
const CAP: Duration = Duration::from_secs(30);

/// Beyond it a `retry:` is a mistake, and would overflow the arithmetic.
const BASE_MAX: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest of many delays that would each come after `failures` failures.
    fn largest(base: Duration, failures: u32) -> Duration {
        let longest = |seed| {
            let mut backoff = Backoff::new(Rng::with_seed(seed));
            backoff.set_base(base);
            for _ in 0..failures {
                backoff.next_delay(None);
            }
            backoff.next_delay(None)
        };
        (0..500).map(longest).max().unwrap()
    }

    #[test]
    fn the_delay_doubles_up_to_its_cap() {
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
    fn a_base_above_the_cap_is_the_servers_wish() {
        let minute = Duration::from_secs(60);
        let largest = largest(minute, 3);
        assert!(
            largest > minute * 9 / 10 && largest <= minute,
            "{largest:?}"
        );
    }

    #[test]
    fn success_begins_anew() {
        let mut backoff = Backoff::new(Rng::with_seed(1));
        for _ in 0..10 {
            backoff.next_delay(None);
        }
        backoff.succeeded();
        assert!(backoff.next_delay(None) <= BASE);
    }

    #[test]
    fn retry_after_is_a_lower_bound_with_jitter_above() {
        let mut backoff = Backoff::new(Rng::with_seed(1));
        let after = Duration::from_secs(120);
        for _ in 0..100 {
            let delay = backoff.next_delay(Some(after));
            assert!(delay >= after && delay <= after + BASE, "{delay:?}");
        }
    }

    #[test]
    fn an_absurd_retry_is_bounded() {
        assert!(largest(Duration::from_millis(u64::MAX), 50) <= BASE_MAX);
    }
}
