//! Core subjects on demand: subscribed to when the first reader comes, numbered by one counter of the process.
//!
//! ```text
//! OnDemand::open -> Feeds (lease.rs) -> CoreWriter::change -> one subscription for each filter, made by `nats`
//! NATS message -> CoreWriter::append -> one number, one encoding -> every feed with the filter of its subscription
//! ```
//!
//! Numbers are allocated by several threads (a new feed takes one), but only [`CoreWriter`] appends. A number counts as
//! *complete* when every event up to it is in the window of every feed that wants it. A reader that begins, and a
//! checkpoint, take the complete number as their position, so that no position is ahead of an event that is still to be
//! appended.

mod subscriptions;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::mpsc;

use crate::sse::{Position, SourceTag};
use crate::subject::FilterSet;

use super::feed::Feed;
use super::feed_map::FeedMap;
use super::source::Origin;
use super::{Budget, Cursor, FeedOptions, Gap, GapReason, OpenError, Opened, Outcome, Start};

pub use subscriptions::SubscriptionKey;
pub use writer::{Change, CoreWriter, FAN_OUT_MAX, FeedKey, Received};

/// A feed that a reader waits for, for the side that subscribes.
#[derive(Debug)]
pub struct SubscribeRequest<W> {
    /// Its filters.
    pub filters: FilterSet,
    /// Where its events go.
    pub writer: W,
}

/// Demands as the upstream side receives them; bounded.
pub type SubscribeRequests<W> = mpsc::Receiver<SubscribeRequest<W>>;

/// How many demands wait to be received: those of a reconnect storm; readers wait in turn.
pub(super) const DEMANDS_MAX: usize = 1024;

/// The reading side of core subjects: all of one process count in one sequence under one tag.
#[derive(Debug)]
pub struct CoreSource {
    numbers: Arc<Numbers>,
    demands: mpsc::Sender<SubscribeRequest<super::feed_map::FeedLease>>,
    feeds: Arc<FeedMap>,
}

/// The sequence of one process. A number is never reused: a feed that is made again continues the sequence.
#[derive(Debug)]
struct Numbers {
    tag: SourceTag,
    /// The number allocated last.
    last: AtomicU64,
    /// Every event up to this number is in the windows of the feeds that want it.
    complete: AtomicU64,
}

/// Core subjects under a tag: the side of the readers, and the one writer of all their feeds.
#[must_use]
pub fn channel(tag: SourceTag, budget: &Arc<Budget>) -> (Arc<CoreSource>, CoreWriter) {
    let (demands, received) = mpsc::channel(DEMANDS_MAX);
    let numbers = Arc::new(Numbers {
        tag,
        last: AtomicU64::new(0),
        complete: AtomicU64::new(0),
    });
    let core = Arc::new(CoreSource {
        numbers: numbers.clone(),
        demands,
        feeds: FeedMap::new(budget),
    });
    (core, CoreWriter::new(numbers, received, budget))
}

// === impl OnDemand ===

impl CoreSource {
    /// The tag of this process's ids.
    #[must_use]
    pub fn tag(&self) -> SourceTag {
        self.numbers.tag
    }

    /// Opens a reader; returns when its subscriptions are confirmed, so that nothing published later is missed.
    ///
    /// # Errors
    /// [`OpenError::NotReady`] when they were not confirmed in time, [`OpenError::TooManyFeeds`] at the limit.
    pub async fn open(
        self: &Arc<Self>,
        filters: FilterSet,
        profile: &Arc<FeedOptions>,
        start: Start,
    ) -> Result<Opened, OpenError> {
        // A number of its own: a reader that comes back may have missed what was published while no feed existed.
        let found = self.feeds.find(filters, profile, || self.numbers.take())?;
        let opened = self.join(found.feed.clone(), start);
        found.stands(&self.demands, |lease| lease).await?;
        Ok(opened)
    }

    /// Feeds, and the events and bytes in them.
    #[must_use]
    pub fn size(&self) -> (usize, usize, usize) {
        self.feeds.size()
    }

    /// Drops what is too old at this time.
    pub fn sweep(&self, now: Instant) {
        self.feeds.sweep(now);
    }

    pub(super) fn head_at_end(&self, feed: &Feed, index: u64) -> Option<Position> {
        let state = feed.lock();
        // Under the feed's lock: nothing is appended between the look at its end and the look at the numbers.
        (index >= state.window.end()).then(|| self.numbers.complete())
    }

    pub(super) fn left(&self, feed: &Arc<Feed>) {
        self.feeds.left(feed);
    }

    fn join(self: &Arc<Self>, feed: Arc<Feed>, start: Start) -> Opened {
        let state = feed.lock();
        // The newest entry and the floor of a new feed may be later than what is complete everywhere.
        let complete = self.numbers.complete();
        let newest = state
            .window
            .end()
            .checked_sub(1)
            .and_then(|index| state.window.get(index));
        let newest = newest
            .map_or(0, |entry| entry.position().seq)
            .max(state.window.floor());
        let head = Position {
            seq: complete.seq.max(newest),
            ..complete
        };
        let live = (state.window.end_place(), head);
        let gap = |reason| {
            Outcome::Gap(Gap {
                reason,
                missed: None,
            })
        };
        let (outcome, (place, position)) = match start {
            Start::Live => (Outcome::Live, live),
            Start::Lost(reason) => (gap(reason), live),
            Start::After(at) if at.tag != self.tag() => (gap(GapReason::Restarted), live),
            Start::After(at) if at.seq > self.numbers.last() => (gap(GapReason::Ahead), live),
            Start::After(at) => match state.window.place_after(at.seq) {
                Some(place) => (Outcome::Window, (place, at)),
                None => {
                    let position = Position {
                        tag: self.tag(),
                        seq: state.window.floor(),
                        check: None,
                    };
                    (
                        gap(GapReason::Expired),
                        (state.window.oldest_place(), position),
                    )
                }
            },
        };
        drop(state);
        let key = feed.join(place, position);
        Opened {
            cursor: Cursor::new(Origin::Core(self.clone()), feed, key, place, position),
            outcome,
        }
    }
}

// === impl Numbers ===

impl Numbers {
    /// Allocates the next number.
    fn take(&self) -> Position {
        let seq = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        Position {
            tag: self.tag,
            seq,
            check: None,
        }
    }

    /// The number allocated last.
    fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// Every event up to this one is in the windows of the feeds that want it.
    fn complete(&self) -> Position {
        Position {
            tag: self.tag,
            seq: self.complete.load(Ordering::Acquire),
            check: None,
        }
    }

    /// Marks everything up to this number as appended. Only the one writer calls it, in ascending order.
    fn set_complete(&self, seq: u64) {
        self.complete.store(seq, Ordering::Release);
    }
}
