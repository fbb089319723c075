//! Reading from the archive until the cursor has reached the window.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::{Cursor, Read};
use crate::event::Position;
use crate::feed::batch::Copied;
use crate::feed::blocks::CodedEvents;
use crate::feed::encoded::EncodedEvent;
use crate::feed::read_policy::ReadPolicy;
use crate::feed::replay::member::ReplayProgress;
use crate::feed::subscribers::Subscriber;
use crate::feed::window::Window;
use crate::feed::{Batch, FeedOptions, Gap, GapReason, Item, Throttle};

impl Cursor {
    /// Reads with a replay session until the window is reached. `Pending` with `self.replay` unset
    /// means: continue in the window.
    pub(super) fn poll_replay(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Batch,
        policy: &mut ReadPolicy<'_>,
    ) -> Poll<Read> {
        let (feed, key) = (&self.feed, self.key);
        if !is_ready(&mut policy.throttle) {
            feed.lock().of_cursor(key).1.run();
            return Poll::Pending;
        }
        while let Some(member) = &self.replay {
            let (floor, is_current) = {
                let mut state = feed.lock();
                let (window, subscriber) = state.of_cursor(key);
                // The window wakes it too, because a new epoch may start meanwhile.
                subscriber.wait(context.waker());
                (
                    window.floor(),
                    window.is_current_epoch(subscriber.offset.index),
                )
            };
            let (mut bytes, mut last) = (0, None);
            let progress = if is_current {
                member.poll(floor, context.waker(), |stored| {
                    let item = item(&feed.options, stored);
                    last = Some(stored.event.position);
                    bytes += encoded_bytes(&item);
                    batch.push(item);
                    // Events of a page cannot be skipped: the tier of the next one is not known.
                    if let Some(throttle) = &mut policy.throttle {
                        throttle.record();
                    }
                    let is_end = feed.options.ends(&stored.event);
                    !is_end && bytes < policy.budget && is_ready(&mut policy.throttle)
                })
            } else {
                ReplayProgress::Changed
            };
            let mut state = feed.lock();
            let (window, subscriber) = state.of_cursor(key);
            match progress {
                ReplayProgress::Some => {
                    subscriber.position = last.unwrap_or(subscriber.position);
                    return Poll::Ready(Read::Some);
                }
                ReplayProgress::Pending => return Poll::Pending,
                ReplayProgress::Reached(through) => {
                    if subscriber.reach(window, through) {
                        self.replay = None;
                    }
                }
                ReplayProgress::Gap(after, gap) => {
                    let position = Position {
                        tag: subscriber.position.tag,
                        seq: after,
                        fingerprint: None,
                    };
                    subscriber.position = position;
                    batch.push(Item::Gap { gap, position });
                    return Poll::Ready(Read::Some);
                }
                // The position remains: the following events may be readable after the source is
                // repaired.
                ReplayProgress::Rejected => return Poll::Ready(Read::Ended),
                ReplayProgress::Changed => {
                    self.replay = None;
                    if subscriber.leave_archive(window, batch) {
                        return Poll::Ready(Read::Some);
                    }
                }
            }
        }
        Poll::Pending
    }
}

impl Subscriber {
    /// Continues in the window after a sequence number. False if the window has moved since its
    /// floor was read.
    fn reach(&mut self, window: &Window, through: u64) -> bool {
        let Some(offset) = window.offset_after(through) else {
            return false;
        };
        self.offset = offset;
        self.skip_through = (self.position.tag, through);
        true
    }

    /// Continues in the window because the source has changed. True if it reports that as a gap;
    /// otherwise the window does, at the start of its epoch.
    fn leave_archive(&mut self, window: &Window, batch: &mut Batch) -> bool {
        let epoch = window
            .epoch()
            .filter(|_| !window.is_current_epoch(self.offset.index));
        if let Some(epoch) = epoch {
            self.offset = epoch.start;
            return false;
        }
        // The tailer has not noticed yet. The gap covers everything until here.
        self.offset = window.end_offset();
        batch.push(self.gap(Gap::uncounted(GapReason::Recreated)));
        true
    }
}

/// Returns an event of a page as the feed shows it: a gap, if its payload has no valid form in the
/// version of the feed.
fn item(options: &FeedOptions, stored: &Arc<EncodedEvent>) -> Item {
    let Some(converter) = &options.converter else {
        return shown(options, stored);
    };
    let position = stored.event.position;
    match options.converted(converter, stored) {
        Ok(converted) => shown(options, &converted),
        Err(reason) => Item::Gap {
            gap: Gap::one(reason),
            position,
        },
    }
}

fn shown(options: &FeedOptions, encoded: &Arc<EncodedEvent>) -> Item {
    if let Some(compression) = options.compression
        && !options.renames(&encoded.event)
    {
        let (framing, coding) = (options.framing, compression.coding);
        return Item::Coded {
            events: CodedEvents::Event(Arc::clone(encoded), framing, coding),
            copied: Copied {
                events: 1,
                position: encoded.event.position,
                received: encoded.event.received,
                sample: encoded.event.sample,
            },
            is_end: options.ends(&encoded.event),
        };
    }
    Item::Event {
        encoding: options.encoding(encoded),
        position: encoded.event.position,
        tier: options.tier(&encoded.event),
        is_end: options.ends(&encoded.event),
        received: encoded.event.received,
        sample: encoded.event.sample,
    }
}

fn encoded_bytes(item: &Item) -> usize {
    match item {
        Item::Event { encoding, .. } => encoding.len(),
        Item::Coded {
            events: CodedEvents::Event(encoded, ..),
            ..
        } => encoded.stored().len(),
        Item::Coded { .. } | Item::Copied { .. } | Item::Gap { .. } => 0,
    }
}

/// Returns true if the throttle delivers any event now.
fn is_ready(throttle: &mut Option<&mut dyn Throttle>) -> bool {
    throttle.as_mut().is_none_or(|throttle| throttle.is_ready())
}
