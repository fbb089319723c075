//! The opening of an event stream: a cursor in every source, known gaps, and the first bytes.
//!
//! ```text
//! Opening --> claim of a position that a drain recorded, if the client has no id (handover)
//!         --> one cursor per source, from the id or the beginning:  live | window | history | gap
//!         --> 204, if the client has every event of a finite event stream
//!         --> rejection with 416, or:  the reconnection time, then the gaps or the position
//! ```
//!
//! A client whose events are no longer retained receives status 416 or a gap, as the route's
//! `expired` says. Gaps come before every event, and the last one carries the id, so that a client
//! that disconnects right after it does not receive the gap again.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::long_poll::state_document;
use super::{EventStream, Once, Stage};
use crate::auth::revocations::Mark;
use crate::encoding::{Coding, Framing};
use crate::event::id::Joined;
use crate::event::{EventId, InvalidId};
use crate::feed::{
    Begin, Cursor, Gap, GapReason, OpenError, Opened, Outcome, SnapshotReader, Source, Start,
};
use crate::http::config::{Expired, RouteBegin};
use crate::http::context::Context;
use crate::http::route::Route;
use crate::http::stream::compact_time::CompactInstant;
use crate::http::stream::expiry::Expiry;
use crate::http::stream::handover::{self, Confirmed};
use crate::http::stream::state::{Client, Peer, StreamState};
use crate::http::stream::subscriptions::Subscriptions;
use crate::http::stream::throttle::ClientLimits;
use crate::http::stream_options::StreamOptions;
use crate::limit::ClientPermit;
use crate::presence::{Claim, ClaimRequest, CloseReason, State};
use crate::subject::FilterSet;
use crate::telemetry::trace::{StreamEnd, StreamSpan};

/// Request for an event stream, with everything resolved that it names.
pub(in crate::http) struct Opening {
    pub(in crate::http) route: Arc<Route>,
    /// One set for each source of the route.
    pub(in crate::http) filters: Vec<FilterSet>,
    /// Options of the feeds of all sources.
    pub(in crate::http) options: StreamOptions,
    pub(in crate::http) last_event_id: Option<Vec<u8>>,
    /// Beginning without an id.
    pub(in crate::http) beginning: Beginning,
    pub(in crate::http) client: Box<str>,
    /// The name is that of a client; otherwise it is the address.
    pub(in crate::http) is_named: bool,
    /// Permit of the client, if clients are limited.
    pub(in crate::http) permit: Option<ClientPermit>,
    /// Parts of the credentials that a revocation can match; `None` without revocations.
    pub(in crate::http) mark: Option<Mark>,
    /// Expiry of the principal, if it expires.
    pub(in crate::http) expiry: Option<Expiry>,
    pub(in crate::http) peer: Peer,
    pub(in crate::http) framing: Framing,
    /// Subjects that the client of a WebSocket can change.
    pub(in crate::http) subscriptions: Option<Box<Subscriptions>>,
    /// The client may be a browser's EventSource.
    pub(in crate::http) browser: bool,
    /// Deadline of a gRPC call, if its client has set one.
    pub(in crate::http) deadline: Option<Instant>,
    /// Span of the request, if traces record it.
    pub(in crate::http) span: Option<Box<StreamSpan>>,
}

/// Beginning of an event stream without an id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::http) struct Beginning {
    /// `None`: with the next event.
    pub(in crate::http) begin: Option<Begin>,
    /// The client asked for an earlier time than the route allows: events are missing.
    pub(in crate::http) is_cut: bool,
}

/// Reason why an event stream cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum OpenFailure {
    /// A source could not open a cursor.
    Source(OpenError),
    /// The client asked for a time that is too long ago, and the route rejects what has expired.
    BeginOutOfRange,
    /// The events after the client's id are no longer retained, and the route reports it as 416.
    Expired,
}

/// Gap that is known when the event stream opens.
struct OpeningGap {
    gap: Gap,
    /// Index of its source; `None` if it concerns all sources.
    source: Option<usize>,
}

/// Cursors of all sources, and the outcome of the client's id in each.
struct OpenedSources {
    cursors: Vec<Cursor>,
    outcomes: Vec<Outcome>,
    gaps: Vec<OpeningGap>,
    confirmed: Confirmed,
    /// The client has every event of a finite event stream.
    is_finished: bool,
    /// State that the client receives first.
    snapshot: Option<SnapshotReader>,
}

impl Opening {
    /// Returns true if the client can be recognised on another pod without an id: it has a name,
    /// and another pod knows the positions of at least one source.
    fn can_come_back(&self) -> bool {
        self.is_named && self.route.is_resumable_elsewhere()
    }

    /// Returns the position to look for; `None` if no pod can have recorded one.
    fn claim_request(&self, context: &Context) -> Option<ClaimRequest> {
        context.streams.presence()?;
        // A beginning that was asked for is where the client wants to begin.
        if !self.can_come_back() || self.beginning.begin.is_some() {
            return None;
        }
        let subjects = self
            .filters
            .iter()
            .flat_map(FilterSet::filters)
            .map(ToString::to_string)
            .collect();
        Some(ClaimRequest::new(
            self.client.to_string(),
            self.route.label.to_string(),
            subjects,
        ))
    }

    /// Returns true if an expired id gets status 416, and false if it gets a gap.
    fn rejects_expired(&self) -> bool {
        match self.route.config.expired {
            Expired::Auto => !self.browser,
            Expired::Status => true,
            Expired::Gap => false,
        }
    }
}

impl EventStream {
    /// Opens an event stream. A client without an id continues at the position that a drain has
    /// recorded for it, if there is one.
    /// `None`: the client has every event of a finite event stream.
    pub(in crate::http) async fn open(
        context: &Arc<Context>,
        mut opening: Opening,
    ) -> Result<Option<Self>, OpenFailure> {
        let request = opening.claim_request(context);
        if opening.last_event_id.is_some() {
            let opened = Self::open_at(context, opening, &Claim::Nothing).await?;
            let Some((stream, confirmed)) = opened else {
                return Ok(None);
            };
            if let (Some(request), Some(id)) = (request, confirmed.id()) {
                handover::discard(context, request, id);
            }
            return Ok(Some(stream));
        }
        let claim = handover::claim(context, request.as_ref()).await;
        if let Claim::Granted(handover) = &claim {
            opening.last_event_id = Some(handover.entry.last_event_id.clone().into_bytes());
        }
        let opened = Self::open_at(context, opening, &claim).await;
        let is_failed = opened.is_err();
        if let (true, Claim::Granted(handover)) = (is_failed, claim) {
            handover::release(context, *handover).await;
        }
        Ok(opened?.map(|(stream, _)| stream))
    }

    /// Opens a cursor in every source of the route, at the id of the opening.
    async fn open_at(
        context: &Arc<Context>,
        opening: Opening,
        claim: &Claim,
    ) -> Result<Option<(Self, Confirmed)>, OpenFailure> {
        let is_claimed = matches!(claim, Claim::Granted(_));
        // A client without an id of its own cannot know that one was rejected.
        let rejects_expired = !is_claimed && opening.rejects_expired();
        let can_come_back = opening.can_come_back();
        let id = opening.last_event_id.as_deref().map(EventId::parse);
        let beginning = opening.beginning;
        if beginning.is_cut && rejects_expired {
            return Err(OpenFailure::BeginOutOfRange);
        }
        let mut sources = open_sources(
            context,
            &opening.route,
            &opening.options,
            opening.filters,
            (id.as_ref(), beginning.begin),
            rejects_expired,
        )
        .await?;
        if sources.is_finished {
            opening.route.metrics.finished.inc();
            if let Some(mut span) = opening.span {
                span.set_end(StreamEnd::without_events(CloseReason::End.label()));
            }
            return Ok(None);
        }
        if rejects_expired && is_expired(&sources.outcomes) {
            return Err(OpenFailure::Expired);
        }
        if *claim == Claim::Lost {
            let gap = Gap {
                reason: GapReason::Claimed,
                missed: None,
            };
            sources.gaps.insert(0, OpeningGap { gap, source: None });
        }
        if beginning.is_cut {
            let gap = Gap::uncounted(GapReason::Expired);
            sources.gaps.insert(0, OpeningGap { gap, source: None });
        }
        if let (Framing::LongPoll, Some(snapshot)) = (opening.framing, &sources.snapshot) {
            let positions: Vec<_> = sources.cursors.iter().map(Cursor::position).collect();
            let document = state_document(snapshot, &positions).await;
            document.ok_or(OpenError::StateTooLarge)?;
        }
        let client = Client {
            name: opening.client,
            can_come_back,
        };
        let state = Arc::new(StreamState::new(
            opening.route,
            client,
            opening.peer,
            opening.framing,
            opening.options.coding(),
            sources.cursors.iter().map(Cursor::probe).collect(),
            id.is_some() || beginning.begin.is_some(),
        ));
        let mut stream = Self::start(
            context,
            state,
            opening.permit,
            (opening.expiry, opening.deadline, opening.mark),
            sources.cursors,
            (sources.snapshot.take(), opening.subscriptions, opening.span),
            &sources.gaps,
        );
        if stream.is_in_snapshot() {
            let cause = if id.is_none() { "begin" } else { "resume" };
            let states = &context.metrics.states_total;
            states.with_label_values(&[cause]).inc();
        }
        if id.is_none() {
            let begin = beginning.begin.map_or(Begin::LIVE, Begin::as_str);
            let begins = &context.metrics.begins_total;
            begins.with_label_values(&[begin]).inc();
        }
        stream.log_open(id.is_some(), is_claimed, sources.gaps.len());
        let positions = stream.positions();
        for OpeningGap { gap, source } in sources.gaps {
            stream.report_gap(gap, source, &positions);
        }
        Ok(Some((stream, sources.confirmed)))
    }

    /// Registers the event stream and writes its first bytes.
    fn start(
        context: &Arc<Context>,
        state: Arc<StreamState>,
        permit: Option<ClientPermit>,
        (expiry, deadline, mark): (Option<Expiry>, Option<Instant>, Option<Mark>),
        cursors: Vec<Cursor>,
        (snapshot, subscriptions, span): (
            Option<SnapshotReader>,
            Option<Box<Subscriptions>>,
            Option<Box<StreamSpan>>,
        ),
        gaps: &[OpeningGap],
    ) -> Self {
        let max_age = state.route.config.max_age;
        let expires = CompactInstant::from_duration(max_age.mul_f64(0.8 + 0.4 * fastrand::f64()));
        let (principal_due, renewal) = match expiry.map(|expiry| expiry.begin(&state)) {
            Some((due, renewal)) => (due, Some(renewal)),
            None => (CompactInstant::NEVER, None),
        };
        let deadline = deadline.map(|deadline| state.clock.at(deadline));
        let principal_due = deadline.map_or(principal_due, |deadline| deadline.min(principal_due));
        let mut stream = Self {
            registration: context.streams.insert(state.clone(), mark),
            context: context.clone(),
            limits: permit.map(ClientLimits::of).map(Box::new),
            cursors: cursors.into_iter().collect(),
            once: None,
            timer: None,
            group: None,
            deadline: expires,
            is_timed: false,
            is_in_window: false,
            last_write: CompactInstant::ZERO,
            last_id: CompactInstant::ZERO,
            expires,
            principal_due,
            stage: Stage::Opening,
            ending: None,
            pending_events: 0,
            missed_events: 0,
            state,
        };
        stream.deadline = stream.next_deadline();
        let opening = stream.opening_bytes(gaps, snapshot.is_some());
        stream.once = Some(Box::new(Once {
            opening,
            snapshot,
            again: None,
            renewal,
            deadline,
            trailers: None,
            subscriptions,
            span,
        }));
        let state = &stream.state;
        let metrics = &state.route.metrics;
        metrics.opened(state.peer.protocol, state.framing, stream.version());
        stream
    }

    /// Returns the reconnection time, then the gaps or the position.
    fn opening_bytes(&self, gaps: &[OpeningGap], has_snapshot: bool) -> Bytes {
        let config = &self.state.route.config;
        let positions = self.positions();
        let mut out = BytesMut::with_capacity(128);
        let encoder = self.encoder();
        encoder.put_opening(&mut out, config.retry);
        for (index, opening_gap) in gaps.iter().enumerate() {
            // Only the last gap carries the id: a client that disconnects between two gaps must
            // receive both again.
            let is_last = index + 1 == gaps.len();
            self.put_gap(&mut out, opening_gap.gap, is_last.then_some(&positions[..]));
        }
        if has_snapshot {
            encoder.put_snapshot(&mut out);
        } else if gaps.is_empty() && config.checkpoint.is_some() {
            encoder.put_position(&mut out, &Joined(&positions));
        }
        out.freeze()
    }

    fn log_open(&self, has_id: bool, is_claimed: bool, gaps: usize) {
        let state = &self.state;
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    client = &*state.client,
                    client.addr = %state.peer.text(),
                    route = &*state.route.label,
                    protocol = state.peer.protocol.as_str(),
                    framing = state.framing.as_str(),
                    coding = state.coding.map(Coding::as_str),
                    state = if has_id { State::Reconnecting } else { State::Connecting }.as_str(),
                    taken_over = is_claimed,
                    position = %Joined(&self.positions()),
                    gaps,
                    "event stream opened"
                )
            };
        }
        match state.framing {
            // One line for each poll would hide all others.
            Framing::LongPoll => log!(debug),
            _ => log!(info),
        }
    }
}

/// Opens a cursor in every source, each at its part of the id.
async fn open_sources(
    context: &Context,
    route: &Route,
    options: &StreamOptions,
    filters: Vec<FilterSet>,
    (id, begin): (Option<&Result<EventId, InvalidId>>, Option<Begin>),
    rejects_expired: bool,
) -> Result<OpenedSources, OpenFailure> {
    let mut opened_sources = OpenedSources {
        cursors: Vec::with_capacity(route.sources.len()),
        outcomes: Vec::with_capacity(route.sources.len()),
        gaps: Vec::new(),
        confirmed: Confirmed::default(),
        is_finished: false,
        snapshot: None,
    };
    for (index, (route_source, filters)) in route.sources.iter().zip(filters).enumerate() {
        let source = &*route_source.source;
        let start = start(id, begin, source)?;
        let filters_again = filters.clone();
        let mut opened = source.open(filters.clone(), &options.options, start).await;
        if let (true, Some(_), Ok(opened)) = (route.config.finite, id, &opened)
            && may_be_finished(opened)
        {
            let seq = opened.cursor.position().seq;
            opened_sources.is_finished = source.is_finished(&filters, seq).await?;
        }
        if matches!(opened, Err(OpenError::Rejected)) && !rejects_expired {
            // NATS rejects reading the history; live events may still be allowed.
            let start = Start::Unknown(GapReason::Rejected);
            opened = source.open(filters, &options.options, start).await;
        }
        let mut opened = opened?;
        if route.config.begin == RouteBegin::Latest
            && id.is_some()
            && opened.outcome != Outcome::Window
        {
            // The state again in place of a gap, or of a history with removals that may be purged.
            drop(opened);
            let start = Start::Begin(Begin::Latest);
            opened = source.open(filters_again, &options.options, start).await?;
        }
        opened_sources.snapshot = opened.snapshot.take();
        if id.is_some() {
            context
                .metrics
                .resumes_total
                .with_label_values(&[opened.outcome.as_str()])
                .inc();
        }
        opened_sources.confirmed.note(source, start, opened.outcome);
        opened_sources.outcomes.push(opened.outcome);
        opened_sources.note_gap(index, opened.outcome);
        opened_sources.cursors.push(opened.cursor);
    }
    Ok(opened_sources)
}

impl OpenedSources {
    /// Records the gap of a source. An invalid id is one gap, however many sources there are.
    fn note_gap(&mut self, index: usize, outcome: Outcome) {
        let Outcome::Gap(gap) = outcome else { return };
        let is_invalid = gap.reason == GapReason::Invalid;
        if is_invalid && !self.gaps.is_empty() {
            return;
        }
        self.gaps.push(OpeningGap {
            gap,
            source: (!is_invalid).then_some(index),
        });
    }
}

/// Returns true if the client's position is valid, and memory has no event after it.
fn may_be_finished(opened: &Opened) -> bool {
    match opened.outcome {
        Outcome::Window => opened.cursor.is_caught_up(),
        Outcome::Archive => true,
        Outcome::Live | Outcome::Gap(_) => false,
    }
}

/// Returns true if no source can continue, and at least one no longer retains the events.
fn is_expired(outcomes: &[Outcome]) -> bool {
    let mut reasons = outcomes.iter().copied().map(gap_reason);
    reasons.clone().all(|reason| reason.is_some())
        && reasons.any(|reason| reason == Some(GapReason::Expired))
}

fn gap_reason(outcome: Outcome) -> Option<GapReason> {
    match outcome {
        Outcome::Gap(gap) => Some(gap.reason),
        Outcome::Live | Outcome::Window | Outcome::Archive => None,
    }
}

/// Returns the start in one source: the position that the id has for it, or the beginning without
/// an id.
fn start(
    id: Option<&Result<EventId, InvalidId>>,
    begin: Option<Begin>,
    source: &dyn Source,
) -> Result<Start, OpenError> {
    let tag = source.tag()?;
    Ok(match id {
        None => begin.map_or(Start::Live, Start::Begin),
        Some(Err(_)) => Start::Unknown(GapReason::Invalid),
        Some(Ok(id)) => id
            .find(tag)
            .map_or(Start::Unknown(source.unknown_tag_reason()), Start::After),
    })
}

impl From<OpenError> for OpenFailure {
    fn from(error: OpenError) -> Self {
        Self::Source(error)
    }
}
