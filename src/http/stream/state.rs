//! The part of an event stream that other threads see.
//!
//! [`StreamState`] is shared by the task of an event stream, the stream table (`/connections`,
//! metrics, presence), the drain, and the timer of its HTTP/2 connection. Other threads read counters
//! and the [`CursorProbe`]s, the only fields with a lock, and write only the reason to end
//! ([`StreamHandle::close`]), which wakes the task.
//!
//! ```text
//! table, drain --close(reason)--> close_request --wake--> task: poll_close_request -> end
//! ```
//!
//! The first reason wins, except that a forced end (the deadline of a drain) overrides one whose
//! bytes the client does not accept.
//!
//! The fields are ordered by use: [`HotState`] is read and written in every turn. With the counters
//! of its `Arc`, a state fits in 160 bytes, a size class of the allocator.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;

use super::compact_time::{self, CompactInstant, StreamClock};
use super::probes::Probes;
use super::write_batch::Written;
use crate::encoding::coding::Checksum;
use crate::encoding::{Coding, Framing};
use crate::event::EventId;
use crate::feed::CursorProbe;
use crate::http::route::Route;
use crate::net::AddressText;
use crate::presence::{
    CloseReason, Lag, Protocol, Sent, State, StreamHandle, StreamInfo, StreamTable,
};
use crate::telemetry::Metrics;

/// Remote end of a connection. Without the flow label and scope of an IPv6 address.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Peer {
    ip: IpAddr,
    /// In two bytes without an alignment, so that the state of an event stream has no gap.
    port: [u8; 2],
    pub(in crate::http) protocol: Protocol,
    pub(in crate::http) tls: bool,
}

impl Peer {
    pub(in crate::http) fn new(remote: SocketAddr, protocol: Protocol, tls: bool) -> Self {
        Self {
            ip: remote.ip(),
            port: remote.port().to_ne_bytes(),
            protocol,
            tls,
        }
    }

    pub(in crate::http) fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.ip, u16::from_ne_bytes(self.port))
    }

    /// Returns the address for a log line.
    pub(in crate::http) fn text(&self) -> AddressText {
        self.remote().into()
    }
}

/// Client of an event stream.
pub(in crate::http) struct Client {
    /// Name by the route's `client`, or the address.
    pub(in crate::http) name: Box<str>,
    /// Another pod can recognise the client without an id: it has a name, and that pod knows the
    /// positions.
    pub(in crate::http) can_come_back: bool,
}

/// State that the task of an event stream shares with other threads.
#[derive(Debug)]
pub(in crate::http) struct StreamState {
    hot: HotState,
    pub(in crate::http) route: Arc<Route>,
    pub(in crate::http) client: Box<str>,
    /// See [`Client::can_come_back`].
    pub(in crate::http) can_come_back: bool,
    pub(in crate::http) peer: Peer,
    pub(in crate::http) framing: Framing,
    /// Compression of the event stream.
    pub(in crate::http) coding: Option<Coding>,
    /// Locked for a few lines, and never while an event is delivered.
    probes: Mutex<Probes>,
    pub(in crate::http) clock: StreamClock,
}

/// Fields of every turn, next to each other.
#[derive(Debug)]
struct HotState {
    task: AtomicWaker,
    /// Written only by the task's thread.
    events: AtomicU64,
    bytes: AtomicU64,
    /// Checksum of what the client of a gzip stream has received.
    checksum: AtomicU64,
    /// Tick of the event stream at which the socket stopped accepting bytes, plus one; 0 while it
    /// accepts them.
    blocked_since: AtomicU32,
    gaps: AtomicU32,
    /// HTTP/2: bytes that were passed to the connection and are not written yet.
    in_flight: AtomicU32,
    /// Requested reason to end: its index in [`CloseReason::ALL`] plus one, or 0.
    close_request: AtomicU8,
    /// It resumes from an id, or begins in the past, and has not caught up yet.
    is_resuming: AtomicBool,
    /// It has been live.
    is_active: AtomicBool,
    /// The socket was blocked for longer than the route's stall timeout, and nothing was read
    /// since.
    is_slow: AtomicBool,
}

/// Bytes of an event stream with its own HTTP/1 connection: task, cursor, table entry.
///
/// These five constants were measured with thousands of clients; `tests/memory.rs` checks them.
const HTTP1_BYTES: u64 = 1280;

/// Bytes of an event stream on a shared HTTP/2 connection, with h2's part of the stream.
const H2_STREAM_BYTES: u64 = 1280;

/// Bytes of an HTTP/2 connection without its event streams: h2's buffers and tables.
const H2_BYTES: u64 = 25 * 1024 + 512;

/// Bytes of TLS for an HTTP/2 connection, whose records are larger.
const H2_TLS_BYTES: u64 = 14 * 1024 + 512;

/// Bytes of TLS for an HTTP/1 connection.
const TLS_BYTES: u64 = 7680;

impl StreamState {
    pub(in crate::http) fn new(
        route: Arc<Route>,
        client: Client,
        peer: Peer,
        framing: Framing,
        coding: Option<Coding>,
        probes: Probes,
        is_resuming: bool,
    ) -> Self {
        let hot = HotState {
            task: AtomicWaker::new(),
            events: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            checksum: AtomicU64::new(0),
            blocked_since: AtomicU32::new(0),
            gaps: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            close_request: AtomicU8::new(0),
            is_resuming: AtomicBool::new(is_resuming),
            is_active: AtomicBool::new(false),
            is_slow: AtomicBool::new(false),
        };
        Self {
            hot,
            route,
            client: client.name,
            can_come_back: client.can_come_back,
            peer,
            framing,
            coding,
            probes: Mutex::new(probes),
            clock: StreamClock::now(),
        }
    }

    // Requests to end, from any thread.

    /// Returns the requested reason to end; without one, the task is woken when there is one.
    pub(in crate::http) fn poll_close_request(&self, waker: &Waker) -> Option<CloseReason> {
        self.hot.task.register(waker);
        self.close_request()
    }

    /// Returns the requested reason to end.
    pub(in crate::http) fn close_request(&self) -> Option<CloseReason> {
        let index = usize::from(self.hot.close_request.load(Ordering::Acquire)).checked_sub(1)?;
        CloseReason::ALL.get(index).copied()
    }

    /// Wakes the task.
    pub(in crate::http) fn wake(&self) {
        self.hot.task.wake();
    }

    /// Returns true if this end discards pending bytes now: a client whose credentials are revoked
    /// must not delay its end by not reading.
    pub(in crate::http) fn is_forced_now(&self, close: CloseReason) -> bool {
        Self::is_forced(close) || (close == CloseReason::Revoked && self.is_blocked())
    }

    /// Returns true if this end discards pending bytes and waits for no client.
    pub(in crate::http) fn is_forced(close: CloseReason) -> bool {
        matches!(close, CloseReason::Cut | CloseReason::Client)
    }

    // Bytes in flight on an HTTP/2 connection.

    /// HTTP/2: bytes were passed to the connection.
    pub(in crate::http) fn add_in_flight(&self, bytes: usize) {
        self.hot
            .in_flight
            .fetch_add(bytes as u32, Ordering::Relaxed);
    }

    /// HTTP/2: bytes were written, or discarded. Wakes a blocked task after the last of them.
    pub(in crate::http) fn remove_in_flight(&self, bytes: usize) {
        let before = self
            .hot
            .in_flight
            .fetch_sub(bytes as u32, Ordering::Relaxed);
        if before == bytes as u32 && self.is_blocked() {
            self.wake();
        }
    }

    /// HTTP/2: returns the bytes that are not written yet.
    pub(in crate::http) fn in_flight(&self) -> usize {
        self.hot.in_flight.load(Ordering::Relaxed) as usize
    }

    /// HTTP/2: returns the bytes that were written, modulo 2^32.
    pub(in crate::http) fn flushed(&self) -> u32 {
        (self.hot.bytes.load(Ordering::Relaxed) as u32)
            .wrapping_sub(self.hot.in_flight.load(Ordering::Relaxed))
    }

    // Counters.

    /// Counts a gap that the client receives.
    pub(in crate::http) fn count_gap(&self) {
        self.hot.gaps.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of gaps until now.
    pub(in crate::http) fn gaps(&self) -> u32 {
        self.hot.gaps.load(Ordering::Relaxed)
    }

    /// Counts what reached the socket. Only for the task's thread. `route` and `framing` are the
    /// event stream's own, for callers that have them in a register.
    pub(in crate::http) fn count(
        &self,
        route: &Route,
        framing: Framing,
        Written { stats, bytes }: Written,
    ) {
        add(&self.hot.events, stats.events);
        add(&self.hot.bytes, bytes as u64);
        let metrics = &route.metrics;
        let sent = metrics.sent(framing);
        sent.bytes.inc_by(bytes as u64);
        if stats.events > 0 {
            sent.events.inc_by(stats.events);
        }
        if let Some(oldest) = stats.oldest {
            // Bytes that the socket accepted at once have the time of their turn: one clock read.
            let written_at = stats.batched_at.unwrap_or_else(compact_time::now);
            let seconds = written_at.saturating_duration_since(oldest).as_secs_f64();
            metrics.delivery.observe(seconds);
            if let Some(sample) = stats.sample {
                metrics.record_exemplar(seconds, sample);
            }
        }
    }

    /// Returns the checksum of what was sent until now. Only for the task's thread, as the next one.
    pub(in crate::http) fn checksum(&self) -> Checksum {
        Checksum::from_bits(self.hot.checksum.load(Ordering::Relaxed))
    }

    pub(in crate::http) fn set_checksum(&self, checksum: Checksum) {
        let bits = checksum.to_bits();
        self.hot.checksum.store(bits, Ordering::Relaxed);
    }

    /// Returns the totals until now.
    pub(in crate::http) fn totals(&self) -> Sent {
        Sent {
            events: self.hot.events.load(Ordering::Relaxed),
            bytes: self.hot.bytes.load(Ordering::Relaxed),
        }
    }

    /// Returns the duration since it opened.
    pub(in crate::http) fn age(&self) -> Duration {
        self.clock.elapsed()
    }

    // Progress: resuming, then active.

    /// Returns true if it has been live: its first bytes are written, and it has caught up.
    pub(in crate::http) fn is_active(&self) -> bool {
        self.hot.is_active.load(Ordering::Relaxed)
    }

    /// Returns true if it resumes from an id, or begins in the past, and has not caught up yet.
    pub(in crate::http) fn is_resuming(&self) -> bool {
        self.hot.is_resuming.load(Ordering::Relaxed)
    }

    /// Records that it reads its past again.
    pub(in crate::http) fn set_resuming(&self) {
        self.hot.is_resuming.store(true, Ordering::Relaxed);
    }

    pub(in crate::http) fn set_caught_up(&self) {
        self.hot.is_resuming.store(false, Ordering::Relaxed);
    }

    /// Returns true once: when its first bytes are written and it has caught up.
    pub(in crate::http) fn becomes_active(&self) -> bool {
        // The loads come first: this is called after every write.
        !self.hot.is_active.load(Ordering::Relaxed)
            && !self.is_resuming()
            && self.hot.bytes.load(Ordering::Relaxed) > 0
            && !self.hot.is_active.swap(true, Ordering::Relaxed)
    }

    // Backpressure: blocked, then slow.

    /// Records that the socket accepts no bytes, since now unless it was blocked already.
    pub(in crate::http) fn set_blocked(&self) {
        if !self.is_blocked() {
            self.hot.blocked_since.store(
                self.clock.at(compact_time::now()).ticks().saturating_add(1),
                Ordering::Relaxed,
            );
        }
    }

    /// Returns true if the socket accepts no bytes.
    pub(in crate::http) fn is_blocked(&self) -> bool {
        self.hot.blocked_since.load(Ordering::Relaxed) != 0
    }

    /// Returns the time since the socket stopped accepting bytes.
    pub(in crate::http) fn blocked_for(&self) -> Duration {
        match self.hot.blocked_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self
                .clock
                .at(compact_time::now())
                .since(CompactInstant::new(since - 1)),
        }
    }

    /// Records that the socket accepts bytes.
    pub(in crate::http) fn clear_blocked(&self) {
        if self.is_blocked() {
            self.hot.blocked_since.store(0, Ordering::Relaxed);
        }
    }

    /// Records that the socket has accepted a turn's worth of a large event: the client is not
    /// slow.
    pub(in crate::http) fn clear_slow(&self) {
        self.clear_blocked();
        self.hot.is_slow.store(false, Ordering::Relaxed);
    }

    /// Records that the socket was blocked for longer than the route's stall timeout.
    pub(in crate::http) fn set_slow(&self) {
        self.hot.is_slow.store(true, Ordering::Relaxed);
    }

    /// Returns true if the client was slow since the last read, without clearing it.
    pub(in crate::http) fn has_slow_mark(&self) -> bool {
        self.hot.is_slow.load(Ordering::Relaxed)
    }

    /// Returns true once if the client was slow since the last read.
    pub(in crate::http) fn take_slow(&self) -> bool {
        self.has_slow_mark() && self.hot.is_slow.swap(false, Ordering::Relaxed)
    }

    /// Returns true if a slow client with this many waiting events is closed. A client that resumes
    /// is not: a replay is not lag.
    pub(in crate::http) fn exceeds_max_lag(&self, waiting: u64) -> bool {
        waiting > self.route.config.slow.lag && !self.is_resuming()
    }

    /// Replaces the views of its cursors.
    pub(in crate::http) fn set_probes(&self, probes: Probes) {
        *self.probes() = probes;
    }

    fn probes(&self) -> MutexGuard<'_, Probes> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_event_id(&self) -> String {
        let probes = self.probes();
        let positions = probes.iter().filter_map(CursorProbe::position);
        EventId::new(positions.collect()).to_string()
    }
}

/// Adds to a counter that only this thread writes: without a locked operation.
fn add(count: &AtomicU64, more: u64) {
    count.store(count.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

impl StreamHandle for StreamState {
    fn route(&self) -> &Arc<str> {
        &self.route.label
    }

    fn client(&self) -> &str {
        &self.client
    }

    fn lag(&self) -> Lag {
        let now = compact_time::now();
        self.probes()
            .iter()
            .map(|probe| probe.lag(now))
            .fold(Lag::default(), |sum, lag| Lag {
                events: sum.events + lag.events,
                bytes: sum.bytes + lag.bytes,
                age: sum.age.max(lag.age),
            })
    }

    fn is_slow(&self) -> bool {
        self.blocked_for() > self.route.config.slow.stall_timeout && self.lag().events > 0
    }

    fn memory_bytes(&self) -> u64 {
        // The part of an HTTP/2 connection that its event streams share is counted with it.
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
            self.totals().bytes,
        ) {
            (Some(_), ..) => State::Closed,
            (None, true, _) => State::Reconnecting,
            (None, false, 0) => State::Connecting,
            (None, false, _) => State::Active,
        };
        let probes = self.probes().clone();
        let filters = probes.iter().flat_map(|probe| probe.filters().filters());
        StreamInfo {
            client: self.client.to_string(),
            route: self.route.label.clone(),
            subjects: filters.map(ToString::to_string).collect(),
            protocol: self.peer.protocol,
            framing: self.framing,
            tls: self.peer.tls,
            remote: self.peer.remote(),
            state,
            opened: self.clock.opened(),
            last_event_id: self.last_event_id(),
            lag: self.lag(),
            sent: self.totals(),
            memory_bytes: self.memory_bytes(),
            slow: self.is_slow(),
            gaps: u64::from(self.gaps()),
        }
    }

    fn close(&self, close: CloseReason) {
        let request = close as u8 + 1;
        let changed =
            self.hot
                .close_request
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |before| {
                    (before == 0 || Self::is_forced(close)).then_some(request)
                });
        if changed.is_ok() {
            self.wake();
        }
    }
}

/// Returns the memory of all connections, estimated from their kinds: event streams, and HTTP/2
/// connections with or without any. HTTP/1 connections without an event stream are not included;
/// they last seconds.
#[must_use]
pub fn memory_bytes(streams: &StreamTable, metrics: &Metrics) -> u64 {
    let mut bytes = 0;
    streams.for_each(|stream| bytes += stream.memory_bytes());
    bytes
        + h2_connections(metrics, "false") * H2_BYTES
        + h2_connections(metrics, "true") * (H2_BYTES + H2_TLS_BYTES)
}

fn h2_connections(metrics: &Metrics, tls: &str) -> u64 {
    let connections = metrics
        .connections
        .with_label_values(&[Protocol::H2.as_str(), tls])
        .get();
    u64::try_from(connections).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_state_fits_a_size_class_of_the_allocator() {
        let counts = 2 * size_of::<usize>();
        assert!(
            counts + size_of::<StreamState>() <= 160,
            "{}: the next size is 192",
            size_of::<StreamState>()
        );
    }
}
