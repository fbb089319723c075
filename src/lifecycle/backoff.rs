//! Delays between attempts: exponential back-off with jitter, and jitter for periodic work.
//!
//! Pure: the caller counts its failures and passes a random number, so that tests and simulations
//! need no clock and no generator. [`Backoff::delay`] doubles a first delay up to a longest one.
//! The jitter spreads pods and clients that failed at the same time:
//!
//! - [`Jitter::Full`]: anything from zero to the delay, for fleets that reconnect together.
//! - [`Jitter::Half`]: at least half of the delay, where an immediate retry would only fail again.
//!
//! The crate `backon` has the same formula, but draws from a generator of its own and drives the
//! retried future itself. Our loops wait for a shutdown, for a connection or for a server's
//! `Retry-After` between attempts and reset the count on progress, so only the formula could be
//! shared, which is shorter than the adapter.

use std::time::Duration;

/// Delays that double with each failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    jitter: Jitter,
}

/// Random part of a delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jitter {
    /// The whole delay.
    Full,
    /// The second half of the delay.
    Half,
}

impl Backoff {
    /// Delays from `first`, doubled up to `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration, jitter: Jitter) -> Self {
        Self {
            first,
            longest,
            jitter,
        }
    }

    /// Returns the delay after `failures` earlier failures: 0 gives the first delay. `random` is at
    /// least 0 and less than 1.
    #[must_use]
    pub fn delay(self, failures: u32, random: f64) -> Duration {
        let doubled = self.first.saturating_mul(2_u32.saturating_pow(failures));
        let part = match self.jitter {
            Jitter::Full => random,
            Jitter::Half => random.mul_add(0.5, 0.5),
        };
        doubled.min(self.longest).mul_f64(part)
    }
}

/// Returns an interval between 80 % and 120 % of `interval`, so that periodic work of many tasks
/// does not run in step. `random` is at least 0 and less than 1.
#[must_use]
pub fn spread(interval: Duration, random: f64) -> Duration {
    interval.mul_f64(random.mul_add(0.4, 0.8))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn delay_doubles_up_to_the_longest() {
        let backoff = Backoff::new(SECOND, SECOND * 30, Jitter::Half);
        for (failures, longest) in [(0, 1), (1, 2), (4, 16), (5, 30), (40, 30), (u32::MAX, 30)] {
            assert_eq!(backoff.delay(failures, 0.0), SECOND * longest / 2);
            let delay = backoff.delay(failures, 0.999);
            assert!(
                delay < SECOND * longest && delay > SECOND * longest * 9 / 10,
                "{delay:?}"
            );
        }
    }

    #[test]
    fn full_jitter_uses_the_whole_delay() {
        let backoff = Backoff::new(SECOND, SECOND * 8, Jitter::Full);
        assert_eq!(backoff.delay(7, 0.0), Duration::ZERO);
        assert_eq!(backoff.delay(7, 0.5), SECOND * 4);
    }

    #[test]
    fn spread_interval_varies_by_a_fifth() {
        assert_eq!(spread(SECOND * 10, 0.0), SECOND * 8);
        assert_eq!(spread(SECOND * 10, 0.5), SECOND * 10);
        assert!(spread(SECOND * 10, 0.999) < SECOND * 12);
    }
}
