//! Who may come in: each connection is counted as it is accepted, against its own limit and that of file descriptors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use super::Thresholds;

/// One for all listeners of the process.
///
/// ```text
/// 0 ........ warn ........ reject ........ half of the rest ........ limit
///            told          no event        closed at once: for
///                          streams         probes, NATS, files
/// ```
///
/// How many descriptors are open is asked a few times a second; what connections add in between is counted here, so
/// that a storm of them cannot outrun the asking.
#[derive(Debug)]
pub struct ConnectionLimiter {
    connections: AtomicUsize,
    /// Whether a connection has ever come.
    has_accepted: AtomicBool,
    connections_max: AtomicUsize,
    /// Descriptors that were open at the last refresh and are no connection.
    others: AtomicU64,
    limit: u64,
    warn: AtomicU8,
    reject: AtomicU8,
}

/// How much is left of the file descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FdHeadroom {
    /// Enough.
    Ample,
    /// An operator should refresh.
    Low,
    /// What is left is not for event streams.
    Reserved,
    /// What is left is not for clients at all.
    Exhausted,
}

/// A connection that was let in; dropping it counts it out.
#[derive(Debug)]
#[must_use = "dropping it counts the connection out"]
pub struct ConnectionPermit {
    limiter: Arc<ConnectionLimiter>,
    /// It is one more than `limits.connections`: it is answered, but gets no event stream.
    pub over_limit: bool,
}

impl ConnectionLimiter {
    /// A limiter under this limit of file descriptors, open to any number of connections within it.
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

    /// Changes the bounds for those who come from now on.
    pub fn set(&self, connections_max: usize, Thresholds { warn, reject }: Thresholds) {
        self.connections_max
            .store(connections_max, Ordering::Relaxed);
        self.warn.store(warn, Ordering::Relaxed);
        self.reject.store(reject, Ordering::Relaxed);
    }

    /// The limit of file descriptors.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The shares from which on something is done.
    #[must_use]
    pub fn thresholds(&self) -> Thresholds {
        Thresholds {
            warn: self.warn.load(Ordering::Relaxed),
            reject: self.reject.load(Ordering::Relaxed),
        }
    }

    /// Counts a connection in; none when it is to be closed at once.
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

    /// Whether a connection has ever come: of a client, or of a load balancer that looks whether the port is open.
    #[must_use]
    pub fn has_accepted(&self) -> bool {
        self.has_accepted.load(Ordering::Relaxed)
    }

    /// Asks how many descriptors are open now, connections among them.
    ///
    /// # Errors
    /// What `open` fails with; what was known before stays.
    pub fn refresh<E>(&self, open: impl FnOnce() -> Result<u64, E>) -> Result<(), E> {
        let before = self.connections.load(Ordering::Relaxed);
        let open = open()?;
        // The fewer of the two: who comes while it is being counted must not hide a descriptor that is something else.
        let connections = before.min(self.connections.load(Ordering::Relaxed)) as u64;
        self.others
            .store(open.saturating_sub(connections), Ordering::Relaxed);
        Ok(())
    }

    /// How many descriptors are open, as far as is known here.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        self.others.load(Ordering::Relaxed) + self.connections.load(Ordering::Relaxed) as u64
    }

    /// How much is left.
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
    fn supply_goes_down_with_each_connection_and_up_as_they_leave() {
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
            "the 951st descriptor is not for clients"
        );
        assert_eq!(
            limiter.headroom(),
            FdHeadroom::Reserved,
            "who is not let in is not counted"
        );
        clients.truncate(700);
        assert_eq!(
            limiter.headroom(),
            FdHeadroom::Ample,
            "known without another refresh"
        );
    }

    #[test]
    fn descriptors_that_are_no_connections_count_from_the_next_look_on() {
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
    fn a_crowd_that_comes_during_the_count_hides_nothing() {
        let limiter = ConnectionLimiter::new(100);
        let mut crowd = Vec::new();
        let counted = limiter.refresh(|| {
            crowd = acquire(&limiter, 40);
            Ok::<_, ()>(60)
        });
        assert_eq!(
            (counted, limiter.in_use()),
            (Ok(()), 100),
            "too many rather than too few, until the next refresh"
        );
    }

    #[test]
    fn one_connection_more_than_the_limit_is_surplus_and_not_shut_out() {
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
    fn thresholds_are_shares_of_the_limit() {
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
