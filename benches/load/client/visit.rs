//! Clients that connect for the first time, and clients that return with a `Last-Event-ID`.

use std::sync::{Arc, Mutex, PoisonError};

use crate::wire::events::EventReader;

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
    /// Returns the reader for a client of this kind.
    pub(super) fn reader(&self) -> EventReader {
        match self {
            Self::First => EventReader::new(),
            Self::Remembered(_) => EventReader::remembering(),
            Self::Return(_, sequence) => EventReader::after(*sequence),
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
    pub(super) fn remember(&self, client: usize, events: &EventReader) {
        if let (Self::Remembered(positions), Some(id)) = (self, events.last_id()) {
            positions.set(client, id);
        }
    }
}
