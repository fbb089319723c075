//! A reader's place in a feed: what it reads next, and how far behind it is.

mod history;
mod probe;

use std::sync::Arc;
use std::task::{Context, Poll};

use crate::sse::Position;

use super::encoded::LOOKS;
use super::feed::Feed;
use super::replay::ReplayMember;
use super::shed::{GapRun, Shedder};
use super::sink::DirectSink;
use super::source::Origin;
use super::throttle::{Throttle, ThrottleDecision};
use super::window::{Entry, Epoch, GapSide, Offset, Window};
use super::{Batch, Gap, GapReason, Item};

pub use probe::{CursorProbe, Lag};

/// One reader of one feed. It moves only when a read returns, or when it follows what was given past it.
#[derive(Debug)]
pub struct Cursor {
    origin: Origin,
    standing: CursorProbe,
    place: Offset,
    position: Position,
    /// Events up to here are passed in silence: the reader has them from elsewhere.
    skip: Position,
    /// The reader is behind the window and reads the archive.
    replay: Option<Box<ReplayMember>>,
    /// The last read left nothing, and the reader is woken when there is more.
    waits: bool,
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Items were added to the batch.
    Some,
    /// The reader has everything there will ever be, or its source rejects it until an operator changes something.
    Ended,
}

impl Cursor {
    pub(super) fn new(
        origin: Origin,
        feed: Arc<Feed>,
        key: usize,
        place: Offset,
        position: Position,
    ) -> Self {
        Self {
            origin,
            standing: CursorProbe { feed, key },
            place,
            position,
            skip: position,
            replay: None,
            waits: false,
        }
    }

    /// A reader that joins a feed at its end, which may not have begun yet.
    pub(super) fn at_end(origin: Origin, feed: Arc<Feed>) -> Self {
        let (place, position) = {
            let state = feed.lock();
            let floor = Position {
                tag: state.window.tag(),
                seq: state.window.floor(),
                check: None,
            };
            (state.window.end_place(), state.head.unwrap_or(floor))
        };
        let key = feed.join(place, position);
        Self::new(origin, feed, key, place, position)
    }

    pub(super) fn feed(&self) -> &Feed {
        &self.standing.feed
    }

    /// Goes to the end of a feed that knows where it is; false if it does not.
    pub(super) fn go_to_end(&mut self) -> bool {
        let mut state = self.standing.feed.lock();
        let Some(head) = state.head else { return false };
        (self.place, self.position, self.skip) = (state.window.end_place(), head, head);
        state.readers.moved(self.standing.key, self.place, head);
        true
    }

    /// Goes to behind a position, if everything after it is in the window.
    pub(super) fn seek(&mut self, position: Position) -> bool {
        let mut state = self.standing.feed.lock();
        let Some(place) = state.window.place_after(position.seq) else {
            return false;
        };
        (self.place, self.position, self.skip) = (place, position, position);
        state.readers.moved(self.standing.key, place, position);
        true
    }

    /// Begins to read the archive behind a position, or else what is left in the window; false if it can only do that.
    pub(super) fn replay(&mut self, position: Position) -> bool {
        self.replay = self.origin.enter(&self.standing.feed, position.seq);
        (self.position, self.skip) = (position, position);
        let mut state = self.standing.feed.lock();
        if self.replay.is_none() {
            self.place = state.window.oldest_place();
        }
        state.readers.moved(self.standing.key, self.place, position);
        self.replay.is_some()
    }

    /// Says where the reader can be given events while it waits: past this cursor, which then has to [`Self::follow`].
    pub fn set_outlet(&self, outlet: Arc<dyn DirectSink>) {
        self.standing
            .feed
            .lock()
            .readers
            .set_outlet(self.standing.key, outlet);
    }

    /// Goes to where the reader stands since it was given something through its outlet.
    pub fn follow(&mut self) {
        if let Some((place, position)) = self
            .standing
            .feed
            .lock()
            .readers
            .standing(self.standing.key)
        {
            (self.place, self.position) = (place, position);
        }
    }

    /// Whether it reads the archive.
    #[must_use]
    pub fn is_replaying(&self) -> bool {
        self.replay.is_some()
    }

    /// Whether the last read took all there was and noted whom to wake for more: to read again before that is idle.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// The position of the last event that was read, or where the reader began.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Adds items to the batch until it holds `budget` bytes, at least one if there is one; otherwise notes whom to wake.
    pub fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Batch,
        budget: usize,
    ) -> Poll<Read> {
        self.poll(context, batch, budget, None, None)
    }

    /// As [`Self::poll_read`], for a slow reader: some of what waits in the window is passed by, and told as a gap before
    /// what follows it.
    pub fn poll_read_slow(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Batch,
        budget: usize,
        relief: &mut Shedder,
    ) -> Poll<Read> {
        self.poll(context, batch, budget, Some(relief), None)
    }

    /// As the other two, as fast as `pace` allows. Pending with events that wait: whoever paces knows until when.
    pub fn poll_read_paced(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Batch,
        budget: usize,
        relief: Option<&mut Shedder>,
        pace: &mut dyn Throttle,
    ) -> Poll<Read> {
        self.poll(context, batch, budget, relief, Some(pace))
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Batch,
        budget: usize,
        relief: Option<&mut Shedder>,
        mut pace: Option<&mut dyn Throttle>,
    ) -> Poll<Read> {
        self.waits = false;
        if self.replay.is_some() {
            let read = self.poll_replay(context, batch, budget, lend(&mut pace));
            if self.replay.is_some() || read.is_ready() {
                return read;
            }
        }
        self.poll_window(context, batch, budget, relief, pace)
    }

    fn poll_window(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Batch,
        budget: usize,
        mut relief: Option<&mut Shedder>,
        pace: Option<&mut dyn Throttle>,
    ) -> Poll<Read> {
        let feed = self.standing.feed.clone();
        let mut state = feed.lock();
        let before = batch.items.len();
        let mut run = GapRun::default();
        let oldest = state.window.oldest_place();
        if self.place.index < oldest.index {
            if self.pass_epoch(&state.window, batch) {
                state
                    .readers
                    .moved(self.standing.key, self.place, self.position);
                return Poll::Ready(Read::Some);
            }
            let is_overtaken = oldest.before.events > self.place.before.events;
            if is_overtaken && state.window.is_present(self.place.index) {
                // Evicted events are still in the archive, which also knows its own gaps.
                let end = state.window.end_place();
                drop(state);
                if let Some(ticket) = self.origin.enter(&feed, self.position.seq) {
                    self.replay = Some(ticket);
                    self.place = end;
                    let read = self.poll_replay(context, batch, budget, pace);
                    return if batch.items.len() > before {
                        Poll::Ready(Read::Some)
                    } else {
                        read
                    };
                }
                state = feed.lock();
            }
            let oldest = state.window.oldest_place();
            if let Some(gap) = oldest.before.missed_since(self.place.before) {
                batch.push(self.gap(gap));
                run = GapRun::begin(batch);
                if gap.missed.is_none() {
                    // Other numbers may have begun in between: what is passed by is no longer what the reader has.
                    self.skip.seq = 0;
                }
            }
            if let Some(relief) = &mut relief {
                relief.passed(oldest.before.events - self.place.before.events);
            }
            self.place = oldest;
        }
        self.take(&state.window, batch, budget, run, (relief, pace));
        debug_assert!(
            self.place.index <= state.window.end(),
            "a cursor never passes the head"
        );
        state
            .readers
            .moved(self.standing.key, self.place, self.position);
        let is_some = batch.items.len() > before;
        if state.ended && !is_some {
            return Poll::Ready(Read::Ended);
        }
        // Without room in the batch, or at its pace, it may have left something.
        self.waits = self.place.index == state.window.end() && !state.ended;
        if self.waits || !is_some {
            state.readers.wait(self.standing.key, context.waker());
        }
        drop(state);
        if is_some {
            feed.touch();
            return Poll::Ready(Read::Some);
        }
        Poll::Pending
    }

    /// Takes what stands in the window at its place, until the batch has `budget` bytes more.
    fn take(
        &mut self,
        window: &Window,
        batch: &mut Batch,
        budget: usize,
        mut run: GapRun,
        (mut relief, mut pace): (Option<&mut Shedder>, Option<&mut dyn Throttle>),
    ) {
        let mut newest = match &relief {
            Some(relief) if relief.conflates() => window.newest(self.place.index),
            _ => Vec::new(),
        };
        let mut bytes = 0;
        let mut looked_until = if batch.copies {
            self.place.index + 1
        } else {
            u64::MAX
        };
        while bytes < budget {
            let index = self.place.index;
            let Some(entry) = window.get(index) else {
                break;
            };
            if index >= looked_until {
                // Not for the first: mostly it is alone.
                window.look_ahead(index);
                looked_until = index + LOOKS as u64;
            }
            let position = entry.position();
            let renumbers =
                matches!(entry, Entry::Gap(marked) if marked.place == GapSide::Renumbered);
            let has_it =
                !renumbers && position.tag == self.skip.tag && entry.is_passed(self.skip.seq);
            self.place.index += 1;
            match entry {
                Entry::Event {
                    logged,
                    named,
                    tier,
                } => {
                    let frame = named.as_deref().unwrap_or(&logged.frame);
                    let mut passes = None;
                    if let Some(relief) = &mut relief {
                        let is_newest = newest.pop_if(|known| *known == index).is_some();
                        passes = (!has_it && relief.passes_by(*tier, is_newest))
                            .then(|| relief.reason());
                    }
                    if let (Some(pace), false, None) = (&mut pace, has_it, passes) {
                        match pace.ask(*tier, window.is_critical_behind(index)) {
                            ThrottleDecision::Give => {}
                            ThrottleDecision::PassBy => passes = Some(GapReason::Slow),
                            ThrottleDecision::Wait => {
                                self.place.index = index;
                                break;
                            }
                        }
                    }
                    self.place.before.events += 1;
                    self.place.before.bytes += frame.len() as u64;
                    if let Some(relief) = &mut relief {
                        relief.passed(1);
                    }
                    if let Some(reason) = passes {
                        // The position stays: whoever comes back with it is given what waits then.
                        run.grow(reason, self.position, batch);
                        continue;
                    }
                    run.interrupt(relief.as_deref());
                    if has_it {
                        continue;
                    }
                    bytes += frame.len();
                    let is_last = self.place.index == window.end();
                    batch.push_event(frame, (position, *tier, logged.event.received), is_last);
                }
                Entry::Gap(marked) => {
                    let gap = marked.gap;
                    match gap.missed {
                        Some(missed) => self.place.before.lost += missed,
                        None => self.place.before.unknown += 1,
                    }
                    if has_it {
                        continue;
                    }
                    if renumbers {
                        // What is passed by is no longer what the reader has.
                        self.skip = position;
                    }
                    run = GapRun::default();
                    batch.push(Item::Gap { gap, position });
                }
            }
            self.position = position;
        }
        batch.seal();
    }

    /// Tells a reader how the present numbers began when what would tell it has fallen out of the window.
    fn pass_epoch(&mut self, window: &Window, batch: &mut Batch) -> bool {
        let is_gone = |epoch: &Epoch| {
            (self.place.index..window.oldest_place().index).contains(&epoch.place.index)
        };
        let Some(epoch) = window.epoch().filter(is_gone) else {
            return false;
        };
        batch.items.extend(
            epoch
                .place
                .before
                .missed_since(self.place.before)
                .map(|gap| self.gap(gap)),
        );
        batch.items.push(Item::Gap {
            gap: epoch.gap,
            position: epoch.position,
        });
        (self.place, self.position, self.skip) = (epoch.behind, epoch.position, epoch.position);
        true
    }

    fn gap(&self, gap: Gap) -> Item {
        Item::Gap {
            gap,
            position: self.position,
        }
    }

    /// Whether nothing waits to be read.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        self.replay.is_none() && self.place.index >= self.standing.feed.lock().window.end()
    }

    /// Moves the position of a reader that has everything up to where its source is known to be. True if it moved.
    pub fn checkpoint(&mut self) -> bool {
        if self.replay.is_some() {
            return false;
        }
        let Some(head) = self
            .origin
            .head_at_end(&self.standing.feed, self.place.index)
        else {
            return false;
        };
        let moved = head.tag == self.position.tag && head.seq > self.position.seq;
        if moved {
            self.position = head;
            self.standing
                .feed
                .lock()
                .readers
                .moved(self.standing.key, self.place, head);
        }
        moved
    }

    /// A view for others.
    #[must_use]
    pub fn standing(&self) -> CursorProbe {
        self.standing.clone()
    }
}

/// The same pace for a part of the turn.
fn lend<'p>(pace: &'p mut Option<&mut dyn Throttle>) -> Option<&'p mut dyn Throttle> {
    match pace {
        Some(pace) => Some(&mut **pace),
        None => None,
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        let last = {
            let mut state = self.standing.feed.lock();
            state.readers.remove(self.standing.key);
            state.readers.is_empty()
        };
        if last {
            self.origin.left(&self.standing.feed);
        }
    }
}
