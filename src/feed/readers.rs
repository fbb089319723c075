//! Who reads a feed: where each one stands, and how it is told that there is more.

use std::sync::Arc;
use std::task::Waker;

use slab::Slab;
use smallvec::SmallVec;

use crate::sse::Position;

use super::feed::Feed;
use super::notify::{self, ShardNotifier, WakeList};
use super::sink::DirectSink;
use super::window::Offset;

/// The readers of one feed.
#[derive(Debug, Default)]
pub(super) struct Readers {
    all: Slab<Reader>,
    /// Threads that have had some; there are as many as shards.
    threads: SmallVec<[Thread; 1]>,
    /// How many read where no bell is answered.
    unheard: usize,
}

#[derive(Debug)]
pub(super) struct Reader {
    /// Set while the reader waits for something new.
    pub(super) waker: Option<Waker>,
    /// Where it can be given that without being woken.
    pub(super) outlet: Option<Arc<dyn DirectSink>>,
    /// Kept here too, so that the lag of a stalled reader is seen from outside.
    pub(super) place: Offset,
    pub(super) position: Position,
    /// That it reads on, which never changes: a place among `threads`.
    thread: Option<u16>,
}

#[derive(Debug)]
struct Thread {
    bell: Arc<ShardNotifier>,
    readers: usize,
    /// Its readers are to be seen: it is told once, however much comes until it looks.
    is_rung: bool,
}

impl Readers {
    /// Adds a reader of this thread.
    pub(super) fn add(&mut self, place: Offset, position: Position) -> usize {
        let thread =
            notify::here().and_then(|bell| self.thread_of(&bell).or_else(|| self.join(bell)));
        match thread {
            Some(thread) => self.threads[usize::from(thread)].readers += 1,
            None => self.unheard += 1,
        }
        if self.all.len() == self.all.capacity() {
            // By a quarter, as the allocator's sizes grow: doubled, most of it would be room for nobody.
            self.all.reserve_exact(self.all.len() / 4 + 1);
        }
        self.all.insert(Reader {
            waker: None,
            outlet: None,
            place,
            position,
            thread,
        })
    }

    fn join(&mut self, bell: Arc<ShardNotifier>) -> Option<u16> {
        let place = u16::try_from(self.threads.len()).ok()?;
        self.threads.push(Thread {
            bell,
            readers: 0,
            is_rung: false,
        });
        Some(place)
    }

    /// The thread with this bell, if it has had readers here.
    pub(super) fn thread_of(&self, bell: &Arc<ShardNotifier>) -> Option<u16> {
        let place = self
            .threads
            .iter()
            .position(|thread| Arc::ptr_eq(&thread.bell, bell))?;
        u16::try_from(place).ok()
    }

    pub(super) fn remove(&mut self, key: usize) {
        let Some(reader) = self.all.try_remove(key) else {
            return;
        };
        match reader.thread {
            Some(thread) => self.threads[usize::from(thread)].readers -= 1,
            None => self.unheard -= 1,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Says where a reader can be given events while it waits.
    pub(super) fn set_outlet(&mut self, key: usize, outlet: Arc<dyn DirectSink>) {
        if let Some(reader) = self.all.get_mut(key) {
            reader.outlet = Some(outlet);
        }
    }

    /// Notes where a reader stands after a read.
    pub(super) fn moved(&mut self, key: usize, place: Offset, position: Position) {
        if let Some(reader) = self.all.get_mut(key) {
            reader.place = place;
            reader.position = position;
        }
    }

    /// Notes that a reader waits.
    pub(super) fn wait(&mut self, key: usize, waker: &Waker) {
        match self.all.get_mut(key).map(|reader| &mut reader.waker) {
            Some(Some(known)) => known.clone_from(waker),
            Some(none) => *none = Some(waker.clone()),
            None => {}
        }
    }

    /// Where a reader stands; nothing once it has left.
    pub(super) fn standing(&self, key: usize) -> Option<(Offset, Position)> {
        self.all
            .get(key)
            .map(|reader| (reader.place, reader.position))
    }

    /// There is something new: the threads of those who wait are to be told when no lock is held.
    pub(super) fn tell(&mut self, feed: &Arc<Feed>, news: &mut WakeList) {
        for thread in self
            .threads
            .iter_mut()
            .filter(|thread| thread.readers > 0 && !thread.is_rung)
        {
            thread.is_rung = true;
            news.ring(&thread.bell, feed);
        }
        if self.unheard > 0 {
            let unheard = self
                .all
                .iter_mut()
                .filter(|(_, reader)| reader.thread.is_none());
            unheard.for_each(|(_, reader)| news.wake.extend(reader.waker.take()));
        }
    }

    /// A thread begins to see its readers: what comes from here on rings again.
    pub(super) fn answer(&mut self, thread: u16) {
        self.threads[usize::from(thread)].is_rung = false;
    }

    /// The first reader of a thread that waits, from this key on.
    pub(super) fn waiting(&mut self, thread: u16, from: usize) -> Option<(usize, &mut Reader)> {
        let waits = |reader: &Reader| reader.thread == Some(thread) && reader.waker.is_some();
        let key = (from..self.all.capacity()).find(|key| self.all.get(*key).is_some_and(waits))?;
        self.all.get_mut(key).map(|reader| (key, reader))
    }

    /// Looks at the outlets of the next readers, which are about to be used (see [`DirectSink::look`]).
    pub(super) fn look_from(&self, from: usize, most: usize) {
        let next = (from..self.all.capacity().min(from.saturating_add(most)))
            .filter_map(|key| self.all.get(key));
        std::hint::black_box(
            next.filter_map(|reader| reader.outlet.as_ref())
                .map(Arc::strong_count)
                .sum::<usize>(),
        );
    }

    /// Takes the waker of a reader that is to be woken.
    pub(super) fn take(&mut self, key: usize) -> Option<Waker> {
        self.all.get_mut(key)?.waker.take()
    }
}
