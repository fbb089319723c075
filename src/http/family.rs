//! The event streams of one HTTP/2 connection: one timer wakes them, and they come of age together.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Context;
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};

use super::member::StreamState;
use super::ticks::{instant_of, ticks_at};
use crate::registry::{Close, Member as _};

/// 20 ms: the event streams of one connection, at most 256, come back over five seconds rather than in one moment.
const PACE: Duration = Duration::from_millis(20);

/// All event streams of a connection. The connection is what is handed over when the first comes of age.
#[derive(Debug, Default)]
pub(super) struct Family {
    members: Mutex<Members>,
    /// The connection: a member is to be woken sooner than any other.
    task: AtomicWaker,
    aged: Notify,
    leaving: AtomicBool,
    /// Pieces that were handed to HTTP/2 and are not out.
    under_way: AtomicUsize,
}

#[derive(Debug, Default)]
struct Members {
    all: Vec<Sibling>,
    /// When the first of them is to be woken, in ticks of the process; a member that has ended may count.
    next: Option<u64>,
}

#[derive(Debug)]
struct Sibling {
    state: Weak<StreamState>,
    /// When it is to be woken; [`NEVER`] until it says so again.
    due: u64,
}

const NEVER: u64 = u64::MAX;

/// The timer of a family.
pub(super) struct Clock {
    family: Arc<Family>,
    /// None as long as there is nobody to be woken.
    timer: Option<Pin<Box<Sleep>>>,
    /// When it ends.
    set: Option<u64>,
}

impl Family {
    /// Takes an event stream in, to be woken then (in ticks of the process); one that comes while the others are handed
    /// over goes with them.
    pub(super) fn add(&self, state: &Arc<StreamState>, due: u64) {
        let mut members = self.lock();
        if members.all.len() == members.all.capacity() {
            // Before it grows: those that ended leave their places.
            members.all.retain(|sibling| sibling.state.strong_count() > 0);
        }
        members.all.push(Sibling { state: Arc::downgrade(state), due: NEVER });
        drop(members);
        self.wake_at(state, due);
        if self.leaving.load(Ordering::Acquire) {
            state.close(Close::Age);
        }
    }

    /// One of them is to be woken then, and no more at the time that it said before.
    pub(super) fn wake_at(&self, state: &Arc<StreamState>, due: u64) {
        let mut members = self.lock();
        // The newest stands last, and there are 256 at the most.
        let known = members.all.iter_mut().rev().find(|sibling| sibling.state.as_ptr() == Arc::as_ptr(state));
        known.into_iter().for_each(|sibling| sibling.due = due);
        let is_first = members.next.is_none_or(|next| due < next);
        if is_first {
            members.next = Some(due);
        }
        drop(members);
        if is_first {
            self.task.wake();
        }
    }

    /// Bytes of one of them are handed to HTTP/2.
    pub(super) fn begins_way(&self) {
        self.under_way.fetch_add(1, Ordering::Relaxed);
    }

    /// They are out.
    pub(super) fn ends_way(&self) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }

    /// Wakes those of whom something is not out: for when the connection has had its turn. The window of such a client is
    /// shut, or the socket full, and it is to be seen for how long.
    pub(super) fn tell_refused(&self) {
        if self.under_way.load(Ordering::Relaxed) == 0 {
            return;
        }
        let members: Vec<_> = self.lock().all.iter().filter_map(|sibling| sibling.state.upgrade()).collect();
        members.iter().filter(|state| state.under_way() > 0 && !state.is_refused()).for_each(|state| state.wake());
    }

    /// The first of them has reached its age.
    pub(super) fn come_of_age(&self) {
        self.aged.notify_one();
    }

    /// Returns when the first of them has reached its age.
    pub(super) async fn aged(&self) {
        self.aged.notified().await;
    }

    /// Ends them one after the other. To be called when the connection has said that it takes no more.
    pub(super) async fn hand_over(&self) {
        self.leaving.store(true, Ordering::Release);
        // They stay: those that have not ended yet are woken as before.
        let members: Vec<_> = self.lock().all.iter().map(|sibling| sibling.state.clone()).collect();
        for member in members {
            let Some(state) = member.upgrade() else { continue };
            state.close(Close::Age);
            drop(state);
            sleep(PACE).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Members {
    /// Takes those that are due, and looks who is next.
    fn take_due(&mut self, now: u64) -> Vec<Arc<StreamState>> {
        let mut due = Vec::new();
        for sibling in self.all.iter_mut().filter(|sibling| sibling.due <= now) {
            sibling.due = NEVER;
            due.extend(sibling.state.upgrade());
        }
        self.next = self.all.iter().map(|sibling| sibling.due).min().filter(|due| *due != NEVER);
        due
    }
}

impl Clock {
    pub(super) fn new(family: Arc<Family>) -> Self {
        Self { family, timer: None, set: None }
    }

    /// Wakes whoever is due. To be polled with the connection, whose task is woken when it is to be polled.
    pub(super) fn poll(&mut self, task: &mut Context<'_>) {
        self.family.task.register(task.waker());
        loop {
            let next = self.family.lock().next;
            let Some(next) = next else { return };
            let deadline = || tokio::time::Instant::from_std(instant_of(next));
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline())));
            if self.set != Some(next) {
                self.set = Some(next);
                timer.as_mut().reset(deadline());
            }
            if timer.as_mut().poll(task).is_pending() {
                return;
            }
            let due = self.family.lock().take_due(ticks_at(Instant::now()).max(next));
            self.set = None;
            due.iter().for_each(|state| state.wake());
        }
    }
}
