//! State machine of one event stream: cursors, heartbeat, `max_age`, expiry and end, as bytes.
//!
//! An event stream knows no transport. Its task, `h1::stream` or `h2::stream`, polls
//! [`EventStream::poll_next`] and writes the batch that it returns:
//!
//! ```text
//! poll_next:  first bytes -> end requested? -> events of every source -> timer -> close event
//!             Step::More    call again when the batch is written
//!             Step::Wait    call again when the task is woken: feed, timer, or a request to end
//!             Step::Close   the batch is the last one
//! ```
//!
//! Events that are returned count as sent: the task writes them or ends the event stream. The
//! positions of its cursors are therefore those of the last bytes returned, and the id of every
//! event, gap and close event is made of them.
//!
//! An end does not discard events. Those that wait when a drain or `max_age` ends the event stream
//! are delivered first (`pending_events`); events published later belong to the client's
//! next connection. After the expiry of the principal or a revocation no event is delivered: the
//! client continues at the position of the close event when it has authenticated again.
//!
//! A client that begins with the latest state receives it in front of the events of its cursor, and
//! again in place of a gap (`event_stream/state.rs`).
//!
//! While an event stream is idle and its client receives every event, its transport allows direct
//! writes ([`EventStream::allow_direct_writes`]).

mod changes;
mod clock;
mod close;
mod gaps;
pub(in crate::http) mod long_poll;
pub(in crate::http) mod opening;
mod state;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use tokio::time::Sleep;

use super::compact_time::{self, CompactInstant};
use super::cursors::Cursors;
use super::direct_path::DirectPath;
use super::expiry::Renewal;
use super::group::StreamGroup;
use super::state::StreamState;
use super::subscriptions::Subscriptions;
use super::throttle::{ClientLimits, ThrottlePass};
use super::write_batch::{BATCH_BYTES, WriteBatch, Written};
use crate::encoding::grpc::Trailers;
use crate::encoding::{Encoder, Encoding, Framing};
use crate::event::id::Joined;
use crate::event::{Position, Version};
use crate::feed::{
    Cursor, DirectSink, Item, Read, ReadPolicy, Shedder, SnapshotReader, StateRead, Throttle,
};
use crate::http::config::CloseStyle;
use crate::http::context::Context;
use crate::limit::clients::Limit;
use crate::presence::{CloseReason, Registration, State, StreamHandle as _};
use crate::telemetry::trace::StreamSpan;

/// One open event stream.
#[derive(Debug)]
pub(in crate::http) struct EventStream {
    // Declared before the cursors: it leaves the stream table before they are dropped.
    registration: Registration,
    state: Arc<StreamState>,
    context: Arc<Context>,
    /// Limits of its client; `None` for most clients.
    limits: Option<Box<ClientLimits>>,
    cursors: Cursors,
    /// Bytes that are written once. `None` after the opening, unless something is due later or the
    /// client can change its subjects.
    once: Option<Box<Once>>,
    /// HTTP/1: wakes the task at the deadline. Created at the first idle turn.
    timer: Option<Pin<Box<Sleep>>>,
    /// HTTP/2: the event streams of the connection. It wakes the task at the deadline.
    group: Option<Arc<StreamGroup>>,
    /// Time at which [`EventStream::poll_timer`] has something to do.
    deadline: CompactInstant,
    /// The task will be woken at the deadline.
    is_timed: bool,
    /// Latest state: events after the state were read from memory.
    is_in_window: bool,
    /// Time of the last bytes returned.
    last_write: CompactInstant,
    /// Time of the last id returned.
    last_id: CompactInstant,
    /// End of the route's `max_age`, with jitter.
    expires: CompactInstant,
    /// Time of the renewal, and then of the expiry of the principal, or of the deadline of a call.
    /// Both end this event stream only, not its connection.
    principal_due: CompactInstant,
    stage: Stage,
    /// Reason for the end that has begun.
    ending: Option<CloseReason>,
    /// At the end: events that are still delivered before the close event.
    pending_events: u32,
    /// Sum of the events in its gaps, where their number is known; saturates.
    missed_events: u32,
}

/// State that few event streams need for long: bytes that are written once, a call, and subjects that
/// change.
#[derive(Debug, Default)]
struct Once {
    /// First bytes; empty after [`Stage::Opening`].
    opening: Bytes,
    /// State that the client receives before the events of its cursor, until it is written.
    snapshot: Option<SnapshotReader>,
    /// State that is being read again.
    again: Option<StateRead>,
    /// Renewal of the credentials, until the client is asked for it.
    renewal: Option<Renewal>,
    /// Deadline of a gRPC call, if its client has set one.
    deadline: Option<CompactInstant>,
    /// gRPC: the trailers, when the last bytes are returned.
    trailers: Option<Trailers<'static>>,
    /// Subjects that the client of a WebSocket can change; they stay until the end.
    subscriptions: Option<Box<Subscriptions>>,
    /// Span of the event stream, if traces record it.
    span: Option<Box<StreamSpan>>,
}

/// Stages of an event stream, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The first bytes are not written.
    Opening,
    Open,
    /// HTTP/2: the group knows that `max_age` is reached.
    AgeReported,
    /// The socket has accepted everything, the end included.
    Delivered,
}

/// Result of one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Step {
    /// There may be more at once.
    More,
    /// The batch is complete; the task is woken when there is more.
    Wait,
    /// The batch is the last one.
    Close(CloseReason),
}

impl EventStream {
    pub(in crate::http) fn state(&self) -> &Arc<StreamState> {
        &self.state
    }

    /// Returns the encoder of its framing.
    fn encoder(&self) -> &'static dyn Encoder {
        self.state.framing.encoder()
    }

    /// Returns the version of the payloads, if the route has versions: that of its feeds.
    fn version(&self) -> Option<Version> {
        self.cursors.first()?.version()
    }

    /// Joins the group of its HTTP/2 connection.
    pub(in crate::http) fn join(&mut self, group: &Arc<StreamGroup>, stream: u32) {
        self.group = Some(Arc::clone(group));
        // With the jitter of the connection.
        self.deadline = self.next_deadline();
        group.add(&self.state, stream, self.due(), self.slack().ticks());
    }

    /// Returns true if its end must look like a broken connection (the route's `close: abort`).
    pub(in crate::http) fn is_aborted(&self) -> bool {
        // A client that treats a regular end as final is right about this one. The end of a call has
        // a status.
        self.state.route.config.close == CloseStyle::Abort
            && self.ending != Some(CloseReason::End)
            && !self.state.framing.is_grpc()
    }

    /// Returns the next bytes, or waits for them. In the same poll the caller must have called
    /// [`StreamState::poll_close_request`], so that a request to end wakes the task.
    pub(in crate::http) fn poll_next(
        &mut self,
        task: &mut TaskContext<'_>,
        out: &mut WriteBatch,
    ) -> Poll<Step> {
        let Some(coding) = self.state.coding else {
            return self.poll_plain(task, out);
        };
        let is_first = self.stage == Stage::Opening;
        let step = ready!(self.poll_plain(task, out));
        // An end that looks like a broken connection has no regular end of the coding.
        let is_last = matches!(step, Step::Close(_)) && !self.is_aborted();
        let turn = out.code(coding, is_first, is_last, self.state.checksum());
        self.state.set_checksum(turn.checksum);
        let metrics = &self.state.route.metrics;
        metrics.compressed(coding, turn.plain, turn.sent);
        Poll::Ready(step)
    }

    /// Returns the next bytes before the content coding, or waits for them.
    fn poll_plain(&mut self, task: &mut TaskContext<'_>, out: &mut WriteBatch) -> Poll<Step> {
        if self.stage == Stage::Opening {
            self.write_opening(out);
        }
        if let (None, Some(close)) = (self.ending, self.state.close_request()) {
            self.end(close);
        }
        let was_slow = self.state.take_slow();
        let time = self.last_turn(was_slow);
        if time >= self.expires.min(self.principal_due) {
            self.reach_due(time, out);
            self.set_deadline();
        }
        let mut shedder = if was_slow {
            self.start_shedding()
        } else {
            None
        };
        // A client that was too slow, or that must authenticate again, receives the close event,
        // and resumes for the rest.
        let is_denied = matches!(
            self.ending,
            Some(
                CloseReason::Slow
                    | CloseReason::Expired
                    | CloseReason::Revoked
                    | CloseReason::Deadline
                    | CloseReason::End
            )
        );
        if self.is_in_snapshot() {
            // The events wait for the state, which is written below.
        } else if self.is_changing() && self.poll_changes(task, out) {
            // The events wait for the new cursors.
        } else if !is_denied {
            match self.poll_events(task, out, shedder.as_mut()) {
                Some(CloseReason::End) => self.finish(),
                Some(close) => self.end(close),
                None => {}
            }
            if let Some(shedder) = &shedder {
                self.count_skipped(shedder.skipped());
            }
        }
        if self.ending.is_none() && self.is_in_snapshot() {
            self.poll_snapshot(task, out);
        }
        if out.is_empty() && self.ready_to_close().is_none() {
            self.poll_timer(task, out);
        }
        if let Some(close) = self.ready_to_close() {
            self.write_close(close, out);
            return Poll::Ready(Step::Close(close));
        }
        if out.is_empty() {
            return Poll::Pending;
        }
        Poll::Ready(if self.will_be_woken() {
            Step::Wait
        } else {
            Step::More
        })
    }

    fn write_opening(&mut self, out: &mut WriteBatch) {
        self.stage = Stage::Open;
        let Some(once) = &mut self.once else { return };
        out.push(std::mem::take(&mut once.opening));
        self.release_once();
    }

    /// Releases the memory of what is written once, unless something waits in it.
    fn release_once(&mut self) {
        self.once.take_if(|once| {
            once.snapshot.is_none()
                && once.again.is_none()
                && once.renewal.is_none()
                && once.deadline.is_none()
                && once.subscriptions.is_none()
                && once.span.is_none()
        });
    }

    /// Returns the trailers of a gRPC call whose last bytes were returned.
    pub(in crate::http) fn take_trailers(&mut self) -> Option<Trailers<'static>> {
        self.once.as_mut()?.trailers.take()
    }

    /// Notes the time of bytes with an id.
    fn note_write(&mut self, out: &mut WriteBatch) {
        let now = compact_time::now();
        self.last_write = self.state.clock.at(now);
        self.last_id = self.last_write;
        out.stats.batched_at = Some(now);
    }

    /// Returns the reason if the event stream ends and no event is pending.
    fn ready_to_close(&self) -> Option<CloseReason> {
        self.ending.filter(|_| self.pending_events == 0)
    }

    /// Returns true if the task is woken by whatever comes next, so that another turn would be
    /// idle.
    fn will_be_woken(&self) -> bool {
        // A deadline that has passed has woken the task already, perhaps for this very turn.
        self.ending.is_none()
            && self.is_timed
            && self.last_write < self.deadline
            && self.cursors.iter().all(Cursor::is_waiting)
            && !self.state.is_resuming()
            && !self.is_changing()
    }

    /// Creates the control of direct writes to this event stream.
    pub(in crate::http) fn direct_path(&self) -> DirectPath {
        DirectPath::new(self.state.clone(), self.context.load_level.clone())
    }

    /// Registers a sink for direct writes. An event stream with several sources has none: its ids
    /// are its own.
    pub(in crate::http) fn set_direct_sink(&self, sink: Arc<dyn DirectSink>) {
        if let [cursor] = &self.cursors[..] {
            cursor.set_sink(sink);
        }
    }

    /// Ends direct writes after those that happened, and adopts the time of the last one. The task
    /// may have to wait for its transport before it reads.
    pub(in crate::http) fn adopt_direct_writes(&mut self, last_write: CompactInstant) {
        self.end_direct_writes();
        (self.last_write, self.last_id) = (last_write, last_write);
    }

    /// Ends direct writes without a turn: the task has other bytes to write.
    pub(in crate::http) fn end_direct_writes(&self) {
        self.cursors.iter().for_each(Cursor::take_over);
    }

    /// Allows direct writes until the next turn, if it waits for events and receives every one.
    /// The transport has accepted all bytes.
    pub(in crate::http) fn allow_direct_writes(&self) {
        let has_rate = self
            .limits
            .as_ref()
            .is_some_and(|limits| limits.events().is_some());
        let [cursor] = &self.cursors[..] else { return };
        if !has_rate
            && !self.state.route.config.finite
            && self.will_be_woken()
            && self.state.is_active()
            && !self.state.has_slow_mark()
        {
            cursor.allow_direct();
        }
    }

    /// Returns the position in each source: the event id.
    fn positions(&self) -> SmallVec<[Position; 1]> {
        self.cursors.iter().map(Cursor::position).collect()
    }

    /// Counts bytes that reached the socket.
    pub(in crate::http) fn record_written(&self, written: Written) {
        self.state
            .count(&self.state.route, self.state.framing, written);
        self.log_active();
    }

    /// Records that the socket has accepted everything, the end included.
    pub(in crate::http) fn set_delivered(&mut self) {
        self.stage = Stage::Delivered;
    }

    /// Logs, once, that it is live: its first bytes are written, and it has caught up.
    fn log_active(&self) {
        // Without presence there is no state between the lines of its opening and its end.
        let is_changed = self.state.becomes_active() && self.registration.changed();
        if is_changed && self.state.framing != Framing::LongPoll {
            let state = &self.state;
            tracing::info!(
                client = &*state.client,
                client.addr = %state.peer.text(),
                route = &*state.route.label,
                protocol = state.peer.protocol.as_str(),
                state = State::Active.as_str(),
                "event stream active"
            );
        }
    }

    /// Begins the end, unless it has begun.
    pub(in crate::http) fn end(&mut self, close: CloseReason) {
        if self.ending.is_some() {
            return;
        }
        self.state.close(close);
        // Events that wait now are delivered; later ones belong to the next connection.
        self.pending_events = match close {
            CloseReason::Drain | CloseReason::Age if !self.is_in_snapshot() => {
                u32::try_from(self.state.lag().events).unwrap_or(u32::MAX)
            }
            _ => 0,
        };
        self.ending = Some(close);
    }

    /// Ends a finite event stream. It replaces an end that has begun: no event is left for another
    /// connection.
    fn finish(&mut self) {
        self.state.close(CloseReason::End);
        self.pending_events = 0;
        self.ending = Some(CloseReason::End);
    }

    /// Begins to shed events of a client that was slow until now, or ends it if too many wait.
    fn start_shedding(&mut self) -> Option<Shedder> {
        let waiting = self.state.lag().events;
        if self.state.exceeds_max_lag(waiting) {
            self.end(CloseReason::Slow);
            return None;
        }
        (!self.state.is_resuming()).then(|| Shedder::new(&self.slow_policy(), waiting))
    }

    /// Reads every source once. Returns a reason if the event stream must end.
    fn poll_events(
        &mut self,
        task: &mut TaskContext<'_>,
        out: &mut WriteBatch,
        mut shedder: Option<&mut Shedder>,
    ) -> Option<CloseReason> {
        let mut caught_up = true;
        let mut end = None;
        let is_state = self.is_state();
        let mut limits = self.limits.take();
        let was_waiting = is_waiting(limits.as_deref());
        // Events that are pending at the end are not limited.
        let mut pass = match self.ending {
            None => ThrottlePass::new(&mut limits, self.context.load_level.level())
                .map(|pass| if is_state { pass.keep_all() } else { pass }),
            Some(_) => None,
        };
        // Another source first in each turn: one that fills every turn must not starve the others.
        let first = match self.cursors.len() {
            1 => 0,
            sources => fastrand::usize(..sources),
        };
        // Runs of copied events carry the ids of a single source.
        out.batch.copy_small = self.cursors.len() == 1;
        for turn in 0..self.cursors.len() {
            let source = (first + turn) % self.cursors.len();
            let budget = BATCH_BYTES.saturating_sub(out.bytes);
            let mut policy = ReadPolicy {
                budget,
                shedder: shedder.as_deref_mut(),
                throttle: pass.as_mut().map(|pass| pass as &mut dyn Throttle),
            };
            match self.cursors[source].poll_read(task, &mut out.batch, &mut policy) {
                Poll::Ready(Read::Some) => caught_up = false,
                Poll::Ready(Read::Ended) => end = Some(CloseReason::Upstream),
                Poll::Pending => continue,
            }
            let before = out.stats.events;
            if self.write_items(source, out) {
                end = Some(CloseReason::End);
            }
            let written = (out.stats.events - before) as u32;
            self.pending_events = self.pending_events.saturating_sub(written);
        }
        if let Some(pass) = pass {
            self.count_skipped(pass.skipped());
        }
        self.limits = limits;
        self.wait_for_tokens(was_waiting);
        if caught_up {
            // No event waits, or only those of a replay: the next pod reads them from this
            // position.
            self.pending_events = 0;
        }
        if is_state {
            self.check_window();
        }
        if caught_up && self.state.is_resuming() && !self.cursors.iter().any(Cursor::is_replaying) {
            self.state.set_caught_up();
            self.log_active();
        }
        end
    }

    /// Sets the timer if events wait for tokens.
    fn wait_for_tokens(&mut self, was_waiting: bool) {
        let is_waiting = is_waiting(self.limits.as_deref());
        if is_waiting && !was_waiting {
            self.context
                .metrics
                .throttled_total
                .with_label_values(&[Limit::Events.as_str()])
                .inc();
        }
        if is_waiting || was_waiting {
            self.set_deadline();
        }
    }

    /// Moves the items that a cursor has read to the output. With several sources each event gets
    /// an id of all positions. Returns true if the client of a finite event stream has everything.
    fn write_items(&mut self, source: usize, out: &mut WriteBatch) -> bool {
        let mut is_end = false;
        let mut items = std::mem::take(&mut out.batch.items);
        // The ids of a client of several sources are its own. Every item sets the position in its
        // source; those in the others do not change here.
        let has_one_source = self.cursors.len() == 1;
        let mut id = if has_one_source {
            SmallVec::new()
        } else {
            self.positions()
        };
        for item in items.drain(..) {
            match item {
                Item::Event {
                    encoding,
                    position,
                    received,
                    is_end: is_last,
                    sample,
                    ..
                } => {
                    is_end |= is_last;
                    out.count(1, received);
                    out.note_sample(sample);
                    if has_one_source {
                        out.push_events(encoding.into_enveloped(), false);
                    } else {
                        id[source] = position;
                        self.put_with_own_id(&encoding, &id, out);
                    }
                }
                Item::Copied { run, copied } => {
                    out.count(copied.events, copied.received);
                    out.note_sample(copied.sample);
                    out.push_events(run, true);
                }
                Item::Coded {
                    events,
                    copied,
                    is_end: is_last,
                } => {
                    is_end |= is_last;
                    out.count(copied.events, copied.received);
                    out.note_sample(copied.sample);
                    out.push_block(events.coded());
                }
                Item::Gap { gap, .. } if self.needs_state(gap) => {
                    // What follows the gap is part of the state.
                    self.begin_state_again(gap.reason.as_str());
                    break;
                }
                Item::Gap { gap, position } => {
                    if has_one_source {
                        id = SmallVec::from_buf([position]);
                    } else {
                        id[source] = position;
                    }
                    self.report_gap(gap, Some(source), &id);
                    out.write(|bytes| self.put_gap(bytes, gap, Some(&id)));
                }
            }
        }
        out.batch.items = items;
        if !out.is_empty() {
            self.note_write(out);
        }
        is_end
    }

    /// Writes an event of several sources: the bytes that clients share, and an id of all positions.
    fn put_with_own_id(&self, encoding: &Encoding, id: &[Position], out: &mut WriteBatch) {
        let encoder = self.encoder();
        let shared = encoding.shared();
        let length = shared.len();
        let put_id = |out: &mut BytesMut| encoder.put_id(out, &Joined(id), length);
        if encoder.is_id_first() {
            out.write(put_id);
            out.push(shared);
        } else {
            out.push(shared);
            out.write(put_id);
        }
    }
}

/// Returns true if events wait for tokens.
fn is_waiting(limits: Option<&ClientLimits>) -> bool {
    limits.is_some_and(|limits| limits.until.is_some())
}
