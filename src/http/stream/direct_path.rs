//! Whether an event stream may be handed events past its task, and when it was last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use super::compact_time::{CompactInstant, StreamClock};
use super::state::StreamState;
use super::write_batch::{WriteStats, Written};
use crate::feed::EncodedRun;
use crate::http::request::route::Route;
use crate::limit::LoadLevel;
use crate::limit::load_level::SharedLevel;

/// Open while the task waits, with nothing under way to the client that was refused. Task and rounds run on one thread.
#[derive(Debug)]
pub(in crate::http) struct DirectPath {
    is_enabled: AtomicBool,
    /// Ticks since the event stream began at which something was handed out past the task, plus one; 0 if nothing was.
    handed: AtomicU32,
    /// Of the state, as the route: here they are beside what else is needed.
    began: StreamClock,
    pub(in crate::http) state: Arc<StreamState>,
    route: Arc<Route>,
    pressure: SharedLevel,
}

impl DirectPath {
    /// A gate that is shut.
    pub(in crate::http) fn new(state: Arc<StreamState>, pressure: SharedLevel) -> Self {
        let (is_enabled, handed) = (AtomicBool::new(false), AtomicU32::new(0));
        let (began, route) = (state.began, state.route.clone());
        Self {
            is_enabled,
            handed,
            began,
            state,
            route,
            pressure,
        }
    }

    /// The task waits.
    pub(in crate::http) fn enable(&self) {
        self.is_enabled.store(true, Ordering::Relaxed);
    }

    /// What was handed out last is not all on its way.
    pub(in crate::http) fn disable(&self) {
        self.is_enabled.store(false, Ordering::Relaxed);
    }

    /// The task runs. With when something was handed out past it last, if anything was.
    pub(in crate::http) fn take_over(&self) -> Option<CompactInstant> {
        self.disable();
        let handed = CompactInstant::new(self.handed.load(Ordering::Relaxed).checked_sub(1)?);
        self.handed.store(0, Ordering::Relaxed);
        Some(handed)
    }

    /// Whether something may pass.
    pub(in crate::http) fn is_ready(&self) -> bool {
        self.is_enabled.load(Ordering::Relaxed) && self.state.close_request().is_none()
    }

    /// Whether this may. Under pressure telemetry is passed by; a client without a rate of events gets all else.
    pub(in crate::http) fn admits(&self, piece: &EncodedRun) -> bool {
        let is_thinned = piece.has_telemetry && self.pressure.level() != LoadLevel::None;
        !is_thinned && self.is_ready()
    }

    /// It has passed, just now: what is to be counted of it.
    pub(in crate::http) fn record(&self, piece: &EncodedRun) -> WriteStats {
        let now = Instant::now();
        self.handed.store(
            self.began.at(now).count().saturating_add(1),
            Ordering::Relaxed,
        );
        WriteStats {
            events: piece.events,
            oldest: Some(piece.received),
            handed: Some(now),
        }
    }

    /// Counts what has reached the client's connection.
    pub(in crate::http) fn count(&self, written: Written) {
        self.state.count(&self.route, written);
    }
}
