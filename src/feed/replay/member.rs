//! Membership of a reader in the replays of its source, held by its cursor.

use std::sync::Arc;
use std::task::Waker;

use super::{Phase, ReplayPool, State, leave};
use crate::feed::encoded::EncodedEvent;
use crate::feed::feed::Feed;
use crate::feed::gap::Gap;

/// Dropping it releases the reader's slot.
#[derive(Debug)]
pub(in crate::feed) struct ReplayMember {
    replay_pool: Arc<ReplayPool>,
    key: usize,
}

/// Result of a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::feed) enum ReplayProgress {
    /// Events were delivered.
    Some,
    /// Nothing now; the waker is registered.
    Pending,
    /// Everything up to this sequence number was delivered, and the window continues from there.
    Reached(u64),
    /// The next events follow after this sequence number; those before are no longer retained, or
    /// cannot be decoded.
    Gap(u64, Gap),
    /// The source was recreated or restored.
    Changed,
    /// The source rejects reads until an operator changes something.
    Rejected,
}

impl ReplayMember {
    /// Queues a reader that has everything up to `after`; `None` at the limit.
    pub(in crate::feed) fn join(
        replay_pool: &Arc<ReplayPool>,
        feed: &Arc<Feed>,
        after: u64,
    ) -> Option<Box<Self>> {
        let key = replay_pool.enqueue(feed, after)?;
        Some(Box::new(Self {
            replay_pool: replay_pool.clone(),
            key,
        }))
    }

    /// Begins with the oldest event that is left: events that expire before the first page are no
    /// gap.
    pub(in crate::feed) fn begin_at_oldest(&self) {
        if let Some(reader) = self.replay_pool.lock().readers.get_mut(self.key) {
            reader.begins_at_oldest = true;
        }
    }

    /// Passes the reader's events of the page to `take`, until it returns false.
    pub(in crate::feed) fn poll(
        &self,
        floor: u64,
        waker: &Waker,
        mut take: impl FnMut(&Arc<EncodedEvent>) -> bool,
    ) -> ReplayProgress {
        let mut state = self.replay_pool.lock();
        let State {
            readers, sessions, ..
        } = &mut *state;
        let Some(reader) = readers.get_mut(self.key) else {
            return ReplayProgress::Changed;
        };
        match &mut reader.phase {
            Phase::Changed => return ReplayProgress::Changed,
            Phase::Rejected => return ReplayProgress::Rejected,
            Phase::Joined {
                session,
                events,
                next,
                ..
            } => {
                let session = &mut sessions[*session];
                if let Some((after, gap)) = reader.missing.take() {
                    // The next page may take long to arrive. The session may be another one, which
                    // has read less than the reader has: it does not change `through`.
                    if events.is_empty() && floor <= reader.through {
                        leave(session, &reader.feed, self.key);
                        session.page_taken.notify_one();
                        reader.phase = Phase::Reached;
                    }
                    return ReplayProgress::Gap(after, gap);
                }
                let mut some = false;
                while let Some(encoded) = events
                    .get(*next)
                    .and_then(|number| session.events.get(*number as usize))
                {
                    some = true;
                    *next += 1;
                    reader.through = encoded.event.position.seq;
                    if !take(encoded) {
                        break;
                    }
                }
                if !events.is_empty() && *next >= events.len() {
                    events.clear();
                    reader.through = session.through;
                    session.unread = session.unread.saturating_sub(1);
                    if session.unread == 0 {
                        session.page_taken.notify_one();
                    }
                    if floor <= reader.through {
                        leave(session, &reader.feed, self.key);
                        session.page_taken.notify_one();
                        reader.phase = Phase::Reached;
                    }
                }
                if some {
                    return ReplayProgress::Some;
                }
            }
            Phase::Reached if floor <= reader.through => {
                return ReplayProgress::Reached(reader.through);
            }
            Phase::Reached => {
                // The window has moved meanwhile.
                reader.phase = Phase::Queued;
                self.replay_pool.replays.queue();
                self.replay_pool.queued_notify.notify_one();
            }
            // It was queued again before it polled.
            Phase::Queued => {
                if let Some((after, gap)) = reader.missing.take() {
                    return ReplayProgress::Gap(after, gap);
                }
            }
        }
        reader.waker = Some(waker.clone());
        ReplayProgress::Pending
    }
}

impl Drop for ReplayMember {
    fn drop(&mut self) {
        let replay_pool = &self.replay_pool;
        let mut state = replay_pool.lock();
        let State {
            readers, sessions, ..
        } = &mut *state;
        let Some(reader) = readers.try_remove(self.key) else {
            return;
        };
        match reader.phase {
            Phase::Queued => replay_pool.replays.unqueue(),
            Phase::Joined {
                session, events, ..
            } => {
                let session = &mut sessions[session];
                leave(session, &reader.feed, self.key);
                if !events.is_empty() {
                    session.unread = session.unread.saturating_sub(1);
                }
                // A session without members ends; one that waited for this reader continues.
                session.page_taken.notify_one();
            }
            Phase::Reached | Phase::Changed | Phase::Rejected => {}
        }
        drop(state);
        replay_pool.replays.discount_reader();
    }
}
