//! The table of open event streams: a slot and a pointer each, in shards that are locked one at a time.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::{CloseReason, Delivered, Lag, PresenceStore, StreamHandle};

/// Every event stream that is open on this pod. Clones share the table.
///
/// Memory: 16 bytes for each at the highest count so far, beside the member itself, which its own task holds anyway.
#[derive(Clone, Default)]
pub struct StreamTable(Arc<Table>);

/// The place of one event stream in the table; dropping it takes the event stream out.
///
/// To be held by the task that serves, never by the member: the table holds the member, and both would stay for ever.
#[must_use = "dropping it takes the event stream out again"]
pub struct Registration {
    table: Arc<Table>,
    key: u32,
    /// Under which all pods are told of it.
    number: Option<NonZeroU64>,
}

/// The clients of one route together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteLag {
    /// The maximum over its clients, in each respect by itself.
    pub lag: Lag,
    /// How many of them are slow.
    pub slow: u64,
}

impl StreamTable {
    /// Takes an event stream in. O(1).
    pub fn insert(&self, member: Arc<dyn StreamHandle>) -> Registration {
        let table = Arc::clone(&self.0);
        let shard = table.next.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let number = table
            .cluster
            .get()
            .and_then(|cluster| NonZeroU64::new(cluster.changes().opened(&member)));
        let slot = table.shards[shard as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(member);
        table.len.fetch_add(1, Ordering::Relaxed);
        Registration {
            table,
            key: slot * SHARDS + shard,
            number,
        }
    }

    /// From now on all pods are told of what is taken in. The first call counts.
    pub fn set_cluster(&self, cluster: Arc<dyn PresenceStore>) {
        self.0.cluster.get_or_init(|| cluster);
    }

    /// The registry over all pods, if there is one.
    #[must_use]
    pub fn cluster(&self) -> Option<&Arc<dyn PresenceStore>> {
        self.0.cluster.get()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Visits each; those that come or go meanwhile may be visited or not.
    pub fn for_each(&self, mut visit: impl FnMut(&dyn StreamHandle)) {
        let mut members = Vec::new();
        for shard in &self.0.shards {
            // Copied out before the visits: one that ends its event stream would wait for its own lock.
            members.extend(
                shard
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .members()
                    .cloned(),
            );
            for member in members.drain(..) {
                visit(&*member);
            }
        }
    }

    /// Those of one of the [`SHARDS`], as they are now: for a list that is written bit by bit.
    #[must_use]
    pub fn shard(&self, shard: u32) -> Vec<Arc<dyn StreamHandle>> {
        let Some(shard) = self.0.shards.get(shard as usize) else {
            return Vec::new();
        };
        shard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .members()
            .cloned()
            .collect()
    }

    /// All of them, as they are now.
    #[must_use]
    pub fn members(&self) -> Vec<Arc<dyn StreamHandle>> {
        let mut members = Vec::with_capacity(self.len());
        for shard in &self.0.shards {
            members.extend(
                shard
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .members()
                    .cloned(),
            );
        }
        members
    }

    /// What waits for clients, by route.
    #[must_use]
    pub fn lag(&self) -> BTreeMap<Arc<str>, RouteLag> {
        let mut routes = BTreeMap::<Arc<str>, RouteLag>::new();
        self.for_each(|member| {
            let route = match routes.get_mut(member.route()) {
                Some(route) => route,
                None => routes.entry(Arc::clone(member.route())).or_default(),
            };
            route.lag = route.lag.max(member.lag());
            route.slow += u64::from(member.is_slow());
        });
        routes
    }
}

impl Registration {
    /// Its state is another one; false if there is no registry over all pods that is told of it.
    pub fn changed(&self) -> bool {
        let (Some(cluster), Some(number)) = (self.table.cluster.get(), self.number) else {
            return false;
        };
        cluster.changes().changed(number.get());
        true
    }

    /// It has ended; to be called once, with its own member. `delivered`: by a drain, with all up to this position sent.
    pub fn ended(
        &self,
        member: &dyn StreamHandle,
        close: CloseReason,
        delivered: Option<Delivered>,
    ) {
        if let (Some(cluster), Some(number)) = (self.table.cluster.get(), self.number) {
            cluster
                .changes()
                .ended(number.get(), member, close, delivered);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let (Some(cluster), Some(number)) = (self.table.cluster.get(), self.number) {
            cluster.changes().gone(number.get());
        }
        let (slot, shard) = (self.key / SHARDS, self.key % SHARDS);
        let removed = {
            let mut slab = self.table.shards[shard as usize]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            slab.remove(slot)
        };
        debug_assert!(removed.is_some(), "a registration is removed once");
        self.table.len.fetch_sub(1, Ordering::Relaxed);
        // The member is dropped here, after the lock: what it holds may take a while to give back.
        drop(removed);
    }
}

impl std::fmt::Debug for StreamTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("len", &self.len())
            .finish()
    }
}

impl std::fmt::Debug for Registration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Registration").field(&self.key).finish()
    }
}

// === impl Table ===

/// 16: more than the cores of a sidecar, so that a visit and two openings rarely meet.
pub const SHARDS: u32 = 16;

#[derive(Default)]
struct Table {
    shards: [Mutex<Slab>; SHARDS as usize],
    /// Which shard the next one goes to: they fill evenly whoever opens them.
    next: AtomicU32,
    len: AtomicUsize,
    cluster: OnceLock<Arc<dyn PresenceStore>>,
}

/// Slots that are used again, the latest freed first.
#[derive(Default)]
struct Slab {
    slots: Vec<Slot>,
    free: Option<u32>,
}

enum Slot {
    Taken(Arc<dyn StreamHandle>),
    /// And which one was freed before it.
    Free(Option<u32>),
}

impl Slab {
    fn insert(&mut self, member: Arc<dyn StreamHandle>) -> u32 {
        if let Some(slot) = self.free {
            let freed = std::mem::replace(&mut self.slots[slot as usize], Slot::Taken(member));
            self.free = match freed {
                Slot::Free(before) => before,
                Slot::Taken(_) => None,
            };
            return slot;
        }
        self.slots.push(Slot::Taken(member));
        // Bounded by the file descriptors of the process and the streams in each, far below.
        u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
    }

    fn remove(&mut self, slot: u32) -> Option<Arc<dyn StreamHandle>> {
        let taken = self.slots.get_mut(slot as usize)?;
        match std::mem::replace(taken, Slot::Free(self.free)) {
            Slot::Taken(member) => {
                self.free = Some(slot);
                Some(member)
            }
            freed @ Slot::Free(_) => {
                *taken = freed;
                None
            }
        }
    }

    fn members(&self) -> impl Iterator<Item = &Arc<dyn StreamHandle>> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Taken(member) => Some(member),
            Slot::Free(_) => None,
        })
    }
}

#[cfg(test)]
mod tests;
