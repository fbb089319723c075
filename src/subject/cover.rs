//! Trie of filters that finds the ones which cover or overlap another filter.
//!
//! Comparing each of many filters with each other takes quadratic time; a configuration can have
//! thousands. The trie is indexed by tokens with `*` as an ordinary token, and `>` is stored at its
//! parent node.

use std::collections::BTreeMap;

use super::Filter;

/// Filters in the order in which they were added.
#[derive(Debug)]
pub struct Covers {
    /// The first is the root.
    nodes: Vec<Node>,
    count: usize,
}

#[derive(Debug, Default)]
struct Node {
    /// By token, including `*`. Sorted, so that results are deterministic.
    children: BTreeMap<Box<str>, usize>,
    /// Number of filters that end here or below.
    count: usize,
    /// Number of the filter that ends here.
    end: Option<usize>,
    /// Number of the filter that ends here with `>`.
    tail: Option<usize>,
}

impl Default for Covers {
    fn default() -> Self {
        Self {
            nodes: vec![Node::default()],
            count: 0,
        }
    }
}

impl Covers {
    /// Adds a filter; its number is the count of the filters before it. The first of equal filters
    /// counts.
    pub fn add(&mut self, filter: &Filter) {
        let number = self.count;
        self.count += 1;
        let at = self.walk(filter, |node| node.count += 1);
        let node = &mut self.nodes[at];
        let slot = if filter.tokens().last() == Some(">") {
            &mut node.tail
        } else {
            &mut node.end
        };
        slot.get_or_insert(number);
    }

    /// Removes a filter that was added once.
    pub(super) fn remove(&mut self, filter: &Filter) {
        let at = self.walk(filter, |node| node.count -= 1);
        let node = &mut self.nodes[at];
        *(if filter.tokens().last() == Some(">") {
            &mut node.tail
        } else {
            &mut node.end
        }) = None;
    }

    /// Follows the tokens of a filter, creating missing nodes; returns the node where it ends.
    fn walk(&mut self, filter: &Filter, visit: impl Fn(&mut Node)) -> usize {
        let mut at = 0;
        visit(&mut self.nodes[at]);
        for token in filter.tokens().filter(|token| *token != ">") {
            at = match self.nodes[at].children.get(token) {
                Some(child) => *child,
                None => {
                    let child = self.nodes.len();
                    self.nodes.push(Node::default());
                    self.nodes[at].children.insert(token.into(), child);
                    child
                }
            };
            visit(&mut self.nodes[at]);
        }
        at
    }

    /// Returns the number of a filter that overlaps this one: [`Filter::overlaps`].
    pub(super) fn overlapping(&self, filter: &Filter) -> Option<usize> {
        let tokens: Vec<&str> = filter.tokens().collect();
        self.find_overlapping(0, &tokens)
    }

    fn find_overlapping(&self, at: usize, tokens: &[&str]) -> Option<usize> {
        let node = &self.nodes[at];
        if node.count == 0 {
            return None;
        }
        let Some((token, rest)) = tokens.split_first() else {
            return node.end;
        };
        let child = |token: &str| self.find_overlapping(*node.children.get(token)?, rest);
        let mut children = node.children.values();
        node.tail.or_else(|| match *token {
            // Any filter that continues from here.
            ">" => children.find_map(|child| self.any(*child)),
            "*" => children.find_map(|child| self.find_overlapping(*child, rest)),
            token => child(token).or_else(|| child("*")),
        })
    }

    fn any(&self, at: usize) -> Option<usize> {
        let node = &self.nodes[at];
        if node.count == 0 {
            return None;
        }
        node.end
            .or(node.tail)
            .or_else(|| node.children.values().find_map(|child| self.any(*child)))
    }

    /// Returns the number of the first filter that covers this one: [`Filter::covers`].
    #[must_use]
    pub fn first(&self, filter: &Filter) -> Option<usize> {
        self.first_but(filter, None)
    }

    /// Like [`Self::first`], without the filter of this number.
    pub(super) fn first_but(&self, filter: &Filter, but: Option<usize>) -> Option<usize> {
        let tokens: Vec<&str> = filter.tokens().collect();
        self.find(0, &tokens, but)
    }

    /// A filter has at most 16 tokens, and each splits the search at most in two.
    fn find(&self, at: usize, tokens: &[&str], but: Option<usize>) -> Option<usize> {
        let node = &self.nodes[at];
        let is_other = |number: &usize| Some(*number) != but;
        let Some((token, rest)) = tokens.split_first() else {
            return node.end.filter(is_other);
        };
        let child = |token: &str| self.find(*node.children.get(token)?, rest, but);
        let (same, any) = match *token {
            ">" => (None, None),
            "*" => (None, child("*")),
            token => (child(token), child("*")),
        };
        [node.tail.filter(is_other), same, any]
            .into_iter()
            .flatten()
            .min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::subject::filter::tests::filter;

    proptest! {
        #[test]
        fn finds_the_first_filter_that_covers(filters in prop::collection::vec(filter(), 0..12), requested in filter()) {
            let mut covers = Covers::default();
            filters.iter().for_each(|filter| covers.add(filter));
            prop_assert_eq!(covers.first(&requested), filters.iter().position(|filter| filter.covers(&requested)));
        }

        #[test]
        fn finds_an_overlapping_filter_if_there_is_one(filters in prop::collection::vec(filter(), 0..12), requested in filter()) {
            let mut filters = filters;
            filters.sort();
            filters.dedup();
            let mut covers = Covers::default();
            filters.iter().for_each(|filter| covers.add(filter));
            let mut left: Vec<_> = filters.into_iter().map(Some).collect();
            while let Some(found) = covers.overlapping(&requested) {
                let found = left[found].take().unwrap();
                prop_assert!(found.overlaps(&requested), "{found} {requested}");
                covers.remove(&found);
            }
            prop_assert!(!left.iter().flatten().any(|filter| filter.overlaps(&requested)), "{left:?} {requested}");
        }
    }
}
