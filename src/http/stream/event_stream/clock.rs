//! What an event stream does by the clock: heartbeats, positions, its age, and the wait for tokens.

use std::task::Context;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::EventStream;
use crate::http::stream::compact_time::CompactInstant;
use crate::http::stream::write_batch::WriteBatch;
use crate::presence::CloseReason;
use crate::sse::encode;
use crate::sse::id::Joined;

/// 10 s: twice what a connection takes to hand its event streams over.
const ALONE_AFTER: Duration = Duration::from_secs(10);

impl EventStream {
    /// Says what is to be said by now, if anything; otherwise the task is woken at the deadline.
    pub(super) fn poll_timer(&mut self, task: &mut Context<'_>, out: &mut WriteBatch) {
        while let Some(instant) = self.poll_deadline(task) {
            let now = self.state.began.at(instant);
            if now >= self.age {
                let Some(group) = self.group.as_ref().filter(|_| !self.has_reported_age) else {
                    self.end(CloseReason::Age);
                    return;
                };
                // The connection ends it, with the others; should it not come to that, it ends alone.
                group.max_age_reached();
                self.has_reported_age = true;
                self.age = now.after(CompactInstant::lasting(ALONE_AFTER));
            }
            let until = self.throttle.as_mut().map(|throttle| &mut throttle.until);
            if until
                .and_then(|until| until.take_if(|until| instant >= *until))
                .is_some()
            {
                // There are tokens: what waits for them is read.
                task.waker().wake_by_ref();
            }
            let state = self.state.clone();
            let config = &state.route.config;
            let silent = config
                .checkpoint
                .is_some_and(|silence| now >= self.last_id.after(CompactInstant::lasting(silence)));
            if silent && self.checkpoint() {
                out.write(|bytes| encode::put_position(bytes, Joined(&self.positions)));
                self.last_write = now;
            } else if now >= self.last_write.after(self.silence()) {
                out.push(Bytes::from_static(encode::HEARTBEAT));
                self.last_write = now;
            }
            if silent {
                self.last_id = now;
            }
            self.set_deadline();
        }
        self.is_timed = true;
    }

    /// The time, if it is the deadline or later; otherwise the task is woken at the deadline.
    fn poll_deadline(&mut self, task: &mut Context<'_>) -> Option<Instant> {
        if self.group.is_none() {
            let deadline = self.state.began.instant(self.deadline).into();
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if timer.as_mut().poll(task).is_pending() {
                return None;
            }
        }
        let now = Instant::now();
        (self.state.began.at(now) >= self.deadline).then_some(now)
    }

    fn silence(&self) -> CompactInstant {
        CompactInstant::lasting(
            self.state
                .route
                .config
                .heartbeat
                .mul_f32(self.heartbeat_jitter),
        )
    }

    /// Sets the next deadline, and sees to it that the task is woken at it.
    pub(super) fn set_deadline(&mut self) {
        self.deadline = self.next_deadline();
        self.is_timed = false;
        let began = self.state.began;
        if let Some(group) = &self.group {
            group.wake_at(&self.state, began.ticks_at(self.deadline));
        } else if let Some(timer) = &mut self.timer {
            timer.as_mut().reset(began.instant(self.deadline).into());
        }
    }

    pub(super) fn next_deadline(&self) -> CompactInstant {
        let config = &self.state.route.config;
        let beat = self.last_write.after(self.silence());
        let mark = config.checkpoint.map_or(self.age, |silence| {
            self.last_id.after(CompactInstant::lasting(silence))
        });
        let tokens = self.throttle.as_ref().and_then(|throttle| throttle.until);
        // Not before there are any.
        let tokens = tokens.map_or(self.age, |until| {
            self.state.began.at(until).after(CompactInstant::new(1))
        });
        beat.min(mark).min(self.age).min(tokens)
    }

    /// Moves the position to where the sources are known to be, if nothing waits. True if it moved.
    pub(super) fn checkpoint(&mut self) -> bool {
        let mut moved = false;
        for (cursor, position) in self.cursors.iter_mut().zip(&mut self.positions) {
            moved |= cursor.checkpoint();
            *position = cursor.position();
        }
        moved
    }
}
