//! Options of the feeds that an event stream reads: those of its route, with claims in the name of
//! events if the route's `event` has some.
//!
//! Feeds with the same [`FeedOptions`] share one encoding per event, by address. So equal options
//! get one address: [`NamedOptions`] finds those that another principal uses already.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use crate::encoding::Coding;
use crate::event::Version;
use crate::feed::{FeedOptions, Source};
use crate::subject::FilterSet;

/// Options of all feeds of one event stream.
#[derive(Clone, Debug)]
pub(in crate::http) struct StreamOptions {
    pub(in crate::http) options: Arc<FeedOptions>,
    /// Hash of the options; a reload that does not change them does not change it.
    hash: u64,
}

/// Random key of this process for the hashes of options and feeds: clients cannot construct
/// collisions.
static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl StreamOptions {
    pub(in crate::http) fn new(options: FeedOptions) -> Self {
        Self {
            hash: KEY.hash_one(&options),
            options: options.into(),
        }
    }

    /// Returns the version of the payloads, if the route has versions.
    pub(in crate::http) fn version(&self) -> Option<Version> {
        self.options
            .converter
            .as_ref()
            .and_then(|converter| converter.target())
    }

    /// Returns the compression of the event stream.
    pub(in crate::http) fn coding(&self) -> Option<Coding> {
        Some(self.options.compression?.coding)
    }

    /// Returns a hash of the feed of a source with these filters.
    pub(in crate::http) fn feed_hash(&self, source: &Arc<dyn Source>, filters: &FilterSet) -> u64 {
        // The address is unique among the live sources.
        KEY.hash_one((Arc::as_ptr(source).addr(), self.hash, filters))
    }
}

/// Options in use that were made from claims, by hash.
#[derive(Debug, Default)]
pub(in crate::http) struct NamedOptions(Mutex<OptionsTable>);

#[derive(Debug, Default)]
struct OptionsTable {
    by_hash: HashMap<u64, Weak<FeedOptions>>,
    /// Number of entries at which those that are not in use are removed.
    full: usize,
}

/// 64 entries: a route whose principals have few names never searches for unused ones.
const FULL_MIN: usize = 64;

impl NamedOptions {
    /// Returns these options, or equal ones that are in use.
    pub(in crate::http) fn share(&self, options: FeedOptions) -> StreamOptions {
        let mut shared = StreamOptions::new(options);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = known.by_hash.get(&shared.hash).and_then(Weak::upgrade);
        if let Some(same) = same.filter(|same| *same == shared.options) {
            shared.options = same;
            return shared;
        }
        if known.by_hash.len() >= known.full {
            known
                .by_hash
                .retain(|_, options| options.strong_count() > 0);
            known.full = FULL_MIN.max(2 * known.by_hash.len());
        }
        let options = Arc::downgrade(&shared.options);
        known.by_hash.insert(shared.hash, options);
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::TextTemplate;

    fn named(event: &str) -> FeedOptions {
        FeedOptions {
            event: TextTemplate::parse(event).ok(),
            ..FeedOptions::default()
        }
    }

    #[test]
    fn equal_options_in_use_are_shared_and_unused_ones_are_removed() {
        let options = NamedOptions::default();
        let one = options.share(named("blue"));
        let two = options.share(named("blue"));
        assert!(Arc::ptr_eq(&one.options, &two.options));
        assert_eq!(one.hash, two.hash);
        let other = options.share(named("red"));
        assert!(!Arc::ptr_eq(&one.options, &other.options));
        assert_ne!(one.hash, other.hash);
        let before = Arc::downgrade(&other.options);
        drop(other);
        assert!(before.upgrade().is_none(), "nothing else keeps them");
        for number in 0..10_000 {
            options.share(named(&number.to_string()));
            let known = options.0.lock().unwrap().by_hash.len();
            assert!(known <= FULL_MIN, "{known}");
        }
        assert!(Arc::ptr_eq(
            &one.options,
            &options.share(named("blue")).options
        ));
    }
}
