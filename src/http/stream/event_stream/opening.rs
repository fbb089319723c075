//! How an event stream begins: a cursor in every source, the gaps that are known already, the first bytes.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::EventStream;
use super::gaps::put_gap;
use crate::feed::{Cursor, Gap, GapReason, OpenError, Outcome, Source, Start};
use crate::http::config::Expired;
use crate::http::context::Context;
use crate::http::request::rejection::{Rejection, RejectionCode};
use crate::http::request::route::Route;
use crate::http::stream::compact_time::CompactInstant;
use crate::http::stream::handover::{self, Confirmed};
use crate::http::stream::state::{Client, Peer, StreamState};
use crate::limit::ClientPermit;
use crate::presence::{Claim, State};
use crate::sse::id::Joined;
use crate::sse::{EventId, encode};
use crate::subject::FilterSet;

/// What a request asks for, made ready.
pub(in crate::http) struct Opening {
    pub(in crate::http) route: Arc<Route>,
    pub(in crate::http) filters: Vec<FilterSet>,
    pub(in crate::http) last_event_id: Option<Vec<u8>>,
    pub(in crate::http) client: Box<str>,
    /// The route's `client` says who it is, not only its address.
    pub(in crate::http) is_named: bool,
    /// Counted among those of its client, where these are limited.
    pub(in crate::http) permit: Option<ClientPermit>,
    pub(in crate::http) peer: Peer,
    /// A browser's EventSource may be at the other end.
    pub(in crate::http) browser: bool,
}

/// Gap that is known when the event stream opens.
struct OpeningGap {
    gap: Gap,
    /// Index of its source; `None` if it concerns all sources.
    source: Option<usize>,
}

impl EventStream {
    /// Opens an event stream, at the position that a drain has left for this client if it has none itself.
    pub(in crate::http) async fn open(
        context: &Arc<Context>,
        mut asked: Opening,
    ) -> Result<Self, Rejection> {
        let wanted = handover::wanted(context, &asked);
        if asked.last_event_id.is_some() {
            let mut confirmed = Confirmed::default();
            let opened = Self::open_at(context, asked, &Claim::Nothing, &mut confirmed).await?;
            if let (Some(wanted), Some(has)) = (wanted, confirmed.id()) {
                handover::remove(context, wanted, has);
            }
            return Ok(opened);
        }
        let claim = handover::find(context, wanted.as_ref()).await;
        if let Claim::Granted(handover) = &claim {
            asked.last_event_id = Some(handover.entry.last_event_id.clone().into_bytes());
        }
        let opened = Self::open_at(context, asked, &claim, &mut Confirmed::default()).await;
        if let (Err(_), Claim::Granted(handover)) = (&opened, claim) {
            handover::give_back(context, *handover).await;
        }
        opened
    }

    /// Opens a cursor in every source of the route.
    async fn open_at(
        context: &Arc<Context>,
        asked: Opening,
        claim: &Claim,
        confirmed: &mut Confirmed,
    ) -> Result<Self, Rejection> {
        let Opening {
            route,
            filters,
            last_event_id,
            client,
            is_named,
            permit,
            peer,
            browser,
        } = asked;
        let is_taken_over = matches!(claim, Claim::Granted(_));
        let tells_status = match route.config.expired {
            // It did not say that it had a position, so it is not told off for it.
            _ if is_taken_over => false,
            Expired::Auto => !browser,
            Expired::Status => true,
            Expired::Gap => false,
        };
        let id = last_event_id.as_deref().map(EventId::parse);
        let mut cursors = SmallVec::with_capacity(route.sources.len());
        let mut gaps: Vec<OpeningGap> = Vec::new();
        if *claim == Claim::Lost {
            gaps.push(OpeningGap {
                gap: Gap {
                    reason: GapReason::Claimed,
                    missed: None,
                },
                source: None,
            });
        }
        let mut outcomes = Vec::with_capacity(route.sources.len());
        for (index, (source, filters)) in route.sources.iter().zip(filters).enumerate() {
            let start = start(id.as_ref(), &source.source)?;
            let mut opened = source
                .source
                .open(filters.clone(), &route.options, start)
                .await;
            if matches!(opened, Err(OpenError::Rejected)) && !tells_status {
                // The past cannot be read; what comes next perhaps can.
                let start = Start::Unknown(GapReason::Rejected);
                opened = source.source.open(filters, &route.options, start).await;
            }
            let opened = opened.map_err(|error| match error {
                OpenError::NotReady => RejectionCode::NatsNotConnected,
                OpenError::Rejected => RejectionCode::NatsRejected,
                OpenError::TooManyFeeds => RejectionCode::TooManyFeeds,
                OpenError::TooManyReplays => RejectionCode::TooManyReplays,
            })?;
            if id.is_some() {
                context
                    .metrics
                    .resumes_total
                    .with_label_values(&[opened.outcome.as_str()])
                    .inc();
            }
            confirmed.note(&source.source, start, opened.outcome);
            outcomes.push(opened.outcome);
            match opened.outcome {
                // An id that is none is one gap, however many sources there are.
                Outcome::Gap(gap) if gap.reason == GapReason::Invalid && !gaps.is_empty() => {}
                Outcome::Gap(gap) => gaps.push(OpeningGap {
                    gap,
                    source: (gap.reason != GapReason::Invalid).then_some(index),
                }),
                Outcome::Live | Outcome::Window | Outcome::Archive => {}
            }
            cursors.push(opened.cursor);
        }
        if tells_status && is_expired(&outcomes) {
            return Err(RejectionCode::LastEventIdExpired.into());
        }
        let probes = cursors.iter().map(Cursor::probe).collect();
        let client = Client {
            can_come_back: is_named && route.is_resumable_elsewhere(),
            name: client,
        };
        let state = Arc::new(StreamState::new(route, client, peer, probes, id.is_some()));
        let positions = cursors.iter().map(Cursor::position).collect();
        let config = &state.route.config;
        let age = CompactInstant::lasting(config.max_age.mul_f64(0.8 + 0.4 * fastrand::f64()));
        // Each client its own silence, never longer than the route's: those that came together, or heard the same event
        // at the same moment, do not beat together.
        let heartbeat_jitter = 0.5 + 0.5 * fastrand::f32();
        let mut stream = Self {
            registration: context.streams.insert(state.clone()),
            context: context.clone(),
            permit: permit.map(Box::new),
            throttle: None,
            cursors,
            positions,
            first: 0,
            opening: None,
            timer: None,
            group: None,
            deadline: age,
            is_timed: false,
            heartbeat_jitter,
            last_write: CompactInstant::ZERO,
            last_id: CompactInstant::ZERO,
            age,
            has_reported_age: false,
            ending: None,
            missed_events: 0,
            is_delivered: false,
            state,
        };
        stream.deadline = stream.next_deadline();
        stream.opening = Some(Box::new(stream.opening_bytes(&gaps)));
        stream.state.route.metrics.opened(peer.protocol);
        stream.log_open(id.is_some(), is_taken_over, gaps.len());
        for OpeningGap { gap, source } in gaps {
            stream.report_gap(gap, source);
        }
        Ok(stream)
    }

    /// `retry:`, then the gaps or the position.
    fn opening_bytes(&self, gaps: &[OpeningGap]) -> Bytes {
        let config = &self.state.route.config;
        let mut out = BytesMut::with_capacity(128);
        encode::put_retry(&mut out, config.retry);
        for (place, gap) in gaps.iter().enumerate() {
            // Only the last gap carries the id: it stands before what passes any of them.
            let id = (place + 1 == gaps.len()).then_some(&*self.positions);
            put_gap(&mut out, gap.gap, id);
        }
        if gaps.is_empty() && config.checkpoint.is_some() {
            encode::put_position(&mut out, Joined(&self.positions));
        }
        out.freeze()
    }

    fn log_open(&self, resumed: bool, is_taken_over: bool, gaps: usize) {
        let state = &self.state;
        tracing::info!(
            client = &*state.client,
            client.addr = %state.peer.text(),
            route = &*state.route.label,
            protocol = state.peer.protocol.as_str(),
            state = if resumed { State::Reconnecting } else { State::Connecting }.as_str(),
            taken_over = is_taken_over,
            position = %Joined(&self.positions),
            gaps,
            "event stream opened"
        );
    }
}

/// Whether nothing of what the client had can be continued, and something of it is retained no more.
fn is_expired(outcomes: &[Outcome]) -> bool {
    let gaps = || {
        outcomes.iter().map(|outcome| {
            if let Outcome::Gap(gap) = outcome {
                Some(gap.reason)
            } else {
                None
            }
        })
    };
    gaps().all(|reason| reason.is_some()) && gaps().any(|reason| reason == Some(GapReason::Expired))
}

/// Where a client wants to begin in a source, by its last event id.
fn start(
    id: Option<&Result<EventId, crate::sse::InvalidId>>,
    source: &Source,
) -> Result<Start, RejectionCode> {
    let (tag, lost) = match source {
        Source::JetStream(log) if log.is_rejected() => return Err(RejectionCode::NatsRejected),
        Source::JetStream(log) => (
            log.tag().ok_or(RejectionCode::NatsNotConnected)?,
            GapReason::Recreated,
        ),
        Source::Republish(stream) if stream.is_rejected() => {
            return Err(RejectionCode::NatsRejected);
        }
        Source::Republish(stream) => (
            stream.tag().ok_or(RejectionCode::NatsNotConnected)?,
            GapReason::Recreated,
        ),
        Source::Core(core) => (core.tag(), GapReason::Restarted),
    };
    Ok(match id {
        None => Start::Live,
        Some(Err(_)) => Start::Unknown(GapReason::Invalid),
        Some(Ok(id)) => id.find(tag).map_or(Start::Unknown(lost), Start::After),
    })
}
