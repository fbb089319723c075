//! Who reads a feed: where each one stands, and how it is woken.

use std::sync::Arc;
use std::task::Waker;

use slab::Slab;

use crate::sse::Component;

use super::bell::{self, Bell, Wakers};
use super::window::Place;

/// The readers of one feed.
#[derive(Debug, Default)]
pub(super) struct Readers(Slab<Reader>);

#[derive(Debug)]
struct Reader {
    /// Set while the reader waits for something new.
    waker: Option<Waker>,
    /// Of the thread that it reads on, which never changes.
    bell: Option<Arc<Bell>>,
    /// Kept here too, so that the lag of a stalled reader is seen from outside.
    place: Place,
    position: Component,
}

impl Readers {
    /// Adds a reader of this thread.
    pub(super) fn add(&mut self, place: Place, position: Component) -> usize {
        self.0.insert(Reader { waker: None, bell: bell::here(), place, position })
    }

    pub(super) fn remove(&mut self, key: usize) {
        drop(self.0.try_remove(key));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes where a reader stands after a read.
    pub(super) fn moved(&mut self, key: usize, place: Place, position: Component) {
        if let Some(reader) = self.0.get_mut(key) {
            reader.place = place;
            reader.position = position;
        }
    }

    /// Notes that a reader waits.
    pub(super) fn wait(&mut self, key: usize, waker: &Waker) {
        match self.0.get_mut(key).map(|reader| &mut reader.waker) {
            Some(Some(known)) => known.clone_from(waker),
            Some(none) => *none = Some(waker.clone()),
            None => {}
        }
    }

    /// Where a reader stands; nothing once it has left.
    pub(super) fn standing(&self, key: usize) -> Option<(Place, Component)> {
        self.0.get(key).map(|reader| (reader.place, reader.position))
    }

    /// Takes everyone who waits; to be woken when no lock is held.
    pub(super) fn take_waiting(&mut self, wakers: &mut Wakers) {
        for (_, reader) in &mut self.0 {
            if let Some(waker) = reader.waker.take() {
                wakers.add(reader.bell.as_ref(), waker);
            }
        }
    }
}
