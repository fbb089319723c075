//! What the process may use (`limits:` in the configuration), as far as it is decided in this folder.

use std::num::NonZeroU32;

/// Shares of the limit of file descriptors, in percent: 1 to 100, the first not above the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// From here on an operator is told.
    pub warn: u8,
    /// From here on nobody new gets an event stream.
    pub reject: u8,
}

impl Default for Thresholds {
    fn default() -> Self {
        // A tenth is left for probes, NATS and refusals; another tenth before it for an operator to act.
        Self {
            warn: 80,
            reject: 90,
        }
    }
}

/// What one client may take. Only `filter_sets` is limited by default, and widely: behind a proxy without
/// `trusted_proxies` or `client` all clients are one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerClient {
    /// Event streams at one time.
    pub connections: Option<usize>,
    /// Different sets of filters that its event streams read at one time.
    pub filter_sets: Option<usize>,
    /// Event streams that it opens.
    pub connects: Option<Rate>,
    /// Events that it is given, in all its event streams together.
    pub events: Option<Rate>,
}

/// One client reads at most a quarter of all feeds by default: it takes four addresses to take all of them, and behind a
/// proxy that is not trusted thousands of clients still fit.
const FILTER_SETS_SHARE: usize = 4;

impl PerClient {
    /// The default in a process of so many feeds.
    #[must_use]
    pub fn among(feeds_max: usize) -> Self {
        Self {
            filter_sets: Some(feeds_max.div_ceil(FILTER_SETS_SHARE)),
            ..Self::default()
        }
    }
}

/// Tokens of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many come each second.
    pub rate: NonZeroU32,
    /// How many a full bucket holds.
    pub burst: NonZeroU32,
}

impl Rate {
    /// Of numbers above 0; 0 counts as 1.
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
