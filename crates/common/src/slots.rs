//! Connection slots of a port with few clients: the admin port, the control socket, the webhook.
//!
//! Such a port has a fixed number of connections. Peers that connect and send nothing must not
//! exhaust it:
//!
//! ```text
//! accepted ---> silent ------------> connected ------------> busy
//!               no slot              a slot, from the        a request in progress:
//!               first-byte deadline  first byte on           not evictable
//!               evicted when full    evicted when full
//! ```
//!
//! Connections are accepted at once, whatever else is open. If a new one does not fit, the oldest
//! evictable connection of the peer address with the most connections is closed, so one peer cannot
//! displace the others. One peer address gets at most half of the busy connections; its further
//! requests get a 503, and their connections stay evictable. A probe is answered without
//! [`Slot::begin`], so no limit applies to it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{IntCounter, IntCounterVec};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::listener::Listener;
use super::socket;

/// 10 s: interval of log lines about evictions and rejections of one port.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Bounds of one port.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections that have sent nothing yet.
    pub silent_max: usize,
    /// Connections that have sent something.
    pub connected_max: usize,
    /// Connections with a request in progress; one peer address gets at most half of them.
    pub busy_max: usize,
    /// Time for the first byte of a connection.
    pub first_byte_max: Duration,
}

/// Reasons for which connections are closed and requests rejected: the `code` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rejection {
    /// No byte arrived in time.
    NoFirstByte,
    /// A newer connection needed the slot.
    Evicted,
    /// The port or the peer address has reached its limit of busy connections.
    Busy,
}

/// Labels in the order of the enum.
const REJECTIONS: [&str; 3] = ["no_first_byte", "evicted", "busy"];

/// Slots of one port. Clones share them.
#[derive(Clone, Debug)]
pub struct Slots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    port: &'static str,
    bounds: Bounds,
    rejections: [IntCounter; REJECTIONS.len()],
    table: Mutex<Table>,
    /// Notified when a connection leaves.
    left: Notify,
}

#[derive(Debug, Default)]
struct Table {
    /// In the order of arrival.
    connections: BTreeMap<u64, Connection>,
    next: u64,
    report: Report,
}

#[derive(Debug)]
struct Connection {
    /// `None`: the port has no peer addresses (a Unix socket), so shares do not apply.
    peer: Option<IpAddr>,
    has_received: bool,
    /// Requests in progress.
    requests: u32,
    evicted: Arc<Notify>,
}

/// Rejections since the last log line.
#[derive(Debug, Default)]
struct Report {
    logged: Option<Instant>,
    since: u64,
}

/// Slot of one connection; dropping it frees the slot.
#[derive(Debug)]
#[must_use = "dropping it frees the slot"]
pub struct Slot {
    shared: Arc<Shared>,
    key: u64,
    evicted: Arc<Notify>,
}

/// Guard of a request in progress: its connection is not evictable until the guard is dropped.
#[derive(Debug)]
#[must_use = "dropping it makes the connection evictable"]
pub struct Busy {
    shared: Arc<Shared>,
    key: u64,
}

/// Accepts connections without end. Each is served in a task of its own after its first byte.
pub async fn serve<C, F>(mut listener: Listener, slots: &Slots, handler: C) -> Infallible
where
    C: Fn(TcpStream, Slot) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let (socket, peer) = listener.accept().await;
        let slot = slots.enter(Some(peer.ip().to_canonical()));
        let handler = handler.clone();
        let serving = async move {
            // `peek` instead of `readable`, which can return early.
            if slot.first_byte(socket.peek(&mut [0])).await {
                handler(socket, slot).await;
            } else if let Err(error) = socket::abort(&socket) {
                tracing::debug!(%error, "connection could not be reset");
            }
        };
        tokio::spawn(serving);
        // Earlier connections run first. In a storm a probe is answered before it is evicted, and
        // an evicted connection is closed before the next one is accepted.
        tokio::task::yield_now().await;
    }
}

impl Slots {
    /// Returns the slots of a port. Rejections are counted with the labels `port` and `code`.
    #[must_use]
    pub fn new(port: &'static str, bounds: Bounds, rejections: &IntCounterVec) -> Self {
        let rejections = REJECTIONS.map(|code| rejections.with_label_values(&[port, code]));
        Self(Arc::new(Shared {
            port,
            bounds,
            rejections,
            table: Mutex::default(),
            left: Notify::new(),
        }))
    }

    /// Adds a connection that has sent nothing yet; the oldest such connection may be evicted for
    /// it.
    pub fn enter(&self, peer: Option<IpAddr>) -> Slot {
        let evicted = Arc::new(Notify::new());
        let mut table = self.0.lock();
        let key = table.next;
        table.next += 1;
        let connection = Connection {
            peer,
            has_received: false,
            requests: 0,
            evicted: evicted.clone(),
        };
        table.connections.insert(key, connection);
        if table
            .connections
            .values()
            .filter(|other| !other.has_received)
            .count()
            > self.0.bounds.silent_max
        {
            self.0.evict(&mut table, |other| !other.has_received);
        }
        drop(table);
        Slot {
            shared: self.0.clone(),
            key,
            evicted,
        }
    }

    /// Returns when no connection that has sent something is left.
    pub async fn unused(&self) {
        loop {
            let left = self.0.left.notified();
            if !self
                .0
                .lock()
                .connections
                .values()
                .any(|connection| connection.has_received)
            {
                return;
            }
            left.await;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Evicts one of these connections: the oldest one of the peer address with the most of them.
    /// Busy connections stay.
    fn evict(&self, table: &mut Table, among: impl Fn(&Connection) -> bool) {
        let mut counts = BTreeMap::<_, usize>::new();
        for connection in table
            .connections
            .values()
            .filter(|connection| among(connection))
        {
            *counts.entry(connection.peer).or_default() += 1;
        }
        let evictable = table
            .connections
            .iter()
            .filter(|(_, connection)| among(connection) && connection.requests == 0);
        // `max_by_key` returns the last of equal ones, hence from the youngest to the oldest.
        let victim = evictable
            .rev()
            .max_by_key(|(_, connection)| counts[&connection.peer])
            .map(|(key, _)| *key);
        if let Some(victim) = victim.and_then(|victim| table.connections.remove(&victim)) {
            victim.evicted.notify_one();
            self.count(table, Rejection::Evicted);
        }
    }

    /// Counts a rejection and logs at a bounded rate.
    fn count(&self, table: &mut Table, rejection: Rejection) {
        self.rejections[rejection as usize].inc();
        let Report { logged, since } = &mut table.report;
        *since += 1;
        let now = Instant::now();
        if logged.is_none_or(|logged| now.duration_since(logged) >= LOG_EVERY) {
            *logged = Some(now);
            let count = std::mem::take(since);
            let code = REJECTIONS[rejection as usize];
            tracing::warn!(
                port = self.port,
                code,
                count,
                "connections closed or rejected"
            );
        }
    }
}

impl Slot {
    /// Waits for the first byte, which takes a slot. Returns false if the connection must be
    /// closed.
    pub async fn first_byte<T>(&self, readable: impl Future<Output = T>) -> bool {
        let Bounds { first_byte_max, .. } = self.shared.bounds;
        tokio::select! {
            biased;
            _ = readable => self.take(),
            () = self.evicted.notified() => false,
            () = tokio::time::sleep(first_byte_max) => {
                // Not logged: health checks of load balancers behave like this.
                self.shared.rejections[Rejection::NoFirstByte as usize].inc();
                false
            }
        }
    }

    fn take(&self) -> bool {
        let Bounds { connected_max, .. } = self.shared.bounds;
        let mut table = self.shared.lock();
        let Some(connection) = table.connections.get_mut(&self.key) else {
            return false;
        };
        connection.has_received = true;
        if table
            .connections
            .values()
            .filter(|other| other.has_received)
            .count()
            > connected_max
        {
            self.shared.evict(&mut table, |other| other.has_received);
        }
        // The new connection itself is evicted if all others are busy or belong to peers with
        // fewer.
        table.connections.contains_key(&self.key)
    }

    /// Returns when the connection must be closed because another one needs the slot.
    pub async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Starts a request. `None`: the port or the peer address has reached its limit of busy
    /// connections.
    pub fn begin(&self) -> Option<Busy> {
        let Bounds { busy_max, .. } = self.shared.bounds;
        let mut table = self.shared.lock();
        let connection = table.connections.get(&self.key)?;
        if connection.requests == 0 {
            let peer = connection.peer;
            let busy = table
                .connections
                .values()
                .filter(|other| other.requests > 0);
            let (mut all, mut of_peer) = (0, 0);
            for other in busy {
                all += 1;
                of_peer += usize::from(other.peer == peer);
            }
            if all >= busy_max || (peer.is_some() && of_peer >= busy_max.div_ceil(2)) {
                self.shared.count(&mut table, Rejection::Busy);
                return None;
            }
        }
        table.connections.get_mut(&self.key)?.requests += 1;
        Some(Busy {
            shared: self.shared.clone(),
            key: self.key,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.lock().connections.remove(&self.key);
        self.shared.left.notify_waiters();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(connection) = self.shared.lock().connections.get_mut(&self.key) {
            connection.requests -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Opts;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        silent_max: 3,
        connected_max: 4,
        busy_max: 4,
        first_byte_max: Duration::from_millis(20),
    };

    fn slots() -> (Slots, IntCounterVec) {
        let rejections =
            IntCounterVec::new(Opts::new("rejections", "x"), &["port", "code"]).unwrap();
        (Slots::new("admin", BOUNDS, &rejections), rejections)
    }

    fn peer(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    /// A connection that has sent its first byte.
    fn connected(slots: &Slots, from: u8) -> Slot {
        let slot = slots.enter(peer(from));
        assert!(slot.take());
        slot
    }

    fn is_evicted(slot: &Slot) -> bool {
        !slot.shared.lock().connections.contains_key(&slot.key)
    }

    fn evicted(slots: &[Slot]) -> Vec<bool> {
        slots.iter().map(is_evicted).collect()
    }

    #[test]
    fn oldest_silent_connection_is_evicted_when_there_are_too_many() {
        let (slots, rejections) = slots();
        let silent: Vec<_> = (0..5).map(|_| slots.enter(peer(1))).collect();
        assert_eq!(evicted(&silent), [true, true, false, false, false]);
        assert!(
            !silent[0].take(),
            "a first byte after the eviction is too late"
        );
        assert_eq!(rejections.with_label_values(&["admin", "evicted"]).get(), 2);
        drop(silent);
        assert!(slots.0.lock().connections.is_empty());
    }

    #[test]
    fn peer_with_many_connections_evicts_its_own_ones() {
        let (slots, _) = slots();
        let other = connected(&slots, 2);
        let many: Vec<_> = (0..6).map(|_| connected(&slots, 1)).collect();
        assert!(
            !is_evicted(&other),
            "the oldest one, but the only one of its peer"
        );
        assert_eq!(evicted(&many), [true, true, true, false, false, false]);
        let busy: Vec<_> = many[3..5]
            .iter()
            .map(|slot| slot.begin().unwrap())
            .collect();
        let more = slots.enter(peer(1));
        assert!(more.take());
        assert_eq!(
            evicted(&many[3..]),
            [false, false, true],
            "busy connections stay"
        );
        let last = slots.enter(peer(1));
        assert!(last.take() && is_evicted(&more) && !is_evicted(&other));
        drop(busy);
    }

    #[test]
    fn peer_address_gets_at_most_half_of_the_busy_connections() {
        let (slots, rejections) = slots();
        let first: Vec<_> = (0..2).map(|_| connected(&slots, 1)).collect();
        let busy: Vec<_> = first.iter().map(|slot| slot.begin().unwrap()).collect();
        let third = connected(&slots, 1);
        assert!(third.begin().is_none());
        assert!(
            first[0].begin().is_some(),
            "further requests of a busy connection are part of it"
        );
        assert!(
            connected(&slots, 2).begin().is_some(),
            "another peer has its share"
        );
        assert_eq!(rejections.with_label_values(&["admin", "busy"]).get(), 1);
        drop(busy);
        assert!(third.begin().is_some());
    }

    #[tokio::test]
    async fn connection_without_a_first_byte_is_closed() {
        let (slots, rejections) = slots();
        let slot = slots.enter(peer(1));
        assert!(!slot.first_byte(std::future::pending::<()>()).await);
        assert_eq!(
            rejections
                .with_label_values(&["admin", "no_first_byte"])
                .get(),
            1
        );
        assert!(
            slots
                .enter(peer(1))
                .first_byte(std::future::ready(()))
                .await
        );
        let waiting = slots.enter(peer(1));
        let _others: Vec<_> = (0..3).map(|_| slots.enter(peer(1))).collect();
        assert!(
            !waiting.first_byte(std::future::pending::<()>()).await,
            "evicted"
        );
    }

    #[tokio::test]
    async fn unused_waits_only_for_connections_that_have_sent_something() {
        let (slots, _) = slots();
        let _silent = slots.enter(peer(1));
        let slot = connected(&slots, 1);
        let unused = tokio::spawn({
            let slots = slots.clone();
            async move { slots.unused().await }
        });
        tokio::task::yield_now().await;
        assert!(!unused.is_finished());
        drop(slot);
        tokio::time::timeout(Duration::from_secs(10), unused)
            .await
            .expect("the last connection has left")
            .unwrap();
    }
}
