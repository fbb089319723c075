//! The timer of an event stream: heartbeats, positions, `max_age`, renewal and expiry of the
//! principal, and the wait for tokens.
//!
//! One deadline covers all of them: [`EventStream::next_deadline`] is the earliest. On HTTP/1 the
//! event stream has a timer of its own, which is created at the first idle turn. On HTTP/2 the
//! timer of the connection's group wakes the task, so that 256 event streams need one timer. When one
//! of them is due, the group also wakes those whose heartbeat or position is due soon: all are written
//! together ([`EventStream::slack`]).
//!
//! A write moves the heartbeat into the future without touching the timer: a timer that fires early
//! computes the next deadline and continues. A busy event stream thus costs no timer operations; it
//! compares the time of its last write with `max_age` and the expiry ([`EventStream::last_turn`]).

use std::task::Context;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{EventStream, Stage};
use crate::event::id::Joined;
use crate::http::stream::compact_time::{self, CompactInstant};
use crate::http::stream::group::Deadline;
use crate::http::stream::write_batch::WriteBatch;
use crate::presence::CloseReason;

/// 10 s: twice the time in which a connection ends its event streams one after the other.
const GROUP_END_MAX: Duration = Duration::from_secs(10);

impl EventStream {
    /// Writes what is due, if anything; otherwise the task is woken at the deadline.
    pub(super) fn poll_timer(&mut self, task: &mut Context<'_>, out: &mut WriteBatch) {
        while let Some(instant) = self.poll_deadline(task) {
            let now = self.state.clock.at(instant);
            if now >= self.expires.min(self.principal_due) {
                self.reach_due(now, out);
                if self.ending.is_some() {
                    return;
                }
            }
            let until = self.limits.as_mut().map(|limits| &mut limits.until);
            if until
                .and_then(|until| until.take_if(|until| instant >= *until))
                .is_some()
            {
                // The client has tokens: read the events that wait for them.
                task.waker().wake_by_ref();
            }
            self.write_due(now, out);
            self.set_deadline();
        }
        self.is_timed = true;
    }

    /// Writes a position or a heartbeat if one is due.
    fn write_due(&mut self, now: CompactInstant, out: &mut WriteBatch) {
        // Other event streams of the connection are written now.
        let soon = now.after(self.slack());
        let checkpoint = self.state.route.config.checkpoint;
        let is_id_due = checkpoint.is_some_and(|silence| {
            soon >= self.last_id.after(CompactInstant::from_duration(silence))
        });
        if is_id_due && !self.is_in_snapshot() && self.checkpoint() {
            let positions = self.positions();
            out.write(|bytes| self.encoder().put_position(bytes, &Joined(&positions)));
            self.last_write = now;
        } else if soon >= self.last_write.after(self.silence()) {
            out.push(Bytes::from_static(self.encoder().heartbeat()));
            self.last_write = now;
        }
        if is_id_due {
            self.last_id = now;
        }
    }

    /// Returns the time if the deadline has passed; otherwise the task is woken at the deadline.
    fn poll_deadline(&mut self, task: &mut Context<'_>) -> Option<Instant> {
        if self.group.is_none() {
            let deadline = self.state.clock.instant(self.deadline).into();
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if timer.as_mut().poll(task).is_pending() {
                return None;
            }
        }
        let now = compact_time::now();
        let ticks = self.state.clock.at(now);
        let is_due = ticks >= self.deadline
            || self.group.is_some() && ticks.after(self.slack()) >= self.next_write();
        is_due.then_some(now)
    }

    /// Returns the duration by which a heartbeat or position may be early: on HTTP/2 a quarter of the
    /// shorter interval.
    pub(super) fn slack(&self) -> CompactInstant {
        if self.group.is_none() {
            return CompactInstant::ZERO;
        }
        let checkpoint = self.state.route.config.checkpoint;
        let checkpoint = checkpoint.map_or(CompactInstant::NEVER, CompactInstant::from_duration);
        CompactInstant::new(self.silence().min(checkpoint).ticks() / 4)
    }

    /// Returns the interval of this client's heartbeat.
    fn silence(&self) -> CompactInstant {
        let heartbeat = self.state.route.config.heartbeat;
        CompactInstant::from_duration(heartbeat.mul_f32(self.heartbeat_jitter()))
    }

    /// Returns the factor of the route's heartbeat interval, from 0.5 to 1.
    ///
    /// Never longer than the interval. Connections that open together, or receive the same event, do
    /// not send their heartbeats together. The places in the stream table are numbered from 0;
    /// multiplied by the golden ratio they are spread evenly.
    fn heartbeat_jitter(&self) -> f32 {
        let own = self.registration.place();
        let place = self.group.as_ref().map_or(own, |group| group.place(own));
        let spread = place.wrapping_mul(0x9E37_79B1);
        0.5 + 0.5 * (spread as f32 / u32::MAX as f32)
    }

    /// Computes the next deadline and sets the timer to it.
    pub(super) fn set_deadline(&mut self) {
        self.deadline = self.next_deadline();
        self.is_timed = false;
        if let Some(group) = &self.group {
            group.wake_at(&self.state, self.due());
        } else if let Some(timer) = &mut self.timer {
            let deadline = self.state.clock.instant(self.deadline);
            timer.as_mut().reset(deadline.into());
        }
    }

    /// Returns the deadline for the group.
    pub(super) fn due(&self) -> Deadline {
        let may_be_early = self.deadline == self.next_write();
        Deadline::at(self.state.clock.ticks_at(self.deadline), may_be_early)
    }

    /// Returns the time of the last write, or after a stall the current time.
    ///
    /// A busy event stream does not reach its timer, and this is called in every turn: the time of
    /// the last write needs no clock. It is old only if the socket was blocked since.
    pub(super) fn last_turn(&self, was_slow: bool) -> CompactInstant {
        if was_slow {
            self.state.clock.at(compact_time::now())
        } else {
            self.last_write
        }
    }

    /// Acts on the principal and on `max_age`, of which at least one is due.
    #[cold]
    pub(super) fn reach_due(&mut self, now: CompactInstant, out: &mut WriteBatch) {
        if now >= self.principal_due {
            self.reach_principal_due(now, out);
        }
        if self.ending.is_none() && now >= self.expires {
            self.reach_max_age(now);
        }
    }

    /// Begins the end. On HTTP/2 the connection ends all its event streams; if it does not, this
    /// one ends alone.
    fn reach_max_age(&mut self, now: CompactInstant) {
        let Some(group) = self.group.as_ref().filter(|_| self.stage == Stage::Open) else {
            self.end(CloseReason::Age);
            return;
        };
        group.max_age_reached();
        self.stage = Stage::AgeReported;
        self.expires = now.after(CompactInstant::from_duration(GROUP_END_MAX));
    }

    /// Asks the client to renew its credentials, once; if they have expired, or the deadline of the
    /// call is over, begins the end.
    fn reach_principal_due(&mut self, now: CompactInstant, out: &mut WriteBatch) {
        let deadline = self.once.as_ref().and_then(|once| once.deadline);
        if deadline.is_some_and(|deadline| now >= deadline) {
            self.end(CloseReason::Deadline);
            return;
        }
        let renewal = self.once.as_mut().and_then(|once| once.renewal.take());
        self.release_once();
        let Some(renewal) = renewal else {
            // Not the connection: its other event streams may have other principals.
            self.end(CloseReason::Expired);
            return;
        };
        self.release_once();
        self.principal_due = deadline.map_or(renewal.end, |deadline| deadline.min(renewal.end));
        if now >= renewal.end {
            self.end(CloseReason::Expired);
        } else if self.ending.is_none() {
            out.write(|bytes| self.encoder().put_renew(bytes, renewal.unix_seconds));
            self.last_write = now;
        }
    }

    /// Returns the earliest of heartbeat, position, `max_age`, renewal or expiry, and tokens.
    pub(super) fn next_deadline(&self) -> CompactInstant {
        let tokens = self.limits.as_ref().and_then(|limits| limits.until);
        // One tick later: the time was rounded down, and there are no tokens before it.
        let tokens = tokens.map_or(self.expires, |until| {
            self.state.clock.at(until).after(CompactInstant::new(1))
        });
        let end = self.expires.min(self.principal_due);
        self.next_write().min(end).min(tokens)
    }

    /// Returns the earlier one of heartbeat and position.
    fn next_write(&self) -> CompactInstant {
        let heartbeat = self.last_write.after(self.silence());
        let checkpoint = self.state.route.config.checkpoint;
        checkpoint.map_or(heartbeat, |silence| {
            let position = self.last_id.after(CompactInstant::from_duration(silence));
            heartbeat.min(position)
        })
    }

    /// Advances the positions to the heads of the sources if no events wait. True if one moved.
    pub(super) fn checkpoint(&mut self) -> bool {
        let mut has_moved = false;
        for cursor in self.cursors.iter_mut() {
            has_moved |= cursor.checkpoint();
        }
        has_moved
    }
}
