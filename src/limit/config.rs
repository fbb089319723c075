//! Settings of this folder (parts of `limits:` in the configuration) and their defaults.
//!
//! `config::read::limits` parses the file into these types. A reload passes them to
//! `ConnectionLimiter::set` and `ClientLimiter::set`.

use std::num::NonZeroU32;

use crate::subject::ClaimPath;

/// Thresholds of file descriptors in use, in percent of the limit: 1 to 100, `warn` at most
/// `reject`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// A health check warns from here on.
    pub warn: u8,
    /// New event streams are rejected from here on.
    pub reject: u8,
}

impl Default for Thresholds {
    fn default() -> Self {
        // A tenth is left for probes, NATS and rejections. The tenth before it is the operator's
        // time to act.
        Self {
            warn: 80,
            reject: 90,
        }
    }
}

/// Limits of one client.
///
/// Only `filter_sets` is limited by default, and generously: behind a proxy without
/// `trusted_proxies` or `client`, all clients have one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerClient {
    /// Open event streams.
    pub connections: Option<usize>,
    /// Different sets of filters that the open event streams read.
    pub filter_sets: Option<usize>,
    /// Rate of opening event streams.
    pub connects: Option<Rate>,
    /// Rate of events, over all event streams of the client.
    pub events: Option<Rate>,
}

/// Limits of one client as they are configured: claims of its principal come before fixed values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PerClientConfig {
    /// Limits of clients without the claims.
    pub fixed: PerClient,
    /// Claims with limits.
    pub claims: PerClientClaims,
}

/// Claims with limits of their principal. The first of a list that the principal has counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PerClientClaims {
    /// Claims for [`PerClient::connections`].
    pub connections: Vec<ClaimPath>,
    /// Claims for [`PerClient::filter_sets`].
    pub filter_sets: Vec<ClaimPath>,
    /// Claims for [`PerClient::connects`].
    pub connects: Vec<ClaimPath>,
    /// Claims for [`PerClient::events`].
    pub events: Vec<ClaimPath>,
}

/// Limits without claims.
impl From<PerClient> for PerClientConfig {
    fn from(fixed: PerClient) -> Self {
        Self {
            fixed,
            claims: PerClientClaims::default(),
        }
    }
}

/// 4: one client reads at most a quarter of all feeds by default. Exhausting them takes four
/// addresses, and thousands of clients behind a proxy that is not trusted still fit.
const FILTER_SETS_SHARE: usize = 4;

impl PerClient {
    /// Returns the default for a process with this limit of feeds.
    #[must_use]
    pub fn among(feeds_max: usize) -> Self {
        Self {
            filter_sets: Some(feeds_max.div_ceil(FILTER_SETS_SHARE)),
            ..Self::default()
        }
    }

    /// Returns these limits, and the others where these have none.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        Self {
            connections: self.connections.or(others.connections),
            filter_sets: self.filter_sets.or(others.filter_sets),
            connects: self.connects.or(others.connects),
            events: self.events.or(others.events),
        }
    }
}

/// Rate and burst of a token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens per second.
    pub rate: NonZeroU32,
    /// Capacity of the bucket.
    pub burst: NonZeroU32,
}

impl Rate {
    /// Returns a rate. 0 counts as 1.
    #[must_use]
    pub const fn new(rate: u32, burst: u32) -> Self {
        const fn at_least_one(number: u32) -> NonZeroU32 {
            match NonZeroU32::new(number) {
                Some(number) => number,
                None => NonZeroU32::MIN,
            }
        }
        Self {
            rate: at_least_one(rate),
            burst: at_least_one(burst),
        }
    }
}
