//! Core source: core NATS subjects, subscribed to while they have readers.
//!
//! ```text
//! CoreSource::open -> FeedMap -> CoreWriter::change -> one subscription per filter, made by `nats`
//! NATS message -> CoreWriter::append -> one number, one encoding
//!              -> every feed with the filter of its subscription
//! ```
//!
//! Core messages have no sequence numbers, so the process assigns them. Several threads allocate
//! numbers (each new feed takes one), but only [`CoreWriter`] appends. A number is *complete* when
//! every event up to it is in the window of every feed that matches. A new reader and a checkpoint
//! take the complete number as their position, so no position is ahead of an event that is yet to
//! be appended.
//!
//! Core subjects have no archive: a position that has left the window, or that another
//! process assigned, results in a gap.

mod sequence;
mod subscriptions;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::{Arc, Weak};
use std::time::Instant;

use tokio::sync::mpsc;

use crate::event::{Position, SourceTag};
use crate::subject::FilterSet;

use super::budget::Budget;
use super::cursor::Cursor;
use super::feed::Feed;
use super::feed_map::{FeedLease, FeedMap, REQUESTS_MAX, SubscribeRequest};
use super::gap::{Gap, GapReason};
use super::limits::SourceSize;
use super::open_error::OpenError;
use super::opening::Opened;
use super::options::FeedOptions;
use super::origin::Origin;
use super::replay::member::ReplayMember;
use super::resume::{Outcome, Start};
use super::source::{OpenFuture, Source};

use sequence::SequenceCounter;
pub use subscriptions::SubscriptionKey;
pub use writer::{Change, CoreWriter, FAN_OUT_MAX, FeedKey, Received};

/// Reading side of the core subjects. All feeds of a process share one sequence and one tag.
#[derive(Debug)]
pub struct CoreSource {
    /// This source, for its cursors.
    me: Weak<Self>,
    sequence: Arc<SequenceCounter>,
    requests: mpsc::Sender<SubscribeRequest<FeedLease>>,
    feeds: Arc<FeedMap>,
}

/// Creates a core source under this tag, and the one writer of all its feeds.
#[must_use]
pub fn channel(tag: SourceTag, budget: &Arc<Budget>) -> (Arc<CoreSource>, CoreWriter) {
    let (requests, received) = mpsc::channel(REQUESTS_MAX);
    let sequence = Arc::new(SequenceCounter::new(tag));
    let core = Arc::new_cyclic(|me| CoreSource {
        me: me.clone(),
        sequence: sequence.clone(),
        requests,
        feeds: FeedMap::new(budget),
    });
    (core, CoreWriter::new(sequence, received, budget))
}

// === impl CoreSource ===

impl Source for CoreSource {
    fn name(&self) -> &str {
        "core"
    }

    /// Tag of this process.
    fn tag(&self) -> Result<SourceTag, OpenError> {
        Ok(self.sequence.tag())
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn are_positions_shared(&self) -> bool {
        false
    }

    fn open<'a>(
        &'a self,
        filters: FilterSet,
        options: &'a Arc<FeedOptions>,
        start: Start,
    ) -> OpenFuture<'a> {
        Box::pin(self.open_reader(filters, options, start))
    }

    fn sweep(&self, now: Instant) {
        self.feeds.sweep(now);
    }

    fn size(&self) -> SourceSize {
        self.feeds.size()
    }
}

impl CoreSource {
    /// Opens a reader. Ready after its subscriptions are confirmed; [`OpenError::NotReady`] if they
    /// are not confirmed in time.
    async fn open_reader(
        &self,
        filters: FilterSet,
        options: &Arc<FeedOptions>,
        start: Start,
    ) -> Result<Opened, OpenError> {
        // A new feed takes a number: a returning reader may have missed messages while no feed
        // existed.
        let found = self.feeds.find(filters, options, || self.sequence.take())?;
        let opened = self.join(found.feed.clone(), start);
        found.wait_subscribed(&self.requests, |lease| lease).await?;
        Ok(opened)
    }

    fn join(&self, feed: Arc<Feed>, start: Start) -> Opened {
        let state = feed.lock();
        // The newest entry and the floor of a new feed may be later than the complete number.
        let complete = self.sequence.complete();
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
        let live = (state.window.end_offset(), head);
        let gap = |reason| Outcome::Gap(Gap::uncounted(reason));
        let (outcome, (offset, position)) = match start {
            Start::Live | Start::Begin(_) => (Outcome::Live, live),
            Start::Unknown(reason) => (gap(reason), live),
            Start::After(at) if at.tag != complete.tag => (gap(GapReason::Restarted), live),
            Start::After(at) if at.seq > self.sequence.last() => (gap(GapReason::Ahead), live),
            Start::After(at) => match state.window.offset_after(at.seq) {
                Some(offset) => (Outcome::Window, (offset, at)),
                None => {
                    let position = Position {
                        tag: complete.tag,
                        seq: state.window.floor(),
                        fingerprint: None,
                    };
                    (
                        gap(GapReason::Expired),
                        (state.window.oldest_offset(), position),
                    )
                }
            },
        };
        drop(state);
        Opened {
            cursor: Cursor::join(self.me.clone(), feed, offset, position),
            outcome,
            snapshot: None,
        }
    }
}

impl Origin for CoreSource {
    fn head_at_end(&self, feed: &Feed, index: u64) -> Option<Position> {
        let state = feed.lock();
        // Under the feed's lock: nothing is appended between reading its end and reading the
        // sequence.
        (index >= state.window.end()).then(|| self.sequence.complete())
    }

    /// Core subjects have no archive.
    fn join_replay(&self, _: &Arc<Feed>, _: u64) -> Option<Box<ReplayMember>> {
        None
    }

    fn reader_left(&self, feed: &Arc<Feed>) {
        self.feeds.reader_left(feed);
    }
}
