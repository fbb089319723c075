//! The event streams of one HTTP/2 connection: their common timer, `max_age`, and flow control.
//!
//! - **Timer.** Every event stream reports its deadline ([`StreamGroup::wake_at`]). The
//!   connection's task polls one [`GroupTimer`], which wakes the event streams that are due. A
//!   browser with 100 event streams thus costs one timer. Heartbeats and positions may be early:
//!   those of a connection are written together, instead of 100 writes in 15 s.
//! - **`max_age`.** The first event stream that reaches it ends the connection: after the GOAWAY,
//!   [`StreamGroup::end_all`] ends all event streams, one every 20 ms, so that the clients
//!   reconnect over seconds. An event stream that joins meanwhile ends too.
//! - **Flow control.** A client that does not read one event stream can use up the window of the
//!   connection, so that all others wait. h2 does not report windows. The group therefore counts
//!   the bytes that were written and the WINDOW_UPDATE frames of the client, which `h2::frames`
//!   reads, and [`StreamGroup::is_held_by`] finds the event stream that holds the window.
//!
//! All methods are called on the thread of the connection, except those of its event streams'
//! [`StreamState`], which wake tasks from any thread. Lock order: `members`, then nothing; states
//! are woken after it is released.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::Context;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};

use super::compact_time::{self, instant_of, ticks_at};
use super::state::StreamState;
use crate::presence::{CloseReason, StreamHandle as _};

/// 20 ms: the clients of one connection, at most 256, reconnect over five seconds.
const END_EVERY: Duration = Duration::from_millis(20);

/// All event streams of a connection.
#[derive(Debug, Default)]
pub(in crate::http) struct StreamGroup {
    members: Mutex<Members>,
    /// Place of the first event stream in the stream table: all have the jitter of its heartbeat.
    place: OnceLock<u32>,
    /// Task of the connection: woken when a deadline becomes the earliest.
    task: AtomicWaker,
    max_age: Notify,
    /// All event streams end; those that join end at once.
    is_ending: AtomicBool,
    /// DATA frames that were passed to h2 and are not written.
    in_flight: AtomicUsize,
    /// Bytes that were written: they have used the window of the connection.
    sent: AtomicU64,
    /// Bytes of that window that the client has returned.
    returned: AtomicU64,
    /// Tick of the process at which the client last sent something while a frame was in flight.
    last_heard: AtomicU64,
    /// The client must be pinged.
    probe: AtomicBool,
    /// The client has set a window above the maximum.
    is_window_too_large: AtomicBool,
}

#[derive(Debug, Default)]
struct Members {
    /// Ordered by HTTP/2 stream.
    all: Vec<GroupEntry>,
    /// Tick of the earliest deadline; it may belong to a member that has ended.
    next: Option<u64>,
    /// Ticks by which a member may be woken early, the smallest of all members.
    slack: Option<u32>,
}

/// Deadline of an event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::http) struct Deadline(u64); // Tick of the process * 2, + 1 if it may be early.

#[derive(Debug)]
struct GroupEntry {
    state: Weak<StreamState>,
    /// [`NEVER`] after it was woken at its deadline, until the next one is reported.
    due: Deadline,
    /// HTTP/2 stream.
    stream: u32,
    /// Bytes of the stream's window that the client has returned, modulo 2^32.
    returned: u32,
}

/// 65,535: initial window of every connection (RFC 9113, 6.9.2). SETTINGS do not change it.
const FIRST_WINDOW: u64 = 65_535;

/// 1 KiB: a window with less left counts as used up; h2 may leave a rest too small for a frame.
const WINDOW_REST: u64 = 1024;

/// 3 s: a live client answers a ping ([`StreamGroup::probe`]) within this time.
const HEARD_WITHIN: Duration = Duration::from_secs(3);

const NEVER: Deadline = Deadline(u64::MAX - 1);

/// Timer of a group.
pub(in crate::http) struct GroupTimer {
    group: Arc<StreamGroup>,
    /// Created for the first deadline.
    timer: Option<Pin<Box<Sleep>>>,
    /// Deadline to which the timer is set.
    set: Option<u64>,
}

impl StreamGroup {
    /// Adds an event stream with its first deadline, and the ticks by which it may be early.
    pub(in crate::http) fn add(
        &self,
        state: &Arc<StreamState>,
        stream: u32,
        due: Deadline,
        slack: u32,
    ) {
        let mut members = self.lock();
        members.slack = Some(members.slack.map_or(slack, |least| least.min(slack)));
        if members.all.len() == members.all.capacity() {
            // Before the list grows, members that have ended are removed.
            members.all.retain(|member| member.state.strong_count() > 0);
        }
        let index = members.all.partition_point(|member| member.stream < stream);
        members.all.insert(
            index,
            GroupEntry {
                state: Arc::downgrade(state),
                due: NEVER,
                stream,
                returned: 0,
            },
        );
        drop(members);
        self.wake_at(state, due);
        if self.is_ending.load(Ordering::Acquire) {
            state.close(CloseReason::Age);
        }
    }

    /// Returns the place in the stream table that determines the jitter of heartbeats: that of the
    /// first event stream.
    pub(in crate::http) fn place(&self, own: u32) -> u32 {
        *self.place.get_or_init(|| own)
    }

    /// Replaces the deadline of an event stream.
    pub(in crate::http) fn wake_at(&self, state: &Arc<StreamState>, due: Deadline) {
        let mut members = self.lock();
        // The newest member is the last or nearly so, and there are at most 256.
        let known = members
            .all
            .iter_mut()
            .rev()
            .find(|member| member.state.as_ptr() == Arc::as_ptr(state));
        if let Some(member) = known {
            member.due = due;
        }
        let is_first = members.next.is_none_or(|next| due.ticks() < next);
        if is_first {
            members.next = Some(due.ticks());
        }
        drop(members);
        if is_first {
            self.task.wake();
        }
    }

    /// Counts a frame that is passed to h2.
    pub(in crate::http) fn add_in_flight(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a frame that was written or discarded.
    pub(in crate::http) fn remove_in_flight(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts bytes that have used the window of the connection. Only its thread writes: without a
    /// locked operation.
    pub(in crate::http) fn use_window(&self, bytes: usize) {
        self.sent.store(
            self.sent.load(Ordering::Relaxed) + bytes as u64,
            Ordering::Relaxed,
        );
    }

    /// Counts window that the client has returned for a stream, or for the connection (stream 0).
    pub(in crate::http) fn return_window(&self, stream: u32, bytes: u32) {
        if stream == 0 {
            self.returned.fetch_add(u64::from(bytes), Ordering::Relaxed);
            return;
        }
        let mut members = self.lock();
        if let Ok(index) = members
            .all
            .binary_search_by_key(&stream, |member| member.stream)
        {
            let returned = &mut members.all[index].returned;
            *returned = returned.wrapping_add(bytes);
        }
    }

    /// Records that the client has sent something.
    pub(in crate::http) fn record_heard(&self) {
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            self.last_heard
                .store(ticks_at(compact_time::now()), Ordering::Relaxed);
        }
    }

    /// Requests a ping, to learn whether the client lives.
    pub(in crate::http) fn probe(&self) {
        self.probe.store(true, Ordering::Relaxed);
        self.task.wake();
    }

    /// Returns true once if a ping was requested.
    pub(in crate::http) fn take_probe(&self) -> bool {
        self.probe.load(Ordering::Relaxed) && self.probe.swap(false, Ordering::Relaxed)
    }

    pub(in crate::http) fn set_window_too_large(&self) {
        self.is_window_too_large.store(true, Ordering::Relaxed);
    }

    pub(in crate::http) fn is_window_too_large(&self) -> bool {
        self.is_window_too_large.load(Ordering::Relaxed)
    }

    /// Returns true if others wait because this unread event stream holds the window of the
    /// connection: the window is used up, the client lives, and no event stream has more unread
    /// bytes.
    pub(in crate::http) fn is_held_by(&self, state: &StreamState) -> bool {
        let window = FIRST_WINDOW + self.returned.load(Ordering::Relaxed);
        if window.saturating_sub(self.sent.load(Ordering::Relaxed)) >= WINDOW_REST {
            return false;
        }
        let last_heard = instant_of(self.last_heard.load(Ordering::Relaxed));
        if last_heard.elapsed() > HEARD_WITHIN {
            return false;
        }
        let (mut own, mut largest, mut do_others_wait) = (0, 0, false);
        for member in &self.lock().all {
            let Some(other) = member.state.upgrade() else {
                continue;
            };
            // Windows are at most 2^31-1, so the difference is right modulo 2^32. A client may
            // return more than it received.
            let unread = other
                .flushed()
                .wrapping_sub(member.returned)
                .cast_signed()
                .max(0);
            if std::ptr::eq(&*other, state) {
                own = unread;
            } else {
                largest = largest.max(unread);
                do_others_wait |= other.is_blocked();
            }
        }
        do_others_wait && own > 0 && own >= largest
    }

    /// Wakes the event streams with bytes in flight, after a turn of the connection: their window
    /// is closed or the socket is full, and their stall timers must start.
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

    /// Reports that an event stream has reached `max_age`.
    pub(in crate::http) fn max_age_reached(&self) {
        self.max_age.notify_one();
    }

    /// Waits until an event stream has reached `max_age`.
    pub(in crate::http) async fn until_max_age(&self) {
        self.max_age.notified().await;
    }

    /// Ends all event streams, one after the other. The connection must have sent its GOAWAY.
    pub(in crate::http) async fn end_all(&self) {
        self.is_ending.store(true, Ordering::Release);
        // They stay in the list: those that have not ended yet are woken as before.
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
            sleep(END_EVERY).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Members {
    /// Returns the event streams that are due, or may be early, and computes the next deadline.
    ///
    /// A deadline that has passed is removed. One that is woken early keeps it: it may have written
    /// since, so that it has nothing to do, and then reports no other one.
    fn take_due(&mut self, now: u64) -> Vec<Arc<StreamState>> {
        let mut due = Vec::new();
        if self.all.iter().any(|member| member.due.ticks() <= now) {
            let early = now.saturating_add(u64::from(self.slack.unwrap_or(0)));
            for member in &mut self.all {
                if member.due.ticks() <= now {
                    member.due = NEVER;
                } else if !member.due.may_be_early() || member.due.ticks() > early {
                    continue;
                }
                due.extend(member.state.upgrade());
            }
        }
        let next = self.all.iter().map(|member| member.due).min();
        self.next = next.filter(|due| *due != NEVER).map(Deadline::ticks);
        due
    }
}

impl Deadline {
    /// Deadline at a tick of the process.
    pub(in crate::http) fn at(ticks: u64, may_be_early: bool) -> Self {
        Self(ticks * 2 + u64::from(may_be_early))
    }

    fn ticks(self) -> u64 {
        self.0 / 2
    }

    fn may_be_early(self) -> bool {
        self.0 % 2 == 1
    }
}

impl GroupTimer {
    pub(in crate::http) fn new(group: Arc<StreamGroup>) -> Self {
        Self {
            group,
            timer: None,
            set: None,
        }
    }

    /// Wakes the event streams that are due. Polled with the connection, whose task the group
    /// wakes.
    pub(in crate::http) fn poll(&mut self, task: &mut Context<'_>) {
        self.group.task.register(task.waker());
        loop {
            let next = self.group.lock().next;
            let Some(next) = next else { return };
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(timer_instant(next))));
            if self.set != Some(next) {
                self.set = Some(next);
                timer.as_mut().reset(timer_instant(next));
            }
            if timer.as_mut().poll(task).is_pending() {
                return;
            }
            let due = self
                .group
                .lock()
                .take_due(ticks_at(compact_time::now()).max(next));
            self.set = None;
            due.iter().for_each(|state| state.wake());
        }
    }
}

fn timer_instant(ticks: u64) -> tokio::time::Instant {
    tokio::time::Instant::from_std(instant_of(ticks))
}
