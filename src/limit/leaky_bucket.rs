//! Leaky buckets in a bounded table, for limits of keys that clients choose.
//!
//! Each unit adds one to its bucket, and the bucket drains at its rate. A key without a bucket has
//! an empty one, so forgetting a key never rejects anything. If the table is full, the keys with
//! the emptiest buckets are forgotten.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Table of buckets of one rate and size, by key.
#[derive(Debug)]
pub(super) struct LeakyBuckets<K> {
    shards: [Mutex<HashMap<K, Level>>; SHARDS],
    limit: LeakLimit,
    /// Random key of this process: clients cannot choose keys of one shard.
    hasher: RandomState,
}

/// Content of a bucket at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    pub(super) units: f64,
    at: Instant,
}

/// Rate and size of a bucket.
#[derive(Clone, Copy, Debug)]
pub struct LeakLimit {
    /// Units that drain per second.
    pub per_second: f64,
    /// Units at once.
    pub burst: f64,
}

/// 16: more than the threads that serve requests.
const SHARDS: usize = 16;

/// 65,536 keys, about 4 MiB.
pub(super) const KEYS_MAX: usize = 65_536;

impl<K: Eq + Hash> LeakyBuckets<K> {
    pub(super) fn new(limit: LeakLimit) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            limit,
            hasher: RandomState::new(),
        }
    }

    /// Returns the level of a key; `None` if its bucket is empty.
    pub(super) fn level(&self, key: &K, now: Instant) -> Option<Level> {
        let level = lock(self.shard(key)).get(key)?.drained(self.limit, now);
        (level.units > 0.0).then_some(level)
    }

    /// Adds one unit, full or not.
    pub(super) fn add(&self, key: K, now: Instant) {
        let mut shard = lock(self.shard(&key));
        self.with_level(&mut shard, key, now, |level, limit| {
            *level = level.with_unit(limit);
        });
    }

    /// Adds one unit if there is room for it.
    ///
    /// # Errors
    /// Returns the time until there is room.
    pub(super) fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        let mut shard = lock(self.shard(&key));
        self.with_level(&mut shard, key, now, |level, limit| {
            let wait = level.wait(limit);
            if !wait.is_zero() {
                return Err(wait);
            }
            *level = level.with_unit(limit);
            Ok(())
        })
    }

    fn with_level<T>(
        &self,
        shard: &mut HashMap<K, Level>,
        key: K,
        now: Instant,
        change: impl FnOnce(&mut Level, LeakLimit) -> T,
    ) -> T {
        if shard.len() >= KEYS_MAX / SHARDS {
            self.forget(shard, now);
        }
        let level = shard.entry(key).or_insert_with(|| Level::empty(now));
        *level = level.drained(self.limit, now);
        change(level, self.limit)
    }

    /// Forgets the keys with empty buckets, and at least an eighth of all.
    fn forget(&self, shard: &mut HashMap<K, Level>, now: Instant) {
        let units = |level: &Level| level.drained(self.limit, now).units;
        let mut all: Vec<f64> = shard.values().map(units).collect();
        let eighth = all.len() / 8;
        let (_, most, _) = all.select_nth_unstable_by(eighth, f64::total_cmp);
        let most = *most;
        shard.retain(|_, level| units(level) > most);
    }

    /// Returns the number of keys in the table.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    fn shard(&self, key: &K) -> &Mutex<HashMap<K, Level>> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }
}

impl Level {
    pub(super) fn empty(now: Instant) -> Self {
        Self {
            units: 0.0,
            at: now,
        }
    }

    pub(super) fn drained(self, limit: LeakLimit, now: Instant) -> Self {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        Self {
            units: (self.units - seconds * limit.per_second).max(0.0),
            at: self.at.max(now),
        }
    }

    /// Adds one unit, at most up to the size of the bucket, so that no client waits longer than a
    /// full bucket takes to drain.
    pub(super) fn with_unit(self, limit: LeakLimit) -> Self {
        Self {
            units: (self.units + 1.0).min(limit.burst),
            at: self.at,
        }
    }

    /// Returns the time until there is room for one unit.
    pub(super) fn wait(self, limit: LeakLimit) -> Duration {
        let excess = (self.units + 1.0 - limit.burst).max(0.0);
        Duration::from_secs_f64(excess / limit.per_second)
    }
}

pub(super) fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
