//! Answers in the cache, and calls in flight that several requests wait for.
//!
//! The cache has a bound of entries; an answer of more than 1 KiB counts as several. A call in
//! flight lives as long as a request waits for it: the last one that is gone cancels it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::answer::{Allowed, Answer};
use super::question::Key;

/// Call that has not been polled yet, or is in progress.
pub(super) type Call = BoxFuture<'static, Answer>;

/// Answers of one endpoint.
pub(super) struct Answers {
    cache: Cache<Key, Cached, ByKibibyte>,
    flights: Mutex<Flights>,
}

/// Answer in the cache.
#[derive(Clone)]
struct Cached {
    allowed: Arc<Allowed>,
    until: Instant,
}

/// Calls in flight. Dead entries are removed by the calls themselves.
#[derive(Default)]
struct Flights {
    by_key: HashMap<Key, Flight>,
    made: u64,
}

struct Flight {
    number: u64,
    call: WeakShared<Call>,
}

/// Weight of an entry: its number of begun KiB.
#[derive(Clone)]
struct ByKibibyte;

impl Weighter<Key, Cached> for ByKibibyte {
    fn weight(&self, _: &Key, cached: &Cached) -> u64 {
        cached.allowed.bytes() as u64 / 1024 + 1
    }
}

/// Result of [`Answers::start`].
pub(super) enum Start {
    /// Another call has just ended.
    Cached(Arc<Allowed>),
    /// Another call with the same key is in flight.
    Joined(Shared<Call>),
    /// The call of this request.
    Started(Shared<Call>),
}

impl Answers {
    /// Returns an empty cache for this number of small answers.
    pub(super) fn new(entries: u32) -> Self {
        let entries = entries.max(1);
        Self {
            cache: Cache::with_weighter(entries as usize, u64::from(entries), ByKibibyte),
            flights: Mutex::default(),
        }
    }

    /// Returns an answer that is still fresh.
    pub(super) fn cached(&self, key: &Key, now: Instant) -> Option<Arc<Allowed>> {
        let Cached { allowed, until } = self.cache.get(key)?;
        (now < until).then_some(allowed)
    }

    /// Stores an answer until this time.
    pub(super) fn store(&self, key: Key, allowed: Arc<Allowed>, until: Instant) {
        self.cache.insert(key, Cached { allowed, until });
    }

    /// Returns the call in flight with this key.
    pub(super) fn in_flight(&self, key: &Key) -> Option<Shared<Call>> {
        self.lock().by_key.get(key)?.call.upgrade()
    }

    /// Puts a call in flight, unless there is one with the same key. The call stores its answer.
    pub(super) fn start(self: &Arc<Self>, key: Key, call: Call) -> Start {
        let mut flights = self.lock();
        if let Some(call) = flights.by_key.get(&key).and_then(|one| one.call.upgrade()) {
            return Start::Joined(call);
        }
        // A call stores its answer before it ceases to be in flight.
        if let Some(allowed) = self.cached(&key, Instant::now()) {
            return Start::Cached(allowed);
        }
        flights.made += 1;
        let number = flights.made;
        let landing = Landing {
            answers: Arc::clone(self),
            key,
            number,
        };
        let call: Call = Box::pin(async move {
            let answer = call.await;
            drop(landing);
            answer
        });
        let call = call.shared();
        if let Some(weak) = call.downgrade() {
            let flight = Flight { number, call: weak };
            flights.by_key.insert(key, flight);
        }
        Start::Started(call)
    }

    fn lock(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of calls in flight.
    #[cfg(test)]
    pub(super) fn in_flight_count(&self) -> usize {
        self.lock().by_key.len()
    }
}

/// Guard of a call in flight: dropping it removes the call.
struct Landing {
    answers: Arc<Answers>,
    key: Key,
    number: u64,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = self.answers.lock();
        let is_own = |flight: &Flight| flight.number == self.number;
        if flights.by_key.get(&self.key).is_some_and(is_own) {
            flights.by_key.remove(&self.key);
        }
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}
