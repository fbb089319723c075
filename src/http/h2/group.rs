//! The event streams of one HTTP/2 connection: one timer wakes them, and they come of age together.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Context;
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};

use crate::http::stream::compact_time::{instant_of, ticks_at};
use crate::http::stream::state::StreamState;
use crate::presence::{CloseReason, StreamHandle as _};

/// 20 ms: the event streams of one connection, at most 256, come back over five seconds rather than in one moment.
const PACE: Duration = Duration::from_millis(20);

/// All event streams of a connection. The connection is what is handed over when the first comes of age.
#[derive(Debug, Default)]
pub(in crate::http) struct H2StreamGroup {
    members: Mutex<Members>,
    /// The connection: a member is to be woken sooner than any other.
    task: AtomicWaker,
    aged: Notify,
    leaving: AtomicBool,
    /// Pieces that were handed to HTTP/2 and are not out.
    in_flight: AtomicUsize,
    /// Bytes that have used the window of the connection.
    out: AtomicU64,
    /// Bytes of it that the client has returned.
    returned: AtomicU64,
    /// When the client was heard last while something was under way, in ticks of the process.
    heard: AtomicU64,
    /// The client is to be asked whether it lives.
    probe: AtomicBool,
    /// The client has set a window that no window may have.
    window_too_large: AtomicBool,
}

#[derive(Debug, Default)]
struct Members {
    /// In the order of their HTTP/2 streams.
    all: Vec<GroupEntry>,
    /// When the first of them is to be woken, in ticks of the process; a member that has ended may count.
    next: Option<u64>,
}

#[derive(Debug)]
struct GroupEntry {
    state: Weak<StreamState>,
    /// When it is to be woken; [`NEVER`] until it says so again.
    due: u64,
    /// Its HTTP/2 stream.
    stream: u32,
    /// Bytes of its window that the client has returned, modulo 2^32.
    returned: u32,
}

/// 65,535: the window of every connection when it begins (RFC 9113, 6.9.2). SETTINGS do not change it.
const FIRST_WINDOW: u64 = 65_535;

/// 1 KiB: with less of its window left the connection is as good as shut: h2 may leave a rest that no frame is made for.
const WINDOW_REST: u64 = 1024;

/// 3 s: a client that lives and is asked ([`H2StreamGroup::probe`]) is heard within that time.
const HEARD_WITHIN: Duration = Duration::from_secs(3);

const NEVER: u64 = u64::MAX;

/// The timer of a family.
pub(in crate::http) struct GroupTimer {
    group: Arc<H2StreamGroup>,
    /// None as long as there is nobody to be woken.
    timer: Option<Pin<Box<Sleep>>>,
    /// When it ends.
    set: Option<u64>,
}

impl H2StreamGroup {
    /// Takes an event stream in, to be woken then (in ticks of the process); one that comes while the others are handed
    /// over goes with them.
    pub(in crate::http) fn add(&self, state: &Arc<StreamState>, stream: u32, due: u64) {
        let mut members = self.lock();
        if members.all.len() == members.all.capacity() {
            // Before it grows: those that ended leave their places.
            members.all.retain(|member| member.state.strong_count() > 0);
        }
        let place = members.all.partition_point(|member| member.stream < stream);
        members.all.insert(
            place,
            GroupEntry {
                state: Arc::downgrade(state),
                due: NEVER,
                stream,
                returned: 0,
            },
        );
        drop(members);
        self.wake_at(state, due);
        if self.leaving.load(Ordering::Acquire) {
            state.close(CloseReason::Age);
        }
    }

    /// One of them is to be woken then, and no more at the time that it said before.
    pub(in crate::http) fn wake_at(&self, state: &Arc<StreamState>, due: u64) {
        let mut members = self.lock();
        // The newest comes last or nearly so, and there are 256 at the most.
        let known = members
            .all
            .iter_mut()
            .rev()
            .find(|member| member.state.as_ptr() == Arc::as_ptr(state));
        known.into_iter().for_each(|member| member.due = due);
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
    pub(in crate::http) fn add_in_flight(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// They are out, or thrown away.
    pub(in crate::http) fn remove_in_flight(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// So many bytes have used the window of the connection. On its thread alone: no need for an operation that locks.
    pub(in crate::http) fn uses_window(&self, sent: usize) {
        self.out.store(
            self.out.load(Ordering::Relaxed) + sent as u64,
            Ordering::Relaxed,
        );
    }

    /// The client takes so many bytes more on this HTTP/2 stream, or with 0 on the connection.
    pub(in crate::http) fn returns(&self, stream: u32, bytes: u32) {
        if stream == 0 {
            self.returned.fetch_add(u64::from(bytes), Ordering::Relaxed);
            return;
        }
        let mut members = self.lock();
        if let Ok(place) = members
            .all
            .binary_search_by_key(&stream, |member| member.stream)
        {
            let returned = &mut members.all[place].returned;
            *returned = returned.wrapping_add(bytes);
        }
    }

    /// The client has sent something.
    pub(in crate::http) fn hears(&self) {
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            self.heard
                .store(ticks_at(Instant::now()), Ordering::Relaxed);
        }
    }

    /// Asks the client whether it lives.
    pub(in crate::http) fn probe(&self) {
        self.probe.store(true, Ordering::Relaxed);
        self.task.wake();
    }

    /// Whether the client is to be asked; true once.
    pub(in crate::http) fn take_probe(&self) -> bool {
        self.probe.load(Ordering::Relaxed) && self.probe.swap(false, Ordering::Relaxed)
    }

    pub(in crate::http) fn set_window_too_large(&self) {
        self.window_too_large.store(true, Ordering::Relaxed);
    }

    pub(in crate::http) fn is_window_too_large(&self) -> bool {
        self.window_too_large.load(Ordering::Relaxed)
    }

    /// Whether others wait because this one, whose client does not read it, holds the window of the connection: the window
    /// is used up, the client lives, and of all event streams this one has most of it out.
    pub(in crate::http) fn is_held_by(&self, state: &StreamState) -> bool {
        let window = FIRST_WINDOW + self.returned.load(Ordering::Relaxed);
        if window.saturating_sub(self.out.load(Ordering::Relaxed)) >= WINDOW_REST {
            return false;
        }
        let heard = instant_of(self.heard.load(Ordering::Relaxed));
        if heard.elapsed() > HEARD_WITHIN {
            return false;
        }
        let (mut own, mut largest, mut do_others_wait) = (0, 0, false);
        for member in &self.lock().all {
            let Some(other) = member.state.upgrade() else {
                continue;
            };
            // Windows are at most 2^31-1, so the difference is right modulo 2^32. A client may return more than it was sent.
            let held = other
                .out()
                .wrapping_sub(member.returned)
                .cast_signed()
                .max(0);
            if std::ptr::eq(&*other, state) {
                own = held;
            } else {
                largest = largest.max(held);
                do_others_wait |= other.is_blocked();
            }
        }
        do_others_wait && own > 0 && own >= largest
    }

    /// Wakes those of whom something is not out: for when the connection has had its turn. The window of such a client is
    /// shut, or the socket full, and it is to be seen for how long.
    pub(in crate::http) fn wake_blocked(&self) {
        if self.in_flight.load(Ordering::Relaxed) == 0 {
            return;
        }
        let members: Vec<_> = self
            .lock()
            .all
            .iter()
            .filter_map(|member| member.state.upgrade())
            .collect();
        members
            .iter()
            .filter(|state| state.in_flight() > 0 && !state.is_blocked())
            .for_each(|state| state.wake());
    }

    /// The first of them has reached its age.
    pub(in crate::http) fn max_age_reached(&self) {
        self.aged.notify_one();
    }

    /// Returns when the first of them has reached its age.
    pub(in crate::http) async fn aged(&self) {
        self.aged.notified().await;
    }

    /// Ends them one after the other. To be called when the connection has said that it takes no more.
    pub(in crate::http) async fn hand_over(&self) {
        self.leaving.store(true, Ordering::Release);
        // They stay: those that have not ended yet are woken as before.
        let members: Vec<_> = self
            .lock()
            .all
            .iter()
            .map(|member| member.state.clone())
            .collect();
        for member in members {
            let Some(state) = member.upgrade() else {
                continue;
            };
            state.close(CloseReason::Age);
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
        for member in self.all.iter_mut().filter(|member| member.due <= now) {
            member.due = NEVER;
            due.extend(member.state.upgrade());
        }
        self.next = self
            .all
            .iter()
            .map(|member| member.due)
            .min()
            .filter(|due| *due != NEVER);
        due
    }
}

impl GroupTimer {
    pub(in crate::http) fn new(group: Arc<H2StreamGroup>) -> Self {
        Self {
            group,
            timer: None,
            set: None,
        }
    }

    /// Wakes whoever is due. To be polled with the connection, whose task is woken when it is to be polled.
    pub(in crate::http) fn poll(&mut self, task: &mut Context<'_>) {
        self.group.task.register(task.waker());
        loop {
            let next = self.group.lock().next;
            let Some(next) = next else { return };
            let deadline = || tokio::time::Instant::from_std(instant_of(next));
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline())));
            if self.set != Some(next) {
                self.set = Some(next);
                timer.as_mut().reset(deadline());
            }
            if timer.as_mut().poll(task).is_pending() {
                return;
            }
            let due = self
                .group
                .lock()
                .take_due(ticks_at(Instant::now()).max(next));
            self.set = None;
            due.iter().for_each(|state| state.wake());
        }
    }
}
