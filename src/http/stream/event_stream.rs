//! One SSE response: cursors, a heartbeat, an age and a reason to end, turned into bytes.

mod clock;
mod close;
mod gaps;
mod opening;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Instant;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::time::Sleep;

use super::compact_time::CompactInstant;
use super::direct_path::DirectPath;
use super::state::StreamState;
use super::throttle::{ThrottlePass, ThrottleState};
use super::write_batch::{BATCH_BYTES, WriteBatch, Written};
use crate::feed::{Cursor, DirectSink, Item, Read, Shedder};
use crate::http::config::CloseStyle;
use crate::http::context::Context;
use crate::http::h2::group::H2StreamGroup;
use crate::limit::ClientPermit;
use crate::limit::clients::Limit;
use crate::presence::{CloseReason, Registration, State, StreamHandle as _};
use crate::sse::id::Joined;
use crate::sse::{Position, encode};

pub(in crate::http) use gaps::LOG_RATE as GAP_LOG_RATE;
pub(in crate::http) use opening::Opening;

/// One open event stream. Two drivers carry it: the socket taken back from hyper, and an HTTP/2 body.
#[derive(Debug)]
pub(in crate::http) struct EventStream {
    // Before the cursors, so that it is out of the registry when they end.
    registration: Registration,
    state: Arc<StreamState>,
    context: Arc<Context>,
    /// Counted among those of its client, where these are limited.
    permit: Option<Box<ClientPermit>>,
    throttle: Option<Box<ThrottleState>>,
    cursors: SmallVec<[Cursor; 1]>,
    /// Where the client stands in each source, by what was handed out: the id of several sources.
    positions: SmallVec<[Position; 1]>,
    /// Which source was read first in the last turn.
    first: u16,
    opening: Option<Box<Bytes>>,
    /// HTTP/1: wakes the task at the deadline; made when there is nothing to write for the first time.
    timer: Option<Pin<Box<Sleep>>>,
    /// HTTP/2: with whom it is handed over, and who wakes the task at the deadline.
    group: Option<Arc<H2StreamGroup>>,
    /// When it is to be looked whether there is something to say.
    deadline: CompactInstant,
    /// The task is woken at the deadline.
    is_timed: bool,
    /// Its own part of the route's heartbeat: how long this client hears nothing before a comment.
    heartbeat_jitter: f32,
    /// When something was handed out last.
    last_write: CompactInstant,
    /// When an id was handed out last.
    last_id: CompactInstant,
    /// When the client is handed over.
    age: CompactInstant,
    /// HTTP/2: its family knows that it has come of age.
    has_reported_age: bool,
    ending: Option<Ending>,
    /// Sum of the events in its gaps, where their number is known; saturates.
    missed_events: u32,
    /// Everything that was handed out has been taken by the socket, its end included.
    is_delivered: bool,
}

/// An end that has begun: what the client is still owed comes first.
#[derive(Clone, Copy, Debug)]
struct Ending {
    close: CloseReason,
    pending_events: u32,
}

/// What a turn brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Step {
    /// There may be more at once.
    More,
    /// That was all: the task is woken when there is more.
    Wait,
    /// Nothing will follow.
    Close(CloseReason),
}

impl EventStream {
    pub(in crate::http) fn state(&self) -> &Arc<StreamState> {
        &self.state
    }

    /// It is one of several on its connection, which are handed over together.
    pub(in crate::http) fn join(&mut self, group: Arc<H2StreamGroup>, stream: u32) {
        group.add(
            &self.state,
            stream,
            self.state.began.ticks_at(self.deadline),
        );
        self.group = Some(group);
    }

    /// Whether its end is to look like a broken connection, by the route's `close`.
    pub(in crate::http) fn is_aborted(&self) -> bool {
        self.state.route.config.close == CloseStyle::Abort
    }

    /// The next bytes, or a wait for them. What is handed out counts as sent: the driver writes it or ends. The driver
    /// has asked in this poll whether it is to end ([`StreamState::poll_asked`]), so that its task is woken for that.
    pub(in crate::http) fn poll_next(
        &mut self,
        task: &mut TaskContext<'_>,
        out: &mut WriteBatch,
    ) -> Poll<Step> {
        if let Some(opening) = self.opening.take() {
            out.push(*opening);
        }
        if let (None, Some(close)) = (self.ending, self.state.close_request()) {
            self.end(close);
        }
        let mut shedder = self
            .state
            .take_slow()
            .then(|| self.start_shedding())
            .flatten();
        // Whoever was too slow takes the word that it was, and comes back for the rest.
        if !matches!(
            self.ending,
            Some(Ending {
                close: CloseReason::Slow,
                ..
            })
        ) {
            if let Some(close) = self.poll_events(task, out, shedder.as_mut()) {
                self.end(close);
            }
            shedder
                .iter()
                .for_each(|shedder| self.count_skipped(shedder.skipped()));
        }
        if out.is_empty()
            && !matches!(
                self.ending,
                Some(Ending {
                    pending_events: 0,
                    ..
                })
            )
        {
            self.poll_timer(task, out);
        }
        if let Some(Ending {
            close,
            pending_events: 0,
        }) = self.ending
        {
            self.write_close(close, out);
            return Poll::Ready(Step::Close(close));
        }
        if out.is_empty() {
            return Poll::Pending;
        }
        Poll::Ready(if self.is_awaited() {
            Step::Wait
        } else {
            Step::More
        })
    }

    /// Whether whatever comes next wakes the task: another turn at once would be idle.
    fn is_awaited(&self) -> bool {
        // A deadline that has passed has woken the task already, perhaps for this very turn.
        self.ending.is_none()
            && self.is_timed
            && self.last_write < self.deadline
            && self.cursors.iter().all(Cursor::is_waiting)
            && !self.state.is_resuming()
    }

    /// A gate for whoever hands out what comes past the task.
    pub(in crate::http) fn direct_path(&self) -> DirectPath {
        DirectPath::new(self.state.clone(), self.context.load_level.clone())
    }

    /// Lets events that come while it waits be written without its task, if it has one source. While its client has a rate
    /// of events, it is not at rest.
    pub(in crate::http) fn set_direct_sink(&self, sink: Arc<dyn DirectSink>) {
        if let [cursor] = &self.cursors[..] {
            cursor.set_sink(sink);
        }
    }

    /// Goes to where the client stands since something was handed out past the task, the last of it then.
    pub(in crate::http) fn resync(&mut self, handed: CompactInstant) {
        for (cursor, position) in self.cursors.iter_mut().zip(&mut self.positions) {
            cursor.resync();
            *position = cursor.position();
        }
        (self.last_write, self.last_id) = (handed, handed);
    }

    /// Whether all that can come next is events: it waits for them, and is given every one.
    pub(in crate::http) fn is_idle(&self) -> bool {
        let has_rate = self
            .permit
            .as_ref()
            .is_some_and(|permit| permit.events().is_some());
        !has_rate && self.is_awaited() && self.state.is_active() && !self.state.has_slow_mark()
    }

    /// Counts what has reached the socket.
    pub(in crate::http) fn sent(&self, written: Written) {
        self.state.count(&self.state.route, written);
        self.note_active();
    }

    /// The driver says that the socket has taken everything, the end included.
    pub(in crate::http) fn set_delivered(&mut self) {
        self.is_delivered = true;
    }

    /// Says, once, that it is live: its first bytes are out, and it has caught up.
    fn note_active(&self) {
        // Without a registry there is no other state between the lines of its beginning and its end.
        if self.state.becomes_active() && self.registration.changed() {
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

    /// Ends it, unless it is ending already.
    pub(in crate::http) fn end(&mut self, close: CloseReason) {
        if self.ending.is_some() {
            return;
        }
        self.state.close(close);
        // What waits at this moment is owed; what is published meanwhile is the next connection's.
        let pending_events = match close {
            CloseReason::Drain | CloseReason::Age => {
                u32::try_from(self.state.lag().events).unwrap_or(u32::MAX)
            }
            _ => 0,
        };
        self.ending = Some(Ending {
            close,
            pending_events,
        });
    }

    /// What a client is spared that was slow until now; nothing when too much waits for it: then it is ended.
    fn start_shedding(&mut self) -> Option<Shedder> {
        let waiting = self.state.lag().events;
        if self.state.exceeds_max_lag(waiting) {
            self.end(CloseReason::Slow);
            return None;
        }
        (!self.state.is_resuming()).then(|| Shedder::new(&self.state.route.config.slow, waiting))
    }

    fn poll_events(
        &mut self,
        task: &mut TaskContext<'_>,
        out: &mut WriteBatch,
        mut shedder: Option<&mut Shedder>,
    ) -> Option<CloseReason> {
        let mut caught_up = true;
        let mut ended = false;
        let (permit, mut throttle) = (self.permit.take(), self.throttle.take());
        let waited = throttle
            .as_ref()
            .is_some_and(|throttle| throttle.until.is_some());
        // What is owed at the end is given at once.
        let mut pace = match self.ending {
            None => ThrottlePass::new(
                permit.as_ref().and_then(|permit| permit.events()),
                self.context.load_level.level(),
                &mut throttle,
            ),
            Some(_) => None,
        };
        // Another source first each time: one that fills every turn must not keep the others waiting.
        self.first = if usize::from(self.first) + 1 < self.cursors.len() {
            self.first + 1
        } else {
            0
        };
        // Copied events bear the ids of their source alone.
        out.batch.copy_small = self.cursors.len() == 1;
        for turn in 0..self.cursors.len() {
            let place = (usize::from(self.first) + turn) % self.cursors.len();
            let budget = BATCH_BYTES.saturating_sub(out.bytes);
            let cursor = &mut self.cursors[place];
            let read = match (shedder.as_deref_mut(), &mut pace) {
                (shedder, Some(pace)) => {
                    cursor.poll_read_throttled(task, &mut out.batch, budget, shedder, pace)
                }
                (None, None) => cursor.poll_read(task, &mut out.batch, budget),
                (Some(shedder), None) => {
                    cursor.poll_read_slow(task, &mut out.batch, budget, shedder)
                }
            };
            match read {
                Poll::Ready(Read::Some) => caught_up = false,
                Poll::Ready(Read::Ended) => ended = true,
                Poll::Pending => continue,
            }
            let before = out.stats.events;
            self.write_items(place, out);
            if let Some(ending) = &mut self.ending {
                ending.pending_events = ending
                    .pending_events
                    .saturating_sub((out.stats.events - before) as u32);
            }
        }
        pace.iter()
            .for_each(|pace| self.count_skipped(pace.skipped()));
        drop(pace);
        self.permit = permit;
        self.wait_for_tokens(throttle, waited);
        if let (true, Some(ending)) = (caught_up, &mut self.ending) {
            // Nothing waits, or only what a replay is still to bring: the next pod brings it from this position.
            ending.pending_events = 0;
        }
        if caught_up && self.state.is_resuming() && !self.cursors.iter().any(Cursor::is_replaying) {
            self.state.set_caught_up();
            self.note_active();
        }
        ended.then_some(CloseReason::Upstream)
    }

    /// Notes until when events wait for tokens, so that the timer ends it.
    fn wait_for_tokens(&mut self, throttle: Option<Box<ThrottleState>>, waited: bool) {
        let waits = throttle
            .as_ref()
            .is_some_and(|throttle| throttle.until.is_some());
        self.throttle = throttle;
        if waits && !waited {
            self.context
                .metrics
                .throttled_total
                .with_label_values(&[Limit::Events.as_str()])
                .inc();
        }
        if waits || waited {
            self.set_deadline();
        }
    }

    /// Moves what a cursor has read to the output, with ids of all sources where there are several.
    fn write_items(&mut self, place: usize, out: &mut WriteBatch) {
        let mut items = std::mem::take(&mut out.batch.items);
        let alone = self.cursors.len() == 1;
        for item in items.drain(..) {
            match item {
                Item::Event {
                    frame,
                    position,
                    received,
                    ..
                } => {
                    self.positions[place] = position;
                    out.count(1, received);
                    if alone {
                        out.push_events(frame.into_chunk(), false);
                    } else {
                        out.push(frame.body());
                        out.write(|bytes| encode::put_id(bytes, Joined(&self.positions)));
                    }
                }
                Item::Copied { chunk, copied } => {
                    self.positions[place] = copied.position;
                    out.count(copied.events, copied.received);
                    out.push_events(chunk, true);
                }
                Item::Gap { gap, position } => {
                    self.positions[place] = position;
                    self.report_gap(gap, Some(place));
                    out.write(|bytes| gaps::put_gap(bytes, gap, Some(&self.positions)));
                }
            }
        }
        out.batch.items = items;
        if !out.is_empty() {
            let now = Instant::now();
            self.last_write = self.state.began.at(now);
            self.last_id = self.last_write;
            out.stats.handed = Some(now);
        }
    }
}
