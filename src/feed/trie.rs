//! Which feeds want a subject: a trie over the tokens of all filters.

use std::collections::HashMap;

use crate::subject::FilterSet;

/// Filters by their tokens; each leads to the keys of the feeds that hold it.
#[derive(Debug, Default)]
pub struct SubjectTrie {
    root: Node,
    /// Another number for each change: what was found under the same one still holds.
    version: u64,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, Self>,
    star: Option<Box<Self>>,
    /// Feeds whose filter ends here.
    here: Vec<usize>,
    /// Feeds whose filter ends here with `>`.
    tail: Vec<usize>,
}

impl SubjectTrie {
    /// Adds a feed under all its filters.
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
                node.here.push(feed)
            }
        }
    }

    /// Takes a feed away, and every node that held nothing else.
    pub fn remove(&mut self, filters: &FilterSet, feed: usize) {
        self.version += 1;
        for filter in filters.filters() {
            let tokens: Vec<&str> = filter.tokens().collect();
            self.root.remove(&tokens, feed);
        }
    }

    /// Appends the keys of the feeds that want this subject, each once.
    pub fn matches(&self, subject: &str, found: &mut Vec<usize>) {
        let before = found.len();
        self.root.matches(Some(subject), found);
        if found.len() - before > 1 {
            // A feed with overlapping filters is found once for each.
            found[before..].sort_unstable();
            let mut kept = before + 1;
            for place in before + 1..found.len() {
                if found[place] != found[kept - 1] {
                    found[kept] = found[place];
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

/// Which feeds want one subject, for as long as that does not change.
#[derive(Debug, Default)]
pub(super) struct MatchCache {
    version: u64,
    feeds: Vec<usize>,
}

/// So few feeds are remembered of each subject: whatever many want is found once for all of them.
const KNOWN_MAX: usize = 4;

impl MatchCache {
    /// As [`SubjectTrie::matches`], from memory if nothing has changed since.
    pub(super) fn matches(
        &mut self,
        interest: &SubjectTrie,
        subject: &str,
        found: &mut Vec<usize>,
    ) {
        if self.version == interest.version {
            found.extend_from_slice(&self.feeds);
            return;
        }
        let before = found.len();
        interest.matches(subject, found);
        if found.len() - before <= KNOWN_MAX {
            self.feeds.clear();
            self.feeds.extend_from_slice(&found[before..]);
            self.version = interest.version;
        }
    }
}

impl Node {
    fn is_empty(&self) -> bool {
        self.children.is_empty()
            && self.star.is_none()
            && self.here.is_empty()
            && self.tail.is_empty()
    }

    fn remove(&mut self, tokens: &[&str], feed: usize) {
        match tokens {
            [] => self.here.retain(|other| *other != feed),
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

    /// `rest` is what of the subject lies below this node.
    fn matches(&self, rest: Option<&str>, found: &mut Vec<usize>) {
        let Some(rest) = rest else {
            found.extend_from_slice(&self.here);
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
        fn the_trie_finds_exactly_the_feeds_whose_filters_match(
            sets in prop::collection::vec(prop::collection::vec(filter(), 1..4), 1..8),
            removed in prop::collection::vec(any::<bool>(), 8),
        ) {
            let sets: Vec<FilterSet> = sets.into_iter().map(FilterSet::new).collect();
            let mut interest = SubjectTrie::default();
            for (feed, set) in sets.iter().enumerate() {
                interest.insert(set, feed);
            }
            let mut known: HashMap<String, MatchCache> = HashMap::new();
            for subject in subjects() {
                known.entry(subject.clone()).or_default().matches(&interest, &subject, &mut Vec::new());
            }
            for (feed, set) in sets.iter().enumerate().filter(|(feed, _)| removed[*feed]) {
                interest.remove(set, feed);
            }
            for subject in subjects() {
                let mut found = Vec::new();
                interest.matches(&subject, &mut found);
                let known = known.entry(subject.clone()).or_default();
                // Known from before the others left, or not; then from memory.
                for _ in 0..2 {
                    let mut again = Vec::new();
                    known.matches(&interest, &subject, &mut again);
                    prop_assert_eq!(&again, &found, "{}", subject);
                }
                let naive: Vec<usize> = (0..sets.len())
                    .filter(|feed| !removed[*feed] && sets[*feed].matches(&subject))
                    .collect();
                found.sort_unstable();
                prop_assert_eq!(found, naive, "{}", subject);
            }
            for (feed, set) in sets.iter().enumerate().filter(|(feed, _)| !removed[*feed]) {
                interest.remove(set, feed);
            }
            prop_assert!(interest.is_empty(), "nothing is left of feeds that are gone");
        }
    }
}
