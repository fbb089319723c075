//! From a request to its answer: the one place that decides between an event stream and a refusal.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Response, StatusCode};

use super::body::Body;
use super::client_address::client_address;
use super::cors;
use super::rejection::Rejection;
use super::request::{Request, is_browser};
use super::route::{Found, Routes};
use crate::http::config::CloseStyle;
use crate::http::context::Context;
use crate::http::stream::event_stream::{EventStream, Opening};
use crate::http::stream::state::Peer;
use crate::limit::{FdHeadroom, LoadLevel};
use crate::net::request_head;
use crate::presence::Protocol;

/// An answer before its body is bound to a protocol.
pub(in crate::http) enum Answer {
    /// A head and a short text.
    Text(Response<Bytes>),
    /// The same, and its connection is not kept: what was asked for is not to be had now.
    Last(Response<Bytes>),
    /// A head and an event stream.
    Events(Response<()>, Box<EventStream>),
}

const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");
/// What a publisher writes is never taken for a script or a page, whatever it looks like.
const NO_SNIFF: HeaderValue = HeaderValue::from_static("nosniff");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// What is allowed, on every route.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");
/// Nginx and what is built on it shall not collect events.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Answers one request. `over_limit`: its connection is one more than are served.
pub(in crate::http) async fn answer<B: Sync>(
    context: &Arc<Context>,
    peer: Peer,
    over_limit: bool,
    request: &hyper::Request<B>,
    has_body: bool,
) -> Answer {
    let routes = context.routes();
    let found = routes.find(request.uri().path());
    let route = found.as_ref().map(|(route, _)| *route);
    let mut answer =
        match respond(context, &routes, found, peer, over_limit, request, has_body).await {
            Ok(answer) => answer,
            Err(refusal) => refuse(context, &refusal, request),
        };
    let headers = answer.headers_mut();
    if has_body && peer.protocol != Protocol::H2 {
        // What follows a head is the next head, always: content would be read as one.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(route) = route {
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
    }
    answer
}

async fn respond<B: Sync>(
    context: &Arc<Context>,
    routes: &Routes,
    found: Option<Found<'_>>,
    peer: Peer,
    over_limit: bool,
    request: &hyper::Request<B>,
    has_body: bool,
) -> Result<Answer, Rejection> {
    request_head::host(request.version(), request.headers()).map_err(Rejection::Host)?;
    let (route, path) = found.ok_or(Rejection::NotFound)?;
    let asked = Request {
        path,
        query: request.uri().query().unwrap_or_default(),
        headers: request.headers(),
        remote: client_address(
            peer.remote().ip(),
            request.headers(),
            &routes.config.trusted_proxies,
            routes.config.forwarded_header,
        ),
    };
    match *request.method() {
        Method::GET | Method::HEAD => {}
        Method::OPTIONS => {
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response.headers_mut().insert(ALLOW, METHODS);
            response
                .headers_mut()
                .insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
            return Ok(Answer::Text(response));
        }
        _ => return Err(Rejection::Method),
    }
    if !asked.accepts() {
        return Err(Rejection::NotAcceptable);
    }
    if has_body {
        return Err(Rejection::Body);
    }
    let filters = route.filters(&asked, routes.config.subjects_per_request_max)?;
    let mut head = Response::new(());
    event_stream_head(head.headers_mut(), peer.protocol, route.config.close);
    if request.method() == Method::HEAD {
        return Ok(Answer::Text(head.map(|()| Bytes::new())));
    }
    if context.is_draining() {
        return Err(Rejection::Draining);
    }
    if over_limit {
        return Err(Rejection::Connections);
    }
    if context.connection_limiter.headroom() >= FdHeadroom::Reserved {
        return Err(Rejection::Descriptors);
    }
    if context.load_level.level() >= LoadLevel::Reject {
        return Err(Rejection::Overloaded);
    }
    let (client, is_named) = route.client(&asked);
    let permit = context
        .client_limiter
        .acquire(&client)
        .and_then(|mut permit| {
            permit.as_mut().map_or(Ok(()), |permit| {
                permit.add_filter_sets(route.feeds(&filters))
            })?;
            Ok(permit)
        });
    let permit = permit.map_err(|throttled| {
        context
            .metrics
            .throttled_total
            .with_label_values(&[throttled.limit.as_str()])
            .inc();
        Rejection::Throttled(throttled)
    })?;
    let opening = Opening {
        route: route.clone(),
        filters,
        last_event_id: asked
            .last_event_id(route.config.last_event_id_query.as_deref())
            .map(Cow::into_owned),
        client,
        is_named,
        permit,
        peer,
        browser: is_browser(request.headers()),
    };
    let stream = EventStream::open(context, opening).await?;
    Ok(Answer::Events(head, Box::new(stream)))
}

fn event_stream_head(headers: &mut HeaderMap, protocol: Protocol, end: CloseStyle) {
    headers.insert(CONTENT_TYPE, EVENT_STREAM);
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("no-store, no-transform"),
    );
    headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    // The connection never serves again after an event stream; a proxy must not send a request into its end. One that
    // is to end as if it broke does not announce it: undici, the fetch of Node, would take that end for a clean one.
    if protocol == Protocol::Http10 || (protocol == Protocol::Http11 && end == CloseStyle::Clean) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Answers a request that is refused; counts it.
pub(in crate::http) fn refuse<B>(
    context: &Context,
    refusal: &Rejection,
    request: &hyper::Request<B>,
) -> Answer {
    let (status, code) = refusal.row();
    context
        .metrics
        .refusals_total
        .with_label_values(&[code])
        .inc();
    tracing::debug!(code, path = request.uri().path(), "refused");
    let http2 = request.version() == hyper::Version::HTTP_2;
    if refusal.passes() && is_browser(request.headers()) {
        let mut response = Response::new(refusal.browser_body());
        let protocol = if http2 {
            Protocol::H2
        } else {
            Protocol::Http11
        };
        event_stream_head(response.headers_mut(), protocol, CloseStyle::Clean);
        return Answer::Last(response);
    }
    let mut response = Response::new(refusal.body());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if *refusal == Rejection::Method {
        headers.insert(ALLOW, METHODS);
    }
    if refusal.passes() {
        headers.insert(RETRY_AFTER, HeaderValue::from(refusal.wait().as_secs() + 1));
    }
    if !http2 && refusal.ends_connection() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if refusal.passes() {
        Answer::Last(response)
    } else {
        Answer::Text(response)
    }
}

/// The whole answer to a head that hyper could not read: nothing follows it on its connection.
pub(in crate::http) fn last_words(context: &Context, refusal: &Rejection) -> Vec<u8> {
    let (status, code) = refusal.row();
    context
        .metrics
        .refusals_total
        .with_label_values(&[code])
        .inc();
    let body = refusal.body();
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
            Self::Text(response) | Self::Last(response) => response.headers_mut(),
            Self::Events(response, _) => response.headers_mut(),
        }
    }

    /// The answer with a body for hyper; `carry` takes the event stream to where it waits for its socket.
    pub(in crate::http) fn into_response(
        self,
        carry: impl FnOnce(EventStream) -> Body,
    ) -> Response<Body> {
        match self {
            Self::Text(response) | Self::Last(response) => response.map(Body::Text),
            Self::Events(head, stream) => head.map(|()| carry(*stream)),
        }
    }
}
