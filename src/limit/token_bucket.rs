//! Token bucket for rate limits, with borrowing.
//!
//! The bucket itself is `governor`'s lock-free limiter (GCRA). [`Bucket::borrow`] adds a debt that
//! [`Bucket::take`] repays first: events of a critical tier are delivered at once and delay later
//! ones. Several event streams of one client share a bucket, from any shard.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::config::Rate;

/// One bucket, full at first.
#[derive(Debug)]
pub struct Bucket {
    tokens: DefaultDirectRateLimiter,
    rate: Rate,
    /// Tokens that were borrowed and not repaid yet.
    debt: AtomicU32,
}

impl Bucket {
    /// Returns a full bucket.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        let quota = Quota::per_second(rate.rate).allow_burst(rate.burst);
        Self {
            tokens: RateLimiter::direct(quota),
            rate,
            debt: AtomicU32::new(0),
        }
    }

    /// Returns its rate.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Returns a bucket of another rate with as many tokens and as much debt, at most a full
    /// bucket. Empties this one.
    #[must_use]
    pub fn with_rate(&self, rate: Rate) -> Self {
        let bucket = Self::new(rate);
        let missing = rate.burst.get().saturating_sub(self.drain());
        if let Some(missing) = NonZeroU32::new(missing) {
            let taken = bucket.tokens.check_n(missing);
            debug_assert!(
                matches!(taken, Ok(Ok(()))),
                "a full bucket has its capacity"
            );
        }
        let debt = self.debt.load(Ordering::Relaxed);
        bucket
            .debt
            .store(debt.min(rate.burst.get()), Ordering::Relaxed);
        bucket
    }

    /// Takes all tokens and returns their number.
    fn drain(&self) -> u32 {
        let powers = (0..u32::BITS).rev().map(|bit| 1 << bit);
        let taken = powers.filter(|tokens| {
            let tokens = NonZeroU32::new(*tokens).unwrap_or(NonZeroU32::MIN);
            // `Err`: more than the capacity.
            matches!(self.tokens.check_n(tokens), Ok(Ok(())))
        });
        taken.fold(0, u32::saturating_add)
    }

    /// Takes `cost` tokens, at most a full bucket. Repays the debt first.
    ///
    /// # Errors
    /// Returns the time until the tokens are available.
    pub fn take(&self, cost: u32) -> Result<(), Duration> {
        while let debt @ 1.. = self.debt.load(Ordering::Relaxed) {
            self.try_take(1).map_err(|wait| wait + self.refill(debt))?;
            // If another thread has repaid the debt in between, this client has paid one token too
            // many. Both threads serve the same client.
            let paid = self
                .debt
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |debt| {
                    debt.checked_sub(1)
                });
            if paid.is_err() {
                break;
            }
        }
        self.try_take(cost)
    }

    /// Takes a token that is not available yet. The debt is at most one burst, so no later call
    /// waits longer than a full bucket takes to refill.
    pub fn borrow(&self) {
        let most = self.rate.burst.get();
        let borrow = |debt| (debt < most).then_some(debt + 1);
        if self
            .debt
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, borrow)
            .is_err()
        {
            tracing::trace!(most, "debt of the token bucket is at its maximum");
        }
    }

    fn try_take(&self, cost: u32) -> Result<(), Duration> {
        let cost = NonZeroU32::new(cost)
            .unwrap_or(NonZeroU32::MIN)
            .min(self.rate.burst);
        match self.tokens.check_n(cost) {
            // `Err`: more than the capacity; excluded by the minimum above.
            Ok(Ok(())) | Err(_) => Ok(()),
            Ok(Err(early)) => Err(early.wait_time_from(DefaultClock::default().now())),
        }
    }

    fn refill(&self, tokens: u32) -> Duration {
        Duration::from_secs(tokens.into()) / self.rate.rate.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_bucket_returns_the_time_until_the_next_token() {
        let bucket = Bucket::new(Rate::new(2, 5));
        for _ in 0..5 {
            assert_eq!(bucket.take(1), Ok(()));
        }
        let wait = bucket.take(1).unwrap_err();
        assert!(
            wait > Duration::from_millis(300) && wait <= Duration::from_millis(500),
            "{wait:?}"
        );
    }

    #[test]
    fn debt_is_repaid_first_and_is_at_most_one_burst() {
        let bucket = Bucket::new(Rate::new(10, 2));
        assert!(bucket.take(2).is_ok());
        for _ in 0..100 {
            bucket.borrow();
        }
        let wait = bucket.take(1).unwrap_err();
        assert!(
            wait > Duration::from_millis(200) && wait <= Duration::from_millis(300),
            "two borrowed, one requested: {wait:?}"
        );
    }

    #[test]
    fn bucket_of_another_rate_is_not_fuller_than_before() {
        for (before, taken, after, left) in [
            (Rate::new(1, 1000), 300, Rate::new(1, 2000), 700),
            (Rate::new(1, 1000), 300, Rate::new(1, 50), 50),
            (Rate::new(1, 7), 7, Rate::new(1, 7), 0),
            (Rate::new(1, 7), 0, Rate::new(1, 7), 7),
            (
                Rate::new(1, 1_000_000_000),
                1,
                Rate::new(1, 1_000_000_000),
                999_999_999,
            ),
        ] {
            let bucket = Bucket::new(before);
            if taken > 0 {
                bucket.take(taken).unwrap();
            }
            let bucket = bucket.with_rate(after);
            assert_eq!(bucket.rate(), after);
            let found = bucket.drain();
            // A token may be added meanwhile.
            assert!((left..=left + 1).contains(&found), "{found} of {left}");
        }
        let indebted = Bucket::new(Rate::new(1, 10));
        indebted.take(10).unwrap();
        (0..10).for_each(|_| indebted.borrow());
        let wait = indebted.with_rate(Rate::new(1, 4)).take(1).unwrap_err();
        assert!(
            wait > Duration::from_secs(3) && wait <= Duration::from_secs(5),
            "{wait:?}"
        );
    }

    #[test]
    fn cost_above_the_burst_takes_the_whole_bucket() {
        let bucket = Bucket::new(Rate::new(1, 3));
        assert_eq!(bucket.take(4), Ok(()));
        assert!(bucket.take(1).is_err());
    }
}
