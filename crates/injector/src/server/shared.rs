//! State that all connections of the webhook share: metrics, permits, health and shutdown.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard, PoisonError};

use governor::DefaultDirectRateLimiter;
use sidestream_common::tls::ReloadError;
use sidestream_inject::Defaults;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::reviews::ReviewPermits;
use crate::metrics::Metrics;

/// State that all connections share.
pub(super) struct Shared {
    pub(super) defaults: Defaults,
    pub(super) admin_hosts: Vec<String>,
    pub(super) metrics: Metrics,
    pub(super) is_shutting_down: AtomicBool,
    /// Error of the last reload of the certificate.
    pub(super) reload_error: Mutex<Option<String>>,
    /// Permits for reviews whose bodies are in memory.
    pub(super) reviews: ReviewPermits,
    /// Permits for evicted connections that shut down gracefully.
    pub(super) graceful_evictions: Semaphore,
    /// Rate limit of log lines about invalid annotations.
    pub(super) problem_lines: DefaultDirectRateLimiter,
    /// Log lines that were suppressed since the last one.
    pub(super) suppressed_lines: AtomicU64,
    /// Cancelled when connections must end.
    pub(super) shutdown: CancellationToken,
    /// The open connections.
    pub(super) connections: TaskTracker,
}

impl Shared {
    pub(super) fn record_reload(&self, reload: Result<(), ReloadError>) {
        let error = reload.err().map(|error| error.to_string());
        if let Some(error) = &error {
            tracing::warn!(error, "certificate reload failed");
        }
        *self.reload_error() = error;
    }

    pub(super) fn reload_error(&self) -> MutexGuard<'_, Option<String>> {
        self.reload_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
