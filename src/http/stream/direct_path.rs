//! Controls writes to an idle event stream that bypass its task.
//!
//! The dispatcher of a feed writes new events to the sockets of idle clients itself, instead of
//! scheduling one task per client. It may do so only between [`DirectPath::enable`], called by the
//! task before it returns `Pending`, and [`DirectPath::take_over`], called by the task when it is
//! polled again. `take_over` returns the time of the last direct write, so that the task updates
//! its positions and its heartbeat.
//!
//! ```text
//! task:        poll ... enable() | Pending                      | take_over() ... poll
//! dispatcher:                    | admits() -> write -> record()|
//! ```
//!
//! Task and dispatcher run on the same thread, so relaxed atomics suffice. A transport whose write
//! was only partly accepted calls [`DirectPath::disable`]: the task must write the rest first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use super::compact_time::{CompactInstant, StreamClock};
use super::state::StreamState;
use super::write_batch::{Unsent, WriteStats, Written};
use crate::feed::EncodedRun;
use crate::http::route::Route;
use crate::limit::LoadLevel;
use crate::limit::load_level::SharedLevel;

/// Permission to write to one event stream without its task.
#[derive(Debug)]
pub(in crate::http) struct DirectPath {
    is_enabled: AtomicBool,
    /// Tick of the event stream at which the last direct write happened, plus one; 0 without one.
    last_write: AtomicU32,
    /// Copies from `state`, next to the other fields that every write reads.
    clock: StreamClock,
    pub(in crate::http) state: Arc<StreamState>,
    route: Arc<Route>,
    load_level: SharedLevel,
}

/// Direct writes since the path was enabled.
pub(in crate::http) struct DirectWrites {
    /// Time of the last one.
    pub(in crate::http) last_write: CompactInstant,
    /// Bytes of the last one that the socket has not accepted.
    pub(in crate::http) unsent: Option<Box<Unsent>>,
}

impl DirectPath {
    /// Creates a disabled path.
    pub(in crate::http) fn new(state: Arc<StreamState>, load_level: SharedLevel) -> Self {
        Self {
            is_enabled: AtomicBool::new(false),
            last_write: AtomicU32::new(0),
            clock: state.clock,
            route: state.route.clone(),
            state,
            load_level,
        }
    }

    /// Allows direct writes: the task is idle and nothing is in flight that the socket rejected.
    pub(in crate::http) fn enable(&self) {
        self.is_enabled.store(true, Ordering::Relaxed);
    }

    /// Forbids direct writes: the socket has not accepted all of the last one.
    pub(in crate::http) fn disable(&self) {
        self.is_enabled.store(false, Ordering::Relaxed);
    }

    /// Forbids direct writes while the task runs; returns the time of the last one, if any.
    pub(in crate::http) fn take_over(&self) -> Option<CompactInstant> {
        self.disable();
        let last_write =
            CompactInstant::new(self.last_write.load(Ordering::Relaxed).checked_sub(1)?);
        self.last_write.store(0, Ordering::Relaxed);
        Some(last_write)
    }

    /// Returns true if a direct write is allowed now.
    pub(in crate::http) fn is_ready(&self) -> bool {
        self.is_enabled.load(Ordering::Relaxed) && self.state.close_request().is_none()
    }

    /// Returns true if this run may be written. Above load level 0 telemetry is not: the task skips
    /// it. Clients with a rate limit never enable the path.
    pub(in crate::http) fn admits(&self, run: &EncodedRun) -> bool {
        let is_thinned = run.has_telemetry && self.load_level.level() != LoadLevel::None;
        !is_thinned && self.is_ready()
    }

    /// Records that a run was written just now; returns its statistics.
    pub(in crate::http) fn record(&self, run: &EncodedRun) -> WriteStats {
        let now = Instant::now();
        self.last_write.store(
            self.clock.at(now).ticks().saturating_add(1),
            Ordering::Relaxed,
        );
        WriteStats {
            events: run.events,
            oldest: Some(run.received),
            batched_at: Some(now),
        }
    }

    /// Counts bytes and events that reached the client's connection.
    pub(in crate::http) fn count(&self, written: Written) {
        self.state.count(&self.route, written);
    }
}
