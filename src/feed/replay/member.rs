//! A reader's place in the replays of its source, and what its turns bring.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;

use super::{Phase, ReplayPool, State, leave};
use crate::feed::Gap;
use crate::feed::encoded::EncodedEvent;

/// Dropping it gives the place back.
#[derive(Debug)]
pub(in crate::feed) struct ReplayMember {
    replayer: Arc<ReplayPool>,
    key: usize,
}

/// What a turn of a replay brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::feed) enum ReplayProgress {
    /// Events were handed out.
    Some,
    /// Nothing now; the waker is noted.
    Wait,
    /// Everything up to this sequence number is handed out, and the window begins there.
    Reached(u64),
    /// The next events begin only behind this sequence number: the ones before are no longer retained, or cannot be read.
    GapSide(u64, Gap),
    /// The source is another one now.
    Changed,
    /// The source rejects readings until an operator changes something.
    Rejected,
}

impl ReplayMember {
    pub(super) fn new(replayer: Arc<ReplayPool>, key: usize) -> Self {
        Self { replayer, key }
    }

    /// Hands out what the page has for this reader, as long as `take` wants more.
    pub(in crate::feed) fn poll(
        &self,
        floor: u64,
        waker: &Waker,
        mut take: impl FnMut(&Arc<EncodedEvent>) -> bool,
    ) -> ReplayProgress {
        let mut state = self.replayer.lock();
        let State { readers, runs, .. } = &mut *state;
        let Some(reader) = readers.get_mut(self.key) else {
            return ReplayProgress::Changed;
        };
        match &mut reader.phase {
            Phase::Changed => return ReplayProgress::Changed,
            Phase::Rejected => return ReplayProgress::Rejected,
            Phase::Joined { run, events, next } => {
                let run = &mut runs[*run];
                if let Some((after, gap)) = reader.missing.take() {
                    // Without events in this page the reader has all of it.
                    if events.is_empty() {
                        reader.through = run.through;
                        if floor <= reader.through {
                            // No other page may come for long.
                            leave(run, &reader.feed, self.key);
                            run.taken.notify_one();
                            reader.phase = Phase::Reached;
                        }
                    }
                    return ReplayProgress::GapSide(after, gap);
                }
                let mut some = false;
                while let Some(logged) = events
                    .get(*next)
                    .and_then(|number| run.events.get(*number as usize))
                {
                    some = true;
                    *next += 1;
                    reader.through = logged.event.position.seq;
                    if !take(logged) {
                        break;
                    }
                }
                if !events.is_empty() && *next >= events.len() {
                    events.clear();
                    reader.through = run.through;
                    run.behind = run.behind.saturating_sub(1);
                    if run.behind == 0 {
                        run.taken.notify_one();
                    }
                    if floor <= reader.through {
                        leave(run, &reader.feed, self.key);
                        run.taken.notify_one();
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
                // The window has moved on meanwhile.
                reader.phase = Phase::Queued;
                self.replayer.replays.queue();
                self.replayer.wanted.notify_one();
            }
            // It was left behind before it looked.
            Phase::Queued => {
                if let Some((after, gap)) = reader.missing.take() {
                    return ReplayProgress::GapSide(after, gap);
                }
            }
        }
        reader.waker = Some(waker.clone());
        ReplayProgress::Wait
    }
}

impl Drop for ReplayMember {
    fn drop(&mut self) {
        let replayer = &self.replayer;
        let mut state = replayer.lock();
        let State { readers, runs, .. } = &mut *state;
        let Some(reader) = readers.try_remove(self.key) else {
            return;
        };
        match reader.phase {
            Phase::Queued => replayer.replays.unqueue(),
            Phase::Joined { run, events, .. } => {
                let run = &mut runs[run];
                leave(run, &reader.feed, self.key);
                if !events.is_empty() {
                    run.behind = run.behind.saturating_sub(1);
                }
                // A run without members ends; one that waited for this reader goes on.
                run.taken.notify_one();
            }
            Phase::Reached | Phase::Changed | Phase::Rejected => {}
        }
        drop(state);
        replayer.replays.readers.fetch_sub(1, Ordering::Relaxed);
    }
}
