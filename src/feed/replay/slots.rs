//! The places of all replays of the process: how many run and how many readers wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use crate::telemetry::Metrics;

/// How many replays there may be (`limits.replays`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// At once, of all sources.
    pub running: usize,
    /// Readers that wait for one or are in one.
    pub queued: usize,
}

impl Default for Config {
    fn default() -> Self {
        // 4: what one pod may ask of JetStream at once. 10,000: the clients of a pod that was drained.
        Self {
            running: 4,
            queued: 10_000,
        }
    }
}

/// The places of all replays of the process.
#[derive(Debug)]
pub struct ReplaySlots {
    pub(super) places: Arc<Semaphore>,
    pub(super) readers: AtomicUsize,
    pub(super) readers_max: usize,
    pub(super) queued: AtomicUsize,
    pub(super) metrics: Arc<Metrics>,
}

impl ReplaySlots {
    /// Places for replays.
    #[must_use]
    pub fn new(config: Config, metrics: &Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(config.running)),
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
