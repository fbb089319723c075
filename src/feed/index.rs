//! Where in a log the events of a filter stand: a trie over the tokens of the subjects in it.

use std::collections::{HashMap, VecDeque};

use crate::subject::{Filter, FilterSet};

/// Subjects by their tokens; each leads to the running indexes of its events, oldest first.
#[derive(Debug, Default)]
pub(super) struct Index {
    root: Node,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, Self>,
    events: VecDeque<u64>,
}

impl Index {
    /// Notes an event; indexes ascend.
    pub(super) fn push(&mut self, subject: &str, index: u64) {
        let mut node = &mut self.root;
        for token in subject.split('.') {
            // Looked up twice rather than boxed each time: nearly every subject is known.
            if !node.children.contains_key(token) {
                node.children.insert(token.into(), Node::default());
            }
            let Some(child) = node.children.get_mut(token) else { return };
            node = child;
        }
        node.events.push_back(index);
    }

    /// Forgets the oldest event of a subject, and every node that held nothing else.
    pub(super) fn pop(&mut self, subject: &str) {
        self.root.pop(Some(subject));
    }

    /// The indexes of every event that one of the filters selects, ascending, each once.
    pub(super) fn find(&self, filters: &FilterSet) -> Vec<u64> {
        let mut found = Vec::new();
        for filter in filters.filters() {
            self.find_one(filter, &mut found);
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    fn find_one(&self, filter: &Filter, found: &mut Vec<u64>) {
        let tokens: Vec<&str> = filter.tokens().collect();
        self.root.find(&tokens, found);
    }
}

impl Node {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.events.is_empty()
    }

    fn pop(&mut self, rest: Option<&str>) {
        let Some(rest) = rest else {
            self.events.pop_front();
            return;
        };
        let (token, below) = match rest.split_once('.') {
            Some((token, below)) => (token, Some(below)),
            None => (rest, None),
        };
        if let Some(child) = self.children.get_mut(token) {
            child.pop(below);
            if child.is_empty() {
                self.children.remove(token);
            }
        }
    }

    fn find(&self, tokens: &[&str], found: &mut Vec<u64>) {
        match tokens {
            [] => found.extend(&self.events),
            [">"] => {
                for child in self.children.values() {
                    child.all(found);
                }
            }
            ["*", rest @ ..] => {
                for child in self.children.values() {
                    child.find(rest, found);
                }
            }
            [token, rest @ ..] => {
                if let Some(child) = self.children.get(*token) {
                    child.find(rest, found);
                }
            }
        }
    }

    /// Recursion is bounded by the tokens of a subject, which NATS bounds by its length.
    fn all(&self, found: &mut Vec<u64>) {
        found.extend(&self.events);
        for child in self.children.values() {
            child.all(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::subject::filter::tests::{filter, subjects};

    proptest! {
        #[test]
        fn the_index_finds_what_a_scan_finds(
            picks in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
            gone in 0usize..40,
            filters in prop::collection::vec(filter(), 1..4),
        ) {
            let all: Vec<String> = subjects().collect();
            let events: Vec<&String> = picks.iter().map(|pick| pick.get(&all)).collect();
            let gone = gone.min(events.len());
            let mut index = Index::default();
            for (place, subject) in events.iter().enumerate() {
                index.push(subject, place as u64);
            }
            for subject in &events[..gone] {
                index.pop(subject);
            }
            let set = FilterSet::new(filters);
            let naive: Vec<u64> = (gone..events.len()).filter(|place| set.matches(events[*place])).map(|place| place as u64).collect();
            prop_assert_eq!(index.find(&set), naive);
            for subject in &events[gone..] {
                index.pop(subject);
            }
            prop_assert!(index.root.is_empty(), "nothing is left of events that are gone");
        }
    }
}
