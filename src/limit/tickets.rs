//! Limit of the tickets that one principal can buy (`authentication.tickets`).

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use super::leaky_bucket::{LeakLimit, LeakyBuckets};

/// Limit of tickets per principal.
#[derive(Debug)]
pub struct TicketLimiter {
    /// By the hash of provider and subject, which can be long.
    buckets: LeakyBuckets<u64>,
    hasher: RandomState,
}

/// 10 per second and 100 at once for one principal: a user with a hundred tabs can reopen all of
/// them after a drain.
const PER_PRINCIPAL: LeakLimit = LeakLimit {
    per_second: 10.0,
    burst: 100.0,
};

impl Default for TicketLimiter {
    fn default() -> Self {
        Self {
            buckets: LeakyBuckets::new(PER_PRINCIPAL),
            hasher: RandomState::new(),
        }
    }
}

impl TicketLimiter {
    /// Counts one ticket of a principal.
    ///
    /// # Errors
    /// Returns the time until the principal can buy another one.
    pub fn take(&self, provider: &str, subject: &str, now: Instant) -> Result<(), Duration> {
        let principal = self.hasher.hash_one((provider, subject));
        self.buckets.take(principal, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principal_buys_a_hundred_tickets_at_once_and_ten_per_second() {
        let (limiter, now) = (TicketLimiter::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(limiter.take("idp", "alice", now), Ok(()));
        }
        let wait = limiter.take("idp", "alice", now).unwrap_err();
        assert_eq!(wait, Duration::from_millis(100));
        assert_eq!(limiter.take("idp", "bob", now), Ok(()));
        assert_eq!(limiter.take("app", "alice", now), Ok(()));
        assert_eq!(limiter.take("idp", "alice", now + wait), Ok(()));
        assert!(limiter.take("idp", "alice", now + wait).is_err());
    }
}
