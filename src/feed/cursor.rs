//! Cursor: one reader's position in a feed.
//!
//! A cursor reads from the window of its feed, in three modes that differ in what may be skipped:
//! [`Cursor::poll_read`], [`Cursor::poll_read_slow`] with a [`Shedder`], and
//! [`Cursor::poll_read_throttled`] with a [`Throttle`]. A position older than the window is read
//! from the archive first (`cursor/replay.rs`).
//!
//! ```text
//!             start_replay                     caught up
//!    seek ---------------> replaying (archive) ----------> reading (window)
//!                               ^                               |
//!                               +--- evicted past the cursor ---+
//! ```
//!
//! The offset is a running index plus totals (events, bytes, gaps) before it, so lag and missed
//! events are differences of two offsets. The reader's entry in the feed has a copy of offset and
//! position, for two reasons: the lag of a stalled reader is visible from outside, and the
//! dispatcher advances it when it writes to the reader's sink. The owner calls [`Cursor::resync`]
//! before the next read.

mod probe;
mod replay;

use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use crate::event::Position;

use super::batch::EventInfo;
use super::encoded::PREFETCH_AHEAD;
use super::feed::Feed;
use super::origin::Origin;
use super::replay::member::ReplayMember;
use super::shed::{GapRun, Shedder};
use super::sink::DirectSink;
use super::throttle::{Throttle, ThrottleDecision};
use super::window::{Entry, Epoch, GapSide, Offset, Window};
use super::{Batch, Gap, GapReason, Item};

pub use probe::{CursorProbe, Lag};

/// One reader of one feed. It advances when a read returns, and by [`Self::resync`] after direct
/// writes.
#[derive(Debug)]
pub struct Cursor {
    origin: Weak<dyn Origin>,
    probe: CursorProbe,
    offset: Offset,
    position: Position,
    /// Events up to here are skipped silently: the reader already has them.
    skip_through: Position,
    /// Set while the position is older than the window and the archive is read.
    replay: Option<Box<ReplayMember>>,
    /// The last read returned everything, and the reader will be woken for more.
    is_waiting: bool,
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
    pub(super) fn new(
        origin: Weak<dyn Origin>,
        feed: Arc<Feed>,
        key: usize,
        offset: Offset,
        position: Position,
    ) -> Self {
        Self {
            origin,
            probe: CursorProbe { feed, key },
            offset,
            position,
            skip_through: position,
            replay: None,
            is_waiting: false,
        }
    }

    /// Creates a reader at the end of a feed, which may not have started yet.
    pub(super) fn at_end(origin: Weak<dyn Origin>, feed: Arc<Feed>) -> Self {
        let (offset, position) = {
            let state = feed.lock();
            let floor = Position {
                tag: state.window.tag(),
                seq: state.window.floor(),
                fingerprint: None,
            };
            (state.window.end_offset(), state.head.unwrap_or(floor))
        };
        let key = feed.join(offset, position);
        Self::new(origin, feed, key, offset, position)
    }

    pub(super) fn feed(&self) -> &Feed {
        &self.probe.feed
    }

    /// Moves to the end of a feed that has a head; false if it has none.
    pub(super) fn seek_to_end(&mut self) -> bool {
        let mut state = self.probe.feed.lock();
        let Some(head) = state.head else { return false };
        (self.offset, self.position, self.skip_through) = (state.window.end_offset(), head, head);
        state
            .readers
            .set_position(self.probe.key, self.offset, head);
        true
    }

    /// Moves after a position, if everything after it is in the window.
    pub(super) fn seek(&mut self, position: Position) -> bool {
        let mut state = self.probe.feed.lock();
        let Some(offset) = state.window.offset_after(position.seq) else {
            return false;
        };
        (self.offset, self.position, self.skip_through) = (offset, position, position);
        state.readers.set_position(self.probe.key, offset, position);
        true
    }

    /// Starts to read the archive after a position. If no replay slot is free it returns false, and
    /// the reader continues with the oldest entry in the window.
    pub(super) fn start_replay(&mut self, position: Position) -> bool {
        self.replay = self.join_replay(position.seq);
        (self.position, self.skip_through) = (position, position);
        let mut state = self.probe.feed.lock();
        if self.replay.is_none() {
            self.offset = state.window.oldest_offset();
        }
        state
            .readers
            .set_position(self.probe.key, self.offset, position);
        self.replay.is_some()
    }

    /// Joins a replay with everything up to `after` read; `None` without an archive, at the limit,
    /// or if the source is gone.
    fn join_replay(&self, after: u64) -> Option<Box<ReplayMember>> {
        self.origin.upgrade()?.join_replay(&self.probe.feed, after)
    }

    /// Sets the sink for direct writes while the reader is idle. They bypass the cursor: call
    /// [`Self::resync`] before the next read.
    pub fn set_sink(&self, sink: Arc<dyn DirectSink>) {
        self.probe
            .feed
            .lock()
            .readers
            .set_sink(self.probe.key, sink);
    }

    /// Takes over the position that direct writes have advanced.
    pub fn resync(&mut self) {
        if let Some((offset, position)) = self.probe.feed.lock().readers.position_of(self.probe.key)
        {
            (self.offset, self.position) = (offset, position);
        }
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

    /// Position of the last event read, or the initial position.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Adds items to the batch until it holds `budget` bytes, and at least one item if there is
    /// one. Otherwise it registers the waker.
    pub fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Batch,
        budget: usize,
    ) -> Poll<Read> {
        self.poll(context, batch, budget, None, None)
    }

    /// Like [`Self::poll_read`], for a slow reader: the shedder skips events in the window, and a
    /// gap before the next item reports them.
    pub fn poll_read_slow(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Batch,
        budget: usize,
        shedder: &mut Shedder,
    ) -> Poll<Read> {
        self.poll(context, batch, budget, Some(shedder), None)
    }

    /// Like the other two, at the rate of `throttle`. It can be pending although events are
    /// available: the throttle's owner knows until when.
    pub fn poll_read_throttled(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Batch,
        budget: usize,
        shedder: Option<&mut Shedder>,
        throttle: &mut dyn Throttle,
    ) -> Poll<Read> {
        self.poll(context, batch, budget, shedder, Some(throttle))
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Batch,
        budget: usize,
        shedder: Option<&mut Shedder>,
        mut throttle: Option<&mut dyn Throttle>,
    ) -> Poll<Read> {
        self.is_waiting = false;
        if self.replay.is_some() {
            let read = self.poll_replay(context, batch, budget, reborrow(&mut throttle));
            if self.replay.is_some() || read.is_ready() {
                return read;
            }
        }
        self.poll_window(context, batch, budget, shedder, throttle)
    }

    fn poll_window(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Batch,
        budget: usize,
        mut shedder: Option<&mut Shedder>,
        throttle: Option<&mut dyn Throttle>,
    ) -> Poll<Read> {
        let feed = self.probe.feed.clone();
        let mut state = feed.lock();
        let before = batch.items.len();
        let mut run = GapRun::default();
        let oldest = state.window.oldest_offset();
        if self.offset.index < oldest.index {
            if self.report_epoch(&state.window, batch) {
                state
                    .readers
                    .set_position(self.probe.key, self.offset, self.position);
                return Poll::Ready(Read::Some);
            }
            let is_overtaken = oldest.before.events > self.offset.before.events;
            if is_overtaken && state.window.is_current_epoch(self.offset.index) {
                // The archive still has the evicted events, and its own gaps.
                let end = state.window.end_offset();
                drop(state);
                if let Some(member) = self.join_replay(self.position.seq) {
                    self.replay = Some(member);
                    self.offset = end;
                    let read = self.poll_replay(context, batch, budget, throttle);
                    return if batch.items.len() > before {
                        Poll::Ready(Read::Some)
                    } else {
                        read
                    };
                }
                state = feed.lock();
            }
            let oldest = state.window.oldest_offset();
            if let Some(gap) = oldest.before.missed_since(self.offset.before) {
                batch.push(self.gap(gap));
                run = GapRun::begin(batch);
                if gap.missed.is_none() {
                    // Another epoch may have started in between; the events skipped are no longer
                    // known to the reader.
                    self.skip_through.seq = 0;
                }
            }
            if let Some(shedder) = &mut shedder {
                shedder.consumed(oldest.before.events - self.offset.before.events);
            }
            self.offset = oldest;
        }
        self.take(&state.window, batch, budget, run, (shedder, throttle));
        debug_assert!(
            self.offset.index <= state.window.end(),
            "a cursor never passes the head"
        );
        state
            .readers
            .set_position(self.probe.key, self.offset, self.position);
        let is_some = batch.items.len() > before;
        if state.ended && !is_some {
            return Poll::Ready(Read::Ended);
        }
        // Without room in the batch, or because of the throttle, events may be left.
        self.is_waiting = self.offset.index == state.window.end() && !state.ended;
        if self.is_waiting || !is_some {
            state.readers.wait(self.probe.key, context.waker());
        }
        drop(state);
        if is_some {
            feed.touch();
            return Poll::Ready(Read::Some);
        }
        Poll::Pending
    }

    /// Reads from the window at its offset until the batch has `budget` more bytes.
    fn take(
        &mut self,
        window: &Window,
        batch: &mut Batch,
        budget: usize,
        mut run: GapRun,
        (mut shedder, mut throttle): (Option<&mut Shedder>, Option<&mut dyn Throttle>),
    ) {
        let mut newest = match &shedder {
            Some(shedder) if shedder.conflates() => window.newest(self.offset.index),
            _ => Vec::new(),
        };
        batch.envelope = window.envelope();
        let mut bytes = 0;
        let mut prefetched_until = if batch.copy_small {
            self.offset.index + 1
        } else {
            u64::MAX
        };
        while bytes < budget {
            let index = self.offset.index;
            let Some(entry) = window.get(index) else {
                break;
            };
            if index >= prefetched_until {
                // Not for the first event: it is usually the only one.
                window.prefetch_from(index);
                prefetched_until = index + PREFETCH_AHEAD as u64;
            }
            let position = entry.position();
            let starts_epoch =
                matches!(entry, Entry::Gap(gap_entry) if gap_entry.side == GapSide::NewEpoch);
            let is_known = !starts_epoch
                && position.tag == self.skip_through.tag
                && entry.is_at_or_before(self.skip_through.seq);
            self.offset.index += 1;
            match entry {
                Entry::Event {
                    encoded,
                    named,
                    tier,
                } => {
                    let frame = named.as_deref().unwrap_or(&encoded.frame);
                    let mut skip_reason = None;
                    if let Some(shedder) = &mut shedder {
                        let is_newest = newest.pop_if(|known| *known == index).is_some();
                        skip_reason = (!is_known && shedder.skips(*tier, is_newest))
                            .then(|| shedder.reason());
                    }
                    if let (Some(throttle), false, None) = (&mut throttle, is_known, skip_reason) {
                        match throttle.decide(*tier, window.has_critical_after(index)) {
                            ThrottleDecision::Deliver => {}
                            ThrottleDecision::Skip => skip_reason = Some(GapReason::Slow),
                            ThrottleDecision::Defer => {
                                self.offset.index = index;
                                break;
                            }
                        }
                    }
                    self.offset.before.events += 1;
                    self.offset.before.bytes += frame.len() as u64;
                    if let Some(shedder) = &mut shedder {
                        shedder.consumed(1);
                    }
                    if let Some(reason) = skip_reason {
                        // The position does not advance: a client that returns with it receives
                        // what is available then.
                        run.grow(reason, self.position, batch);
                        continue;
                    }
                    run.end(shedder.as_deref());
                    if is_known {
                        continue;
                    }
                    bytes += frame.len();
                    let is_last = self.offset.index == window.end();
                    let info = EventInfo {
                        position,
                        tier: *tier,
                        received: encoded.event.received,
                    };
                    batch.push_event(frame, info, is_last);
                }
                Entry::Gap(gap_entry) => {
                    let gap = gap_entry.gap;
                    match gap.missed {
                        Some(missed) => self.offset.before.lost += missed,
                        None => self.offset.before.unknown += 1,
                    }
                    if is_known {
                        continue;
                    }
                    if starts_epoch {
                        // Another epoch: nothing after this entry is known to the reader.
                        self.skip_through = position;
                    }
                    run = GapRun::default();
                    batch.push(Item::Gap { gap, position });
                }
            }
            self.position = position;
        }
        batch.seal();
    }

    /// Reports the start of the current epoch, if the entry that reports it was evicted.
    fn report_epoch(&mut self, window: &Window, batch: &mut Batch) -> bool {
        let is_gone = |epoch: &Epoch| {
            (self.offset.index..window.oldest_offset().index).contains(&epoch.start.index)
        };
        let Some(epoch) = window.epoch().filter(is_gone) else {
            return false;
        };
        batch.items.extend(
            epoch
                .start
                .before
                .missed_since(self.offset.before)
                .map(|gap| self.gap(gap)),
        );
        batch.items.push(Item::Gap {
            gap: epoch.gap,
            position: epoch.position,
        });
        (self.offset, self.position, self.skip_through) =
            (epoch.after, epoch.position, epoch.position);
        true
    }

    fn gap(&self, gap: Gap) -> Item {
        Item::Gap {
            gap,
            position: self.position,
        }
    }

    /// True if nothing is left to read.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        self.replay.is_none() && self.offset.index >= self.probe.feed.lock().window.end()
    }

    /// Advances the position of a reader that has everything up to the head of its source. True if
    /// it advanced.
    pub fn checkpoint(&mut self) -> bool {
        if self.replay.is_some() {
            return false;
        }
        let head = self
            .origin
            .upgrade()
            .and_then(|origin| origin.head_at_end(&self.probe.feed, self.offset.index));
        let Some(head) = head else { return false };
        let moved = head.tag == self.position.tag && head.seq > self.position.seq;
        if moved {
            self.position = head;
            self.probe
                .feed
                .lock()
                .readers
                .set_position(self.probe.key, self.offset, head);
        }
        moved
    }

    /// Shared view of this cursor.
    #[must_use]
    pub fn probe(&self) -> CursorProbe {
        self.probe.clone()
    }
}

/// Reborrows the throttle for a part of the read.
fn reborrow<'p>(throttle: &'p mut Option<&mut dyn Throttle>) -> Option<&'p mut dyn Throttle> {
    match throttle {
        Some(throttle) => Some(&mut **throttle),
        None => None,
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        let last = {
            let mut state = self.probe.feed.lock();
            state.readers.remove(self.probe.key);
            state.readers.is_empty()
        };
        if last && let Some(origin) = self.origin.upgrade() {
            origin.reader_left(&self.probe.feed);
        }
    }
}
