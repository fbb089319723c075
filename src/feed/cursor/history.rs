//! A reader that is behind the window: it reads the archive until it reaches it.

use std::task::{Context, Poll};

use super::{Cursor, Read, lend};
use crate::feed::replay::ReplayProgress;
use crate::feed::{Batch, Gap, GapReason, Item, Throttle};
use crate::sse::Position;

impl Cursor {
    /// Reads with a replay until the window is reached. Pending without a ticket: go on in the window.
    pub(super) fn poll_replay(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Batch,
        budget: usize,
        mut pace: Option<&mut dyn Throttle>,
    ) -> Poll<Read> {
        let feed = self.standing.feed.clone();
        if lend(&mut pace).is_some_and(|pace| !pace.is_ready()) {
            return Poll::Pending;
        }
        loop {
            let Some(ticket) = &self.replay else {
                return Poll::Pending;
            };
            let (floor, current) = {
                let mut state = feed.lock();
                // Also woken by the window: it may begin another tag meanwhile.
                state.readers.wait(self.standing.key, context.waker());
                (
                    state.window.floor(),
                    state.window.is_present(self.place.index),
                )
            };
            let (mut bytes, position) = (0, &mut self.position);
            let turn = if current {
                ticket.poll(floor, context.waker(), |logged| {
                    let (frame, tier) =
                        (feed.profile.frame(logged), feed.profile.tier(&logged.event));
                    *position = logged.event.position;
                    bytes += frame.len();
                    batch.items.push(Item::Event {
                        frame,
                        position: *position,
                        tier,
                        received: logged.event.received,
                    });
                    // A page is read as it comes: what is behind an event is not known, and it is never passed by.
                    let goes_on = lend(&mut pace).is_none_or(|pace| {
                        pace.charge();
                        pace.is_ready()
                    });
                    bytes < budget && goes_on
                })
            } else {
                ReplayProgress::Changed
            };
            match turn {
                ReplayProgress::Some => {
                    feed.lock()
                        .readers
                        .moved(self.standing.key, self.place, self.position);
                    return Poll::Ready(Read::Some);
                }
                ReplayProgress::Wait => return Poll::Pending,
                ReplayProgress::Reached(through) => {
                    let mut state = feed.lock();
                    // The window may have moved on since its floor was read.
                    if let Some(place) = state.window.place_after(through) {
                        self.place = place;
                        self.skip = Position {
                            tag: self.position.tag,
                            seq: through,
                            check: None,
                        };
                        state.readers.moved(self.standing.key, place, self.position);
                        drop(state);
                        self.replay = None;
                    }
                }
                ReplayProgress::GapSide(after, gap) => {
                    self.position = Position {
                        tag: self.position.tag,
                        seq: after,
                        check: None,
                    };
                    feed.lock()
                        .readers
                        .moved(self.standing.key, self.place, self.position);
                    batch.items.push(Item::Gap {
                        gap,
                        position: self.position,
                    });
                    return Poll::Ready(Read::Some);
                }
                // It keeps its position: what follows may be read once the source is repaired.
                ReplayProgress::Rejected => return Poll::Ready(Read::Ended),
                ReplayProgress::Changed => {
                    self.replay = None;
                    let state = feed.lock();
                    match state
                        .window
                        .epoch()
                        .filter(|_| !state.window.is_present(self.place.index))
                    {
                        // What the feed holds of the new numbers follows; how they began is told first.
                        Some(epoch) => self.place = epoch.place,
                        None => {
                            // The tail does not know it yet.
                            self.place = state.window.end_place();
                            batch.items.push(self.gap(Gap {
                                reason: GapReason::Recreated,
                                missed: None,
                            }));
                            return Poll::Ready(Read::Some);
                        }
                    }
                }
            }
        }
    }
}
