//! Steps of a read from the window, on the record of the subscriber.
//!
//! ```text
//! evicted?  epoch gone:  report_epoch, and the read ends
//!           all known:   skip_known, without a gap
//!           events gone: the archive, or skip_evicted (a gap)
//! take:     entry by entry, until the budget is used or the throttle defers
//!             event -> known? skipped? -> batch, or the run of a gap
//!             gap   -> batch
//! ```
//!
//! The position advances with every item, but not over events that the policy skips: a client that
//! returns with its position receives what is available then.

use std::sync::Arc;

use crate::event::{Position, Tier};
use crate::feed::batch::Copied;
use crate::feed::blocks::{Blocks, CodedEvents, EventBlock};
use crate::feed::options::FeedEvent;
use crate::feed::prefetch::Ahead;
use crate::feed::read_policy::ReadPolicy;
use crate::feed::shed::{GapRun, Shedder};
use crate::feed::subscribers::Subscriber;
use crate::feed::throttle::ThrottleDecision;
use crate::feed::window::{Entry, Epoch, GapEntry, GapSide, Offset, Window};
use crate::feed::{Batch, Gap, GapReason, Item};
use crate::telemetry::trace::samples;

/// Loss between the record and the oldest entry of the window.
pub(super) enum Evicted {
    /// The next entry is in the window.
    Nothing,
    /// The entry that reports the start of the current epoch.
    Epoch(Epoch),
    /// Only entries that the client has. The read continues at this offset.
    Known(Offset),
    /// Only entries whose events the gap counts. `in_epoch`: events of the current epoch, which an
    /// archive has.
    Events { in_epoch: bool },
}

/// One pass over the window.
struct Pass<'p, 'b, 'r> {
    policy: &'p mut ReadPolicy<'r>,
    batch: &'b mut Batch,
    /// Gap that covers the events that are being skipped.
    run: GapRun,
    /// With conflation: indexes of the newest event of each subject, latest first.
    newest: Vec<u64>,
    /// Bytes of the events in the batch.
    bytes: usize,
}

impl Subscriber {
    /// Moves to an offset. Everything up to the position is known to the client.
    pub(super) fn seek(&mut self, offset: Offset, position: Position) {
        (self.offset, self.position) = (offset, position);
        self.skip_through = (position.tag, position.seq);
    }

    /// Returns the loss between this record and the window.
    pub(super) fn evicted(&self, window: &Window) -> Evicted {
        let oldest = window.oldest_offset();
        if self.offset.index >= oldest.index {
            return Evicted::Nothing;
        }
        let is_gone =
            |epoch: &Epoch| (self.offset.index..oldest.index).contains(&epoch.start.index);
        if let Some(epoch) = window.epoch().filter(is_gone) {
            return Evicted::Epoch(epoch);
        }
        let is_current = window.is_current_epoch(self.offset.index);
        if is_current && let Some(offset) = window.offset_after(self.known_through()) {
            return Evicted::Known(offset);
        }
        let has_events = oldest.before.events > self.offset.before.events;
        Evicted::Events {
            in_epoch: has_events && is_current,
        }
    }

    /// Returns the last sequence number of the current epoch up to which the client has everything.
    /// It is above the position after a replay that has read further than the pod has received, and
    /// after the gap of a message that cannot be decoded.
    pub(super) fn known_through(&self) -> u64 {
        match self.skip_through {
            (tag, seq) if tag == self.position.tag => seq.max(self.position.seq),
            _ => self.position.seq,
        }
    }

    /// Reports the start of the current epoch, whose entry was evicted.
    pub(super) fn report_epoch(&mut self, epoch: &Epoch, batch: &mut Batch) {
        if let Some(gap) = epoch.start.before.missed_since(self.offset.before) {
            batch.push(self.gap(gap));
        }
        batch.push(Item::Gap {
            gap: epoch.gap,
            position: epoch.position,
        });
        self.seek(epoch.after, epoch.position);
    }

    /// Moves over entries that the client has.
    pub(super) fn skip_known(&mut self, offset: Offset, policy: &mut ReadPolicy<'_>) {
        if let Some(shedder) = &mut policy.shedder {
            shedder.consumed(offset.before.events - self.offset.before.events);
        }
        self.offset = offset;
    }

    /// Moves to the oldest entry of the window and reports what was evicted before it. Returns the
    /// gap, to which the events that the policy skips are added.
    pub(super) fn skip_evicted(
        &mut self,
        window: &Window,
        batch: &mut Batch,
        policy: &mut ReadPolicy<'_>,
    ) -> GapRun {
        let oldest = window.oldest_offset();
        if self.offset.index >= oldest.index {
            return GapRun::default();
        }
        let mut run = GapRun::default();
        if let Some(gap) = oldest.before.missed_since(self.offset.before) {
            batch.push(self.gap(gap));
            run = GapRun::begin(batch);
            if gap.missed.is_none() {
                // Another epoch may have started in between; the events skipped are no longer known
                // to the reader.
                self.skip_through.1 = 0;
            }
        }
        if let Some(shedder) = &mut policy.shedder {
            shedder.consumed(oldest.before.events - self.offset.before.events);
        }
        self.offset = oldest;
        run
    }

    /// Reads from the window until the budget is used, the throttle defers, or nothing is left.
    pub(super) fn take(
        &mut self,
        window: &Window,
        batch: &mut Batch,
        policy: &mut ReadPolicy<'_>,
        run: GapRun,
    ) {
        let newest = match &policy.shedder {
            Some(shedder) if shedder.conflates() => window.newest(self.offset.index),
            _ => Vec::new(),
        };
        batch.envelope = window.envelope();
        let mut ahead = if batch.copy_small {
            Ahead::after_first(self.offset.index)
        } else {
            Ahead::never()
        };
        let mut pass = Pass {
            policy,
            batch,
            run,
            newest,
            bytes: 0,
        };
        let blocks = window.blocks();
        while pass.bytes < pass.policy.budget {
            let index = self.offset.index;
            let Some(entry) = window.get(index) else {
                break;
            };
            if ahead.is_due(index) {
                window.prefetch_from(index);
            }
            match entry {
                Entry::Gap(gap_entry) => self.take_gap(gap_entry, &mut pass),
                Entry::Event(event) => {
                    let may_continue = match blocks {
                        None => self.take_event(window, event, &mut pass),
                        Some(blocks) => self.take_coded(window, blocks, event, &mut pass),
                    };
                    if !may_continue {
                        break;
                    }
                }
            }
        }
        pass.batch.seal();
        debug_assert!(
            self.offset.index <= window.end(),
            "a cursor never passes the head"
        );
    }

    /// Takes a whole block of a feed that compresses, or one event of it. False if it is the last item
    /// of this read.
    fn take_coded(
        &mut self,
        window: &Window,
        blocks: &Blocks,
        event: &FeedEvent,
        pass: &mut Pass<'_, '_, '_>,
    ) -> bool {
        let Some(block) = blocks.of(self.offset.index) else {
            return self.take_event(window, event, pass);
        };
        if self.takes_all(block, pass) {
            return self.take_block(window, block, pass);
        }
        if !block.is_compressed() || event.named.is_some() {
            return self.take_event(window, event, pass);
        }
        let before = pass.batch.items.len();
        pass.batch.seal();
        let may_continue = self.take_event(window, event, pass);
        pass.batch.seal();
        // The event itself, after the gap of those that were skipped.
        if pass.batch.items.len() > before {
            pass.batch
                .code_last(event, window.framing(), blocks.coding());
        }
        may_continue
    }

    /// True if the reader is at the beginning of a block and receives every event of it.
    fn takes_all(&self, block: &EventBlock, pass: &Pass<'_, '_, '_>) -> bool {
        let is_known =
            |first: Position| first.tag == self.skip_through.0 && first.seq <= self.skip_through.1;
        block.first == self.offset.index
            && pass.batch.copy_small
            && pass.policy.shedder.is_none()
            && pass.policy.throttle.is_none()
            && !block.first_position().is_some_and(is_known)
    }

    /// Takes a whole block. False if it is the last item of this read.
    fn take_block(
        &mut self,
        window: &Window,
        block: &Arc<EventBlock>,
        pass: &mut Pass<'_, '_, '_>,
    ) -> bool {
        let Some(last) = block.last() else {
            return true;
        };
        let is_end = window.ends(last);
        self.offset.index += block.len();
        self.offset.before.events += block.len();
        self.offset.before.bytes += block.counted_bytes;
        self.position = last.position();
        pass.run.end();
        for number in &block.samples {
            samples::deliver(*number, 1, block.received.elapsed());
        }
        pass.bytes += usize::try_from(block.counted_bytes).unwrap_or(usize::MAX);
        pass.batch.push(Item::Coded {
            events: CodedEvents::Block(Arc::clone(block)),
            copied: Copied {
                events: block.len(),
                position: self.position,
                received: block.received,
                sample: block.samples.first().copied(),
            },
            is_end,
        });
        !is_end
    }

    /// Takes one event. False if it is the last one of this read: the throttle defers it, or it ends
    /// the reader.
    fn take_event(
        &mut self,
        window: &Window,
        event: &FeedEvent,
        pass: &mut Pass<'_, '_, '_>,
    ) -> bool {
        let (index, position) = (self.offset.index, event.position());
        let is_known = position.tag == self.skip_through.0 && position.seq <= self.skip_through.1;
        let Some(skip_reason) = pass.decide(event.tier, index, is_known, window) else {
            return false;
        };
        self.offset.index += 1;
        self.offset.before.events += 1;
        self.offset.before.bytes += event.counted_bytes();
        if let Some(shedder) = &mut pass.policy.shedder {
            shedder.consumed(1);
        }
        if let Some(reason) = skip_reason {
            pass.run.grow(reason, self.position, pass.batch);
            return true;
        }
        pass.run.end();
        if is_known {
            return true;
        }
        let encoding = event.encoding(window.framing());
        pass.bytes += encoding.len();
        self.position = position;
        let is_last = self.offset.index == window.end();
        let is_end = window.ends(event);
        pass.batch.push_event(event, encoding, is_last, is_end);
        !is_end
    }

    /// Takes one gap.
    fn take_gap(&mut self, gap_entry: &GapEntry, pass: &mut Pass<'_, '_, '_>) {
        let GapEntry {
            gap,
            position,
            side,
            ..
        } = *gap_entry;
        let starts_epoch = side == GapSide::NewEpoch;
        let is_known = !starts_epoch
            && position.tag == self.skip_through.0
            && gap_entry.is_at_or_before(self.skip_through.1);
        self.offset.index += 1;
        match gap.missed {
            Some(missed) => self.offset.before.lost += missed,
            None => self.offset.before.unknown += 1,
        }
        if is_known {
            return;
        }
        if starts_epoch {
            // Another epoch: nothing after this entry is known to the reader.
            self.skip_through = (position.tag, position.seq);
        } else if side == GapSide::After && gap.missed == Some(1) {
            // The gap of one message: a replay from here must not report it again.
            self.skip_through = (position.tag, position.seq + 1);
        }
        pass.run = GapRun::default();
        pass.batch.push(Item::Gap { gap, position });
        self.position = position;
    }

    pub(super) fn gap(&self, gap: Gap) -> Item {
        Item::Gap {
            gap,
            position: self.position,
        }
    }
}

impl Pass<'_, '_, '_> {
    /// Decides on one event: `Some(None)` delivers it, `Some(reason)` skips it, `None` defers it.
    fn decide(
        &mut self,
        tier: Tier,
        index: u64,
        is_known: bool,
        window: &Window,
    ) -> Option<Option<GapReason>> {
        let mut skip_reason = None;
        if let Some(shedder) = &mut self.policy.shedder {
            let is_newest = self.newest.pop_if(|known| *known == index).is_some();
            skip_reason =
                (!is_known && shedder.skips(tier, is_newest)).then(|| Shedder::reason(shedder));
        }
        if let (Some(throttle), false, None) = (&mut self.policy.throttle, is_known, skip_reason) {
            match throttle.decide(tier, window.has_critical_after(index)) {
                ThrottleDecision::Deliver => {}
                ThrottleDecision::Skip => skip_reason = Some(GapReason::Slow),
                ThrottleDecision::Defer => return None,
            }
        }
        Some(skip_reason)
    }
}
