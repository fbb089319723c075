//! Subject trie: finds the feeds whose filters match a subject, and caches matches per subject.

use std::collections::HashMap;

use crate::subject::FilterSet;

/// Filters by their tokens, each with the keys of its feeds.
#[derive(Debug, Default)]
pub struct SubjectTrie {
    root: Node,
    /// Incremented with each change; cached matches of the current version are valid.
    version: u64,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, Self>,
    star: Option<Box<Self>>,
    /// Feeds with a filter that ends here.
    exact: Vec<usize>,
    /// Feeds with a filter that ends here with `>`.
    tail: Vec<usize>,
}

impl SubjectTrie {
    /// Adds a feed under all of its filters.
    pub fn insert(&mut self, filters: &FilterSet, feed: usize) {
        self.version += 1;
        for filter in filters.filters() {
            let mut node = &mut self.root;
            let mut tail = false;
            for token in filter.tokens() {
                match token {
                    ">" => tail = true,
                    "*" => node = node.star.get_or_insert_default(),
                    token => node = node.children.entry(token.into()).or_default(),
                }
            }
            if tail {
                node.tail.push(feed)
            } else {
                node.exact.push(feed)
            }
        }
    }

    /// Removes a feed and the nodes that become empty.
    pub fn remove(&mut self, filters: &FilterSet, feed: usize) {
        self.version += 1;
        for filter in filters.filters() {
            let tokens: Vec<&str> = filter.tokens().collect();
            self.root.remove(&tokens, feed);
        }
    }

    /// Appends the keys of the matching feeds, each once.
    pub fn matches(&self, subject: &str, found: &mut Vec<usize>) {
        let before = found.len();
        self.root.matches(Some(subject), found);
        if found.len() - before > 1 {
            // A feed with overlapping filters is found once per filter.
            found[before..].sort_unstable();
            let mut kept = before + 1;
            for index in before + 1..found.len() {
                if found[index] != found[kept - 1] {
                    found[kept] = found[index];
                    kept += 1;
                }
            }
            found.truncate(kept);
        }
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.root.is_empty()
    }
}

/// Cached matches of one subject.
#[derive(Debug, Default)]
pub(super) struct MatchCache {
    version: u64,
    feeds: Vec<usize>,
}

/// Up to 4 feeds are cached per subject; a longer list costs more memory than its lookup time.
const CACHED_FEEDS_MAX: usize = 4;

impl MatchCache {
    /// Like [`SubjectTrie::matches`], from the cache if the trie has not changed.
    pub(super) fn matches(&mut self, trie: &SubjectTrie, subject: &str, found: &mut Vec<usize>) {
        if self.version == trie.version {
            found.extend_from_slice(&self.feeds);
            return;
        }
        let before = found.len();
        trie.matches(subject, found);
        if found.len() - before <= CACHED_FEEDS_MAX {
            self.feeds.clear();
            self.feeds.extend_from_slice(&found[before..]);
            self.version = trie.version;
        }
    }
}

impl Node {
    fn is_empty(&self) -> bool {
        self.children.is_empty()
            && self.star.is_none()
            && self.exact.is_empty()
            && self.tail.is_empty()
    }

    fn remove(&mut self, tokens: &[&str], feed: usize) {
        match tokens {
            [] => self.exact.retain(|other| *other != feed),
            [">"] => self.tail.retain(|other| *other != feed),
            ["*", rest @ ..] => {
                if let Some(star) = &mut self.star {
                    star.remove(rest, feed);
                    if star.is_empty() {
                        self.star = None;
                    }
                }
            }
            [token, rest @ ..] => {
                if let Some(child) = self.children.get_mut(*token) {
                    child.remove(rest, feed);
                    if child.is_empty() {
                        self.children.remove(*token);
                    }
                }
            }
        }
    }

    /// `rest` is the part of the subject below this node.
    fn matches(&self, rest: Option<&str>, found: &mut Vec<usize>) {
        let Some(rest) = rest else {
            found.extend_from_slice(&self.exact);
            return;
        };
        found.extend_from_slice(&self.tail);
        let (token, below) = match rest.split_once('.') {
            Some((token, below)) => (token, Some(below)),
            None => (rest, None),
        };
        if let Some(star) = &self.star {
            star.matches(below, found);
        }
        if let Some(child) = self.children.get(token) {
            child.matches(below, found);
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
        fn trie_and_cache_find_exactly_the_matching_feeds(
            sets in prop::collection::vec(prop::collection::vec(filter(), 1..4), 1..8),
            removed in prop::collection::vec(any::<bool>(), 8),
        ) {
            let sets: Vec<FilterSet> = sets.into_iter().map(FilterSet::new).collect();
            let mut trie = SubjectTrie::default();
            for (feed, set) in sets.iter().enumerate() {
                trie.insert(set, feed);
            }
            let mut known: HashMap<String, MatchCache> = HashMap::new();
            for subject in subjects() {
                known.entry(subject.clone()).or_default().matches(&trie, &subject, &mut Vec::new());
            }
            for (feed, set) in sets.iter().enumerate().filter(|(feed, _)| removed[*feed]) {
                trie.remove(set, feed);
            }
            for subject in subjects() {
                let mut found = Vec::new();
                trie.matches(&subject, &mut found);
                let known = known.entry(subject.clone()).or_default();
                // First possibly from a cache older than the removals, then from the cache.
                for _ in 0..2 {
                    let mut again = Vec::new();
                    known.matches(&trie, &subject, &mut again);
                    prop_assert_eq!(&again, &found, "{}", subject);
                }
                let naive: Vec<usize> = (0..sets.len())
                    .filter(|feed| !removed[*feed] && sets[*feed].matches(&subject))
                    .collect();
                found.sort_unstable();
                prop_assert_eq!(found, naive, "{}", subject);
            }
            for (feed, set) in sets.iter().enumerate().filter(|(feed, _)| !removed[*feed]) {
                trie.remove(set, feed);
            }
            prop_assert!(trie.is_empty(), "removed feeds leave no nodes");
        }
    }
}
