//! State that the presence store's readers share with its writer: queue, metrics, open bucket.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::entries::PresenceBucket;
use crate::presence::PresenceQueue;
use crate::telemetry::Metrics;

/// Reason reported to the operator when entries are not written because the bucket is full.
pub(super) const FULL_HINT: &str = "the bucket is full, new entries are not written: raise `max_bytes` of the bucket, or limit what a client \
    may open (limits.per_client)";

/// State shared by readers and writer.
pub(super) struct Shared {
    pub(super) queue: PresenceQueue,
    pub(super) metrics: Arc<Metrics>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// The bucket, while it can be written.
    pub(super) bucket: Option<PresenceBucket>,
    /// Reason why there is no bucket.
    pub(super) error: String,
    /// End of the pause after a failed read.
    pub(super) pause: Option<Instant>,
}

impl Shared {
    pub(super) fn new(queue: PresenceQueue, metrics: Arc<Metrics>) -> Self {
        Self {
            queue,
            metrics,
            state: Mutex::new(State {
                error: "not opened yet".to_owned(),
                ..State::default()
            }),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
