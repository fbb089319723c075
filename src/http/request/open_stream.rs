//! Opens the event stream of a request whose subjects and client are known, and negotiates its
//! framing.
//!
//! ```text
//! open_stream: beginning -> head -> admission -> client limits -> EventStream::open -> revocations again
//! ```
//!
//! A route resolves subjects and client from the request (`respond`), the application names them in
//! its response (`http::application::subscribe`).

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use hyper::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};
use hyper::{Method, Response};
use smallvec::SmallVec;

use super::admission::admit;
use super::answer::{Answer, end_of_call, event_stream_head, finished, finished_websocket};
use super::begin::beginning;
use super::negotiate::negotiate;
use super::rejection::Rejection;
use super::rejection_code::RejectionCode;
use super::request::{AuthenticatedRequest, Caller, is_browser};
use super::resolve::ClientId;
use super::revoked::RevocationCheck;
use super::upgrade::Handshake;
use super::version::put_version;
use crate::auth;
use crate::encoding::Framing;
use crate::encoding::grpc::Trailers;
use crate::feed::OpenError;
use crate::http::config::Config;
use crate::http::context::Context;
use crate::http::route::Route;
use crate::http::stream::event_stream::opening::{Beginning, OpenFailure, Opening};
use crate::http::stream::event_stream::{EventStream, long_poll};
use crate::http::stream::expiry::Expiry;
use crate::http::stream::subscriptions::Subscriptions;
use crate::http::stream_options::StreamOptions;
use crate::limit::ClientPermit;
use crate::subject::FilterSet;
use crate::telemetry::trace::{StreamDescription, StreamSpan};

/// Event stream that a request asks for.
pub(in crate::http) struct RequestedStream<'r> {
    pub(in crate::http) route: &'r Arc<Route>,
    pub(in crate::http) framing: Framing,
    /// Handshake, if it is a WebSocket.
    pub(in crate::http) handshake: Option<Handshake>,
    /// One set for each source of the route.
    pub(in crate::http) filters: Vec<FilterSet>,
    pub(in crate::http) options: StreamOptions,
    pub(in crate::http) client: ClientId,
    /// Subjects that the client of a WebSocket can change.
    pub(in crate::http) subscriptions: Option<Box<Subscriptions>>,
    /// End of the permission to read it.
    pub(in crate::http) expiry: Option<auth::Expiry>,
    /// Deadline of a gRPC call.
    pub(in crate::http) deadline: Option<Instant>,
}

/// Returns the framing of a route that the client prefers, of those that `Accept` can name.
pub(in crate::http) fn framing(route: &Route, headers: &HeaderMap) -> Result<Framing, Rejection> {
    let with_type = |framing: &Framing| Some((*framing, framing.media_type()?));
    let offers: SmallVec<[_; Framing::ALL.len()]> = route
        .config
        .framings
        .iter()
        .filter(|framing| !framing.is_grpc())
        .filter_map(with_type)
        .collect();
    if offers.is_empty() {
        if route.config.framings.contains(&Framing::WebSocket) {
            return Err(RejectionCode::UpgradeRequired.into());
        }
        let message = "this route is read with gRPC or gRPC-Web";
        return Err(Rejection::new(RejectionCode::NotAcceptable, message));
    }
    negotiate(headers, &offers, |(_, media_type)| media_type)
        .map(|(framing, _)| framing)
        .ok_or_else(|| not_acceptable(offers.iter().map(|(_, media_type)| *media_type)))
}

/// Returns the wait of a long poll.
fn wait(asked: &AuthenticatedRequest<'_>, has_position: bool) -> Result<Duration, Rejection> {
    let wait = asked.request.query_values("wait").next();
    let wait = long_poll::wait_of(wait.as_deref(), has_position);
    wait.map_err(|()| RejectionCode::BadWait.into())
}

/// Opens an event stream. HEAD gets its head.
pub(in crate::http) async fn open_stream(
    context: &Arc<Context>,
    config: &Config,
    caller: &Caller,
    method: &Method,
    asked: &AuthenticatedRequest<'_>,
    check: &RevocationCheck<'_>,
    requested: RequestedStream<'_>,
) -> Result<Answer, Rejection> {
    let RequestedStream {
        route,
        framing,
        handshake,
        filters,
        options,
        client,
        subscriptions,
        expiry,
        deadline,
    } = requested;
    let last_event_id = asked
        .request
        .last_event_id(route.config.last_event_id_query.as_deref())
        .map(Cow::into_owned);
    let beginning = match last_event_id {
        Some(_) => Beginning::default(),
        None => beginning(&route.config, &asked.request, SystemTime::now())?,
    };
    let mut head = Response::new(());
    let (protocol, close) = (caller.peer.protocol, route.config.close);
    match &handshake {
        Some(handshake) => head = handshake.head(),
        None => event_stream_head(head.headers_mut(), framing, protocol, close),
    }
    if let Some(coding) = options.coding() {
        let value = HeaderValue::from_static(coding.as_str());
        head.headers_mut().insert(CONTENT_ENCODING, value);
    }
    if let Some(version) = options.version() {
        put_version(route, version, head.headers_mut());
    }
    if method == Method::HEAD {
        return Ok(Answer::Text(head.map(|()| Bytes::new())));
    }
    let span = begin_span(
        context,
        caller,
        asked,
        route,
        framing,
        last_event_id.is_some(),
    );
    let wait = match framing {
        Framing::LongPoll => Some(wait(asked, last_event_id.is_some())?),
        _ => None,
    };
    admit(context, caller.over_limit)?;
    let hashes = route.feed_hashes(&options, &filters);
    let permit = client_permit(context, &client.name, asked, hashes)?;
    let (mark, is_named) = (check.mark(asked, &client), client.is_named);
    let opening = Opening {
        route: Arc::clone(route),
        filters,
        options,
        last_event_id,
        beginning,
        client: client.name,
        is_named,
        permit,
        mark,
        expiry: expiry.map(|expiry| Expiry::new(expiry, config.renew_before)),
        peer: caller.peer,
        framing,
        subscriptions,
        browser: is_browser(asked.request.headers),
        deadline,
        span,
    };
    let Some(stream) = EventStream::open(context, opening).await? else {
        return Ok(match handshake {
            Some(_) => Answer::Text(head.map(|()| finished_websocket())),
            None if framing.is_grpc() => Answer::Text(end_of_call(framing, &Trailers::ended())),
            None => Answer::Text(finished()),
        });
    };
    check.confirm(asked, is_named, stream.state());
    if let Some(wait) = wait {
        let body = stream.answer_poll(wait).await;
        return Ok(Answer::Text(head.map(|()| body)));
    }
    Ok(Answer::Events(head, Box::new(stream)))
}

/// Begins the span of the request, if traces record it. It ends with the event stream, or when the
/// request is rejected.
fn begin_span(
    context: &Context,
    caller: &Caller,
    asked: &AuthenticatedRequest<'_>,
    route: &Route,
    framing: Framing,
    is_resumed: bool,
) -> Option<Box<StreamSpan>> {
    if !context.tracer.is_on() {
        return None;
    }
    let header = |name| asked.request.headers.get(name)?.to_str().ok();
    let mut span = context
        .tracer
        .begin_stream(header("traceparent"), header("tracestate"))?;
    span.describe(StreamDescription {
        route: &route.label,
        protocol: caller.peer.protocol.as_str(),
        framing: framing.as_str(),
        tls: caller.peer.tls,
        is_resumed,
    });
    Some(span)
}

impl From<OpenFailure> for Rejection {
    fn from(failure: OpenFailure) -> Self {
        let code = match failure {
            OpenFailure::Source(OpenError::NotReady) => RejectionCode::NatsNotConnected,
            OpenFailure::Source(OpenError::Rejected) => RejectionCode::NatsRejected,
            OpenFailure::Source(OpenError::TooManyFeeds) => RejectionCode::TooManyFeeds,
            OpenFailure::Source(OpenError::TooManyReplays) => RejectionCode::TooManyReplays,
            OpenFailure::Source(OpenError::StateTooLarge) => RejectionCode::StateTooLarge,
            OpenFailure::BeginOutOfRange => RejectionCode::BeginOutOfRange,
            OpenFailure::Expired => RejectionCode::LastEventIdExpired,
        };
        code.into()
    }
}

/// Rejection of a client that accepts none of the media types; its message names them.
fn not_acceptable(media_types: impl Iterator<Item = &'static str>) -> Rejection {
    let media_types: Vec<_> = media_types.collect();
    let message = format!("the response would be {}", media_types.join(" or "));
    Rejection::new(RejectionCode::NotAcceptable, message)
}

/// Counts the event stream against the limits of its client; `None` if there are no limits.
/// `feeds`: a hash of each feed that it reads.
fn client_permit(
    context: &Context,
    client: &str,
    asked: &AuthenticatedRequest<'_>,
    feeds: impl Iterator<Item = u64>,
) -> Result<Option<ClientPermit>, Rejection> {
    let acquired = context
        .client_limiter
        .acquire(client, &asked.principal, feeds);
    acquired.map_err(|throttled| {
        context
            .metrics
            .throttled_total
            .with_label_values(&[throttled.limit.as_str()])
            .inc();
        throttled.into()
    })
}
