//! A bucket of tokens that refills at a rate, and that can owe some.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::config::Rate;

/// One bucket; it begins full. Without a lock: a handful of words.
#[derive(Debug)]
pub struct Bucket {
    tokens: DefaultDirectRateLimiter,
    rate: Rate,
    /// Tokens that were taken before they were there; paid before anything else is.
    debt: AtomicU32,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        let quota = Quota::per_second(rate.rate).allow_burst(rate.burst);
        Self {
            tokens: RateLimiter::direct(quota),
            rate,
            debt: AtomicU32::new(0),
        }
    }

    /// Takes `cost` tokens at once, or as many as the bucket can hold if that is less.
    ///
    /// # Errors
    /// How long until they are there.
    pub fn take(&self, cost: u32) -> Result<(), Duration> {
        while let debt @ 1.. = self.debt.load(Ordering::Relaxed) {
            self.try_take(1).map_err(|wait| wait + self.refill(debt))?;
            // Another thread may have paid it meanwhile: then one token more was taken than was debt, which is the
            // client's own.
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

    /// Takes a token that is not there. At most a burst is debt: nobody waits for longer than a full bucket takes.
    pub fn borrow(&self) {
        let most = self.rate.burst.get();
        let borrow = |debt| (debt < most).then_some(debt + 1);
        if self
            .debt
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, borrow)
            .is_err()
        {
            tracing::trace!(most, "as much is debt as can be");
        }
    }

    fn try_take(&self, cost: u32) -> Result<(), Duration> {
        let cost = NonZeroU32::new(cost)
            .unwrap_or(NonZeroU32::MIN)
            .min(self.rate.burst);
        match self.tokens.check_n(cost) {
            // More than a bucket holds is not asked for.
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
    fn a_bucket_gives_its_burst_and_then_says_how_long_to_wait() {
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
    fn what_is_owed_is_paid_first_and_is_never_more_than_a_burst() {
        let bucket = Bucket::new(Rate::new(10, 2));
        assert!(bucket.take(2).is_ok());
        for _ in 0..100 {
            bucket.borrow();
        }
        let wait = bucket.take(1).unwrap_err();
        assert!(
            wait > Duration::from_millis(200) && wait <= Duration::from_millis(300),
            "two debt, one asked: {wait:?}"
        );
    }

    #[test]
    fn a_cost_above_the_burst_takes_the_whole_bucket() {
        let bucket = Bucket::new(Rate::new(1, 3));
        assert_eq!(bucket.take(4), Ok(()));
        assert!(bucket.take(1).is_err());
    }
}
