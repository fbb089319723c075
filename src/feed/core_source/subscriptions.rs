//! Filters that feeds have in common: one subscription for each, and which feeds take what it delivers.
//!
//! NATS delivers one copy of a message for each matching subscription of a connection. A feed whose own filters overlap
//! takes a message only from the subscription of the first of its filters that matches, so that it has each message once.

use std::collections::HashMap;

use indexmap::IndexMap;
use slab::Slab;

use crate::subject::{Filter, FilterSet};

/// One subscription. Never reused: a message that is late for a subscription that has ended finds no feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubscriptionKey {
    place: usize,
    number: u64,
}

/// Every subscription that feeds want now.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    all: Slab<Shared>,
    by_filter: HashMap<Filter, usize>,
    /// How many there have been.
    made: u64,
}

#[derive(Debug)]
struct Shared {
    number: u64,
    filter: Filter,
    /// By the place of the feed. Earlier filters of the feed that share subjects with this one; mostly none.
    takers: IndexMap<usize, Box<[Filter]>>,
}

impl Subscriptions {
    /// Adds a feed. Appends the subscriptions that are new with it to `new`.
    pub(super) fn add(
        &mut self,
        feed: usize,
        filters: &FilterSet,
        new: &mut Vec<(SubscriptionKey, Filter)>,
    ) {
        for (nth, filter) in filters.filters().iter().enumerate() {
            let place = match self.by_filter.get(filter) {
                Some(place) => *place,
                None => {
                    self.made += 1;
                    let shared = Shared {
                        number: self.made,
                        filter: filter.clone(),
                        takers: IndexMap::new(),
                    };
                    let place = self.all.insert(shared);
                    self.by_filter.insert(filter.clone(), place);
                    new.push((
                        SubscriptionKey {
                            place,
                            number: self.made,
                        },
                        filter.clone(),
                    ));
                    place
                }
            };
            let earlier = filters.filters()[..nth]
                .iter()
                .filter(|other| other.overlaps(filter))
                .cloned()
                .collect();
            self.all[place].takers.insert(feed, earlier);
        }
    }

    /// Removes a feed. Appends the subscriptions that no feed wants after that to `ended`.
    pub(super) fn remove(
        &mut self,
        feed: usize,
        filters: &FilterSet,
        ended: &mut Vec<SubscriptionKey>,
    ) {
        for filter in filters.filters() {
            let Some(place) = self.by_filter.get(filter).copied() else {
                continue;
            };
            let shared = &mut self.all[place];
            shared.takers.swap_remove(&feed);
            if shared.takers.is_empty() {
                ended.push(SubscriptionKey {
                    place,
                    number: shared.number,
                });
                self.by_filter.remove(filter);
                self.all.remove(place);
            }
        }
    }

    /// The feeds that take a message of this subject from this subscription.
    pub(super) fn takers(
        &self,
        key: SubscriptionKey,
        subject: &str,
    ) -> impl Iterator<Item = usize> {
        let takers = self.get(key).into_iter().flat_map(|shared| &shared.takers);
        takers
            .filter(move |(_, earlier)| !earlier.iter().any(|filter| filter.matches(subject)))
            .map(|(feed, _)| *feed)
    }

    /// The feeds with this filter.
    pub(super) fn feeds(&self, key: SubscriptionKey) -> impl Iterator<Item = usize> {
        self.get(key)
            .into_iter()
            .flat_map(|shared| shared.takers.keys().copied())
    }

    /// The filter of a subscription that has not ended.
    pub(super) fn filter(&self, key: SubscriptionKey) -> Option<&Filter> {
        self.get(key).map(|shared| &shared.filter)
    }

    /// How many feeds have this filter.
    pub(super) fn count(&self, key: SubscriptionKey) -> usize {
        self.get(key).map_or(0, |shared| shared.takers.len())
    }

    /// The subscription of a filter, if a feed wants it.
    pub(super) fn find(&self, filter: &Filter) -> Option<SubscriptionKey> {
        let place = *self.by_filter.get(filter)?;
        Some(SubscriptionKey {
            place,
            number: self.all[place].number,
        })
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SubscriptionKey, &Filter)> {
        self.all.iter().map(|(place, shared)| {
            (
                SubscriptionKey {
                    place,
                    number: shared.number,
                },
                &shared.filter,
            )
        })
    }

    fn get(&self, key: SubscriptionKey) -> Option<&Shared> {
        self.all
            .get(key.place)
            .filter(|shared| shared.number == key.number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::subject::filter::tests::{filter, subjects};

    proptest! {
        #[test]
        fn each_feed_takes_a_message_from_exactly_one_of_the_subscriptions_that_deliver_it(
            sets in prop::collection::vec(prop::collection::vec(filter(), 1..4), 1..8),
            removed in prop::collection::vec(any::<bool>(), 8),
        ) {
            let sets: Vec<FilterSet> = sets.into_iter().map(FilterSet::new).collect();
            let (mut subscriptions, mut made, mut ended) = (Subscriptions::default(), Vec::new(), Vec::new());
            for (feed, set) in sets.iter().enumerate() {
                subscriptions.add(feed, set, &mut made);
            }
            for (feed, set) in sets.iter().enumerate().filter(|(feed, _)| removed[*feed]) {
                subscriptions.remove(feed, set, &mut ended);
            }
            let left = || sets.iter().enumerate().filter(|(feed, _)| !removed[*feed]);
            let filters = FilterSet::new(left().flat_map(|(_, set)| set.filters().to_vec()));
            let distinct: std::collections::HashSet<&Filter> = left().flat_map(|(_, set)| set.filters()).collect();
            prop_assert_eq!(subscriptions.iter().count(), distinct.len(), "one for each filter of {}", filters);
            prop_assert_eq!(made.len() - ended.len(), distinct.len());
            for subject in subjects() {
                let mut found: Vec<usize> = Vec::new();
                for (key, filter) in subscriptions.iter() {
                    if filter.matches(&subject) {
                        found.extend(subscriptions.takers(key, &subject));
                    }
                }
                found.sort_unstable();
                let wanted: Vec<usize> =
                    left().filter(|(_, set)| set.matches(&subject)).map(|(feed, _)| feed).collect();
                prop_assert_eq!(found, wanted, "{}", subject);
            }
            prop_assert!(ended.iter().all(|key| subscriptions.filter(*key).is_none()));
        }
    }
}
