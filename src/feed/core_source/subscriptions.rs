//! Subscriptions of the core source: one per distinct filter, shared by all feeds that have it.
//!
//! NATS delivers one copy of a message for each matching subscription of a connection. A feed whose
//! own filters overlap therefore receives a message only from the subscription of its first filter
//! that matches; each feed keeps the earlier overlapping filters per subscription for that test.

use std::collections::HashMap;

use indexmap::IndexMap;
use slab::Slab;

use crate::subject::{Filter, FilterSet};

/// Key of one subscription. Never reused: a late message of an ended subscription finds no feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubscriptionKey {
    slot: usize,
    number: u64,
}

/// Number of a key, from which the key can be restored.
impl From<SubscriptionKey> for u128 {
    fn from(key: SubscriptionKey) -> Self {
        (key.slot as Self) << 64 | Self::from(key.number)
    }
}

impl From<u128> for SubscriptionKey {
    #[allow(clippy::cast_possible_truncation)] // Each half is what the other conversion put there.
    fn from(number: u128) -> Self {
        Self {
            slot: (number >> 64) as usize,
            number: number as u64,
        }
    }
}

/// All current subscriptions.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    all: Slab<Shared>,
    by_filter: HashMap<Filter, usize>,
    /// Number of subscriptions that were ever created.
    created: u64,
}

#[derive(Debug)]
struct Shared {
    number: u64,
    filter: Filter,
    /// Receiving feeds by their slot, each with its earlier filters that overlap this one; mostly
    /// none.
    recipients: IndexMap<usize, Box<[Filter]>>,
}

impl Subscriptions {
    /// Adds a feed. Appends the subscriptions that have to be made to `new`.
    pub(super) fn add(
        &mut self,
        feed: usize,
        filters: &FilterSet,
        new: &mut Vec<(SubscriptionKey, Filter)>,
    ) {
        for (nth, filter) in filters.filters().iter().enumerate() {
            let slot = match self.by_filter.get(filter) {
                Some(slot) => *slot,
                None => {
                    self.created += 1;
                    let shared = Shared {
                        number: self.created,
                        filter: filter.clone(),
                        recipients: IndexMap::new(),
                    };
                    let slot = self.all.insert(shared);
                    self.by_filter.insert(filter.clone(), slot);
                    new.push((
                        SubscriptionKey {
                            slot,
                            number: self.created,
                        },
                        filter.clone(),
                    ));
                    slot
                }
            };
            let earlier = filters.filters()[..nth]
                .iter()
                .filter(|other| other.overlaps(filter))
                .cloned()
                .collect();
            self.all[slot].recipients.insert(feed, earlier);
        }
    }

    /// Removes a feed. Appends the subscriptions that no feed needs afterwards to `ended`.
    pub(super) fn remove(
        &mut self,
        feed: usize,
        filters: &FilterSet,
        ended: &mut Vec<SubscriptionKey>,
    ) {
        for filter in filters.filters() {
            let Some(slot) = self.by_filter.get(filter).copied() else {
                continue;
            };
            let shared = &mut self.all[slot];
            shared.recipients.swap_remove(&feed);
            if shared.recipients.is_empty() {
                ended.push(SubscriptionKey {
                    slot,
                    number: shared.number,
                });
                self.by_filter.remove(filter);
                self.all.remove(slot);
            }
        }
    }

    /// Returns the feeds that receive a message with this subject from this subscription.
    pub(super) fn recipients(
        &self,
        key: SubscriptionKey,
        subject: &str,
    ) -> impl Iterator<Item = usize> {
        let recipients = self
            .get(key)
            .into_iter()
            .flat_map(|shared| &shared.recipients);
        recipients
            .filter(move |(_, earlier)| !earlier.iter().any(|filter| filter.matches(subject)))
            .map(|(feed, _)| *feed)
    }

    /// Returns the feeds with this filter.
    pub(super) fn feeds(&self, key: SubscriptionKey) -> impl Iterator<Item = usize> {
        self.get(key)
            .into_iter()
            .flat_map(|shared| shared.recipients.keys().copied())
    }

    /// Returns the filter of a subscription that has not ended.
    pub(super) fn filter(&self, key: SubscriptionKey) -> Option<&Filter> {
        self.get(key).map(|shared| &shared.filter)
    }

    /// Returns the number of feeds with this filter.
    pub(super) fn count(&self, key: SubscriptionKey) -> usize {
        self.get(key).map_or(0, |shared| shared.recipients.len())
    }

    /// Returns the subscription of a filter, if it exists.
    pub(super) fn find(&self, filter: &Filter) -> Option<SubscriptionKey> {
        let slot = *self.by_filter.get(filter)?;
        Some(SubscriptionKey {
            slot,
            number: self.all[slot].number,
        })
    }

    /// Iterates over all subscriptions.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SubscriptionKey, &Filter)> {
        self.all.iter().map(|(slot, shared)| {
            (
                SubscriptionKey {
                    slot,
                    number: shared.number,
                },
                &shared.filter,
            )
        })
    }

    fn get(&self, key: SubscriptionKey) -> Option<&Shared> {
        self.all
            .get(key.slot)
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
        fn key_is_restored_from_its_number(slot in any::<usize>(), number in any::<u64>()) {
            let key = SubscriptionKey { slot, number };
            prop_assert_eq!(SubscriptionKey::from(u128::from(key)), key);
        }

        #[test]
        fn each_feed_takes_a_message_from_exactly_one_of_the_subscriptions_that_deliver_it(
            sets in prop::collection::vec(prop::collection::vec(filter(), 1..4), 1..8),
            removed in prop::collection::vec(any::<bool>(), 8),
        ) {
            let sets: Vec<FilterSet> = sets.into_iter().map(FilterSet::new).collect();
            let (mut subscriptions, mut created, mut ended) = (Subscriptions::default(), Vec::new(), Vec::new());
            for (feed, set) in sets.iter().enumerate() {
                subscriptions.add(feed, set, &mut created);
            }
            for (feed, set) in sets.iter().enumerate().filter(|(feed, _)| removed[*feed]) {
                subscriptions.remove(feed, set, &mut ended);
            }
            let left = || sets.iter().enumerate().filter(|(feed, _)| !removed[*feed]);
            let filters = FilterSet::new(left().flat_map(|(_, set)| set.filters().to_vec()));
            let distinct: std::collections::HashSet<&Filter> = left().flat_map(|(_, set)| set.filters()).collect();
            prop_assert_eq!(subscriptions.iter().count(), distinct.len(), "one for each filter of {}", filters);
            prop_assert_eq!(created.len() - ended.len(), distinct.len());
            for subject in subjects() {
                let mut found: Vec<usize> = Vec::new();
                for (key, filter) in subscriptions.iter() {
                    if filter.matches(&subject) {
                        found.extend(subscriptions.recipients(key, &subject));
                    }
                }
                found.sort_unstable();
                let expected: Vec<usize> =
                    left().filter(|(_, set)| set.matches(&subject)).map(|(feed, _)| feed).collect();
                prop_assert_eq!(found, expected, "{}", subject);
            }
            prop_assert!(ended.iter().all(|key| subscriptions.filter(*key).is_none()));
        }
    }
}
