//! Deduplication of core messages by subject and `Nats-Msg-Id`, within the window of a feed.
//!
//! JetStream deduplicates in the server; core NATS does not. The set covers exactly the window: it
//! is bounded by it, its memory is charged to the same budget, and a duplicate that arrives after
//! the original was evicted is delivered again.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use super::Budget;

/// Messages of one window that have a `Nats-Msg-Id`.
///
/// A message is identified by a 64-bit hash of its subject and id under a random key of the
/// process.
#[derive(Debug)]
pub(super) struct Dedup {
    ids: HashSet<u64, BuildHasherDefault<IdentityHasher>>,
    /// The same ids with their sequence numbers, oldest first.
    order: VecDeque<(u64, u64)>,
    budget: Arc<Budget>,
}

/// Bytes of one message: its entry in the order, and its place in the set, which is a third empty.
const ENTRY_BYTES: usize = size_of::<(u64, u64)>() + size_of::<u64>() * 3 / 2;

/// Hasher that returns its input, which already is a hash.
#[derive(Debug, Default)]
pub(super) struct IdentityHasher(u64);

impl Dedup {
    pub(super) fn new(budget: &Arc<Budget>) -> Self {
        Self {
            ids: HashSet::default(),
            order: VecDeque::new(),
            budget: budget.clone(),
        }
    }

    /// Removes the messages up to this sequence number, which left the window.
    pub(super) fn evict_through(&mut self, floor: u64) {
        let before = self.order.len();
        while let Some((_, id)) = self.order.pop_front_if(|(seq, _)| *seq <= floor) {
            self.ids.remove(&id);
        }
        self.budget.sub((before - self.order.len()) * ENTRY_BYTES);
    }

    /// Adds a message with this sequence number; false if the window already has it.
    pub(super) fn insert(&mut self, id: u64, seq: u64) -> bool {
        let is_new = self.ids.insert(id);
        if is_new {
            self.order.push_back((seq, id));
            self.budget.add(ENTRY_BYTES);
        }
        is_new
    }
}

impl Drop for Dedup {
    fn drop(&mut self) {
        self.budget.sub(self.order.len() * ENTRY_BYTES);
    }
}

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only used if the input is not a `u64`, which does not happen.
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
    fn duplicate_of_an_evicted_message_is_delivered() {
        let budget = Budget::new(1 << 20, 1);
        let mut dedup = Dedup::new(&budget);
        assert!(dedup.insert(7, 1) && dedup.insert(8, 2));
        assert_eq!(budget.used(), 2 * ENTRY_BYTES);
        dedup.evict_through(1);
        assert!(!dedup.insert(8, 3) && dedup.insert(7, 3));
        dedup.evict_through(9);
        assert!(dedup.ids.is_empty() && dedup.order.is_empty());
        assert_eq!(budget.used(), 0, "evicted entries release their memory");
    }
}
