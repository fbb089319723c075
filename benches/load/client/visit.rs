//! Clients that connect for the first time, and clients that return with a `Last-Event-ID`.

use std::sync::{Arc, Mutex, PoisonError};

use crate::wire::body::BodyReader;
use crate::wire::received::Received;

/// Last event id of each client, by its number.
pub(crate) struct Positions {
    ids: Mutex<Vec<String>>,
}

/// First connection or return of the clients of a fleet.
#[derive(Clone)]
pub(crate) enum Visit {
    /// First connection.
    First,
    /// First connection; the last event id is stored.
    Remembered(Arc<Positions>),
    /// Return with the stored ids, after each client received all events up to this one.
    Return(Arc<Positions>, u64),
}

// === impl Positions ===

impl Positions {
    /// Returns positions of `clients` clients without an id.
    pub(crate) fn new(clients: usize) -> Arc<Self> {
        Arc::new(Self {
            ids: Mutex::new(vec![String::new(); clients]),
        })
    }

    /// Returns the number of clients with an id.
    pub(crate) fn known(&self) -> usize {
        self.ids
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter(|id| !id.is_empty())
            .count()
    }

    fn get(&self, client: usize) -> Option<String> {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.get(client).filter(|id| !id.is_empty()).cloned()
    }

    fn set(&self, client: usize, id: &[u8]) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stored) = ids.get_mut(client) {
            *stored = String::from_utf8_lossy(id).into_owned();
        }
    }
}

// === impl Visit ===

impl Visit {
    /// Returns the record of a client of this kind when it connects.
    pub(super) fn received(&self) -> Received {
        match self {
            Self::First => Received::default(),
            Self::Remembered(_) => Received::remembering(),
            Self::Return(_, sequence) => Received::after(*sequence),
        }
    }

    /// Returns the `Last-Event-ID` of a client.
    pub(super) fn last_id(&self, client: usize) -> Option<String> {
        match self {
            Self::Return(positions, _) => positions.get(client),
            Self::First | Self::Remembered(_) => None,
        }
    }

    /// Stores the last event id of a client, if this kind stores it.
    pub(super) fn remember(&self, client: usize, body: &BodyReader) {
        if let (Self::Remembered(positions), Some(id)) = (self, body.last_id()) {
            positions.set(client, id);
        }
    }
}
