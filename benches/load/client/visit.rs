//! Clients that connect for the first time, and clients that return with a `Last-Event-ID`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::wire::body::BodyReader;
use crate::wire::received::Received;

/// Last event id of each client, and the number of that event within its subject.
pub(crate) struct Positions {
    last: Mutex<Vec<(String, u64)>>,
}

/// First connection or return of the clients of a fleet.
#[derive(Clone)]
pub(crate) enum Visit {
    /// First connection.
    First,
    /// First connection; the last event id is stored.
    Remembered(Arc<Positions>),
    /// Return with the stored ids.
    Return(Arc<Positions>),
}

// === impl Positions ===

impl Positions {
    /// Returns positions of `clients` clients without an id.
    pub(crate) fn new(clients: usize) -> Arc<Self> {
        Arc::new(Self {
            last: Mutex::new(vec![(String::new(), 0); clients]),
        })
    }

    /// Returns the number of clients with an id.
    pub(crate) fn known(&self) -> usize {
        let last = self.lock();
        last.iter().filter(|(id, _)| !id.is_empty()).count()
    }

    fn get(&self, client: usize) -> Option<(String, u64)> {
        let last = self.lock();
        last.get(client).filter(|(id, _)| !id.is_empty()).cloned()
    }

    fn set(&self, client: usize, id: &[u8], sequence: u64) {
        if let Some(last) = self.lock().get_mut(client) {
            *last = (String::from_utf8_lossy(id).into_owned(), sequence);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(String, u64)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Visit ===

impl Visit {
    /// Returns the record of a client when it connects.
    pub(super) fn received(&self, client: usize) -> Received {
        match self {
            Self::First => Received::default(),
            Self::Remembered(_) => Received::remembering(),
            Self::Return(positions) => match positions.get(client) {
                Some((_, sequence)) => Received::after(sequence),
                None => Received::default(),
            },
        }
    }

    /// Returns the `Last-Event-ID` of a client.
    pub(super) fn last_id(&self, client: usize) -> Option<String> {
        match self {
            Self::Return(positions) => positions.get(client).map(|(id, _)| id),
            Self::First | Self::Remembered(_) => None,
        }
    }

    /// Stores the last event id of a client, if this kind stores it.
    pub(super) fn remember(&self, client: usize, body: &BodyReader) {
        if let (Self::Remembered(positions), Some(id)) = (self, body.last_id()) {
            positions.set(client, id, body.last_sequence());
        }
    }
}
