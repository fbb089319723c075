//! An event stream as others see it: its entry in the registry, and how it is asked to end.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime};

use futures_util::task::AtomicWaker;
use smallvec::SmallVec;

use super::compact_time::{CompactInstant, StreamClock};
use super::write_batch::Written;
use crate::feed::CursorProbe;
use crate::http::request::route::Route;
use crate::net::AddressText;
use crate::presence::queue::unix_millis;
use crate::presence::{
    CloseReason, Lag, Protocol, Sent, State, StreamHandle, StreamInfo, StreamTable,
};
use crate::sse::EventId;
use crate::telemetry::Metrics;

/// Who is at the other end, and by what way. Without what an IPv6 address has beside itself and its port.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Peer {
    ip: IpAddr,
    port: u16,
    pub(in crate::http) protocol: Protocol,
    pub(in crate::http) tls: bool,
}

impl Peer {
    pub(in crate::http) fn new(remote: SocketAddr, protocol: Protocol, tls: bool) -> Self {
        Self {
            ip: remote.ip(),
            port: remote.port(),
            protocol,
            tls,
        }
    }

    pub(in crate::http) fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }

    /// The same for a line of the log.
    pub(in crate::http) fn text(&self) -> AddressText {
        self.remote().into()
    }
}

/// The client of an event stream.
pub(in crate::http) struct Client {
    /// Its name by the route's `client`, or its address.
    pub(in crate::http) name: Box<str>,
    /// It can be recognised on another pod without a position: it has a name, and that pod knows what a position means.
    pub(in crate::http) can_come_back: bool,
}

/// What an event stream shares with the registry.
#[derive(Debug)]
pub(in crate::http) struct StreamState {
    turn: Turned,
    pub(in crate::http) route: Arc<Route>,
    pub(in crate::http) client: Box<str>,
    /// See [`Client::can_come_back`].
    pub(in crate::http) can_come_back: bool,
    pub(in crate::http) peer: Peer,
    probes: SmallVec<[CursorProbe; 1]>,
    /// Milliseconds of Unix time.
    opened: u64,
    pub(in crate::http) began: StreamClock,
}

/// What is looked at in every turn, side by side.
#[derive(Debug)]
struct Turned {
    task: AtomicWaker,
    /// Written by the task alone.
    events: AtomicU64,
    bytes: AtomicU64,
    /// Ticks since it began at which the socket began to refuse bytes, plus one; 0 while it takes them.
    refused: AtomicU32,
    gaps: AtomicU32,
    /// HTTP/2: bytes that were handed over and are not out.
    in_flight: AtomicU32,
    /// 0, or a place in [`CloseReason::ALL`] plus one: why it is asked to end. The first reason stands.
    asked: AtomicU8,
    /// Resumes, and has not caught up yet.
    resuming: AtomicBool,
    /// It has been live.
    active: AtomicBool,
    /// The socket has refused bytes for longer than the route's patience, and nothing was read since.
    slow: AtomicBool,
}

/// What an event stream holds that has an HTTP/1 connection for itself: task, cursor, registration.
///
/// These five were measured with thousands of clients, and `tests/memory.rs` holds them.
const HTTP1_BYTES: u64 = 1392;

/// What one of those that share an HTTP/2 connection holds, h2's part of a stream included.
const H2_STREAM_BYTES: u64 = 1408;

/// What an HTTP/2 connection holds beside its event streams: h2's buffers and tables.
const H2_BYTES: u64 = 25 * 1024 + 512;

/// What TLS holds for an HTTP/2 connection: its records are larger.
const H2_TLS_BYTES: u64 = 14 * 1024 + 512;

/// What TLS holds for an HTTP/1 connection.
const TLS_BYTES: u64 = 7552;

impl StreamState {
    pub(in crate::http) fn new(
        route: Arc<Route>,
        Client {
            name: client,
            can_come_back,
        }: Client,
        peer: Peer,
        probes: SmallVec<[CursorProbe; 1]>,
        resuming: bool,
    ) -> Self {
        let turn = Turned {
            task: AtomicWaker::new(),
            events: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            refused: AtomicU32::new(0),
            gaps: AtomicU32::new(0),
            asked: AtomicU8::new(0),
            resuming: AtomicBool::new(resuming),
            active: AtomicBool::new(false),
            slow: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
        };
        Self {
            turn,
            route,
            client,
            can_come_back,
            peer,
            probes,
            opened: unix_millis(SystemTime::now()),
            began: StreamClock::now(),
        }
    }

    /// Why it is asked to end, if it is; otherwise the task is woken when it will be.
    pub(in crate::http) fn poll_close_request(&self, waker: &Waker) -> Option<CloseReason> {
        self.turn.task.register(waker);
        self.close_request()
    }

    pub(in crate::http) fn close_request(&self) -> Option<CloseReason> {
        let place = usize::from(self.turn.asked.load(Ordering::Acquire)).checked_sub(1)?;
        CloseReason::ALL.get(place).copied()
    }

    /// Its time has come, or it is asked to do something: its task looks.
    pub(in crate::http) fn wake(&self) {
        self.turn.task.wake();
    }

    /// HTTP/2: so many bytes are handed over.
    pub(in crate::http) fn add_in_flight(&self, bytes: usize) {
        self.turn
            .in_flight
            .fetch_add(bytes as u32, Ordering::Relaxed);
    }

    /// HTTP/2: so many bytes are out, or thrown away. The task that waits for them is woken after the last.
    pub(in crate::http) fn remove_in_flight(&self, bytes: usize) {
        let before = self
            .turn
            .in_flight
            .fetch_sub(bytes as u32, Ordering::Relaxed);
        if before == bytes as u32 && self.is_blocked() {
            self.wake();
        }
    }

    /// HTTP/2: bytes that were handed over and are not out.
    pub(in crate::http) fn in_flight(&self) -> usize {
        self.turn.in_flight.load(Ordering::Relaxed) as usize
    }

    /// HTTP/2: bytes that are out, modulo 2^32.
    pub(in crate::http) fn out(&self) -> u32 {
        (self.turn.bytes.load(Ordering::Relaxed) as u32)
            .wrapping_sub(self.turn.in_flight.load(Ordering::Relaxed))
    }

    /// It was told of a gap.
    pub(in crate::http) fn count_gap(&self) {
        self.turn.gaps.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of gaps so far.
    pub(in crate::http) fn gaps(&self) -> u32 {
        self.turn.gaps.load(Ordering::Relaxed)
    }

    /// Counts what has reached the socket; for the thread of its task alone.
    ///
    /// `route` is its own, for whoever has that at hand.
    pub(in crate::http) fn count(&self, route: &Route, (stats, bytes): Written) {
        // Nobody else writes here: no need for an operation that locks the line.
        let add = |count: &AtomicU64, more| {
            count.store(count.load(Ordering::Relaxed) + more, Ordering::Relaxed)
        };
        add(&self.turn.events, stats.events);
        add(&self.turn.bytes, bytes as u64);
        let metrics = &route.metrics;
        metrics.bytes.inc_by(bytes as u64);
        if stats.events > 0 {
            metrics.events.inc_by(stats.events);
        }
        if let Some(oldest) = stats.oldest {
            // What the socket took at once it has from the turn that handed it out: one look at the clock for both.
            let taken = stats.handed.unwrap_or_else(Instant::now);
            metrics
                .delivery
                .observe(taken.saturating_duration_since(oldest).as_secs_f64());
        }
    }

    /// Whether it has been live: its first bytes are on the socket, and it has caught up.
    pub(in crate::http) fn is_active(&self) -> bool {
        self.turn.active.load(Ordering::Relaxed)
    }

    /// Whether its socket had refused bytes for too long until what is read next.
    pub(in crate::http) fn has_slow_mark(&self) -> bool {
        self.turn.slow.load(Ordering::Relaxed)
    }

    /// Whether it resumes, and has not caught up yet.
    pub(in crate::http) fn is_resuming(&self) -> bool {
        self.turn.resuming.load(Ordering::Relaxed)
    }

    /// It has caught up.
    pub(in crate::http) fn set_caught_up(&self) {
        self.turn.resuming.store(false, Ordering::Relaxed);
    }

    /// True once: when its first bytes are on the socket and it has caught up.
    pub(in crate::http) fn becomes_active(&self) -> bool {
        // A look first: this is asked after every write.
        !self.turn.active.load(Ordering::Relaxed)
            && !self.is_resuming()
            && self.turn.bytes.load(Ordering::Relaxed) > 0
            && !self.turn.active.swap(true, Ordering::Relaxed)
    }

    pub(in crate::http) fn totals(&self) -> Sent {
        Sent {
            events: self.turn.events.load(Ordering::Relaxed),
            bytes: self.turn.bytes.load(Ordering::Relaxed),
        }
    }

    pub(in crate::http) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// The socket refuses bytes, since now unless it did before.
    pub(in crate::http) fn set_blocked(&self) {
        if !self.is_blocked() {
            self.turn.refused.store(
                self.began.at(Instant::now()).count().saturating_add(1),
                Ordering::Relaxed,
            );
        }
    }

    /// Whether the socket refuses bytes.
    pub(in crate::http) fn is_blocked(&self) -> bool {
        self.turn.refused.load(Ordering::Relaxed) != 0
    }

    /// The socket takes what it refused.
    pub(in crate::http) fn clear_blocked(&self) {
        if self.is_blocked() {
            self.turn.refused.store(0, Ordering::Relaxed);
        }
    }

    /// The socket has taken as much as a turn of something larger: whatever it refused before that, it is not slow.
    pub(in crate::http) fn clear_slow(&self) {
        self.clear_blocked();
        self.turn.slow.store(false, Ordering::Relaxed);
    }

    /// The socket has refused bytes for longer than the route's patience.
    pub(in crate::http) fn set_slow(&self) {
        self.turn.slow.store(true, Ordering::Relaxed);
    }

    /// Whether it had until what is read now; true once.
    pub(in crate::http) fn take_slow(&self) -> bool {
        self.turn.slow.load(Ordering::Relaxed) && self.turn.slow.swap(false, Ordering::Relaxed)
    }

    /// Whether a client that is slow is ended with so many events waiting. What it came back for is not held against
    /// it: a replay is not lag.
    pub(in crate::http) fn exceeds_max_lag(&self, waiting: u64) -> bool {
        waiting > self.route.config.slow.lag && !self.is_resuming()
    }

    /// For how long the socket has refused bytes.
    pub(in crate::http) fn blocked_for(&self) -> Duration {
        match self.turn.refused.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self
                .began
                .at(Instant::now())
                .since(CompactInstant::new(since - 1)),
        }
    }

    fn last_event_id(&self) -> String {
        EventId::new(
            self.probes
                .iter()
                .filter_map(CursorProbe::position)
                .collect(),
        )
        .to_string()
    }

    /// Whether this end waits for nobody: what is pending is thrown away.
    pub(in crate::http) fn is_forced(close: CloseReason) -> bool {
        matches!(close, CloseReason::Cut | CloseReason::Client)
    }
}

impl StreamHandle for StreamState {
    fn route(&self) -> &Arc<str> {
        &self.route.label
    }

    fn client(&self) -> &str {
        &self.client
    }

    fn lag(&self) -> Lag {
        let now = Instant::now();
        self.probes
            .iter()
            .map(|probe| probe.lag(now))
            .fold(Lag::default(), |sum, one| Lag {
                events: sum.events + one.events,
                bytes: sum.bytes + one.bytes,
                age: sum.age.max(one.age),
            })
    }

    fn is_slow(&self) -> bool {
        self.blocked_for() > self.route.config.slow.stall_timeout && self.lag().events > 0
    }

    fn memory_bytes(&self) -> u64 {
        // What an HTTP/2 connection holds for all of its event streams is counted with the connection.
        match (self.peer.protocol, self.peer.tls) {
            (Protocol::H2, _) => H2_STREAM_BYTES,
            (_, false) => HTTP1_BYTES,
            (_, true) => HTTP1_BYTES + TLS_BYTES,
        }
    }

    fn describe(&self) -> StreamInfo {
        let state = match (
            self.close_request(),
            self.is_resuming(),
            self.turn.bytes.load(Ordering::Relaxed),
        ) {
            (Some(_), ..) => State::Closed,
            (None, true, _) => State::Reconnecting,
            (None, false, 0) => State::Connecting,
            (None, false, _) => State::Active,
        };
        let filters = self
            .probes
            .iter()
            .flat_map(|probe| probe.filters().filters());
        StreamInfo {
            client: self.client.to_string(),
            route: self.route.label.clone(),
            subjects: filters.map(ToString::to_string).collect(),
            protocol: self.peer.protocol,
            tls: self.peer.tls,
            remote: self.peer.remote(),
            state,
            opened: self.opened,
            last_event_id: self.last_event_id(),
            lag: self.lag(),
            sent: self.totals(),
            memory_bytes: self.memory_bytes(),
            slow: self.is_slow(),
            gaps: u64::from(self.gaps()),
        }
    }

    fn close(&self, close: CloseReason) {
        let place = close as u8 + 1;
        // A forced end overrules one that waits.
        let asked = self
            .turn
            .asked
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |before| {
                (before == 0 || Self::is_forced(close)).then_some(place)
            });
        if asked.is_ok() {
            self.wake();
        }
    }
}

/// What all connections hold in memory, estimated from their kinds: event streams, and HTTP/2 connections whether they
/// carry any or not. Those of HTTP/1 without an event stream are left out: they last seconds.
#[must_use]
pub fn memory_bytes(registry: &StreamTable, metrics: &Metrics) -> u64 {
    let mut bytes = 0;
    registry.for_each(|member| bytes += member.memory_bytes());
    let h2 = |tls: &str| {
        let connections = metrics
            .connections
            .with_label_values(&[Protocol::H2.as_str(), tls])
            .get();
        u64::try_from(connections).unwrap_or_default()
    };
    bytes + h2("false") * H2_BYTES + h2("true") * (H2_BYTES + H2_TLS_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_fits_a_size_of_the_allocator() {
        let counts = 2 * size_of::<usize>();
        assert!(
            counts + size_of::<StreamState>() <= 160,
            "{}: the next size is 192",
            size_of::<StreamState>()
        );
    }
}
