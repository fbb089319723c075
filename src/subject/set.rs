//! Canonical set of filters: the request of one client, and the identity of a feed.
//!
//! Two clients with equal sets share a feed, so the set is sorted and minimal: no filter covers
//! another. [`FilterSet::disjoint`] widens overlapping filters into the ones to subscribe to. Small
//! sets are compared in pairs, larger ones with a trie.

use std::fmt;

use super::{Covers, Filter};

/// One or more filters, sorted, with no filter covering another. Equal sets select the same
/// subjects.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FilterSet(Box<[Filter]>);

/// 16 filters: more are rare, and up to here comparing pairs is fastest.
const PAIRS_MAX: usize = 16;

/// Returns the filters that no other filter covers, with a trie. The input has no duplicates.
fn minimal_by_trie(all: &[Filter]) -> Box<[Filter]> {
    let mut covers = Covers::default();
    all.iter().for_each(|filter| covers.add(filter));
    let kept = all
        .iter()
        .enumerate()
        .filter(|(number, filter)| covers.first_but(filter, Some(*number)).is_none());
    kept.map(|(_, filter)| filter.clone()).collect()
}

/// Like [`FilterSet::disjoint`], with a trie.
fn disjoint_by_trie(filters: &[Filter]) -> Vec<Filter> {
    let mut known = Covers::default();
    // By number; `None` if the filter was widened into another.
    let mut disjoint: Vec<Option<Filter>> = Vec::new();
    for filter in filters {
        let mut wide = filter.clone();
        while let Some(other) = known
            .overlapping(&wide)
            .and_then(|number| disjoint[number].take())
        {
            known.remove(&other);
            wide = wide.widened(&other);
        }
        known.add(&wide);
        disjoint.push(Some(wide));
    }
    let mut disjoint: Vec<Filter> = disjoint.into_iter().flatten().collect();
    disjoint.sort();
    disjoint
}

impl FilterSet {
    /// Creates the canonical set of these filters.
    #[must_use]
    pub fn new(filters: impl IntoIterator<Item = Filter>) -> Self {
        let mut all: Vec<Filter> = filters.into_iter().collect();
        all.sort();
        all.dedup();
        if all.len() > PAIRS_MAX {
            return Self(minimal_by_trie(&all));
        }
        let kept = all
            .iter()
            .filter(|filter| {
                !all.iter()
                    .any(|other| other != *filter && other.covers(filter))
            })
            .cloned()
            .collect();
        Self(kept)
    }

    /// The filters, sorted.
    #[must_use]
    pub fn filters(&self) -> &[Filter] {
        &self.0
    }

    /// True if any filter selects this subject.
    #[must_use]
    pub fn matches(&self, subject: &str) -> bool {
        self.0.iter().any(|filter| filter.matches(subject))
    }

    /// Union of this set and another.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::new(self.0.iter().chain(&other.0).cloned())
    }

    /// Returns filters that cover this set and do not overlap, to subscribe to.
    ///
    /// NATS rejects a consumer with overlapping filters (error 10138), and delivers a message twice
    /// to two overlapping subscriptions. Overlapping filters are widened into one; received
    /// messages are matched again in this process.
    #[must_use]
    pub fn disjoint(&self) -> Vec<Filter> {
        if self.0.len() > PAIRS_MAX {
            return disjoint_by_trie(&self.0);
        }
        let mut disjoint: Vec<Filter> = Vec::new();
        for filter in &self.0 {
            let mut wide = filter.clone();
            while let Some(index) = disjoint.iter().position(|other| other.overlaps(&wide)) {
                wide = wide.widened(&disjoint.swap_remove(index));
            }
            disjoint.push(wide);
        }
        disjoint.sort();
        disjoint
    }
}

impl fmt::Display for FilterSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, filter) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            fmt::Display::fmt(filter, f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for FilterSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::subject::filter::tests::{filter, subjects};

    fn set(texts: &[&str]) -> FilterSet {
        FilterSet::new(texts.iter().map(|text| Filter::parse(text).unwrap()))
    }

    proptest! {
        #[test]
        fn set_selects_the_union_of_its_filters(filters in prop::collection::vec(filter(), 1..6)) {
            let set = FilterSet::new(filters.clone());
            for subject in subjects() {
                let naive = filters.iter().any(|filter| filter.matches(&subject));
                prop_assert_eq!(set.matches(&subject), naive);
            }
        }

        #[test]
        fn disjoint_filters_cover_the_set_and_do_not_overlap(filters in prop::collection::vec(filter(), 1..6)) {
            let set = FilterSet::new(filters);
            let disjoint = set.disjoint();
            for filter in set.filters() {
                prop_assert!(disjoint.iter().any(|wide| wide.covers(filter)));
            }
            for (nth, one) in disjoint.iter().enumerate() {
                prop_assert!(disjoint[nth + 1..].iter().all(|other| !one.overlaps(other)), "{disjoint:?}");
            }
        }

        #[test]
        fn trie_and_pairs_give_the_same_minimal_set(filters in prop::collection::vec(filter(), 0..40)) {
            let mut all = filters;
            all.sort();
            all.dedup();
            let pairs = all.iter().filter(|filter| !all.iter().any(|other| other != *filter && other.covers(filter)));
            prop_assert_eq!(minimal_by_trie(&all).to_vec(), pairs.cloned().collect::<Vec<_>>());
        }

        #[test]
        fn disjoint_by_trie_covers_the_set_and_does_not_overlap(filters in prop::collection::vec(filter(), 1..30)) {
            let set = FilterSet::new(filters);
            let disjoint = disjoint_by_trie(set.filters());
            for filter in set.filters() {
                prop_assert!(disjoint.iter().any(|wide| wide.covers(filter)));
            }
            for (nth, one) in disjoint.iter().enumerate() {
                prop_assert!(disjoint[nth + 1..].iter().all(|other| !one.overlaps(other)), "{disjoint:?}");
            }
        }

        #[test]
        fn set_does_not_depend_on_the_order_of_filters(filters in prop::collection::vec(filter(), 1..6)) {
            let mut reversed = filters.clone();
            reversed.reverse();
            prop_assert_eq!(FilterSet::new(filters), FilterSet::new(reversed));
        }
    }

    #[test]
    fn many_filters_do_not_take_quadratic_time() {
        let begun = std::time::Instant::now();
        let many = FilterSet::new(
            (0..20_000).map(|number| Filter::parse(&format!("s.{number}.*")).unwrap()),
        );
        assert_eq!(
            (many.filters().len(), many.disjoint().len()),
            (20_000, 20_000)
        );
        // In quadratic time it would take minutes.
        assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    }

    #[test]
    fn covered_filters_are_dropped_and_overlapping_ones_widened() {
        assert_eq!(set(&["a.>", "a.b", "a.*.c", "b"]).to_string(), "a.> b");
        let disjoint = |texts: &[&str]| {
            set(texts)
                .disjoint()
                .iter()
                .map(Filter::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(disjoint(&["a.*", "*.b", "c.d"]), ["*.*"]);
        assert_eq!(
            disjoint(&["orders.*.>", "alerts"]),
            ["alerts", "orders.*.>"]
        );
        assert_eq!(disjoint(&["a.*.c", "a.b.*", "x"]), ["a.*.*", "x"]);
    }
}
