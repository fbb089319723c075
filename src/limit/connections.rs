//! Limiter of client connections, by their own limit and by file descriptors.
//!
//! Every accepted connection takes a [`ConnectionPermit`] before anything is read. File descriptors
//! have three thresholds:
//!
//! ```text
//! 0 ........ warn ............ reject ............ middle ............ limit
//!   Ample         Low               Reserved            Exhausted
//!                 health check      rejections          connections are reset:
//!                 warns             (503)               the rest is for probes, NATS, files
//! ```
//!
//! `app::load` counts the open descriptors a few times a second ([`ConnectionLimiter::refresh`]).
//! Connections in between are counted here, so that a storm cannot outrun the count. All fields are
//! atomics; the limiter has no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use super::Thresholds;

/// Limiter of all client connections of the process.
#[derive(Debug)]
pub struct ConnectionLimiter {
    connections: AtomicUsize,
    /// A connection has been accepted.
    has_accepted: AtomicBool,
    connections_max: AtomicUsize,
    /// Open descriptors at the last refresh that are not client connections.
    others: AtomicU64,
    limit: u64,
    warn: AtomicU8,
    reject: AtomicU8,
}

/// Headroom of file descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FdHeadroom {
    /// Below `warn`.
    Ample,
    /// From `warn` on: a health check warns.
    Low,
    /// From `reject` on: new event streams are rejected.
    Reserved,
    /// Above the middle between `reject` and the limit: new connections are reset.
    Exhausted,
}

/// Permit of one connection; dropping it returns the slot.
#[derive(Debug)]
#[must_use = "dropping it returns the slot"]
pub struct ConnectionPermit {
    limiter: Arc<ConnectionLimiter>,
    /// The connection exceeds `limits.connections`: its requests are answered with a rejection.
    pub over_limit: bool,
}

impl ConnectionLimiter {
    /// Returns a limiter for this limit of file descriptors, without a limit of connections.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        let Thresholds { warn, reject } = Thresholds::default();
        Arc::new(Self {
            connections: AtomicUsize::new(0),
            has_accepted: AtomicBool::new(false),
            connections_max: AtomicUsize::new(usize::MAX),
            others: AtomicU64::new(0),
            limit,
            warn: AtomicU8::new(warn),
            reject: AtomicU8::new(reject),
        })
    }

    /// Changes the limits for new connections.
    pub fn set(&self, connections_max: usize, Thresholds { warn, reject }: Thresholds) {
        self.connections_max
            .store(connections_max, Ordering::Relaxed);
        self.warn.store(warn, Ordering::Relaxed);
        self.reject.store(reject, Ordering::Relaxed);
    }

    /// Returns the limit of file descriptors.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the thresholds in percent of the limit.
    #[must_use]
    pub fn thresholds(&self) -> Thresholds {
        Thresholds {
            warn: self.warn.load(Ordering::Relaxed),
            reject: self.reject.load(Ordering::Relaxed),
        }
    }

    /// Counts a connection. `None`: it must be reset at once.
    pub fn acquire(self: &Arc<Self>) -> Option<ConnectionPermit> {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        self.has_accepted.store(true, Ordering::Relaxed);
        let over_limit = before >= self.connections_max.load(Ordering::Relaxed);
        let entered = ConnectionPermit {
            limiter: Arc::clone(self),
            over_limit,
        };
        (self.headroom() < FdHeadroom::Exhausted).then_some(entered)
    }

    /// Returns whether any connection has been accepted: of a client, or the check of a load
    /// balancer.
    #[must_use]
    pub fn has_accepted(&self) -> bool {
        self.has_accepted.load(Ordering::Relaxed)
    }

    /// Updates the number of open descriptors. `open` counts them, connections included.
    ///
    /// # Errors
    /// Returns the error of `open`; the previous number stays in use.
    pub fn refresh<E>(&self, open: impl FnOnce() -> Result<u64, E>) -> Result<(), E> {
        let before = self.connections.load(Ordering::Relaxed);
        let open = open()?;
        // The smaller number: a connection accepted during the count must not hide another
        // descriptor.
        let connections = before.min(self.connections.load(Ordering::Relaxed)) as u64;
        self.others
            .store(open.saturating_sub(connections), Ordering::Relaxed);
        Ok(())
    }

    /// Returns the number of open descriptors: the last count of others, and current connections.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        self.others.load(Ordering::Relaxed) + self.connections.load(Ordering::Relaxed) as u64
    }

    /// Returns the headroom of file descriptors.
    #[must_use]
    pub fn headroom(&self) -> FdHeadroom {
        let Thresholds { warn, reject } = self.thresholds();
        let share = |percent: u8| self.limit.saturating_mul(percent.into()).div_ceil(100);
        let (in_use, rejects) = (self.in_use(), share(reject));
        match in_use {
            _ if in_use > rejects + self.limit.saturating_sub(rejects) / 2 => FdHeadroom::Exhausted,
            _ if in_use >= rejects => FdHeadroom::Reserved,
            _ if in_use >= share(warn) => FdHeadroom::Low,
            _ => FdHeadroom::Ample,
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.limiter.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acquire(limiter: &Arc<ConnectionLimiter>, count: usize) -> Vec<ConnectionPermit> {
        (0..count).map_while(|_| limiter.acquire()).collect()
    }

    fn refresh(limiter: &ConnectionLimiter, open: u64) {
        limiter.refresh(|| Ok::<_, ()>(open)).unwrap();
    }

    #[test]
    fn headroom_follows_the_number_of_connections() {
        let limiter = ConnectionLimiter::new(1_000);
        refresh(&limiter, 50);
        let mut clients = Vec::new();
        for (connections, headroom) in [
            (749, FdHeadroom::Ample),
            (750, FdHeadroom::Low),
            (849, FdHeadroom::Low),
            (850, FdHeadroom::Reserved),
            (900, FdHeadroom::Reserved),
        ] {
            clients.extend(acquire(&limiter, connections - clients.len()));
            assert_eq!(limiter.headroom(), headroom, "{connections} connections");
        }
        assert!(
            limiter.acquire().is_none(),
            "the 951st descriptor is reserved"
        );
        assert_eq!(
            limiter.headroom(),
            FdHeadroom::Reserved,
            "a reset connection is not counted"
        );
        clients.truncate(700);
        assert_eq!(
            limiter.headroom(),
            FdHeadroom::Ample,
            "without another refresh"
        );
    }

    #[test]
    fn other_descriptors_count_from_the_next_refresh_on() {
        let limiter = ConnectionLimiter::new(100);
        let clients = acquire(&limiter, 10);
        refresh(&limiter, 92);
        assert_eq!(
            (limiter.in_use(), limiter.headroom()),
            (92, FdHeadroom::Reserved)
        );
        drop(clients);
        assert_eq!(limiter.in_use(), 82);
    }

    #[test]
    fn connections_accepted_during_the_count_hide_no_descriptor() {
        let limiter = ConnectionLimiter::new(100);
        let mut crowd = Vec::new();
        let counted = limiter.refresh(|| {
            crowd = acquire(&limiter, 40);
            Ok::<_, ()>(60)
        });
        assert_eq!(
            (counted, limiter.in_use()),
            (Ok(()), 100),
            "the estimate errs on the high side until the next refresh"
        );
    }

    #[test]
    fn connection_over_the_limit_is_accepted_and_marked() {
        let limiter = ConnectionLimiter::new(1_000);
        limiter.set(2, Thresholds::default());
        let clients = acquire(&limiter, 3);
        assert_eq!(
            clients
                .iter()
                .map(|client| client.over_limit)
                .collect::<Vec<_>>(),
            [false, false, true]
        );
        drop(clients);
        assert!(!limiter.acquire().unwrap().over_limit);
    }

    #[test]
    fn thresholds_are_percentages_of_the_limit() {
        let limiter = ConnectionLimiter::new(256);
        limiter.set(
            usize::MAX,
            Thresholds {
                warn: 50,
                reject: 60,
            },
        );
        for (open, headroom) in [
            (127, FdHeadroom::Ample),
            (128, FdHeadroom::Low),
            (153, FdHeadroom::Low),
            (154, FdHeadroom::Reserved),
            (206, FdHeadroom::Exhausted),
        ] {
            refresh(&limiter, open);
            assert_eq!(limiter.headroom(), headroom, "{open}");
        }
    }
}
