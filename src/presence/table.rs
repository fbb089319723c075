//! Table of the open event streams of this pod.
//!
//! Event streams are spread over [`SHARDS`] shards, each a slab with its own mutex, so that
//! threads that open and close rarely wait for each other. A shard is locked for one insertion or
//! removal, or to copy its handles; never while a handle is called, because a handle that closes
//! its stream removes it from the table.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use slab::Slab;

use super::{CloseReason, Delivered, Lag, PresenceStore, StreamHandle};
use crate::auth::revocations::{Ended, Kind, Mark};

/// All open event streams of this pod. Clones share the table.
///
/// Memory: 16 bytes per stream at the highest count ever, and with revocations 40 to 50 more,
/// besides the stream itself, which its own task holds anyway.
#[derive(Clone, Default)]
pub struct StreamTable(Arc<Table>);

/// Place of one event stream in the table. Dropping it removes the stream.
///
/// Held by the task that serves the stream, never by the stream itself: the table holds the stream,
/// and neither would ever be freed.
#[must_use = "dropping it removes the event stream from the table"]
pub struct Registration {
    table: Arc<Table>,
    key: u32,
    /// Number in the presence queue, if there is a store.
    number: Option<NonZeroU64>,
}

/// Sum over the clients of one route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteLag {
    /// Maximum over its clients, in each field separately.
    pub lag: Lag,
    /// Number of slow clients.
    pub slow: u64,
}

impl StreamTable {
    /// Adds an event stream. O(1). `mark`: what a revocation can match; `None` without revocations.
    pub fn insert(&self, stream: Arc<dyn StreamHandle>, mark: Option<Mark>) -> Registration {
        let table = Arc::clone(&self.0);
        let shard = table.next.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let number = table
            .presence
            .get()
            .and_then(|presence| NonZeroU64::new(presence.queue().opened(&stream)));
        let slot = table.shards[shard as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(stream, mark);
        // Bounded by the process's file descriptors and the streams per connection, far below.
        let slot = u32::try_from(slot).unwrap_or(u32::MAX / SHARDS);
        table.len.fetch_add(1, Ordering::Relaxed);
        Registration {
            table,
            key: slot * SHARDS + shard,
            number,
        }
    }

    /// Sets the presence store. Streams added later are written to it. Only the first call counts.
    pub fn set_presence(&self, presence: Arc<dyn PresenceStore>) {
        self.0.presence.get_or_init(|| presence);
    }

    /// The presence store, if configured.
    #[must_use]
    pub fn presence(&self) -> Option<&Arc<dyn PresenceStore>> {
        self.0.presence.get()
    }

    /// Number of open event streams.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len.load(Ordering::Relaxed)
    }

    /// Returns true if the number is zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `visit` for each stream. Streams that open or close meanwhile may be visited or not.
    pub fn for_each(&self, mut visit: impl FnMut(&dyn StreamHandle)) {
        let mut members = Vec::new();
        for shard in &self.0.shards {
            // Copied before the calls: a stream that closes itself needs this lock.
            members.extend(
                shard
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .streams
                    .iter()
                    .map(|(_, stream)| Arc::clone(stream)),
            );
            for stream in members.drain(..) {
                visit(&*stream);
            }
        }
    }

    /// Streams of one of the [`SHARDS`]: for a list that is written in parts.
    #[must_use]
    pub fn shard(&self, shard: u32) -> Vec<Arc<dyn StreamHandle>> {
        let Some(shard) = self.0.shards.get(shard as usize) else {
            return Vec::new();
        };
        shard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .streams
            .iter()
            .map(|(_, stream)| Arc::clone(stream))
            .collect()
    }

    /// All streams.
    #[must_use]
    pub fn members(&self) -> Vec<Arc<dyn StreamHandle>> {
        let mut members = Vec::with_capacity(self.len());
        for shard in &self.0.shards {
            members.extend(
                shard
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .streams
                    .iter()
                    .map(|(_, stream)| Arc::clone(stream)),
            );
        }
        members
    }

    /// Ends the event streams that a revocation or a kick concerns. Returns their numbers by kind.
    ///
    /// Reads 40 bytes per event stream, in a row, and calls only those that end: 100,000 event
    /// streams take a few milliseconds, on the thread of the caller.
    pub fn end_revoked(&self, ended: &Ended) -> [u64; Kind::ALL.len()] {
        let mut counts = [0; Kind::ALL.len()];
        for shard in &self.0.shards {
            let found = shard
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .find_revoked(ended);
            for (stream, kind) in found {
                stream.close(if kind == Kind::Kick {
                    CloseReason::Kicked
                } else {
                    CloseReason::Revoked
                });
                counts[kind as usize] += 1;
            }
        }
        counts
    }

    /// Lag by route.
    #[must_use]
    pub fn lag(&self) -> BTreeMap<Arc<str>, RouteLag> {
        let mut routes = BTreeMap::<Arc<str>, RouteLag>::new();
        self.for_each(|stream| {
            let route = match routes.get_mut(stream.route()) {
                Some(route) => route,
                None => routes.entry(Arc::clone(stream.route())).or_default(),
            };
            route.lag = route.lag.max(stream.lag());
            route.slow += u64::from(stream.is_slow());
        });
        routes
    }
}

impl Registration {
    /// Number of the place in the table, unique among the open event streams.
    #[must_use]
    pub fn place(&self) -> u32 {
        self.key
    }

    /// Records a change of state. Returns false if there is no presence store.
    pub fn changed(&self) -> bool {
        let (Some(presence), Some(number)) = (self.table.presence.get(), self.number) else {
            return false;
        };
        presence.queue().changed(number.get());
        true
    }

    /// Records the end. Called once, with its own stream. `delivered`: ended by a drain, with
    /// everything up to this position sent.
    pub fn ended(
        &self,
        stream: &dyn StreamHandle,
        close: CloseReason,
        delivered: Option<Delivered>,
    ) {
        if let (Some(presence), Some(number)) = (self.table.presence.get(), self.number) {
            presence
                .queue()
                .ended(number.get(), stream, close, delivered);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let (Some(presence), Some(number)) = (self.table.presence.get(), self.number) {
            presence.queue().removed(number.get());
        }
        let (slot, shard) = (self.key / SHARDS, self.key % SHARDS);
        let removed = {
            let mut shard = self.table.shards[shard as usize]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            shard.streams.try_remove(slot as usize)
        };
        debug_assert!(removed.is_some(), "a registration is removed once");
        self.table.len.fetch_sub(1, Ordering::Relaxed);
        // Dropped after the lock is released: freeing its state may take a while.
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

/// 16: more than the cores of a sidecar, so that threads rarely use the same shard.
pub const SHARDS: u32 = 16;

#[derive(Default)]
struct Table {
    shards: [Mutex<Shard>; SHARDS as usize],
    /// Shard of the next stream: all shards fill evenly.
    next: AtomicU32,
    len: AtomicUsize,
    presence: OnceLock<Arc<dyn PresenceStore>>,
}

#[derive(Default)]
struct Shard {
    streams: Slab<Arc<dyn StreamHandle>>,
    /// Marks by slot, also of slots that are free. Empty without revocations.
    marks: Vec<Mark>,
}

impl Shard {
    /// Returns the slot.
    fn insert(&mut self, stream: Arc<dyn StreamHandle>, mark: Option<Mark>) -> usize {
        let slot = self.streams.insert(stream);
        if let Some(mark) = mark {
            if slot >= self.marks.len() {
                let more = slot + 1 - self.marks.len();
                if slot >= self.marks.capacity() {
                    // A quarter at a time: twice as much would be 40 bytes more per event stream.
                    self.marks
                        .reserve_exact(more.max(self.marks.len() / 4).max(16));
                }
                self.marks.resize(slot + 1, Mark::default());
            }
            self.marks[slot] = mark;
        }
        slot
    }

    fn find_revoked(&self, ended: &Ended) -> Vec<(Arc<dyn StreamHandle>, Kind)> {
        let marks = self.marks.iter().enumerate();
        marks
            .filter_map(|(slot, mark)| {
                let kind = ended.find(mark)?;
                Some((Arc::clone(self.streams.get(slot)?), kind))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
