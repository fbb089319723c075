//! Limits on the replays of the process: running sessions and waiting readers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::read_ahead::BYTES_MAX;
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
    running_max: usize,
    readers: AtomicUsize,
    readers_max: usize,
    pub(super) queued: AtomicUsize,
    /// Readers that ask the archive where to begin.
    locating: Semaphore,
    pub(in crate::feed) metrics: Arc<Metrics>,
}

/// Permit to ask the archive where a reader begins.
#[derive(Debug)]
pub(in crate::feed) struct LocatePermit<'s> {
    _slot: SemaphorePermit<'s>,
    _reader: CountedReader<'s>,
}

/// Reader that counts in the limit of readers until it is dropped.
#[derive(Debug)]
struct CountedReader<'s>(&'s ReplaySlots);

impl Drop for CountedReader<'_> {
    fn drop(&mut self) {
        self.0.discount_reader();
    }
}

impl ReplaySlots {
    /// Creates the slots.
    #[must_use]
    pub fn new(config: ReplayLimits, metrics: &Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(config.running)),
            running_max: config.running,
            readers: AtomicUsize::new(0),
            readers_max: config.queued,
            queued: AtomicUsize::new(0),
            locating: Semaphore::new(config.running),
            metrics: metrics.clone(),
        })
    }

    /// Waits until a reader may ask the archive where to begin; `None` at the limit of readers. The
    /// reader counts until the permit is dropped.
    pub(in crate::feed) async fn locate(&self) -> Option<LocatePermit<'_>> {
        let reader = self.add_reader()?;
        // The semaphore is never closed.
        let slot = self.locating.acquire().await.ok()?;
        Some(LocatePermit {
            _slot: slot,
            _reader: reader,
        })
    }

    /// Counts a reader; `None` at the limit.
    fn add_reader(&self) -> Option<CountedReader<'_>> {
        self.count_reader().then_some(CountedReader(self))
    }

    /// Counts a reader until [`Self::discount_reader`]; false at the limit.
    pub(super) fn count_reader(&self) -> bool {
        self.readers
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |readers| {
                (readers < self.readers_max).then_some(readers + 1)
            })
            .is_ok()
    }

    pub(super) fn discount_reader(&self) {
        self.readers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the share of a running session in [`BYTES_MAX`].
    pub(super) fn bytes_max(&self) -> usize {
        let running = self.running_max - self.slots.available_permits();
        BYTES_MAX / running.max(1)
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
