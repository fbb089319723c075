//! An event stream as its sink sees it: what the dispatcher may write, and what it has written.
//!
//! The dispatcher of a feed writes new events to the sockets of idle clients itself, instead of
//! scheduling one task per client. The record of the subscriber says when it may
//! (`feed::Cursor::allow_direct`); [`DirectPath::admits`] says which events. [`DirectPath::record`]
//! counts them and stores the time, from which the task computes its next heartbeat.
//!
//! Task and dispatcher run on the same thread, so relaxed atomics suffice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::compact_time::{self, CompactInstant, StreamClock};
use super::state::StreamState;
use super::write_batch::{Unsent, WriteStats, Written};
use crate::encoding::coding::BlockSize;
use crate::encoding::{Coding, Framing};
use crate::feed::EncodedRun;
use crate::http::route::Route;
use crate::limit::LoadLevel;
use crate::limit::load_level::SharedLevel;

/// The part of an event stream that direct writes need.
#[derive(Debug)]
pub(in crate::http) struct DirectPath {
    /// Tick of the event stream at which the last direct write happened, plus one; 0 without one.
    last_write: AtomicU32,
    /// Copies from `state`, next to the other fields that every write reads.
    clock: StreamClock,
    framing: Framing,
    coding: Option<Coding>,
    pub(in crate::http) state: Arc<StreamState>,
    route: Arc<Route>,
    load_level: SharedLevel,
}

/// Direct writes since the task last ran.
pub(in crate::http) struct DirectWrites {
    /// Time of the last one.
    pub(in crate::http) last_write: CompactInstant,
    /// Bytes of the last one that the socket has not accepted.
    pub(in crate::http) unsent: Option<Box<Unsent>>,
}

impl DirectPath {
    pub(in crate::http) fn new(state: Arc<StreamState>, load_level: SharedLevel) -> Self {
        Self {
            last_write: AtomicU32::new(0),
            clock: state.clock,
            framing: state.framing,
            coding: state.coding,
            route: state.route.clone(),
            state,
            load_level,
        }
    }

    /// Returns the time of the last direct write since the previous call, if any.
    pub(in crate::http) fn take_last_write(&self) -> Option<CompactInstant> {
        let last_write =
            CompactInstant::new(self.last_write.load(Ordering::Relaxed).checked_sub(1)?);
        self.last_write.store(0, Ordering::Relaxed);
        Some(last_write)
    }

    /// Returns true if this run may be written: the event stream does not end, and the run has no
    /// telemetry that the load level skips. A client with a rate limit has no direct writes.
    pub(in crate::http) fn admits(&self, run: &EncodedRun) -> bool {
        let is_thinned = run.has_telemetry && self.load_level.level() != LoadLevel::None;
        !is_thinned && self.state.close_request().is_none()
    }

    /// Records that a run was written just now; returns its statistics.
    pub(in crate::http) fn record(&self, run: &EncodedRun) -> WriteStats {
        if let (Some(coding), Some(size)) = (self.coding, run.size) {
            self.record_block(coding, size);
        }
        let now = compact_time::now();
        self.last_write.store(
            self.clock.at(now).ticks().saturating_add(1),
            Ordering::Relaxed,
        );
        WriteStats {
            events: run.events,
            oldest: Some(run.received),
            batched_at: Some(now),
            sample: run.samples.first().copied(),
        }
    }

    /// Records compressed events: the checksum of the event stream, and the bytes.
    fn record_block(&self, coding: Coding, size: BlockSize) {
        if coding == Coding::Gzip {
            let checksum = self.state.checksum();
            self.state.set_checksum(checksum.after_block(size.checksum));
        }
        self.route.metrics.compressed(coding, size.plain, size.sent);
    }

    /// Counts bytes and events that reached the client's connection.
    pub(in crate::http) fn count(&self, written: Written) {
        self.state.count(&self.route, self.framing, written);
    }
}
