//! Writing side of a stream buffer, owned by the tailer of the stream.
//!
//! The tailer appends events in order, advances the head over messages that do not match, and
//! reports losses as gaps. When the sequence numbers of the stream are not continued (stream
//! recreated, restored, or its oldest messages expired) it starts a new epoch. Each call locks the
//! buffer once and wakes readers after the lock is released.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::{ArchiveAccess, State, StreamBuffer};
use crate::event::{Event, Position, SourceTag};
use crate::feed::budget::{Budget, Evict};
use crate::feed::encoded::EncodedEvent;
use crate::feed::feed::WakeList;
use crate::feed::gap::{Gap, GapReason};
use crate::feed::limits::Limits;
use crate::feed::replay::ReplayPool;
use crate::feed::snapshot::Snapshots;
use crate::feed::trie::SubjectTrie;

/// Creates a buffer and its writer. Without an archive, events that leave memory are lost to
/// readers that have not read them.
#[must_use]
pub fn channel(
    name: impl Into<Box<str>>,
    limits: Limits,
    budget: &Arc<Budget>,
    access: Option<ArchiveAccess>,
) -> (StreamWriter, Arc<StreamBuffer>) {
    let replay_pool =
        access.map(|access| ReplayPool::new(&access.replays, access.archive, access.reach, budget));
    let buffer = Arc::new_cyclic(|me| StreamBuffer {
        me: me.clone(),
        name: name.into(),
        budget: budget.clone(),
        replay_pool,
        snapshots: Snapshots::default(),
        pending: AtomicU64::new(0),
        has_converters: AtomicBool::new(false),
        state: Mutex::new(State::new(limits)),
    });
    let evictable: Arc<dyn Evict> = buffer.clone();
    budget.register(Arc::downgrade(&evictable));
    (StreamWriter::new(&buffer), buffer)
}

/// Writer of one stream buffer. Not `Clone`; dropping it ends every feed.
#[derive(Debug)]
pub struct StreamWriter {
    buffer: Arc<StreamBuffer>,
    wake_list: WakeList,
}

impl StreamWriter {
    fn new(buffer: &Arc<StreamBuffer>) -> Self {
        Self {
            buffer: buffer.clone(),
            wake_list: WakeList::default(),
        }
    }

    /// Starts, or continues after a reconnect, to write after sequence `head`. A tag other than
    /// before means another stream: the buffer is cleared, and every reader receives a `recreated`
    /// gap.
    pub fn begin(&mut self, tag: SourceTag, head: u64) {
        let mut state = self.buffer.lock();
        match state.head {
            None => {
                state.head = Some(Position {
                    tag,
                    seq: head,
                    fingerprint: None,
                });
                state.clear(head);
            }
            // Continued after a reconnect; the tailer reports a loss between the two.
            Some(before) if before.tag == tag && before.seq <= head => {}
            Some(_) => {
                drop(state);
                self.start_epoch(tag, head, Gap::uncounted(GapReason::Recreated));
            }
        }
    }

    /// Marks the following events as older than the start of readers: no reader opens before
    /// [`Self::caught_up`].
    pub fn catch_up(&mut self) {
        self.buffer.lock().catching_up = true;
    }

    /// Marks the writer as caught up: readers may open.
    pub fn caught_up(&mut self) {
        self.buffer.lock().catching_up = false;
    }

    /// Ends every event stream of the buffer and admits no reader until [`Self::accept`]. NATS
    /// rejects the writer until an operator changes something, and a waiting client would not
    /// notice. The buffer keeps its events, so that a client that returns later resumes from its
    /// position.
    pub fn reject(&mut self) {
        let feeds = {
            let mut state = self.buffer.lock();
            state.rejected = true;
            state.keys.clear();
            state.trie = SubjectTrie::default();
            std::mem::take(&mut state.feeds)
        };
        for (_, feed) in &feeds {
            feed.end(&mut self.wake_list);
        }
        self.wake();
    }

    /// Admits readers again.
    pub fn accept(&mut self) {
        self.buffer.lock().rejected = false;
    }

    /// Continues after sequence `head` where the following events do not adjoin the buffer,
    /// possibly under the same tag. The buffer is cleared and every reader receives the gap.
    pub fn start_epoch(&mut self, tag: SourceTag, head: u64, gap: Gap) {
        let position = Position {
            tag,
            seq: head,
            fingerprint: None,
        };
        let mut state = self.buffer.lock();
        state.head = Some(position);
        state.clear(head);
        if let Some(replay_pool) = self
            .buffer
            .replay_pool
            .as_ref()
            .filter(|_| gap.reason != GapReason::Expired)
        {
            replay_pool.start_epoch();
        }
        for (_, feed) in &state.feeds {
            feed.start_epoch(gap, position, Instant::now(), &mut self.wake_list);
        }
        drop(state);
        self.wake();
        self.buffer.budget.enforce();
    }

    /// Tag and last sequence number passed: the position to continue from after a reconnect.
    #[must_use]
    pub fn head(&self) -> Option<(SourceTag, u64)> {
        self.buffer.lock().head.map(|head| (head.tag, head.seq))
    }

    /// Appends events in ascending order of sequence, with one lock and one notification.
    pub fn append(&mut self, events: Vec<Event>) {
        let Some(now) = events.last().map(|event| event.received) else {
            return;
        };
        // Encode before locking: every reader that opens waits for the lock.
        let encoded: Vec<Arc<EncodedEvent>> = events
            .into_iter()
            .map(|event| EncodedEvent::new(event, &self.buffer.budget))
            .collect();
        self.buffer.convert_ahead(&encoded);
        let encodings = self
            .buffer
            .lock()
            .append(&encoded, now, &mut self.wake_list);
        encodings.encode_further(|nth| encoded.get(nth));
        // Evicted memory is released only when the last reference is dropped.
        drop(encoded);
        self.wake();
        self.buffer.budget.enforce();
    }

    /// Sets the number of messages that the stream has ready after the appended ones.
    pub fn pending(&self, messages: u64) {
        self.buffer.pending.store(messages, Ordering::Relaxed);
    }

    /// Advances the head: messages up to this sequence number that were not appended do not match.
    pub fn advance(&mut self, seq: u64) {
        let mut state = self.buffer.lock();
        if let Some(head) = &mut state.head
            && head.seq < seq
        {
            *head = Position {
                tag: head.tag,
                seq,
                fingerprint: None,
            };
        }
    }

    /// Sets the fingerprint of the message at the head, if the head is at this position and has
    /// none: readers begin there.
    pub fn identify_head(&mut self, position: Position) {
        let mut state = self.buffer.lock();
        if let Some(head) = &mut state.head
            && (head.tag, head.seq) == (position.tag, position.seq)
        {
            head.fingerprint = head.fingerprint.or(position.fingerprint);
        }
    }

    /// Reports to every reader that events are missing here.
    pub fn gap(&mut self, reason: GapReason, missed: Option<u64>) {
        let mut state = self.buffer.lock();
        let Some(head) = state.head else { return };
        let (gap, now) = (Gap { reason, missed }, Instant::now());
        for (_, feed) in &state.feeds {
            feed.append_gap(gap, head, now, &mut self.wake_list);
        }
        state.push_gap(gap, head, now);
        drop(state);
        self.wake();
        self.buffer.budget.enforce();
    }

    /// Wakes readers with no lock held; a woken reader locks its feed at once.
    fn wake(&mut self) {
        self.wake_list.wake_all();
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        {
            let mut state = self.buffer.lock();
            state.ended = true;
            for (_, feed) in &state.feeds {
                feed.end(&mut self.wake_list);
            }
        }
        self.wake();
    }
}
