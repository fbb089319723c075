//! Health check, metrics and log of one endpoint.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{Histogram, IntCounter};

use crate::lifecycle::health::{Check, Health, Status};
use crate::telemetry::Metrics;

/// Result of a request that an endpoint decides: the label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Allowed,
    Cached,
    Rejected,
    Failed,
    Busy,
    Limited,
}

impl Outcome {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Allowed, "allowed"),
        (Self::Cached, "cached"),
        (Self::Rejected, "rejected"),
        (Self::Failed, "failed"),
        (Self::Busy, "busy"),
        (Self::Limited, "limited"),
    ];
}

/// Reports of one endpoint.
pub(super) struct Reports {
    check: Check,
    state: Mutex<State>,
    /// By [`Outcome`].
    requests: [IntCounter; Outcome::ALL.len()],
    seconds: Histogram,
}

#[derive(Clone, Copy, Default)]
struct State {
    is_degraded: bool,
    /// Last time that the check was degraded.
    at: Option<Instant>,
}

/// 1 s between two times at which the check is degraded, for this or another reason: each is a line
/// in the log.
const PAUSE: Duration = Duration::from_secs(1);

impl Reports {
    pub(super) fn new(provider: &str, health: &Health, metrics: &Metrics) -> Self {
        let requests = Outcome::ALL.map(|(_, result)| {
            metrics
                .authentication_forward_requests_total
                .with_label_values(&[provider, result])
        });
        Self {
            check: health.degraded(format!("authentication:{provider}"), Status::Ok),
            state: Mutex::default(),
            requests,
            seconds: metrics
                .authentication_forward_seconds
                .with_label_values(&[provider]),
        }
    }

    /// Counts a request that was decided.
    pub(super) fn count(&self, outcome: Outcome) {
        self.requests[outcome as usize].inc();
    }

    /// Reports a call that has ended; `fault` is the reason if it has no answer.
    pub(super) fn report(&self, fault: Option<&dyn fmt::Display>, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(fault) = fault else {
            if std::mem::take(&mut state.is_degraded) {
                self.check.set(Status::Ok);
            }
            return;
        };
        tracing::debug!(error = %fault, "authentication endpoint failed");
        if state.at.is_some_and(|at| at.elapsed() < PAUSE) {
            return;
        }
        *state = State {
            is_degraded: true,
            at: Some(Instant::now()),
        };
        let why = format!("the endpoint cannot decide, and its requests get 503: {fault}");
        self.check.set(Status::Degraded(why));
    }
}

/// Removes the metrics of an endpoint.
pub(in crate::auth) fn forget(provider: &str, metrics: &Metrics) {
    for (_, result) in Outcome::ALL {
        // They may not exist.
        metrics
            .authentication_forward_requests_total
            .remove_label_values(&[provider, result])
            .unwrap_or(());
    }
    metrics
        .authentication_forward_seconds
        .remove_label_values(&[provider])
        .unwrap_or(());
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reports").finish_non_exhaustive()
    }
}
