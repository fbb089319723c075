//! From a request to its answer: decides between an event stream and a rejection.
//!
//! ```text
//! answer -> respond: head -> authenticate -> route's subjects and client -> admission -> client limits
//!                    -> EventStream::open
//!        -> reject, if one of them fails
//!        -> CORS headers
//! ```
//!
//! The order is part of the interface: a request with several faults gets the code of the first.
//! What the client can correct comes first, then what the pod lacks, so that a pod under load still
//! explains a wrong path. A HEAD request gets the head of the event stream before admission.
//!
//! The result, [`Answer`], does not know its protocol: `accept::connection` makes a hyper response
//! of it, `h2::request` HTTP/2 frames. Both run on the task of the connection or HTTP/2 stream.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    RETRY_AFTER, VARY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Response, StatusCode};

use super::authenticate::{authenticate, unauthenticated_framing};
use super::body::Body;
use super::client_address::client_address;
use super::cors;
use super::negotiate::negotiate;
use super::rejection::Rejection;
use super::rejection_code::{RejectionCode, Row};
use super::request::{Caller, Request, is_browser};
use super::target::TargetParts;
use crate::encoding::Framing;
use crate::feed::OpenError;
use crate::http::config::CloseStyle;
use crate::http::context::Context;
use crate::http::route::{Route, RouteMatch, Routes};
use crate::http::stream::event_stream::EventStream;
use crate::http::stream::event_stream::opening::{OpenFailure, Opening};
use crate::http::stream::expiry::Expiry;
use crate::limit::{ClientPermit, FdHeadroom, LoadLevel};
use crate::net::request_head;
use crate::presence::Protocol;
use crate::subject::FilterSet;

/// Answer to a request, before its body is bound to a protocol.
pub(in crate::http) enum Answer {
    /// A head and a short text.
    Text(Response<Bytes>),
    /// The same, and the connection is closed: the client retries on a new one, perhaps to another
    /// pod.
    Closing(Response<Bytes>),
    /// A head and an event stream.
    Events(Response<()>, Box<EventStream>),
}

/// Browsers must not interpret a publisher's text as a script or a page, whatever it contains.
const NO_SNIFF: HeaderValue = HeaderValue::from_static("nosniff");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Methods of every route.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");
/// Switches off response buffering in nginx and proxies based on it.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Answers one request.
pub(in crate::http) async fn answer<B: Sync>(
    context: &Arc<Context>,
    caller: &Caller,
    request: &hyper::Request<B>,
    has_body: bool,
) -> Answer {
    let routes = context.routes();
    let found = routes.find(request.uri().path());
    let route = found.as_ref().map(|found| found.route);
    let responded = respond(context, &routes, found, caller, request, has_body);
    let mut answer = match responded.await {
        Ok(answer) => answer,
        Err(rejection) => reject(context, &rejection, request),
    };
    let headers = answer.headers_mut();
    if has_body && caller.peer.protocol != Protocol::H2 {
        // The parser expects the next head after a head: it would read the body as one.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let Some(route) = route else { return answer };
    if route.config.framings.len() > 1 {
        // Caches must not serve the answer in one framing to a client of another.
        headers.append(VARY, HeaderValue::from_static("accept"));
    }
    if request.method() == Method::OPTIONS {
        cors::preflight(
            &route.config.cors,
            &route.cors_headers,
            request.headers(),
            headers,
        );
    } else {
        cors::answer(&route.config.cors, request.headers(), headers);
    }
    answer
}

async fn respond<B: Sync>(
    context: &Arc<Context>,
    routes: &Routes,
    found: Option<RouteMatch<'_>>,
    caller: &Caller,
    request: &hyper::Request<B>,
    has_body: bool,
) -> Result<Answer, Rejection> {
    request_head::host(request.version(), request.headers())
        .map_err(|reason| Rejection::new(RejectionCode::BadHost, reason))?;
    let RouteMatch { route, variables } = found.ok_or(RejectionCode::NotFound)?;
    let asked = Request {
        path: variables,
        query: request.uri().query().unwrap_or_default(),
        headers: request.headers(),
        remote: client_address(
            caller.peer.remote().ip(),
            request.headers(),
            &routes.config.trusted_proxies,
            routes.config.forwarded_header,
        ),
        certificate: caller.certificate.as_deref(),
    };
    match *request.method() {
        Method::GET | Method::HEAD => {}
        Method::OPTIONS => return Ok(Answer::Text(options())),
        _ => return Err(RejectionCode::MethodNotAllowed.into()),
    }
    let framings = &route.config.framings;
    let framing = negotiate(request.headers(), framings, Framing::media_type)
        .ok_or_else(|| not_acceptable(framings))?;
    if has_body {
        return Err(RejectionCode::UnexpectedBody.into());
    }
    let parts = TargetParts {
        method: request.method(),
        uri: request.uri(),
        peer: caller.peer,
        trusted: &routes.config.trusted_proxies,
        header: routes.config.forwarded_header,
    };
    let authenticated = authenticate(context, route, parts, asked).await;
    let asked = authenticated.map_err(|rejection| Rejection {
        stream: unauthenticated_framing(
            route,
            &rejection,
            request.method(),
            request.headers(),
            framing,
        ),
        ..rejection
    })?;
    let filters = route.filters(&asked, routes.config.subjects_per_request_max)?;
    let client = route.client(&asked)?;
    let mut head = Response::new(());
    event_stream_head(
        head.headers_mut(),
        framing,
        caller.peer.protocol,
        route.config.close,
    );
    if request.method() == Method::HEAD {
        return Ok(Answer::Text(head.map(|()| Bytes::new())));
    }
    admit(context, caller.over_limit)?;
    let permit = client_permit(context, &client.name, route, framing, &filters)?;
    let opening = Opening {
        route: route.clone(),
        filters,
        last_event_id: asked
            .request
            .last_event_id(route.config.last_event_id_query.as_deref())
            .map(Cow::into_owned),
        client: client.name,
        is_named: client.is_named,
        permit,
        expiry: asked
            .principal
            .expires()
            .map(|expires| Expiry::new(expires, routes.config.renew_before)),
        peer: caller.peer,
        framing,
        browser: is_browser(request.headers()),
    };
    let stream = EventStream::open(context, opening).await?;
    Ok(Answer::Events(head, Box::new(stream)))
}

impl From<OpenFailure> for Rejection {
    fn from(failure: OpenFailure) -> Self {
        let code = match failure {
            OpenFailure::Source(OpenError::NotReady) => RejectionCode::NatsNotConnected,
            OpenFailure::Source(OpenError::Rejected) => RejectionCode::NatsRejected,
            OpenFailure::Source(OpenError::TooManyFeeds) => RejectionCode::TooManyFeeds,
            OpenFailure::Source(OpenError::TooManyReplays) => RejectionCode::TooManyReplays,
            OpenFailure::Expired => RejectionCode::LastEventIdExpired,
        };
        code.into()
    }
}

/// Rejection of a client that accepts none of the framings; its message names them.
fn not_acceptable(framings: &[Framing]) -> Rejection {
    let media_types: Vec<_> = framings.iter().map(|one| one.media_type()).collect();
    let message = format!("the response would be {}", media_types.join(" or "));
    Rejection::new(RejectionCode::NotAcceptable, message)
}

/// Answer to OPTIONS; [`answer`] adds the headers of a CORS preflight.
fn options() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ALLOW, METHODS);
    headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    response
}

/// Checks that the pod can serve another event stream.
fn admit(context: &Context, over_limit: bool) -> Result<(), RejectionCode> {
    if context.is_draining() {
        return Err(RejectionCode::Draining);
    }
    if over_limit {
        return Err(RejectionCode::TooManyConnections);
    }
    if context.connection_limiter.headroom() >= FdHeadroom::Reserved {
        return Err(RejectionCode::NoFileDescriptors);
    }
    if context.load_level.level() >= LoadLevel::Reject {
        return Err(RejectionCode::Overloaded);
    }
    Ok(())
}

/// Counts the event stream against the limits of its client; `None` if there are no limits.
fn client_permit(
    context: &Context,
    client: &str,
    route: &Route,
    framing: Framing,
    filters: &[FilterSet],
) -> Result<Option<ClientPermit>, Rejection> {
    let acquired = context.client_limiter.acquire(client).and_then(|permit| {
        let Some(mut permit) = permit else {
            return Ok(None);
        };
        permit.add_filter_sets(route.feed_hashes(framing, filters))?;
        Ok(Some(permit))
    });
    acquired.map_err(|throttled| {
        context
            .metrics
            .throttled_total
            .with_label_values(&[throttled.limit.as_str()])
            .inc();
        throttled.into()
    })
}

fn event_stream_head(
    headers: &mut HeaderMap,
    framing: Framing,
    protocol: Protocol,
    close: CloseStyle,
) {
    let media_type = HeaderValue::from_static(framing.media_type());
    headers.insert(CONTENT_TYPE, media_type);
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("no-store, no-transform"),
    );
    headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    // A connection serves no request after an event stream, and a proxy must not send one into its
    // end. A route with `close: abort` does not announce the end: undici, the fetch of Node, would
    // report an announced end as a clean one.
    if protocol == Protocol::Http10 || (protocol == Protocol::Http11 && close == CloseStyle::Clean)
    {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Counts a rejected request and returns its response.
pub(in crate::http) fn reject<B>(
    context: &Context,
    rejection: &Rejection,
    request: &hyper::Request<B>,
) -> Answer {
    let row = rejection.code.row();
    context.count_rejection(rejection.code);
    tracing::debug!(
        code = row.code,
        path = request.uri().path(),
        "request rejected"
    );
    let is_http2 = request.version() == hyper::Version::HTTP_2;
    let is_browser = || row.is_temporary && is_browser(request.headers());
    let framing = rejection
        .stream
        .or_else(|| is_browser().then_some(Framing::Sse));
    if let Some(framing) = framing {
        let mut response = Response::new(rejection.stream_body(framing));
        let protocol = if is_http2 {
            Protocol::H2
        } else {
            Protocol::Http11
        };
        event_stream_head(response.headers_mut(), framing, protocol, CloseStyle::Clean);
        return row.answer(response);
    }
    let mut response = Response::new(rejection.body());
    *response.status_mut() = row.response_status();
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if rejection.code == RejectionCode::MethodNotAllowed {
        headers.insert(ALLOW, METHODS);
    }
    if let Some(challenge) = rejection.challenge {
        headers.insert(WWW_AUTHENTICATE, challenge.value());
    }
    if row.is_temporary {
        let seconds = rejection.retry_after().as_secs() + 1;
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if !is_http2 && row.closes_connection {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    row.answer(response)
}

impl Row {
    /// Returns the answer to a request that is rejected with this row. An HTTP/2 connection has
    /// other event streams: only a temporary rejection closes it.
    fn answer(&self, response: Response<Bytes>) -> Answer {
        if self.is_temporary {
            Answer::Closing(response)
        } else {
            Answer::Text(response)
        }
    }
}

/// Counts a head that hyper could not parse and returns the bytes of the whole response, the last
/// one of its connection.
pub(in crate::http) fn unparsed_response(context: &Context, code: RejectionCode) -> Vec<u8> {
    context.count_rejection(code);
    let status = code.row().response_status();
    let body = Rejection::from(code).body();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
         x-content-type-options: nosniff\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body[..]].concat()
}

impl Answer {
    fn headers_mut(&mut self) -> &mut HeaderMap {
        match self {
            Self::Text(response) | Self::Closing(response) => response.headers_mut(),
            Self::Events(response, _) => response.headers_mut(),
        }
    }

    /// Response for hyper. `park` stores the event stream until its socket is reclaimed.
    pub(in crate::http) fn into_response(
        self,
        park: impl FnOnce(EventStream) -> Body,
    ) -> Response<Body> {
        match self {
            Self::Text(response) | Self::Closing(response) => response.map(Body::Text),
            Self::Events(head, stream) => head.map(|()| park(*stream)),
        }
    }
}
