//! Table of a feed's subscribers: one record for each reader, the only place of its position.
//!
//! A [`Cursor`](super::Cursor) is the handle of one record and keeps no copy. The client's task
//! reads and advances the record through the cursor; the dispatcher advances it when it writes to
//! the sink. Both run on one thread, and the record says which of them may write to the client:
//!
//! | state | waker | direct | next event |
//! | --- | --- | --- | --- |
//! | running: the task runs, or waits for its socket | none | no | the task reads it later |
//! | waiting: the task has read everything | set | no | the dispatcher wakes the task |
//! | idle: and its socket has accepted everything | set | yes | the dispatcher writes to the sink |
//!
//! ```text
//!            a read returns all            allow_direct
//!    running -------------------> waiting --------------> idle
//!       ^                            |                      |
//!       +---- woken, or a read ------+---- a send that is not accepted in full, or a read
//! ```
//!
//! Only a waiting subscriber becomes idle, and every read makes it running: a direct write never
//! overtakes bytes of the task.

use std::sync::Arc;
use std::task::Waker;

use slab::Slab;
use smallvec::SmallVec;

use crate::event::{Position, SourceTag};

use super::notify::{ShardNotifier, WakeList};
use super::prefetch;
use super::sink::DirectSink;
use super::window::Offset;

/// Subscribers of one feed, whose type is `F`.
#[derive(Debug)]
pub(super) struct Subscribers<F> {
    all: Slab<Subscriber>,
    /// Shards that have had subscribers here; at most the number of shards.
    shards: SmallVec<[Shard<F>; 1]>,
    /// Subscribers that are not on a shard.
    off_shard: usize,
}

/// Record of one client in one feed.
#[derive(Debug)]
pub(super) struct Subscriber {
    /// Set while it waits for events.
    waker: Option<Waker>,
    /// Sink for direct writes.
    sink: Option<Arc<dyn DirectSink>>,
    /// Index of the next entry, and the totals before it.
    pub(super) offset: Offset,
    /// Position of the last event that it has, or its initial position.
    pub(super) position: Position,
    /// Entries of this sequence up to this number are skipped silently: it already has them.
    pub(super) skip_through: (SourceTag, u64),
    /// Index in `shards`; never changes.
    shard: Option<u16>,
    /// The dispatcher may write to the sink.
    is_direct: bool,
}

#[derive(Debug)]
struct Shard<F> {
    notifier: Arc<ShardNotifier<F>>,
    subscribers: usize,
    /// The shard was notified and has not started its pass.
    is_notified: bool,
}

impl<F> Default for Subscribers<F> {
    fn default() -> Self {
        Self {
            all: Slab::new(),
            shards: SmallVec::new(),
            off_shard: 0,
        }
    }
}

impl<F> Subscribers<F> {
    /// Adds a subscriber and returns its key. `notifier` is that of its shard, if it is on one.
    pub(super) fn add(
        &mut self,
        offset: Offset,
        position: Position,
        notifier: Option<Arc<ShardNotifier<F>>>,
    ) -> u32 {
        let shard =
            notifier.and_then(|notifier| self.shard_of(&notifier).or_else(|| self.join(notifier)));
        match shard {
            Some(shard) => self.shards[usize::from(shard)].subscribers += 1,
            None => self.off_shard += 1,
        }
        if self.all.len() == self.all.capacity() {
            // Grow by a quarter, as the allocator's size classes do: doubling would leave most of
            // it unused.
            self.all.reserve_exact(self.all.len() / 4 + 1);
        }
        let key = self.all.insert(Subscriber {
            waker: None,
            sink: None,
            offset,
            position,
            skip_through: (position.tag, position.seq),
            shard,
            is_direct: false,
        });
        debug_assert!(u32::try_from(key).is_ok(), "2^32 records exceed any memory");
        key as u32
    }

    fn join(&mut self, notifier: Arc<ShardNotifier<F>>) -> Option<u16> {
        let index = u16::try_from(self.shards.len()).ok()?;
        self.shards.push(Shard {
            notifier,
            subscribers: 0,
            is_notified: false,
        });
        Some(index)
    }

    /// Index of the shard with this notifier, if it has had subscribers here.
    pub(super) fn shard_of(&self, notifier: &Arc<ShardNotifier<F>>) -> Option<u16> {
        let index = self
            .shards
            .iter()
            .position(|shard| Arc::ptr_eq(&shard.notifier, notifier))?;
        u16::try_from(index).ok()
    }

    pub(super) fn remove(&mut self, key: u32) {
        let Some(subscriber) = self.all.try_remove(key as usize) else {
            return;
        };
        match subscriber.shard {
            Some(shard) => self.shards[usize::from(shard)].subscribers -= 1,
            None => self.off_shard -= 1,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Returns a record; `None` after its cursor was dropped.
    pub(super) fn get(&self, key: u32) -> Option<&Subscriber> {
        self.all.get(key as usize)
    }

    /// Returns the record of a cursor that still exists.
    pub(super) fn of_cursor(&mut self, key: u32) -> &mut Subscriber {
        // A cursor removes its record only when it is dropped.
        &mut self.all[key as usize]
    }

    /// Adds the shards with subscribers, and the subscribers that are not on one, to the wake list.
    pub(super) fn notify(&mut self, feed: &Arc<F>, wake_list: &mut WakeList<F>) {
        for shard in self
            .shards
            .iter_mut()
            .filter(|shard| shard.subscribers > 0 && !shard.is_notified)
        {
            shard.is_notified = true;
            wake_list.notify(&shard.notifier, feed);
        }
        if self.off_shard > 0 {
            let off_shard = self
                .all
                .iter_mut()
                .filter(|(_, subscriber)| subscriber.shard.is_none());
            off_shard.for_each(|(_, subscriber)| wake_list.wake.extend(subscriber.wake()));
        }
    }

    /// Marks the start of a shard's pass: events from here on notify it again.
    pub(super) fn clear_notified(&mut self, shard: u16) {
        self.shards[usize::from(shard)].is_notified = false;
    }

    /// Returns the first subscriber of a shard that waits for events, from this key on.
    pub(super) fn next_waiting(
        &mut self,
        shard: u16,
        from: usize,
    ) -> Option<(usize, &mut Subscriber)> {
        let is_waiting =
            |subscriber: &Subscriber| subscriber.shard == Some(shard) && subscriber.waker.is_some();
        let key =
            (from..self.all.capacity()).find(|key| self.all.get(*key).is_some_and(is_waiting))?;
        self.all.get_mut(key).map(|subscriber| (key, subscriber))
    }

    /// Prefetches the sinks of the next subscribers.
    pub(super) fn prefetch_sinks(&self, from: usize, most: usize) {
        let next = (from..self.all.capacity().min(from.saturating_add(most)))
            .filter_map(|key| self.all.get(key)?.sink.as_ref());
        prefetch::shared(next);
    }

    /// Records that a run was accepted up to its end.
    pub(super) fn advance(&mut self, key: usize, offset: Offset, position: Position) {
        if let Some(subscriber) = self.all.get_mut(key) {
            (subscriber.offset, subscriber.position) = (offset, position);
        }
    }

    /// Makes a subscriber running and returns its waker, if it waited.
    pub(super) fn wake(&mut self, key: usize) -> Option<Waker> {
        self.all.get_mut(key)?.wake()
    }
}

impl Subscriber {
    /// Sets the sink for direct writes.
    pub(super) fn set_sink(&mut self, sink: Arc<dyn DirectSink>) {
        self.sink = Some(sink);
    }

    /// Returns the sink.
    pub(super) fn sink(&self) -> Option<Arc<dyn DirectSink>> {
        self.sink.clone()
    }

    /// Returns the sink if the dispatcher may write to it.
    pub(super) fn direct_sink(&self) -> Option<&Arc<dyn DirectSink>> {
        self.sink.as_ref().filter(|_| self.is_direct)
    }

    /// Makes it running: its task has more to read, or waits for its transport.
    pub(super) fn run(&mut self) {
        (self.is_direct, self.waker) = (false, None);
    }

    /// Makes it waiting: its task has read everything.
    pub(super) fn wait(&mut self, waker: &Waker) {
        self.is_direct = false;
        match &mut self.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// Makes it idle, if it waits.
    pub(super) fn allow_direct(&mut self) {
        self.is_direct = self.waker.is_some();
    }

    /// Makes it running and returns its waker, if it waited.
    pub(super) fn wake(&mut self) -> Option<Waker> {
        self.is_direct = false;
        self.waker.take()
    }
}
