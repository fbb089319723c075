//! What of this pod's event streams is still to be told to all pods: one place for each, however often it changes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;

use super::entry::{ENDED_FOR, Entry, Key, Unlisted};
use super::{CloseReason, State, StreamHandle};

/// 10,000 ends wait to be told, about 10 MB of them; what does not fit expires by itself.
const ENDED_MAX: usize = 10_000;

/// What is to be told. Shared by those who serve and the one who writes.
#[derive(Debug)]
pub struct PresenceQueue {
    pod: String,
    boot: String,
    waiting: Mutex<Waiting>,
    /// Something waits.
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    numbers: u64,
    open: HashMap<u64, Open>,
    /// Ends first: who comes back looks for them.
    ended: VecDeque<PresenceUpdate>,
    changed: VecDeque<u64>,
    /// What was told and when, the oldest first; what was told again since stands there twice.
    told: VecDeque<(Instant, u64)>,
    lost: u64,
}

/// One that is open. Memory: about 100 bytes, beside the member itself.
#[derive(Clone)]
struct Open {
    member: Weak<dyn StreamHandle>,
    since: SystemTime,
    is_changed: bool,
    told: Option<Instant>,
}

/// One value, to be written under its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceUpdate {
    /// Which event stream of the process.
    pub number: u64,
    /// Under which key.
    pub key: Key,
    /// What is told.
    pub entry: Entry,
    /// Nothing follows.
    pub is_end: bool,
    /// Nothing was written under this key before.
    pub is_new: bool,
}

/// Position up to which a client had everything when a drain ended its event stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The last id that was sent.
    pub last_event_id: String,
    /// The client may resume from it elsewhere without sending it: the route names its clients, this one has a name, and
    /// another pod knows the position.
    pub can_be_claimed: bool,
}

impl PresenceQueue {
    /// Nothing to tell yet. `boot` tells this process from every other.
    #[must_use]
    pub fn new(pod: &str, boot: &str) -> Self {
        let (waiting, wake) = (Mutex::default(), Notify::new());
        Self {
            pod: pod.to_owned(),
            boot: boot.to_owned(),
            waiting,
            wake,
        }
    }

    /// An event stream has opened; its number is for the calls below.
    pub(super) fn opened(&self, member: &Arc<dyn StreamHandle>) -> u64 {
        let mut waiting = self.lock();
        waiting.numbers += 1;
        let number = waiting.numbers;
        let open = Open {
            member: Arc::downgrade(member),
            since: SystemTime::now(),
            is_changed: true,
            told: None,
        };
        waiting.open.insert(number, open);
        waiting.changed.push_back(number);
        drop(waiting);
        self.wake.notify_one();
        number
    }

    /// Its state is another one.
    pub(super) fn changed(&self, number: u64) {
        let mut waiting = self.lock();
        let Some(open) = waiting.open.get_mut(&number) else {
            return;
        };
        open.since = SystemTime::now();
        waiting.mark(number);
        drop(waiting);
        self.wake.notify_one();
    }

    /// It has ended. `delivered`: by a drain, with everything up to this position sent.
    pub(super) fn ended(
        &self,
        number: u64,
        member: &dyn StreamHandle,
        close: CloseReason,
        delivered: Option<Delivered>,
    ) {
        let was_told = self
            .lock()
            .open
            .get(&number)
            .is_some_and(|open| open.told.is_some());
        if !was_told && delivered.is_none() {
            // It came and went within a moment, and nobody needs to know.
            return self.gone(number);
        }
        let since = millis(SystemTime::now());
        let mut entry = self.describe(member, since, ENDED_FOR);
        entry.reason = Some(close.reason().to_owned());
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
        let key = self.key(member.client(), number);
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
        // The position alone suffices for an event stream whose entry was never written.
        let end = (was_told || position.is_none()).then_some(PresenceUpdate {
            number,
            key,
            entry,
            is_end: true,
            is_new: !was_told,
        });
        let mut waiting = self.lock();
        waiting.open.remove(&number);
        for told in position.into_iter().chain(end) {
            if waiting.ended.len() < ENDED_MAX {
                waiting.ended.push_back(told);
            } else {
                waiting.lost += 1;
            }
        }
        drop(waiting);
        self.wake.notify_one();
    }

    /// It is not there any more, and there is nothing to say of it.
    pub(super) fn gone(&self, number: u64) {
        self.lock().open.remove(&number);
    }

    /// Takes what is to be told next, at most `most`: ends, then changes, then what was told `every` ago or earlier.
    /// It says nothing any more after twice that time.
    pub fn take(&self, most: usize, every: Duration, now: Instant) -> Vec<PresenceUpdate> {
        let mut taken = Vec::with_capacity(most.min(128));
        let mut open: Vec<(u64, Open)> = Vec::new();
        let mut waiting = self.lock();
        let wall = millis(SystemTime::now());
        while taken.len() < most
            && let Some(ended) = waiting.ended.pop_front()
        {
            if ended.entry.is_current(wall) {
                taken.push(ended);
            }
        }
        while taken.len() + open.len() < most
            && let Some(number) = waiting.next(every, now)
        {
            if let Some(known) = waiting.open.get_mut(&number) {
                open.push((number, known.clone()));
                (known.is_changed, known.told) = (false, Some(now));
                waiting.told.push_back((now, number));
            }
        }
        drop(waiting);
        // Described without the lock: each looks into the feeds that it reads.
        for (number, known) in open {
            let Some(member) = known.member.upgrade() else {
                continue;
            };
            let entry = self.describe(&*member, millis(known.since), every * 2);
            let (key, is_new) = (self.key(member.client(), number), known.told.is_none());
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

    /// It could not be told and is to be told later. An end is not if nobody knows whether it was told: meanwhile
    /// somebody may have taken over what it says.
    pub fn failed(&self, told: PresenceUpdate, is_known: bool) {
        let mut waiting = self.lock();
        if !told.is_end {
            waiting.mark(told.number);
        } else if is_known && waiting.ended.len() < ENDED_MAX {
            waiting.ended.push_front(told);
        } else {
            waiting.lost += 1;
        }
    }

    /// Notes that its entry was not written for want of room; it waits for [`PresenceQueue::continue_postponed`].
    pub fn postpone(&self, number: u64) {
        let mut waiting = self.lock();
        if let Some(open) = waiting.open.get_mut(&number) {
            open.told = None;
        }
    }

    /// Marks those that wait for room.
    pub fn continue_postponed(&self) {
        let mut waiting = self.lock();
        let postponed = |open: &Open| open.told.is_none() && !open.is_changed;
        let numbers: Vec<u64> = waiting
            .open
            .iter()
            .filter(|(_, open)| postponed(open))
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            waiting.mark(number);
        }
    }

    /// Nothing that was told is known any more: all of it is to be told again.
    pub fn forgotten(&self) {
        let mut waiting = self.lock();
        let told: Vec<u64> = waiting
            .open
            .iter()
            .filter(|(_, open)| open.told.is_some())
            .map(|(key, _)| *key)
            .collect();
        for number in told {
            waiting.mark(number);
        }
    }

    /// How many ends were given up since the last call.
    pub fn take_lost(&self) -> u64 {
        std::mem::take(&mut self.lock().lost)
    }

    /// How many are open or waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        let waiting = self.lock();
        waiting.open.len() + waiting.ended.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether an end waits to be told.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        !self.lock().ended.is_empty()
    }

    /// Returns when something is to be told that was not before the last call; may be dropped.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    fn describe(&self, member: &dyn StreamHandle, since: u64, lasts: Duration) -> Entry {
        let mut description = member.describe();
        let unlisted = Unlisted::cut(&mut description.subjects);
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
            expires: millis(SystemTime::now() + lasts),
        }
    }

    fn key(&self, client: &str, number: u64) -> Key {
        Key {
            client: client.to_owned(),
            connection: format!("{}-{number}", self.boot),
            is_position: false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Once, however often it changes.
    fn mark(&mut self, number: u64) {
        if let Some(open) = self.open.get_mut(&number)
            && !std::mem::replace(&mut open.is_changed, true)
        {
            self.changed.push_back(number);
        }
    }

    /// One that has changed, else one that was told too long ago.
    fn next(&mut self, every: Duration, now: Instant) -> Option<u64> {
        while let Some(number) = self.changed.pop_front() {
            if self.open.get(&number).is_some_and(|open| open.is_changed) {
                return Some(number);
            }
        }
        while let Some((told, number)) = self.told.front().copied() {
            if now.saturating_duration_since(told) < every {
                return None;
            }
            self.told.pop_front();
            if self
                .open
                .get(&number)
                .is_some_and(|open| open.told == Some(told))
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
            .field("told", &self.told)
            .finish_non_exhaustive()
    }
}

/// Milliseconds of Unix time.
#[must_use]
pub fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests;
