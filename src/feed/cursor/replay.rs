//! Reading from the archive until the cursor has reached the window.

use std::task::{Context, Poll};

use super::{Cursor, Read, reborrow};
use crate::event::Position;
use crate::feed::replay::member::ReplayProgress;
use crate::feed::{Batch, Gap, GapReason, Item, Throttle};

impl Cursor {
    /// Reads with a replay session until the window is reached. `Pending` with `self.replay` unset
    /// means: continue in the window.
    pub(super) fn poll_replay(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Batch,
        budget: usize,
        mut throttle: Option<&mut dyn Throttle>,
    ) -> Poll<Read> {
        let feed = self.probe.feed.clone();
        if reborrow(&mut throttle).is_some_and(|throttle| !throttle.is_ready()) {
            return Poll::Pending;
        }
        loop {
            let Some(member) = &self.replay else {
                return Poll::Pending;
            };
            let (floor, current) = {
                let mut state = feed.lock();
                // The window wakes it too, because a new epoch may start meanwhile.
                state.readers.wait(self.probe.key, context.waker());
                (
                    state.window.floor(),
                    state.window.is_current_epoch(self.offset.index),
                )
            };
            let (mut bytes, position) = (0, &mut self.position);
            let progress = if current {
                member.poll(floor, context.waker(), |encoded| {
                    let (frame, tier) = (
                        feed.options.frame(encoded),
                        feed.options.tier(&encoded.event),
                    );
                    *position = encoded.event.position;
                    bytes += frame.len();
                    batch.items.push(Item::Event {
                        frame,
                        position: *position,
                        tier,
                        received: encoded.event.received,
                    });
                    // Events of a page cannot be skipped: the tier of the next one is not known.
                    let may_continue = reborrow(&mut throttle).is_none_or(|throttle| {
                        throttle.record();
                        throttle.is_ready()
                    });
                    bytes < budget && may_continue
                })
            } else {
                ReplayProgress::Changed
            };
            match progress {
                ReplayProgress::Some => {
                    feed.lock()
                        .readers
                        .set_position(self.probe.key, self.offset, self.position);
                    return Poll::Ready(Read::Some);
                }
                ReplayProgress::Pending => return Poll::Pending,
                ReplayProgress::Reached(through) => {
                    let mut state = feed.lock();
                    // The window may have moved since its floor was read.
                    if let Some(offset) = state.window.offset_after(through) {
                        self.offset = offset;
                        self.skip_through = Position {
                            tag: self.position.tag,
                            seq: through,
                            fingerprint: None,
                        };
                        state
                            .readers
                            .set_position(self.probe.key, offset, self.position);
                        drop(state);
                        self.replay = None;
                    }
                }
                ReplayProgress::Gap(after, gap) => {
                    self.position = Position {
                        tag: self.position.tag,
                        seq: after,
                        fingerprint: None,
                    };
                    feed.lock()
                        .readers
                        .set_position(self.probe.key, self.offset, self.position);
                    batch.items.push(Item::Gap {
                        gap,
                        position: self.position,
                    });
                    return Poll::Ready(Read::Some);
                }
                // The position remains: the following events may be readable after the source is
                // repaired.
                ReplayProgress::Rejected => return Poll::Ready(Read::Ended),
                ReplayProgress::Changed => {
                    self.replay = None;
                    let mut state = feed.lock();
                    match state
                        .window
                        .epoch()
                        .filter(|_| !state.window.is_current_epoch(self.offset.index))
                    {
                        // Report the epoch first; the feed's events of the new epoch follow.
                        Some(epoch) => self.offset = epoch.start,
                        None => {
                            // The tailer has not noticed yet. The gap covers everything until here:
                            // neither the owner nor the lag may return to the skipped events.
                            self.offset = state.window.end_offset();
                            state
                                .readers
                                .set_position(self.probe.key, self.offset, self.position);
                            batch
                                .items
                                .push(self.gap(Gap::uncounted(GapReason::Recreated)));
                            return Poll::Ready(Read::Some);
                        }
                    }
                }
            }
        }
    }
}
