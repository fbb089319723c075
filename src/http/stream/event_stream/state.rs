//! The latest state of a client's subjects: at the beginning of its event stream, and again.
//!
//! ```text
//! opening  --> sidestream.snapshot --> state --> sidestream.synced --> events of the cursor
//!                      ^                                                 |
//!                      +--- the state is read again <--- gap, lag -------+
//! ```
//!
//! A client of a route with `begin: latest` has no code for gaps. If it misses events, or falls out of
//! memory, it receives the state again: the history of a stream may lack removals that were purged
//! meanwhile. Its event stream remains open. A client that falls out of memory while it receives the
//! state continues in the history until it reaches the window, so that one on a slow network makes
//! progress.
//!
//! Between the gap and `sidestream.synced` the client has no new position: a close event has no id
//! then, and the client that returns with its old one, or none, receives the state.

use std::borrow::Cow;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use super::{EventStream, Once};
use crate::encoding::Framing;
use crate::event::id::Joined;
use crate::feed::{Cursor, Gap, GapReason, OpenError, Slow, SlowPolicy, StateItem};
use crate::http::config::RouteBegin;
use crate::http::stream::write_batch::{BATCH_BYTES, WriteBatch};
use crate::presence::CloseReason;

impl EventStream {
    /// Returns true if its client folds the events into a state.
    pub(super) fn is_state(&self) -> bool {
        self.state.route.config.begin == RouteBegin::Latest && self.cursors.len() == 1
    }

    /// Returns true if the client's state is not exact after this gap.
    pub(super) fn needs_state(&self, gap: Gap) -> bool {
        let is_exact = match gap.reason {
            // The newest event of each subject follows; or the message has no valid form in the
            // version of the client, also in a state.
            GapReason::Conflated | GapReason::Conversion | GapReason::Schema => true,
            // The message is too large for an event, also in a state.
            GapReason::Upstream => gap.missed == Some(1),
            _ => false,
        };
        !is_exact && self.is_state()
    }

    /// Returns the policy for a client that was slow. A state is not shed: the newest event of each
    /// subject is part of it.
    pub(super) fn slow_policy(&self) -> Cow<'_, Slow> {
        let slow = &self.state.route.config.slow;
        if self.is_state() && slow.policy == SlowPolicy::Shed {
            return Cow::Owned(Slow {
                policy: SlowPolicy::Conflate,
                ..*slow
            });
        }
        Cow::Borrowed(slow)
    }

    /// Begins to read the state again if the client falls out of memory.
    pub(super) fn check_window(&mut self) {
        let is_replaying = self.cursors.iter().any(Cursor::is_replaying);
        if is_replaying && self.is_in_window {
            return self.begin_state_again("lag");
        }
        self.is_in_window = !is_replaying;
    }

    /// Begins to read the state again, because the client has missed events.
    #[cold]
    pub(super) fn begin_state_again(&mut self, reason: &'static str) {
        let [cursor] = &self.cursors[..] else { return };
        let again = Some(cursor.read_state());
        match &mut self.once {
            Some(once) => (once.again, once.snapshot) = (again, None),
            None => {
                self.once = Some(Box::new(Once {
                    again,
                    ..Once::default()
                }));
            }
        }
        self.state.set_resuming();
        self.is_in_window = false;
        self.pending_events = 0;
        let cause = if reason == "lag" { "lag" } else { "gap" };
        let states = &self.context.metrics.states_total;
        states.with_label_values(&[cause]).inc();
        if self.state.framing == Framing::LongPoll {
            // The next poll, without a position, is answered with the whole state.
            self.end(CloseReason::Answered);
        }
        if self.context.gap_log_limiter.take(1).is_err() {
            self.context.metrics.log_lines_suppressed_total.inc();
            return;
        }
        tracing::info!(
            client = &*self.state.client,
            client.addr = %self.state.peer.text(),
            route = &*self.state.route.label,
            reason,
            "sending the state again"
        );
    }

    /// Returns true until the client has received the whole state: it has no position.
    pub(super) fn is_in_snapshot(&self) -> bool {
        self.once
            .as_ref()
            .is_some_and(|once| once.snapshot.is_some() || once.again.is_some())
    }

    /// Writes the next events of the state, or waits for a state that is read again.
    pub(super) fn poll_snapshot(&mut self, task: &mut TaskContext<'_>, out: &mut WriteBatch) {
        let Some(once) = &mut self.once else { return };
        if let Some(again) = &mut once.again {
            let Poll::Ready(read) = Pin::new(again).poll(task) else {
                return;
            };
            once.again = None;
            let began = read.and_then(|state| match &mut self.cursors[..] {
                [cursor] => cursor.begin_state(state),
                _ => Err(OpenError::NotReady),
            });
            match began {
                Ok(snapshot) => once.snapshot = Some(snapshot),
                Err(error) => return self.end_without_state(error),
            }
            let encoder = self.encoder();
            out.write(|bytes| encoder.put_snapshot(bytes));
        }
        self.write_snapshot(out);
    }

    /// Ends the event stream: the client returns and receives the state, or a rejection.
    fn end_without_state(&mut self, error: OpenError) {
        // The client has no new position until then.
        if let (Some(once), [cursor]) = (&mut self.once, &self.cursors[..]) {
            once.again = Some(cursor.read_state());
        }
        tracing::debug!(client = &*self.state.client, ?error, "state cannot be read");
        self.end(CloseReason::Upstream);
    }

    /// Writes the next events of the state, and after the last one the position.
    fn write_snapshot(&mut self, out: &mut WriteBatch) {
        let encoder = self.encoder();
        while out.bytes < BATCH_BYTES {
            let once = self.once.as_mut();
            match once.and_then(|once| once.snapshot.as_mut()?.next()) {
                Some(StateItem::Event { encoding, received }) => {
                    out.count(1, received);
                    out.write(|bytes| encoder.put_state(bytes, &encoding.shared()));
                }
                Some(StateItem::Gap(gap)) => {
                    out.write(|bytes| self.put_gap(bytes, gap, None));
                    let positions = self.positions();
                    self.report_gap(gap, Some(0), &positions);
                }
                None => {
                    self.end_snapshot(out);
                    break;
                }
            }
        }
        self.note_write(out);
    }

    /// Writes the position of the client that has received the whole state.
    fn end_snapshot(&mut self, out: &mut WriteBatch) {
        if let Some(once) = &mut self.once {
            once.snapshot = None;
        }
        self.release_once();
        let (encoder, positions) = (self.encoder(), self.positions());
        out.write(|bytes| encoder.put_synced(bytes, &Joined(&positions)));
    }
}
