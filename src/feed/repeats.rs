//! Which messages stand in a window already, by what their publishers call them.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// The names of the messages in one window; as bounded as the window is.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    known: HashSet<Arc<str>>,
    /// The same with where they stand, oldest first.
    order: VecDeque<(u64, Arc<str>)>,
}

impl Repeats {
    /// Forgets what left the window: everything up to this sequence number.
    pub(super) fn forget(&mut self, floor: u64) {
        while let Some((_, id)) = self.order.pop_front_if(|(seq, _)| *seq <= floor) {
            self.known.remove(&id);
        }
    }

    /// Whether the message stands in the window.
    pub(super) fn is_known(&self, id: &str) -> bool {
        self.known.contains(id)
    }

    /// Remembers a message that is appended with this sequence number.
    pub(super) fn note(&mut self, id: Box<str>, seq: u64) {
        let id: Arc<str> = id.into();
        self.known.insert(id.clone());
        self.order.push_back((seq, id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_left_the_window_may_come_again() {
        let mut repeats = Repeats::default();
        repeats.note("a".into(), 1);
        repeats.note("b".into(), 2);
        repeats.forget(1);
        assert!(!repeats.is_known("a") && repeats.is_known("b"));
        repeats.forget(9);
        assert!(repeats.known.is_empty() && repeats.order.is_empty());
    }
}
