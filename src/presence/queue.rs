//! Queue of presence updates: changes of this pod's event streams that are not written yet.
//!
//! An event stream has one place in the queue, so that several changes between two batches are one
//! write of its current state. Threads that serve event streams only lock, mark and notify; the
//! writer of the store calls [`PresenceQueue::next_batch`], in this order: ended streams (a
//! reconnecting client may look for them), changed ones, and open ones that were written too long
//! ago. The queue is bounded: by the number of open event streams, and by `ENDED_MAX` ends.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;

use super::entry::{ENDED_FOR, Entry, FilterDigest, Key};
use super::{CloseReason, State, StreamHandle};

/// 10,000 waiting ends, about 10 MB. Further ones are dropped; their entries expire by themselves.
const ENDED_MAX: usize = 10_000;

/// Updates to write. Shared by the threads that serve and the task that writes.
#[derive(Debug)]
pub struct PresenceQueue {
    pod: String,
    boot: String,
    state: Mutex<QueueState>,
    /// Notified when an update is queued.
    wake: Notify,
}

#[derive(Debug, Default)]
struct QueueState {
    numbers: u64,
    open: HashMap<u64, Open>,
    /// Written first, because reconnecting clients look for them.
    ended: VecDeque<PresenceUpdate>,
    changed: VecDeque<u64>,
    /// Times of writes, oldest first. A stream that was written again has two elements.
    rewrites: VecDeque<(Instant, u64)>,
    dropped: u64,
}

/// An open event stream. About 100 bytes, besides the stream itself.
#[derive(Clone)]
struct Open {
    stream: Weak<dyn StreamHandle>,
    since: SystemTime,
    is_changed: bool,
    queued_at: Option<Instant>,
}

/// One value to write under its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceUpdate {
    /// Number of the event stream in this process.
    pub number: u64,
    /// Key of the entry.
    pub key: Key,
    /// Value of the entry.
    pub entry: Entry,
    /// The event stream has ended: no update follows.
    pub is_end: bool,
    /// No value was written under this key before.
    pub is_new: bool,
}

/// Position up to which a client received everything when a drain ended its event stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Last event id that was sent.
    pub last_event_id: String,
    /// The client may resume from it on another pod without sending it: the route names its
    /// clients, this client has a name, and other pods know the position.
    pub can_be_claimed: bool,
}

impl PresenceQueue {
    /// Returns an empty queue. `boot` distinguishes this process from all others.
    #[must_use]
    pub fn new(pod: &str, boot: &str) -> Self {
        let (state, wake) = (Mutex::default(), Notify::new());
        Self {
            pod: pod.to_owned(),
            boot: boot.to_owned(),
            state,
            wake,
        }
    }

    /// Adds an event stream. The returned number identifies it in the calls below.
    pub(super) fn opened(&self, stream: &Arc<dyn StreamHandle>) -> u64 {
        let mut state = self.lock();
        state.numbers += 1;
        let number = state.numbers;
        let open = Open {
            stream: Arc::downgrade(stream),
            since: SystemTime::now(),
            is_changed: true,
            queued_at: None,
        };
        state.open.insert(number, open);
        state.changed.push_back(number);
        drop(state);
        self.wake.notify_one();
        number
    }

    /// Its state has changed.
    pub(super) fn changed(&self, number: u64) {
        let mut state = self.lock();
        let Some(open) = state.open.get_mut(&number) else {
            return;
        };
        open.since = SystemTime::now();
        state.mark_changed(number);
        drop(state);
        self.wake.notify_one();
    }

    /// It has ended. `delivered`: ended by a drain, with everything up to this position sent.
    pub(super) fn ended(
        &self,
        number: u64,
        stream: &dyn StreamHandle,
        close: CloseReason,
        delivered: Option<Delivered>,
    ) {
        let was_queued = self
            .lock()
            .open
            .get(&number)
            .is_some_and(|open| open.queued_at.is_some());
        if !was_queued && delivered.is_none() {
            // It opened and closed within a moment: no entry is needed.
            return self.removed(number);
        }
        let since = unix_millis(SystemTime::now());
        let mut entry = self.describe(stream, since, ENDED_FOR);
        entry.reason = Some(close.label().to_owned());
        entry.state = if delivered.is_some() {
            State::Reconnecting
        } else {
            State::Closed
        };
        let can_be_claimed = delivered
            .as_ref()
            .is_some_and(|delivered| delivered.can_be_claimed);
        if let Some(delivered) = delivered {
            entry.last_event_id = delivered.last_event_id;
        }
        let key = self.key(stream.client(), number);
        let position = can_be_claimed.then(|| PresenceUpdate {
            number,
            key: Key {
                is_position: true,
                ..key.clone()
            },
            entry: entry.clone(),
            is_end: true,
            is_new: true,
        });
        // If the entry was never written, the position alone is enough.
        let end = (was_queued || position.is_none()).then_some(PresenceUpdate {
            number,
            key,
            entry,
            is_end: true,
            is_new: !was_queued,
        });
        let mut state = self.lock();
        state.open.remove(&number);
        for update in position.into_iter().chain(end) {
            if state.ended.len() < ENDED_MAX {
                state.ended.push_back(update);
            } else {
                state.dropped += 1;
            }
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Removes it without an update.
    pub(super) fn removed(&self, number: u64) {
        self.lock().open.remove(&number);
    }

    /// Takes at most `most` updates: ends, then changes, then open streams that were written
    /// `every` ago or earlier. A written entry expires after twice that time.
    pub fn next_batch(&self, most: usize, every: Duration, now: Instant) -> Vec<PresenceUpdate> {
        let mut taken = Vec::with_capacity(most.min(128));
        let mut open: Vec<(u64, Open)> = Vec::new();
        let mut state = self.lock();
        let wall = unix_millis(SystemTime::now());
        while taken.len() < most
            && let Some(ended) = state.ended.pop_front()
        {
            if ended.entry.is_current(wall) {
                taken.push(ended);
            }
        }
        while taken.len() + open.len() < most
            && let Some(number) = state.next(every, now)
        {
            if let Some(known) = state.open.get_mut(&number) {
                open.push((number, known.clone()));
                (known.is_changed, known.queued_at) = (false, Some(now));
                state.rewrites.push_back((now, number));
            }
        }
        drop(state);
        // Described without the lock: each reads the state of its feeds.
        for (number, known) in open {
            let Some(stream) = known.stream.upgrade() else {
                continue;
            };
            let entry = self.describe(&*stream, unix_millis(known.since), every * 2);
            let (key, is_new) = (self.key(stream.client(), number), known.queued_at.is_none());
            taken.push(PresenceUpdate {
                number,
                key,
                entry,
                is_end: false,
                is_new,
            });
        }
        taken
    }

    /// Queues an update whose write failed. An end is dropped if it may have been written
    /// (`is_known` is false): meanwhile another pod may have claimed its position.
    pub fn requeue(&self, update: PresenceUpdate, is_known: bool) {
        let mut state = self.lock();
        if !update.is_end {
            state.mark_changed(update.number);
        } else if is_known && state.ended.len() < ENDED_MAX {
            state.ended.push_front(update);
        } else {
            state.dropped += 1;
        }
    }

    /// Records that its entry was not written because the bucket is full; it waits for
    /// [`PresenceQueue::continue_postponed`].
    pub fn postpone(&self, number: u64) {
        let mut state = self.lock();
        if let Some(open) = state.open.get_mut(&number) {
            open.queued_at = None;
        }
    }

    /// Marks the postponed streams as changed.
    pub fn continue_postponed(&self) {
        let mut state = self.lock();
        let postponed = |open: &Open| open.queued_at.is_none() && !open.is_changed;
        let numbers: Vec<u64> = state
            .open
            .iter()
            .filter(|(_, open)| postponed(open))
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            state.mark_changed(number);
        }
    }

    /// Marks every written stream as changed, because the bucket lost its contents.
    pub fn rewrite_all(&self) {
        let mut state = self.lock();
        let numbers: Vec<u64> = state
            .open
            .iter()
            .filter(|(_, open)| open.queued_at.is_some())
            .map(|(key, _)| *key)
            .collect();
        for number in numbers {
            state.mark_changed(number);
        }
    }

    /// Number of ends dropped since the last call.
    pub fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.lock().dropped)
    }

    /// Number of open streams and waiting ends.
    #[must_use]
    pub fn len(&self) -> usize {
        let state = self.lock();
        state.open.len() + state.ended.len()
    }

    /// Returns true if the number is zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns true if an end is waiting.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        !self.lock().ended.is_empty()
    }

    /// Returns after an update was queued since the last call. Cancel safe.
    pub async fn wait(&self) {
        self.wake.notified().await;
    }

    fn describe(&self, stream: &dyn StreamHandle, since: u64, lasts: Duration) -> Entry {
        let mut description = stream.describe();
        let unlisted = FilterDigest::cut(&mut description.subjects);
        Entry {
            pod: self.pod.clone(),
            route: description.route.to_string(),
            subjects: description.subjects,
            unlisted,
            state: description.state,
            since,
            last_event_id: description.last_event_id,
            reason: None,
            claimed: None,
            expires: unix_millis(SystemTime::now() + lasts),
        }
    }

    fn key(&self, client: &str, number: u64) -> Key {
        Key {
            client: client.to_owned(),
            connection: format!("{}-{number}", self.boot),
            is_position: false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueState {
    /// Queues it once, for any number of changes.
    fn mark_changed(&mut self, number: u64) {
        if let Some(open) = self.open.get_mut(&number)
            && !std::mem::replace(&mut open.is_changed, true)
        {
            self.changed.push_back(number);
        }
    }

    /// Returns a changed stream, otherwise one that was written too long ago.
    fn next(&mut self, every: Duration, now: Instant) -> Option<u64> {
        while let Some(number) = self.changed.pop_front() {
            if self.open.get(&number).is_some_and(|open| open.is_changed) {
                return Some(number);
            }
        }
        while let Some((queued_at, number)) = self.rewrites.front().copied() {
            if now.saturating_duration_since(queued_at) < every {
                return None;
            }
            self.rewrites.pop_front();
            if self
                .open
                .get(&number)
                .is_some_and(|open| open.queued_at == Some(queued_at))
            {
                return Some(number);
            }
        }
        None
    }
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open")
            .field("since", &self.since)
            .field("queued_at", &self.queued_at)
            .finish_non_exhaustive()
    }
}

/// Milliseconds of Unix time.
#[must_use]
pub fn unix_millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests;
