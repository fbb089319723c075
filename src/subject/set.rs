//! A canonical set of filters: what one client asks for, and what one feed holds.

use std::fmt;

use super::{Covers, Filter};

/// One or more filters, sorted, none of which covers another: equal sets select the same subjects by the same words.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FilterSet(Box<[Filter]>);

/// 16 filters: a client rarely asks for more, and to compare each with each is fastest then.
const PAIRS_MAX: usize = 16;

/// The filters that no other one covers; all are different.
fn not_covered(all: &[Filter]) -> Box<[Filter]> {
    let mut covers = Covers::default();
    all.iter().for_each(|filter| covers.add(filter));
    let kept = all
        .iter()
        .enumerate()
        .filter(|(number, filter)| covers.first_but(filter, Some(*number)).is_none());
    kept.map(|(_, filter)| filter.clone()).collect()
}

/// As [`FilterSet::disjoint`], for many.
fn apart(filters: &[Filter]) -> Vec<Filter> {
    let mut known = Covers::default();
    // By their numbers; none where one was widened into another.
    let mut apart: Vec<Option<Filter>> = Vec::new();
    for filter in filters {
        let mut wide = filter.clone();
        while let Some(other) = known
            .overlapping(&wide)
            .and_then(|number| apart[number].take())
        {
            known.remove(&other);
            wide = wide.widened(&other);
        }
        known.add(&wide);
        apart.push(Some(wide));
    }
    let mut apart: Vec<Filter> = apart.into_iter().flatten().collect();
    apart.sort();
    apart
}

impl FilterSet {
    /// The canonical set of these filters.
    #[must_use]
    pub fn new(filters: impl IntoIterator<Item = Filter>) -> Self {
        let mut all: Vec<Filter> = filters.into_iter().collect();
        all.sort();
        all.dedup();
        if all.len() > PAIRS_MAX {
            return Self(not_covered(&all));
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

    /// Whether any of them selects this subject.
    #[must_use]
    pub fn matches(&self, subject: &str) -> bool {
        self.0.iter().any(|filter| filter.matches(subject))
    }

    /// This set and another together.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::new(self.0.iter().chain(&other.0).cloned())
    }

    /// Filters that together cover this set and of which no two share a subject: what NATS is asked for.
    ///
    /// NATS refuses a consumer whose filters overlap (error 10138), and two overlapping subscriptions bring a message
    /// twice. Filters that share subjects are widened into one; what comes in is matched again in process.
    #[must_use]
    pub fn disjoint(&self) -> Vec<Filter> {
        if self.0.len() > PAIRS_MAX {
            return apart(&self.0);
        }
        let mut apart: Vec<Filter> = Vec::new();
        for filter in &self.0 {
            let mut wide = filter.clone();
            while let Some(place) = apart.iter().position(|other| other.overlaps(&wide)) {
                wide = wide.widened(&apart.swap_remove(place));
            }
            apart.push(wide);
        }
        apart.sort();
        apart
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
        fn a_set_selects_what_its_filters_select(filters in prop::collection::vec(filter(), 1..6)) {
            let set = FilterSet::new(filters.clone());
            for subject in subjects() {
                let naive = filters.iter().any(|filter| filter.matches(&subject));
                prop_assert_eq!(set.matches(&subject), naive);
            }
        }

        #[test]
        fn what_nats_is_asked_for_covers_the_set_and_never_overlaps(filters in prop::collection::vec(filter(), 1..6)) {
            let set = FilterSet::new(filters);
            let apart = set.disjoint();
            for filter in set.filters() {
                prop_assert!(apart.iter().any(|wide| wide.covers(filter)));
            }
            for (place, one) in apart.iter().enumerate() {
                prop_assert!(apart[place + 1..].iter().all(|other| !one.overlaps(other)), "{apart:?}");
            }
        }

        #[test]
        fn a_large_set_is_the_same_as_one_compared_in_pairs(filters in prop::collection::vec(filter(), 0..40)) {
            let mut all = filters;
            all.sort();
            all.dedup();
            let pairs = all.iter().filter(|filter| !all.iter().any(|other| other != *filter && other.covers(filter)));
            prop_assert_eq!(not_covered(&all).to_vec(), pairs.cloned().collect::<Vec<_>>());
        }

        #[test]
        fn many_filters_are_made_disjoint_as_few_are(filters in prop::collection::vec(filter(), 1..30)) {
            let set = FilterSet::new(filters);
            let apart = apart(set.filters());
            for filter in set.filters() {
                prop_assert!(apart.iter().any(|wide| wide.covers(filter)));
            }
            for (place, one) in apart.iter().enumerate() {
                prop_assert!(apart[place + 1..].iter().all(|other| !one.overlaps(other)), "{apart:?}");
            }
        }

        #[test]
        fn the_order_of_asking_makes_no_other_set(filters in prop::collection::vec(filter(), 1..6)) {
            let mut reversed = filters.clone();
            reversed.reverse();
            prop_assert_eq!(FilterSet::new(filters), FilterSet::new(reversed));
        }
    }

    #[test]
    fn the_time_for_many_filters_grows_with_their_number_and_not_with_its_square() {
        let begun = std::time::Instant::now();
        let many = FilterSet::new(
            (0..20_000).map(|number| Filter::parse(&format!("s.{number}.*")).unwrap()),
        );
        assert_eq!(
            (many.filters().len(), many.disjoint().len()),
            (20_000, 20_000)
        );
        // By squares it takes minutes.
        assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    }

    #[test]
    fn covered_filters_are_dropped_and_overlapping_ones_widened() {
        assert_eq!(set(&["a.>", "a.b", "a.*.c", "b"]).to_string(), "a.> b");
        let apart = |texts: &[&str]| {
            set(texts)
                .disjoint()
                .iter()
                .map(Filter::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(apart(&["a.*", "*.b", "c.d"]), ["*.*"]);
        assert_eq!(apart(&["orders.*.>", "alerts"]), ["alerts", "orders.*.>"]);
        assert_eq!(apart(&["a.*.c", "a.b.*", "x"]), ["a.*.*", "x"]);
    }
}
