//! The writing side of a log: what a tailer appends, and what it tells.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::StreamBuffer;
use crate::feed::encoded::EncodedEvent;
use crate::feed::notify::WakeList;
use crate::feed::trie::SubjectTrie;
use crate::feed::{Gap, GapReason};
use crate::sse::{Event, Position, SourceTag};

/// Not `Clone`; dropping it ends every feed.
#[derive(Debug)]
pub struct StreamWriter {
    log: Arc<StreamBuffer>,
    news: WakeList,
}

impl StreamWriter {
    pub(super) fn new(log: &Arc<StreamBuffer>) -> Self {
        Self {
            log: log.clone(),
            news: WakeList::default(),
        }
    }

    /// Begins to write after sequence `head`. With another tag than before the stream is another one: what stands in
    /// the log is forgotten, and every reader is told that its source was recreated.
    pub fn begin(&mut self, tag: SourceTag, head: u64) {
        let mut state = self.log.lock();
        match state.head {
            None => {
                state.head = Some(Position {
                    tag,
                    seq: head,
                    check: None,
                });
                state.clear(head);
            }
            // Continued after a reconnect; a hole between the two is the tailer's to tell.
            Some(before) if before.tag == tag && before.seq <= head => {}
            Some(_) => {
                drop(state);
                self.renew(
                    tag,
                    head,
                    Gap {
                        reason: GapReason::Recreated,
                        missed: None,
                    },
                );
            }
        }
    }

    /// What is appended from now on is the past: nobody reads before [`Self::caught_up`].
    pub fn catch_up(&mut self) {
        self.log.lock().catching_up = true;
    }

    /// What is appended from now on is news: readers may begin.
    pub fn caught_up(&mut self) {
        self.log.lock().catching_up = false;
    }

    /// Ends every event stream that reads the log, and admits none until [`Self::accept`]: NATS rejects the writer until
    /// an operator changes something, and a client that waits here would wait without knowing. The log keeps its events,
    /// so that a client that returns then finds what follows its position.
    pub fn reject(&mut self) {
        let feeds = {
            let mut state = self.log.lock();
            state.rejected = true;
            state.keys.clear();
            state.interest = SubjectTrie::default();
            std::mem::take(&mut state.feeds)
        };
        for (_, feed) in &feeds {
            feed.end(&mut self.news);
        }
        self.wake();
    }

    /// Admits readers again.
    pub fn accept(&mut self) {
        self.log.lock().rejected = false;
    }

    /// Begins again after sequence `head`, where nothing that stands in the log adjoins what will follow, be it under
    /// the same tag: the log forgets everything and every reader is told the gap.
    pub fn renew(&mut self, tag: SourceTag, head: u64, gap: Gap) {
        let position = Position {
            tag,
            seq: head,
            check: None,
        };
        let mut state = self.log.lock();
        state.head = Some(position);
        state.clear(head);
        if let Some(replayer) = self
            .log
            .replayer
            .as_ref()
            .filter(|_| gap.reason != GapReason::Expired)
        {
            replayer.renumber();
        }
        for (_, feed) in &state.feeds {
            feed.renew(gap, position, Instant::now(), &mut self.news);
        }
        drop(state);
        self.wake();
        self.log.budget.enforce();
    }

    /// The last sequence number passed: where to go on after a reconnect.
    #[must_use]
    pub fn head(&self) -> Option<(SourceTag, u64)> {
        self.log.lock().head.map(|head| (head.tag, head.seq))
    }

    /// Appends events in ascending order of sequence: one lock and one wake for all of them.
    pub fn append(&mut self, events: Vec<Event>) {
        let Some(now) = events.last().map(|event| event.received) else {
            return;
        };
        // Encode before taking the lock: every reader that opens waits on it.
        let logged: Vec<Arc<EncodedEvent>> = events
            .into_iter()
            .map(|event| EncodedEvent::new(event, &self.log.budget))
            .collect();
        self.log.lock().append(&logged, now, &mut self.news);
        // What a window gives back counts only when nobody else holds it.
        drop(logged);
        self.wake();
        self.log.budget.enforce();
    }

    /// Says how many messages the source has ready behind what was appended.
    pub fn pending(&self, messages: u64) {
        self.log.pending.store(messages, Ordering::Relaxed);
    }

    /// Says that nothing up to this sequence number is missing: what was not appended does not match.
    pub fn advance(&mut self, seq: u64) {
        let mut state = self.log.lock();
        if let Some(head) = &mut state.head
            && head.seq < seq
        {
            *head = Position {
                tag: head.tag,
                seq,
                check: None,
            };
        }
    }

    /// Tells every reader that events are missing here.
    pub fn gap(&mut self, reason: GapReason, missed: Option<u64>) {
        let mut state = self.log.lock();
        let Some(head) = state.head else { return };
        let (gap, now) = (Gap { reason, missed }, Instant::now());
        for (_, feed) in &state.feeds {
            feed.append_gap(gap, head, now, &mut self.news);
        }
        state.push_hole(gap, head, now);
        drop(state);
        self.wake();
        self.log.budget.enforce();
    }

    /// Wakes with no lock held; what was woken reads the feed at once.
    fn wake(&mut self) {
        self.news.tell();
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        {
            let mut state = self.log.lock();
            state.ended = true;
            for (_, feed) in &state.feeds {
                feed.end(&mut self.news);
            }
        }
        self.wake();
    }
}
