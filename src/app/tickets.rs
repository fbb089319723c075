//! Tickets of the configuration in force.
//!
//! The store is replaced if a reload changes its bucket or the life of tickets; requests in progress
//! finish with the one that they have.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::auth::Tickets;
use crate::http::config::TicketsConfig;
use crate::nats::Nats;
use crate::subject::BucketName;
use crate::telemetry::Metrics;

/// Tickets, and what starts their store.
pub(super) struct TicketStores {
    nats: Nats,
    running: Mutex<Option<Running>>,
}

struct Running {
    bucket: BucketName,
    ttl: Duration,
    tickets: Arc<Tickets>,
}

impl TicketStores {
    pub(super) fn new(nats: Nats) -> Self {
        Self {
            nats,
            running: Mutex::default(),
        }
    }

    /// Returns the tickets of a configuration. `None`: it has no tickets. Needs a runtime.
    pub(super) fn apply(
        &self,
        config: Option<&TicketsConfig>,
        metrics: &Metrics,
    ) -> Option<Arc<Tickets>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        *running = config.map(|config| {
            let (bucket, ttl) = (config.bucket.clone(), config.ttl);
            let is_same = |running: &Running| running.bucket == bucket && running.ttl == ttl;
            running.take().filter(is_same).unwrap_or_else(|| {
                let store = self.nats.tickets(&bucket, ttl);
                let tickets = Arc::new(Tickets::new(store, ttl, metrics));
                Running {
                    bucket,
                    ttl,
                    tickets,
                }
            })
        });
        running.as_ref().map(|running| running.tickets.clone())
    }
}
