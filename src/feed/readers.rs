//! Table of a feed's readers: position, waker, sink and shard of each.
//!
//! The entry of a reader is the feed's side of a [`Cursor`](super::Cursor). Both sides have offset
//! and position; a read, a seek and a checkpoint copy them into the entry, and the dispatcher
//! advances the entry only. A reader is idle while its waker is set.

use std::sync::Arc;
use std::task::Waker;

use slab::Slab;
use smallvec::SmallVec;

use crate::event::Position;

use super::feed::Feed;
use super::notify::{self, ShardNotifier, WakeList};
use super::sink::DirectSink;
use super::window::Offset;

/// Readers of one feed.
#[derive(Debug, Default)]
pub(super) struct Readers {
    all: Slab<Reader>,
    /// Shards that have had readers here; at most the number of shards.
    shards: SmallVec<[Shard; 1]>,
    /// Readers that are not on a shard.
    off_shard: usize,
}

#[derive(Debug)]
pub(super) struct Reader {
    /// Set while the reader is idle.
    pub(super) waker: Option<Waker>,
    /// Sink for direct writes while it is idle.
    pub(super) sink: Option<Arc<dyn DirectSink>>,
    /// Copied from the cursor, so that the lag of a stalled reader is visible.
    pub(super) offset: Offset,
    pub(super) position: Position,
    /// Index in `shards`; never changes.
    shard: Option<u16>,
}

#[derive(Debug)]
struct Shard {
    notifier: Arc<ShardNotifier>,
    readers: usize,
    /// The shard was notified and has not started its pass.
    is_notified: bool,
}

impl Readers {
    /// Adds a reader on the current thread.
    pub(super) fn add(&mut self, offset: Offset, position: Position) -> usize {
        let shard = notify::current_shard()
            .and_then(|notifier| self.shard_of(&notifier).or_else(|| self.join(notifier)));
        match shard {
            Some(shard) => self.shards[usize::from(shard)].readers += 1,
            None => self.off_shard += 1,
        }
        if self.all.len() == self.all.capacity() {
            // Grow by a quarter, as the allocator's size classes do: doubling would leave most of
            // it unused.
            self.all.reserve_exact(self.all.len() / 4 + 1);
        }
        self.all.insert(Reader {
            waker: None,
            sink: None,
            offset,
            position,
            shard,
        })
    }

    fn join(&mut self, notifier: Arc<ShardNotifier>) -> Option<u16> {
        let index = u16::try_from(self.shards.len()).ok()?;
        self.shards.push(Shard {
            notifier,
            readers: 0,
            is_notified: false,
        });
        Some(index)
    }

    /// Index of the shard with this notifier, if it has had readers here.
    pub(super) fn shard_of(&self, notifier: &Arc<ShardNotifier>) -> Option<u16> {
        let index = self
            .shards
            .iter()
            .position(|shard| Arc::ptr_eq(&shard.notifier, notifier))?;
        u16::try_from(index).ok()
    }

    pub(super) fn remove(&mut self, key: usize) {
        let Some(reader) = self.all.try_remove(key) else {
            return;
        };
        match reader.shard {
            Some(shard) => self.shards[usize::from(shard)].readers -= 1,
            None => self.off_shard -= 1,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Sets the sink of a reader.
    pub(super) fn set_sink(&mut self, key: usize, sink: Arc<dyn DirectSink>) {
        if let Some(reader) = self.all.get_mut(key) {
            reader.sink = Some(sink);
        }
    }

    /// Records offset and position of a reader.
    pub(super) fn set_position(&mut self, key: usize, offset: Offset, position: Position) {
        if let Some(reader) = self.all.get_mut(key) {
            reader.offset = offset;
            reader.position = position;
        }
    }

    /// Marks a reader as idle.
    pub(super) fn wait(&mut self, key: usize, waker: &Waker) {
        match self.all.get_mut(key).map(|reader| &mut reader.waker) {
            Some(Some(known)) => known.clone_from(waker),
            Some(none) => *none = Some(waker.clone()),
            None => {}
        }
    }

    /// Offset and position of a reader; `None` after it has left.
    pub(super) fn position_of(&self, key: usize) -> Option<(Offset, Position)> {
        self.all
            .get(key)
            .map(|reader| (reader.offset, reader.position))
    }

    /// Adds the shards with readers, and the readers that are not on one, to the wake list.
    pub(super) fn notify(&mut self, feed: &Arc<Feed>, wake_list: &mut WakeList) {
        for shard in self
            .shards
            .iter_mut()
            .filter(|shard| shard.readers > 0 && !shard.is_notified)
        {
            shard.is_notified = true;
            wake_list.notify(&shard.notifier, feed);
        }
        if self.off_shard > 0 {
            let off_shard = self
                .all
                .iter_mut()
                .filter(|(_, reader)| reader.shard.is_none());
            off_shard.for_each(|(_, reader)| wake_list.wake.extend(reader.waker.take()));
        }
    }

    /// Marks the start of a shard's pass: events from here on notify it again.
    pub(super) fn clear_notified(&mut self, shard: u16) {
        self.shards[usize::from(shard)].is_notified = false;
    }

    /// Returns the first idle reader of a shard, from this key on.
    pub(super) fn next_waiting(&mut self, shard: u16, from: usize) -> Option<(usize, &mut Reader)> {
        let is_idle = |reader: &Reader| reader.shard == Some(shard) && reader.waker.is_some();
        let key =
            (from..self.all.capacity()).find(|key| self.all.get(*key).is_some_and(is_idle))?;
        self.all.get_mut(key).map(|reader| (key, reader))
    }

    /// Prefetches the sinks of the next readers (see [`DirectSink::prefetch`]).
    pub(super) fn prefetch_sinks(&self, from: usize, most: usize) {
        let next = (from..self.all.capacity().min(from.saturating_add(most)))
            .filter_map(|key| self.all.get(key));
        std::hint::black_box(
            next.filter_map(|reader| reader.sink.as_ref())
                .map(Arc::strong_count)
                .sum::<usize>(),
        );
    }

    /// Takes the waker of a reader.
    pub(super) fn take_waker(&mut self, key: usize) -> Option<Waker> {
        self.all.get_mut(key)?.waker.take()
    }
}
