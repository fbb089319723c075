//! Messages that a window has already, by their subject and what their publishers call them.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use super::Budget;

/// The messages of one window that have a `Nats-Msg-Id`; bounded as the window is, and charged to the same budget.
///
/// A message is known by a hash of subject and id, 64 bits under a key of this process.
#[derive(Debug)]
pub(super) struct Dedup {
    known: HashSet<u64, BuildHasherDefault<Hashed>>,
    /// The same with their sequence numbers, oldest first.
    order: VecDeque<(u64, u64)>,
    budget: Arc<Budget>,
}

/// What one message costs: its entry in the order, and a place in the set, which is a third empty.
const REPEAT_BYTES: usize = size_of::<(u64, u64)>() + size_of::<u64>() * 3 / 2;

/// Takes a hash for its own hash.
#[derive(Debug, Default)]
pub(super) struct Hashed(u64);

impl Dedup {
    pub(super) fn new(budget: &Arc<Budget>) -> Self {
        Self {
            known: HashSet::default(),
            order: VecDeque::new(),
            budget: budget.clone(),
        }
    }

    /// Forgets what left the window: everything up to this sequence number.
    pub(super) fn forget(&mut self, floor: u64) {
        let before = self.order.len();
        while let Some((_, id)) = self.order.pop_front_if(|(seq, _)| *seq <= floor) {
            self.known.remove(&id);
        }
        self.budget.sub((before - self.order.len()) * REPEAT_BYTES);
    }

    /// Remembers a message that is appended with this sequence number; false if the window has it already.
    pub(super) fn note(&mut self, id: u64, seq: u64) -> bool {
        let is_new = self.known.insert(id);
        if is_new {
            self.order.push_back((seq, id));
            self.budget.add(REPEAT_BYTES);
        }
        is_new
    }
}

impl Drop for Dedup {
    fn drop(&mut self) {
        self.budget.sub(self.order.len() * REPEAT_BYTES);
    }
}

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Never called with anything but a hash.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_left_the_window_may_come_again() {
        let budget = Budget::new(1 << 20, 1);
        let mut repeats = Dedup::new(&budget);
        assert!(repeats.note(7, 1) && repeats.note(8, 2));
        assert_eq!(budget.used(), 2 * REPEAT_BYTES);
        repeats.forget(1);
        assert!(!repeats.note(8, 3) && repeats.note(7, 3));
        repeats.forget(9);
        assert!(repeats.known.is_empty() && repeats.order.is_empty());
        assert_eq!(budget.used(), 0, "what is forgotten is given back");
    }
}
