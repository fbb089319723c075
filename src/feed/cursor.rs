//! Cursor: the handle of one subscriber, with which the client's task reads a feed.
//!
//! The record of the subscriber, in the feed, has offset and position; the cursor has no copy of
//! them. [`Cursor::poll_read`] is the only read. Its [`ReadPolicy`] says how much it returns and
//! what it may skip. A position older than the window is read from the archive first
//! (`cursor/replay.rs`); the steps of a read from the window are in `cursor/take.rs`.
//!
//! ```text
//!             start_replay                     caught up
//!    seek ---------------> replaying (archive) ----------> reading (window)
//!                               ^                               |
//!                               +--- evicted past the cursor ---+
//! ```
//!
//! The offset is a running index plus totals (events, bytes, gaps) before it, so lag and missed
//! events are differences of two offsets, also for a [`CursorProbe`] on another thread.
//!
//! While the task sleeps with nothing in flight, the dispatcher may write to the client's sink and
//! advance the record: [`Cursor::allow_direct`]. The next read ends that by itself; a task that
//! waits for its transport first calls [`Cursor::take_over`].

mod probe;
mod replay;
mod state;
mod take;

use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use crate::event::{Position, Version};

use super::batch::Batch;
use super::dispatch;
use super::feed::Feed;
use super::open_error::OpenError;
use super::origin::Origin;
use super::read_policy::ReadPolicy;
use super::replay::member::ReplayMember;
use super::sink::DirectSink;
use super::snapshot::SnapshotReader;
use super::window::Offset;
use take::Evicted;

pub use probe::{CursorProbe, Lag};
pub use state::{State, StateRead};

/// Handle of one subscriber. Dropping it removes the subscriber.
#[derive(Debug)]
pub struct Cursor {
    origin: Weak<dyn Origin>,
    feed: Arc<Feed>,
    key: u32,
    /// The last read returned everything, and the reader will be woken for more.
    is_waiting: bool,
    /// Set while the position is older than the window and the archive is read.
    replay: Option<Box<ReplayMember>>,
}

/// Result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Items were added to the batch.
    Some,
    /// The feed has ended, or its source is rejected until an operator changes something.
    Ended,
}

impl Cursor {
    /// Adds a subscriber to a feed. It has everything before the offset, and up to the position.
    pub(super) fn join(
        origin: Weak<dyn Origin>,
        feed: Arc<Feed>,
        offset: Offset,
        position: Position,
    ) -> Self {
        let key = feed.join(offset, position, dispatch::current_shard());
        Self {
            origin,
            feed,
            key,
            is_waiting: false,
            replay: None,
        }
    }

    /// Adds a subscriber at the end of a feed, which may not have started yet.
    pub(super) fn join_at_end(origin: Weak<dyn Origin>, feed: Arc<Feed>) -> Self {
        let (offset, position) = {
            let state = feed.lock();
            let position = state.head.unwrap_or_else(|| state.floor());
            (state.window.end_offset(), position)
        };
        Self::join(origin, feed, offset, position)
    }

    pub(super) fn feed(&self) -> &Feed {
        &self.feed
    }

    /// Version of the payloads, if the feed converts them.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        let converter = self.feed.options.converter.as_ref()?;
        converter.target()
    }

    /// Position after which every event is in the window.
    pub(super) fn floor(&self) -> Position {
        self.feed.lock().floor()
    }

    /// Moves to the end of a feed that has a head; false if it has none.
    pub(super) fn seek_to_end(&mut self) -> bool {
        let mut state = self.feed.lock();
        let Some(head) = state.head else { return false };
        let (window, subscriber) = state.of_cursor(self.key);
        subscriber.seek(window.end_offset(), head);
        true
    }

    /// Moves to the end of the feed, for a reader that does not receive every event. Returns the
    /// number of events that it skips.
    pub fn skip_to_end(&mut self) -> u64 {
        self.replay = None;
        let mut state = self.feed.lock();
        let head = state.head;
        let (window, subscriber) = state.of_cursor(self.key);
        let (end, before) = (window.end_offset(), subscriber.offset);
        subscriber.seek(end, head.unwrap_or(subscriber.position));
        end.before.events - before.before.events
    }

    /// Moves after a position, if everything after it is in the window.
    pub(super) fn seek(&mut self, position: Position) -> bool {
        let mut state = self.feed.lock();
        let (window, subscriber) = state.of_cursor(self.key);
        let Some(offset) = window.offset_after(position.seq) else {
            return false;
        };
        subscriber.seek(offset, position);
        true
    }

    /// Moves before the last events of the window, as many as `count`; false if it has fewer.
    pub(super) fn seek_to_last(&mut self, count: u64) -> bool {
        let mut state = self.feed.lock();
        let (window, subscriber) = state.of_cursor(self.key);
        let Some(position) = window.position_before_last(count) else {
            return false;
        };
        let Some(offset) = window.offset_after(position.seq) else {
            return false;
        };
        subscriber.seek(offset, position);
        true
    }

    /// Starts to read the archive after a position that was located for this reader. Events that
    /// expire before the first page are no gap: the reader begins with the oldest one that is left.
    /// False if no replay slot is free.
    pub(super) fn begin_replay(&mut self, position: Position) -> bool {
        let is_started = self.start_replay(position);
        if let Some(member) = &self.replay {
            member.begin_at_oldest();
        }
        is_started
    }

    /// Starts to read the archive after a position. If no replay slot is free it returns false, and
    /// the reader continues with the oldest entry in the window.
    pub(super) fn start_replay(&mut self, position: Position) -> bool {
        self.replay = self.join_replay(position.seq);
        let mut state = self.feed.lock();
        let (window, subscriber) = state.of_cursor(self.key);
        let offset = match self.replay {
            Some(_) => subscriber.offset,
            None => window.oldest_offset(),
        };
        subscriber.seek(offset, position);
        self.replay.is_some()
    }

    /// Joins a replay with everything up to `after` read; `None` without an archive, at the limit,
    /// or if the source is gone.
    fn join_replay(&self, after: u64) -> Option<Box<ReplayMember>> {
        self.origin.upgrade()?.join_replay(&self.feed, after)
    }

    /// Reads the last event of each subject of this reader, not older than its position. Nothing is
    /// requested before the first poll.
    #[must_use]
    pub fn read_state(&self) -> StateRead {
        StateRead::new(self.origin.clone(), Arc::clone(&self.feed), self.position())
    }

    /// Moves to the position of the state, which the reader receives first. If the window has moved
    /// on meanwhile, it reads the archive until it has reached the window.
    ///
    /// # Errors
    /// [`OpenError::NotReady`] if the source was recreated meanwhile, [`OpenError::TooManyReplays`]
    /// without a replay slot.
    pub fn begin_state(&mut self, state: State) -> Result<SnapshotReader, OpenError> {
        let snapshot = state.into_snapshot();
        let position = snapshot.position();
        self.replay = None;
        if position.tag != self.floor().tag {
            return Err(OpenError::NotReady);
        }
        if !self.seek(position) && !self.begin_replay(position) {
            return Err(OpenError::TooManyReplays);
        }
        Ok(snapshot.read(&self.feed.options))
    }

    /// Sets the sink for direct writes.
    pub fn set_sink(&self, sink: Arc<dyn DirectSink>) {
        let mut state = self.feed.lock();
        state.of_cursor(self.key).1.set_sink(sink);
    }

    /// Takes the sink for direct writes of another cursor, which this one replaces.
    pub fn take_sink(&self, other: &Self) {
        let sink = other.feed.lock().of_cursor(other.key).1.sink();
        if let Some(sink) = sink {
            self.set_sink(sink);
        }
    }

    /// Allows direct writes, if the last read returned everything. They end with the next read, or
    /// with [`Self::take_over`]. The caller sleeps, and its transport has accepted all bytes.
    pub fn allow_direct(&self) {
        let mut state = self.feed.lock();
        state.of_cursor(self.key).1.allow_direct();
    }

    /// Ends direct writes without a read: the transport has not finished those that happened.
    pub fn take_over(&self) {
        let mut state = self.feed.lock();
        state.of_cursor(self.key).1.run();
    }

    /// True while it reads the archive.
    #[must_use]
    pub fn is_replaying(&self) -> bool {
        self.replay.is_some()
    }

    /// True if the last read returned everything and registered the waker: another read before the
    /// wake would return nothing.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// Position of the last event read or sent directly, or the initial position.
    #[must_use]
    pub fn position(&self) -> Position {
        let mut state = self.feed.lock();
        state.of_cursor(self.key).1.position
    }

    /// Adds items to the batch, as the policy allows. Without any, it registers the waker.
    pub fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Batch,
        policy: &mut ReadPolicy<'_>,
    ) -> Poll<Read> {
        self.is_waiting = false;
        if self.replay.is_some() {
            let read = self.poll_replay(context, batch, policy);
            if self.replay.is_some() || read.is_ready() {
                return read;
            }
        }
        self.poll_window(context, batch, policy)
    }

    fn poll_window(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Batch,
        policy: &mut ReadPolicy<'_>,
    ) -> Poll<Read> {
        let before = batch.items.len();
        let (feed, key) = (&self.feed, self.key);
        let mut state = feed.lock();
        let (window, subscriber) = state.of_cursor(key);
        match subscriber.evicted(window) {
            Evicted::Nothing => {}
            Evicted::Epoch(epoch) => {
                subscriber.report_epoch(&epoch, batch);
                subscriber.run();
                return Poll::Ready(Read::Some);
            }
            Evicted::Known(offset) => subscriber.skip_known(offset, policy),
            // The archive still has the evicted events, and its own gaps.
            Evicted::Events { in_epoch: true } => {
                let (end, after) = (window.end_offset(), subscriber.known_through());
                drop(state);
                if let Some(member) = self.join_replay(after) {
                    self.replay = Some(member);
                    feed.lock().of_cursor(key).1.offset = end;
                    let read = self.poll_replay(context, batch, policy);
                    return if batch.items.len() > before {
                        Poll::Ready(Read::Some)
                    } else {
                        read
                    };
                }
                state = feed.lock();
            }
            Evicted::Events { in_epoch: false } => {}
        }
        let (window, subscriber) = state.of_cursor(key);
        let run = subscriber.skip_evicted(window, batch, policy);
        subscriber.take(window, batch, policy, run);
        let (is_some, is_at_end) = (
            batch.items.len() > before,
            subscriber.offset.index == window.end(),
        );
        if state.ended && !is_some {
            return Poll::Ready(Read::Ended);
        }
        // Without room in the batch, or because of the throttle, events may be left.
        self.is_waiting = is_at_end && !state.ended;
        let subscriber = state.subscribers.of_cursor(key);
        if self.is_waiting || !is_some {
            subscriber.wait(context.waker());
        } else {
            subscriber.run();
        }
        drop(state);
        if is_some {
            feed.touch();
            return Poll::Ready(Read::Some);
        }
        Poll::Pending
    }

    /// True if nothing is left to read.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        let mut state = self.feed.lock();
        let (window, subscriber) = state.of_cursor(self.key);
        self.replay.is_none() && subscriber.offset.index >= window.end()
    }

    /// Advances the position of a reader that has everything up to the head of its source. True if
    /// it advanced.
    pub fn checkpoint(&mut self) -> bool {
        if self.replay.is_some() {
            return false;
        }
        let (feed, key) = (&self.feed, self.key);
        let index = feed.lock().of_cursor(key).1.offset.index;
        let origin = self.origin.upgrade();
        let Some(head) = origin.and_then(|origin| origin.head_at_end(feed, index)) else {
            return false;
        };
        let mut state = feed.lock();
        let position = &mut state.of_cursor(key).1.position;
        let advances = head.tag == position.tag && head.seq > position.seq;
        if advances {
            *position = head;
        }
        advances
    }

    /// Shared view of this cursor.
    #[must_use]
    pub fn probe(&self) -> CursorProbe {
        CursorProbe {
            feed: self.feed.clone(),
            key: self.key,
        }
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        let last = {
            let mut state = self.feed.lock();
            state.subscribers.remove(self.key);
            state.window.count_readers(|readers| readers - 1);
            state.subscribers.is_empty()
        };
        if last && let Some(origin) = self.origin.upgrade() {
            origin.reader_left(&self.feed);
        }
    }
}
