//! Limits per address and in total, checked before the client of a request is known.
//!
//! ```text
//! failed authentications              calls to an endpoint
//!   check(address)                      take(address)    rejected: too many
//!     verify credentials                  call
//!   record(address)  if invalid
//! ```
//!
//! Both limits are leaky buckets: a failure or call adds one, and the bucket drains at its rate. When
//! the total is full, only addresses with a recent one are rejected: an attacker with many
//! addresses does not lock out clients with valid credentials.
//!
//! The table of addresses is bounded (`leaky_bucket`). Routes and the admin port have limiters of
//! their own.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::config::Rate;
use super::leaky_bucket::{LeakLimit, LeakyBuckets, Level, lock};
use super::token_bucket::Bucket;

/// Table of addresses with recent failures, or with recent calls.
#[derive(Debug)]
pub struct AddressLimiter {
    /// Plural noun of what is counted, for the log.
    counted: &'static str,
    limits: AddressLimits,
    addresses: LeakyBuckets<IpAddr>,
    total: Mutex<Level>,
    log_bucket: Bucket,
}

/// Limits of one port.
#[derive(Clone, Copy, Debug)]
pub struct AddressLimits {
    /// Limit of one address.
    pub per_address: LeakLimit,
    /// Limit of all addresses together.
    pub total: LeakLimit,
}

/// 100 per second and 500 at once for one address. Behind a proxy that is not trusted all clients
/// have one address: 3,000 browsers with an expired cookie, which retry every 30 s, stay below it.
const PER_ADDRESS: LeakLimit = LeakLimit {
    per_second: 100.0,
    burst: 500.0,
};

/// 1,000 per second in total: verifying as many signatures takes about a tenth of a core, and an
/// application answers as many calls.
const TOTAL: LeakLimit = LeakLimit {
    per_second: 1000.0,
    burst: 2000.0,
};

const ROUTES: AddressLimits = AddressLimits {
    per_address: PER_ADDRESS,
    total: TOTAL,
};

/// One log line per second about rejected addresses.
const LOG_RATE: Rate = Rate::new(1, 1);

impl AddressLimiter {
    /// Returns a limiter of failed authentications on routes.
    #[must_use]
    pub fn of_failures() -> Self {
        Self::new(Self::FAILURES, ROUTES)
    }

    /// Returns a limiter of calls to authentication endpoints.
    #[must_use]
    pub fn of_calls() -> Self {
        Self::new("calls to an authentication endpoint", ROUTES)
    }

    /// Plural noun for limiters of failed authentications.
    pub const FAILURES: &'static str = "failed authentications";

    /// Returns a limiter that has counted nothing.
    #[must_use]
    pub fn new(counted: &'static str, limits: AddressLimits) -> Self {
        Self {
            counted,
            limits,
            addresses: LeakyBuckets::new(limits.per_address),
            total: Mutex::new(Level::empty(Instant::now())),
            log_bucket: Bucket::new(LOG_RATE),
        }
    }

    /// Checks that there is room for one failure or call of an address.
    ///
    /// # Errors
    /// Returns the time until there is.
    pub fn check(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let Some(recent) = self.addresses.level(&network(address), now) else {
            return Ok(());
        };
        let AddressLimits { per_address, total } = self.limits;
        let all = lock(&self.total).drained(total, now);
        let wait = recent.wait(per_address).max(all.wait(total));
        if wait.is_zero() {
            return Ok(());
        }
        if self.log_bucket.take(1).is_ok() {
            tracing::warn!(client.addr = %address, "too many {}; requests rejected", self.counted);
        }
        Err(wait)
    }

    /// Checks that there is room for one call of an address, and records it.
    ///
    /// # Errors
    /// Returns the time until there is.
    pub fn take(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        self.check(address, now)?;
        self.record(address, now);
        Ok(())
    }

    /// Records a failure. Concurrent failures add at most one beyond the burst each.
    pub fn record(&self, address: IpAddr, now: Instant) {
        let limit = self.limits.total;
        let mut total = lock(&self.total);
        *total = total.drained(limit, now).with_unit(limit);
        drop(total);
        self.addresses.add(network(address), now);
    }
}

/// Returns the address, or the network of an IPv6 address: one client often has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4.into(),
            None => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::leaky_bucket::KEYS_MAX;

    fn v4(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn address_with_too_many_failures_waits_until_they_drain() {
        let (limiter, now) = (AddressLimiter::of_failures(), Instant::now());
        for _ in 0..499 {
            assert_eq!(limiter.check(v4(1), now), Ok(()));
            limiter.record(v4(1), now);
        }
        assert_eq!(limiter.check(v4(1), now), Ok(()));
        limiter.record(v4(1), now);
        let wait = limiter.check(v4(1), now).unwrap_err();
        assert_eq!(wait, Duration::from_millis(10));
        assert_eq!(limiter.check(v4(2), now), Ok(()), "another address");
        assert_eq!(limiter.check(v4(1), now + wait), Ok(()));
        assert_eq!(limiter.check(v4(1), now + Duration::from_secs(6)), Ok(()));
    }

    #[test]
    fn full_total_rejects_only_addresses_with_recent_failures() {
        let (limiter, now) = (AddressLimiter::of_failures(), Instant::now());
        for number in 0..2000 {
            limiter.record(v4(number), now);
        }
        assert_eq!(limiter.check(v4(1), now), Err(Duration::from_millis(1)));
        assert_eq!(limiter.check(v4(5000), now), Ok(()));
        assert_eq!(limiter.check(v4(1), now + Duration::from_secs(1)), Ok(()));
    }

    #[test]
    fn calls_are_counted_until_the_limit_is_reached() {
        let (limiter, now) = (AddressLimiter::of_calls(), Instant::now());
        for _ in 0..500 {
            assert_eq!(limiter.take(v4(1), now), Ok(()));
        }
        let wait = limiter.take(v4(1), now).unwrap_err();
        assert_eq!(wait, Duration::from_millis(10));
        assert_eq!(limiter.take(v4(1), now + wait), Ok(()));
        assert_eq!(limiter.take(v4(2), now), Ok(()));
    }

    #[test]
    fn ipv6_addresses_of_one_network_share_a_limit() {
        let (limiter, now) = (AddressLimiter::of_failures(), Instant::now());
        for last in 0..500 {
            let address = format!("2001:db8::{last:x}").parse().unwrap();
            limiter.record(address, now);
        }
        let other = "2001:db8::ffff".parse().unwrap();
        assert!(limiter.check(other, now).is_err());
        let other = "2001:db8:0:1::1".parse().unwrap();
        assert_eq!(limiter.check(other, now), Ok(()));
        assert_eq!(
            network("::ffff:192.0.2.1".parse().unwrap()),
            v4(0xc000_0201)
        );
    }

    #[test]
    fn table_is_bounded_and_keeps_the_addresses_with_most_failures() {
        let (limiter, now) = (AddressLimiter::of_failures(), Instant::now());
        for _ in 0..100 {
            limiter.record(v4(u32::MAX), now);
        }
        for number in 0..2 * KEYS_MAX as u32 {
            limiter.record(v4(number), now);
        }
        let count = limiter.addresses.len();
        assert!(count <= KEYS_MAX, "{count}");
        assert!(limiter.addresses.level(&v4(u32::MAX), now).is_some());
    }
}
