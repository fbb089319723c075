//! Subject index of a stream buffer: the events of each subject, and a trie of the subjects.
//!
//! Appending looks up the subject in a hash map. Filling a new feed walks the trie along its
//! filters. The entry of a subject also caches the feeds that match it, so the usual append does
//! not walk the trie of filters.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::subject::{Filter, FilterSet};

use super::trie::MatchCache;

/// Subjects of the events in a buffer. The hash map is for appends, the trie is for filters.
#[derive(Debug, Default)]
pub(super) struct SubjectIndex {
    subjects: HashMap<Arc<str>, Subject>,
    root: Node,
}

/// Entry of one subject.
#[derive(Debug, Default)]
struct Subject {
    /// Running indexes of its events, oldest first.
    events: VecDeque<u64>,
    feeds: MatchCache,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, Self>,
    /// Subject that ends at this node.
    subject: Option<Arc<str>>,
}

impl SubjectIndex {
    /// Adds an event and passes the subject's match cache to `visit`. Indexes ascend.
    pub(super) fn push(
        &mut self,
        subject: &Arc<str>,
        index: u64,
        visit: impl FnOnce(&mut MatchCache),
    ) {
        let known = match self.subjects.get_mut(subject) {
            Some(known) => known,
            None => {
                self.root.insert(subject);
                self.subjects.entry(subject.clone()).or_default()
            }
        };
        known.events.push_back(index);
        visit(&mut known.feeds);
    }

    /// Removes the oldest event of a subject, and the subject with its last event.
    pub(super) fn pop(&mut self, subject: &str) {
        let Some(known) = self.subjects.get_mut(subject) else {
            return;
        };
        known.events.pop_front();
        if known.events.is_empty() {
            self.subjects.remove(subject);
            self.root.remove(Some(subject));
        }
    }

    /// Indexes of all events that the filters select, ascending, each once.
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
        self.root.find(&tokens, &mut |subject| {
            found.extend(
                self.subjects
                    .get(subject)
                    .into_iter()
                    .flat_map(|known| &known.events),
            );
        });
    }
}

impl Node {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.subject.is_none()
    }

    fn insert(&mut self, subject: &Arc<str>) {
        let mut node = self;
        for token in subject.split('.') {
            node = node.children.entry(token.into()).or_default();
        }
        node.subject = Some(subject.clone());
    }

    /// Removes a subject and the nodes that become empty.
    fn remove(&mut self, rest: Option<&str>) {
        let Some(rest) = rest else {
            self.subject = None;
            return;
        };
        let (token, below) = match rest.split_once('.') {
            Some((token, below)) => (token, Some(below)),
            None => (rest, None),
        };
        if let Some(child) = self.children.get_mut(token) {
            child.remove(below);
            if child.is_empty() {
                self.children.remove(token);
            }
        }
    }

    fn find(&self, tokens: &[&str], take: &mut impl FnMut(&str)) {
        match tokens {
            [] => self.subject.as_deref().into_iter().for_each(take),
            [">"] => {
                for child in self.children.values() {
                    child.all(take);
                }
            }
            ["*", rest @ ..] => {
                for child in self.children.values() {
                    child.find(rest, take);
                }
            }
            [token, rest @ ..] => {
                if let Some(child) = self.children.get(*token) {
                    child.find(rest, take);
                }
            }
        }
    }

    /// The depth of the recursion is the number of tokens, which NATS limits by the length of a
    /// subject.
    fn all(&self, take: &mut impl FnMut(&str)) {
        self.subject.as_deref().into_iter().for_each(&mut *take);
        for child in self.children.values() {
            child.all(take);
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
        fn index_finds_the_same_events_as_a_scan(
            picks in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
            evicted in 0usize..40,
            filters in prop::collection::vec(filter(), 1..4),
        ) {
            let all: Vec<String> = subjects().collect();
            let events: Vec<&String> = picks.iter().map(|pick| pick.get(&all)).collect();
            let evicted = evicted.min(events.len());
            let mut index = SubjectIndex::default();
            for (position, subject) in events.iter().enumerate() {
                index.push(&Arc::from(subject.as_str()), position as u64, |_| {});
            }
            for subject in &events[..evicted] {
                index.pop(subject);
            }
            let set = FilterSet::new(filters);
            let naive: Vec<u64> = (evicted..events.len()).filter(|position| set.matches(events[*position])).map(|position| position as u64).collect();
            prop_assert_eq!(index.find(&set), naive);
            for subject in &events[evicted..] {
                index.pop(subject);
            }
            prop_assert!(index.root.is_empty() && index.subjects.is_empty(), "removed events leave no nodes");
        }
    }
}
