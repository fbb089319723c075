//! Limits on the replays of the process: running sessions and waiting readers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use crate::telemetry::Metrics;

/// Limits on replays (`limits.replays`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayLimits {
    /// Sessions that run at the same time, over all sources.
    pub running: usize,
    /// Readers that are queued or in a session.
    pub queued: usize,
}

impl Default for ReplayLimits {
    fn default() -> Self {
        // 4: the load that one pod may put on JetStream at once. 10,000: the clients of a drained
        // pod.
        Self {
            running: 4,
            queued: 10_000,
        }
    }
}

/// Replay slots of the process.
#[derive(Debug)]
pub struct ReplaySlots {
    pub(super) slots: Arc<Semaphore>,
    pub(super) readers: AtomicUsize,
    pub(super) readers_max: usize,
    pub(super) queued: AtomicUsize,
    pub(super) metrics: Arc<Metrics>,
}

impl ReplaySlots {
    /// Creates the slots.
    #[must_use]
    pub fn new(config: ReplayLimits, metrics: &Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(config.running)),
            readers: AtomicUsize::new(0),
            readers_max: config.queued,
            queued: AtomicUsize::new(0),
            metrics: metrics.clone(),
        })
    }

    pub(super) fn queue(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
        self.metrics.replays_queued.inc();
    }

    pub(super) fn unqueue(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
        self.metrics.replays_queued.dec();
    }
}
