//! One SSE response: cursors, a heartbeat, an age and a reason to end, turned into bytes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, Sleep};

use super::config::Expired;
use super::context::Context;
use super::member::{Peer, StreamState};
use super::output::{Output, Tally};
use super::refusal::Refusal;
use super::route::Route;
use crate::feed::{Cursor, Gap, GapReason, Item, OpenError, Outcome, Read, Source, Start};
use crate::registry::{Close, Member as _, Registration};
use crate::sse::{Component, EventId, encode};
use crate::subject::FilterSet;

/// One open event stream. Two drivers carry it: the socket taken back from hyper, and an HTTP/2 body.
#[derive(Debug)]
pub(super) struct EventStream {
    // Before the cursors, so that it is out of the registry when they end.
    _registration: Registration,
    state: Arc<StreamState>,
    context: Arc<Context>,
    cursors: Box<[Cursor]>,
    /// Where the client stands in each source, by what was handed out: the id of several sources.
    positions: Box<[Component]>,
    opening: Option<Bytes>,
    timer: Pin<Box<Sleep>>,
    /// How long this client hears nothing before a comment: its own part of the route's heartbeat.
    silence: Duration,
    /// When something was handed out last.
    spoke: Instant,
    /// When an id was handed out last.
    marked: Instant,
    /// When the client is handed over.
    age: Instant,
    ending: Option<Ending>,
}

/// An end that has begun: what the client is still owed comes first.
#[derive(Clone, Copy, Debug)]
struct Ending {
    close: Close,
    owed: u64,
}

/// What a turn brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// There may be more at once.
    More,
    /// Nothing will follow.
    End(Close),
}

/// What a request asks for, made ready.
pub(super) struct Opening {
    pub(super) route: Arc<Route>,
    pub(super) filters: Vec<FilterSet>,
    pub(super) last_event_id: Option<Vec<u8>>,
    pub(super) client: Box<str>,
    pub(super) peer: Peer,
    /// A browser's EventSource may be at the other end.
    pub(super) browser: bool,
}

/// 32 KiB a turn, and as many parts as one vectored write takes without a second array: many events in one write, and
/// little that is handed out but not yet on the socket.
const TURN_BYTES: usize = 32 * 1024;

impl EventStream {
    /// Opens a cursor in every source of the route.
    pub(super) async fn open(context: &Arc<Context>, asked: Opening) -> Result<Self, Refusal> {
        let Opening { route, filters, last_event_id, client, peer, browser } = asked;
        let tells_status = match route.config.expired {
            Expired::Auto => !browser,
            Expired::Status => true,
            Expired::Gap => false,
        };
        let id = last_event_id.as_deref().map(EventId::parse);
        let mut cursors = Vec::with_capacity(route.sources.len());
        let mut gaps: Vec<Gap> = Vec::new();
        let mut outcomes = Vec::with_capacity(route.sources.len());
        for (source, filters) in route.sources.iter().zip(filters) {
            let start = start(id.as_ref(), &source.source)?;
            let opened = source.source.open(filters, &route.profile, start).await.map_err(|error| match error {
                OpenError::NotReady => Refusal::NotReady,
                OpenError::TooManyFeeds => Refusal::Feeds,
                OpenError::TooManyReplays => Refusal::Replays,
            })?;
            if id.is_some() {
                context.metrics.resumes_total.with_label_values(&[opened.outcome.as_str()]).inc();
            }
            outcomes.push(opened.outcome);
            match opened.outcome {
                // An id that is none is one gap, however many sources there are.
                Outcome::Gap(gap) if gap.reason == GapReason::Invalid && !gaps.is_empty() => {}
                Outcome::Gap(gap) => gaps.push(gap),
                Outcome::Live | Outcome::Window | Outcome::Archive => {}
            }
            cursors.push(opened.cursor);
        }
        if tells_status && is_expired(&outcomes) {
            return Err(Refusal::Expired);
        }
        let standings = cursors.iter().map(Cursor::standing).collect();
        let state = Arc::new(StreamState::new(route, client, peer, standings, id.is_some()));
        let positions: Box<[Component]> = cursors.iter().map(Cursor::position).collect();
        let now = Instant::now();
        let config = &state.route.config;
        let age = now + config.max_age.mul_f64(0.8 + 0.4 * fastrand::f64());
        // Each client its own silence, never longer than the route's: those that came together, or heard the same event
        // at the same moment, do not beat together.
        let silence = config.heartbeat.mul_f64(0.5 + 0.5 * fastrand::f64());
        let mut stream = Self {
            _registration: context.registry.insert(state.clone()),
            context: context.clone(),
            cursors: cursors.into(),
            positions,
            opening: None,
            timer: Box::pin(tokio::time::sleep_until(age)),
            silence,
            spoke: now,
            marked: now,
            age,
            ending: None,
            state,
        };
        let first = stream.next_deadline();
        stream.timer.as_mut().reset(first);
        stream.opening = Some(stream.first_bytes(&gaps));
        stream.state.route.metrics.opened(peer.protocol);
        stream.log_open(id.is_some(), &gaps);
        Ok(stream)
    }

    pub(super) fn state(&self) -> &Arc<StreamState> {
        &self.state
    }

    /// The next bytes, or a wait for them. What is handed out counts as sent: the driver writes it or ends.
    pub(super) fn poll_next(&mut self, task: &mut TaskContext<'_>, out: &mut Output) -> Poll<Step> {
        if let Some(opening) = self.opening.take() {
            out.push(opening);
        }
        if let (None, Some(close)) = (self.ending, self.state.poll_asked(task.waker())) {
            self.end(close);
        }
        if let Some(close) = self.poll_events(task, out) {
            self.end(close);
        }
        if let Some(Ending { close, owed: 0 }) = self.ending {
            self.say_close(close, out);
            return Poll::Ready(Step::End(close));
        }
        if out.is_empty() {
            self.poll_timer(task, out);
        }
        if let Some(Ending { close, owed: 0 }) = self.ending {
            self.say_close(close, out);
            return Poll::Ready(Step::End(close));
        }
        if out.is_empty() { Poll::Pending } else { Poll::Ready(Step::More) }
    }

    /// Counts what has reached the socket.
    pub(super) fn sent(&self, tally: Tally, bytes: usize) {
        self.state.sent(tally.events, bytes as u64);
        let metrics = &self.state.route.metrics;
        metrics.bytes.inc_by(bytes as u64);
        if tally.events > 0 {
            metrics.events.inc_by(tally.events);
        }
        if let Some(oldest) = tally.oldest {
            metrics.delivery.observe(oldest.elapsed().as_secs_f64());
        }
    }

    /// Ends it, unless it is ending already.
    pub(super) fn end(&mut self, close: Close) {
        if self.ending.is_some() {
            return;
        }
        self.state.close(close);
        // What waits at this moment is owed; what is published meanwhile is the next connection's.
        let owed = match close {
            Close::Drain | Close::Age | Close::Unauthorized => self.state.lag().events,
            _ => 0,
        };
        self.ending = Some(Ending { close, owed });
    }

    fn poll_events(&mut self, task: &mut TaskContext<'_>, out: &mut Output) -> Option<Close> {
        let mut caught_up = true;
        let mut ended = false;
        for place in 0..self.cursors.len() {
            let budget = TURN_BYTES.saturating_sub(out.bytes);
            match self.cursors[place].poll_read(task, &mut out.batch, budget) {
                Poll::Ready(Read::Some) => caught_up = false,
                Poll::Ready(Read::Ended) => ended = true,
                Poll::Pending => continue,
            }
            let before = out.tally.events;
            self.hand_out(place, out);
            if let Some(ending) = &mut self.ending {
                ending.owed = ending.owed.saturating_sub(out.tally.events - before);
            }
        }
        if let (true, Some(ending)) = (caught_up, &mut self.ending) {
            // Evicted meanwhile and told as a gap: nothing more is owed.
            ending.owed = 0;
        }
        if caught_up && self.state.resuming.load(Ordering::Relaxed) {
            self.state.resuming.store(false, Ordering::Relaxed);
        }
        ended.then_some(Close::Upstream)
    }

    /// Moves what a cursor has read to the output, with ids of all sources where there are several.
    fn hand_out(&mut self, place: usize, out: &mut Output) {
        let mut items = std::mem::take(&mut out.batch.items);
        let alone = self.cursors.len() == 1;
        for item in items.drain(..) {
            match item {
                Item::Event { frame, position, received, .. } => {
                    self.positions[place] = position;
                    out.count(received);
                    if alone {
                        out.push(frame.bytes().clone());
                    } else {
                        out.push(frame.body());
                        out.write(|bytes| encode::put_id(bytes, Id(&self.positions)));
                    }
                }
                Item::Gap { gap, position } => {
                    self.positions[place] = position;
                    self.count_gap(gap);
                    out.write(|bytes| put_gap(bytes, gap, Some(&self.positions)));
                }
            }
        }
        out.batch.items = items;
        if !out.is_empty() {
            self.spoke = Instant::now();
            self.marked = self.spoke;
        }
    }

    fn poll_timer(&mut self, task: &mut TaskContext<'_>, out: &mut Output) {
        while self.timer.as_mut().poll(task).is_ready() {
            let now = Instant::now();
            if now >= self.age {
                self.end(Close::Age);
                return;
            }
            let state = self.state.clone();
            let config = &state.route.config;
            let silent = config.checkpoint.is_some_and(|silence| now >= self.marked + silence);
            if silent && self.checkpoint() {
                out.write(|bytes| encode::put_id(bytes, Id(&self.positions)));
                self.spoke = now;
            } else if now >= self.spoke + self.silence {
                out.push(Bytes::from_static(encode::HEARTBEAT));
                self.spoke = now;
            }
            if silent {
                self.marked = now;
            }
            let next = self.next_deadline();
            self.timer.as_mut().reset(next);
        }
    }

    fn next_deadline(&self) -> Instant {
        let config = &self.state.route.config;
        let beat = self.spoke + self.silence;
        let mark = config.checkpoint.map_or(self.age, |silence| self.marked + silence);
        beat.min(mark).min(self.age)
    }

    /// Moves the position to where the sources are known to be, if nothing waits. True if it moved.
    fn checkpoint(&mut self) -> bool {
        let mut moved = false;
        for (cursor, position) in self.cursors.iter_mut().zip(&mut self.positions) {
            moved |= cursor.checkpoint();
            *position = cursor.position();
        }
        moved
    }

    /// `retry:`, then the gaps or the id-only block.
    fn first_bytes(&self, gaps: &[Gap]) -> Bytes {
        let config = &self.state.route.config;
        let mut out = BytesMut::with_capacity(128);
        encode::put_retry(&mut out, config.retry);
        for (place, gap) in gaps.iter().enumerate() {
            self.count_gap(*gap);
            // Only the last gap carries the id: it stands before what passes any of them.
            let id = (place + 1 == gaps.len()).then_some(&*self.positions);
            put_gap(&mut out, *gap, id);
        }
        if gaps.is_empty() && config.checkpoint.is_some() {
            encode::put_id(&mut out, Id(&self.positions));
        }
        out.freeze()
    }

    fn say_close(&mut self, close: Close, out: &mut Output) {
        let Some(reason) = close.told() else { return };
        let config = &self.state.route.config;
        let drained = (close == Close::Drain).then(|| self.context.draw_drain_retry()).flatten();
        // With chance in it: those who end together shall not return together.
        let retry = drained.unwrap_or_else(|| config.retry.mul_f64(0.5 + fastrand::f64()));
        let told = config.checkpoint.is_some();
        if close != Close::Slow && told {
            self.checkpoint();
        }
        out.write(|bytes| {
            encode::put_retry(bytes, retry);
            let json = format!(r#"{{"reason":"{reason}","retry":{}}}"#, retry.as_millis());
            encode::put_control(bytes, "sidestream.close", &json, None::<&str>);
            if told {
                encode::put_id(bytes, Id(&self.positions));
            }
        });
    }

    fn count_gap(&self, gap: Gap) {
        let metrics = &self.context.metrics;
        metrics.gaps_total.with_label_values(&[gap.reason.as_str()]).inc();
        if let Some(missed) = gap.missed {
            metrics.missed_events_total.with_label_values(&[gap.reason.as_str()]).inc_by(missed);
        }
        self.state.gaps.fetch_add(1, Ordering::Relaxed);
    }

    fn log_open(&self, resumed: bool, gaps: &[Gap]) {
        let state = &self.state;
        tracing::info!(
            client = &*state.client,
            client.addr = %state.peer.remote,
            route = &*state.route.label,
            protocol = state.peer.protocol.as_str(),
            state = if resumed { "reconnecting" } else { "active" },
            id = %Id(&self.positions),
            gaps = gaps.len(),
            "event stream opened"
        );
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        let state = &self.state;
        // Dropped without an end of its own: the peer is gone, or it was aborted for the reason that was asked.
        let close = self.ending.map(|ending| ending.close).or(state.asked()).unwrap_or(Close::Client);
        state.route.metrics.closed(state.peer.protocol, close);
        let sent = state.totals();
        let lag = state.lag();
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    client = &*state.client,
                    client.addr = %state.peer.remote,
                    route = &*state.route.label,
                    protocol = state.peer.protocol.as_str(),
                    state = "closed",
                    reason = close.reason(),
                    seconds = state.lasted().as_secs_f64(),
                    events = sent.events,
                    bytes = sent.bytes,
                    lag = lag.events,
                    "event stream closed"
                )
            };
        }
        match close.level() {
            tracing::Level::ERROR => log!(error),
            tracing::Level::WARN => log!(warn),
            _ => log!(info),
        }
    }
}

/// Whether nothing of what the client had can be continued, and something of it is retained no more.
fn is_expired(outcomes: &[Outcome]) -> bool {
    let gaps = || outcomes.iter().map(|outcome| if let Outcome::Gap(gap) = outcome { Some(gap.reason) } else { None });
    gaps().all(|reason| reason.is_some()) && gaps().any(|reason| reason == Some(GapReason::Expired))
}

/// Where a client wants to begin in a source, by its last event id.
fn start(id: Option<&Result<EventId, crate::sse::InvalidId>>, source: &Source) -> Result<Start, Refusal> {
    let (tag, lost) = match source {
        Source::Shared(log) => (log.tag().ok_or(Refusal::NotReady)?, GapReason::Recreated),
        Source::OnDemand(core) => (core.tag(), GapReason::Restarted),
    };
    Ok(match id {
        None => Start::Live,
        Some(Err(_)) => Start::Lost(GapReason::Invalid),
        Some(Ok(id)) => id.find(tag).map_or(Start::Lost(lost), Start::After),
    })
}

fn put_gap(out: &mut BytesMut, gap: Gap, id: Option<&[Component]>) {
    let missed = gap.missed.map_or("null".to_owned(), |missed| missed.to_string());
    let (reason, resume) = (gap.reason, gap.reason.resume());
    let json = format!(r#"{{"reason":"{reason}","missed":{missed},"resume":"{resume}"}}"#);
    encode::put_control(out, "sidestream.gap", &json, id.map(Id));
}

/// An id as it is written, straight from the positions.
struct Id<'p>(&'p [Component]);

impl std::fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (place, component) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_str(".")?;
            }
            write!(f, "{component}")?;
        }
        Ok(())
    }
}
