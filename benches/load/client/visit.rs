//! What clients know when they come: nothing, or the id of the last event that they had.

use std::sync::{Arc, Mutex, PoisonError};

use crate::wire::events::EventReader;

/// The last id that each client had, by its number.
pub(crate) struct Positions {
    ids: Mutex<Vec<String>>,
}

/// How the clients of a fleet come.
#[derive(Clone)]
pub(crate) enum Visit {
    /// They have never been here.
    First,
    /// The same, and they remember where they were.
    Remembered(Arc<Positions>),
    /// They come back with what they remember; each had everything of its subject up to this event.
    Return(Arc<Positions>, u64),
}

// === impl Positions ===

impl Positions {
    /// Of so many clients, none of which has an id.
    pub(crate) fn new(clients: usize) -> Arc<Self> {
        Arc::new(Self {
            ids: Mutex::new(vec![String::new(); clients]),
        })
    }

    /// How many clients have an id.
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
        if let Some(place) = ids.get_mut(client) {
            *place = String::from_utf8_lossy(id).into_owned();
        }
    }
}

// === impl Visit ===

impl Visit {
    /// The reader for a client that comes like this.
    pub(super) fn reader(&self) -> EventReader {
        match self {
            Self::First => EventReader::new(),
            Self::Remembered(_) => EventReader::remembering(),
            Self::Return(_, sequence) => EventReader::after(*sequence),
        }
    }

    /// The `Last-Event-ID` of a client.
    pub(super) fn last_id(&self, client: usize) -> Option<String> {
        match self {
            Self::Return(positions, _) => positions.get(client),
            Self::First | Self::Remembered(_) => None,
        }
    }

    /// Keeps where a client is, if that is wanted.
    pub(super) fn remember(&self, client: usize, events: &EventReader) {
        if let (Self::Remembered(positions), Some(id)) = (self, events.last_id()) {
            positions.set(client, id);
        }
    }
}
