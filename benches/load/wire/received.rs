//! Record of one client: the order of its events, and its last event id.

use super::events::Seen;
use super::sequence::Sequence;
use super::stamp::Stamp;

/// Numbers of the events of one client, and its last event id, if that is stored.
#[derive(Debug, Default)]
pub(crate) struct Received {
    sequence: Sequence,
    last_id: Option<Vec<u8>>,
}

impl Received {
    /// Returns the state of a client that received all events up to `sequence`.
    pub(crate) fn after(sequence: u64) -> Self {
        Self {
            sequence: Sequence::after(sequence),
            last_id: None,
        }
    }

    /// Returns the state of a client that stores its last event id.
    pub(crate) fn remembering() -> Self {
        Self {
            sequence: Sequence::default(),
            last_id: Some(Vec::new()),
        }
    }

    /// Returns the id that the client would resume from, if it is stored.
    pub(crate) fn last_id(&self) -> Option<&[u8]> {
        self.last_id.as_deref().filter(|id| !id.is_empty())
    }

    /// Returns the number of the last event; 0 before the first one.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.sequence.last()
    }

    /// Stores an id, if this client stores it.
    pub(super) fn set_id(&mut self, id: &[u8]) {
        if let Some(last) = &mut self.last_id {
            last.clear();
            last.extend_from_slice(id);
        }
    }

    /// Records an event.
    pub(super) fn event(&mut self, stamp: Stamp, id: bool) -> Seen {
        let order = self.sequence.observe(stamp.sequence);
        Seen::Event { stamp, order, id }
    }
}
