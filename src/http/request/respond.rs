//! From a request to its answer: decides between an event stream and a rejection.
//!
//! ```text
//! answer -> tickets, at their path
//!        -> respond: head -> authenticate -> route's subjects and client -> admission -> client limits
//!                    -> EventStream::open
//!        -> reject, if one of them fails
//!        -> CORS headers
//! ```
//!
//! The order is part of the interface: a request with several faults gets the code of the first.
//! What the client can correct comes first, then what the pod lacks, so that a pod under load still
//! explains a wrong path. A HEAD request gets the head of the event stream before admission. The only
//! exception: a request with a ticket is admitted before the ticket is spent.
//!
//! Runs on the task of the connection or HTTP/2 stream.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{CONNECTION, HeaderValue, VARY};
use hyper::{Method, Response};

use super::admission::admit;
use super::answer::{Answer, METHODS, event_stream_head, options, reject};
use super::authenticate::{authenticate, has_ticket, unauthenticated_framing};
use super::cors;
use super::negotiate::negotiate;
use super::rejection::Rejection;
use super::rejection_code::RejectionCode;
use super::request::{Caller, Request, is_browser};
use super::revoked::RevocationCheck;
use super::target::TargetParts;
use super::tickets;
use crate::auth::Principal;
use crate::encoding::Framing;
use crate::feed::OpenError;
use crate::http::context::Context;
use crate::http::route::{Route, RouteMatch, Routes};
use crate::http::stream::event_stream::EventStream;
use crate::http::stream::event_stream::opening::{OpenFailure, Opening};
use crate::http::stream::expiry::Expiry;
use crate::http::stream_options::StreamOptions;
use crate::limit::ClientPermit;
use crate::net::request_head;
use crate::presence::Protocol;
use crate::subject::FilterSet;

/// Answers one request.
pub(in crate::http) async fn answer<B: Sync>(
    context: &Arc<Context>,
    caller: &Caller,
    request: &hyper::Request<B>,
    has_body: bool,
) -> Answer {
    let routes = context.routes();
    let mut answer = match routes.tickets_at(request.uri().path()) {
        Some(endpoint) => tickets::answer(context, &routes, endpoint, caller, request).await,
        None => answer_on_route(context, &routes, caller, request, has_body).await,
    };
    if has_body && caller.peer.protocol != Protocol::H2 {
        // The parser expects the next head after a head: it would read the body as one.
        let headers = answer.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

async fn answer_on_route<B: Sync>(
    context: &Arc<Context>,
    routes: &Routes,
    caller: &Caller,
    request: &hyper::Request<B>,
    has_body: bool,
) -> Answer {
    let found = routes.find(request.uri().path());
    let route = found.as_ref().map(|found| found.route);
    let responded = respond(context, routes, found, caller, request, has_body);
    let mut answer = match responded.await {
        Ok(answer) => answer,
        Err(rejection) => reject(context, &rejection, request),
    };
    let Some(route) = route else { return answer };
    let headers = answer.headers_mut();
    if route.config.framings.len() > 1 {
        // Caches must not serve the answer in one framing to a client of another.
        headers.append(VARY, HeaderValue::from_static("accept"));
    }
    if request.method() == Method::OPTIONS {
        cors::preflight(
            &route.config.cors,
            HeaderValue::from_static("GET, HEAD"),
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
    let asked = Request::new(&routes.config, caller, request, variables);
    match *request.method() {
        Method::GET | Method::HEAD => {}
        Method::OPTIONS => return Ok(Answer::Text(options(METHODS))),
        _ => return Err(RejectionCode::MethodNotAllowed.into()),
    }
    let framings = &route.config.framings;
    let framing = negotiate(request.headers(), framings, Framing::media_type)
        .ok_or_else(|| not_acceptable(framings))?;
    if has_body {
        return Err(RejectionCode::UnexpectedBody.into());
    }
    if request.method() == Method::GET && has_ticket(routes, route, &asked) {
        // Before the ticket is spent: it is valid on another pod, and later.
        admit(context, caller.over_limit)?;
    }
    let parts = TargetParts::new(&routes.config, caller.peer, request);
    let as_stream = |rejection| Rejection {
        stream: unauthenticated_framing(
            route,
            &rejection,
            request.method(),
            request.headers(),
            framing,
        ),
        ..rejection
    };
    let check = RevocationCheck::begin(context);
    let authenticated = authenticate(context, routes, route, parts, asked).await;
    let asked = authenticated.map_err(as_stream)?;
    let filters = route.filters(&asked, routes.config.subjects_per_request_max)?;
    let options = route.feed_options(framing, &asked)?;
    let client = route.client(&asked)?;
    check.client(&asked, &client).map_err(as_stream)?;
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
    let permit = client_permit(
        context,
        &client.name,
        &asked.principal,
        route,
        &options,
        &filters,
    )?;
    let (mark, is_named) = (check.mark(&asked, &client), client.is_named);
    let opening = Opening {
        route: route.clone(),
        filters,
        options,
        last_event_id: asked
            .request
            .last_event_id(route.config.last_event_id_query.as_deref())
            .map(Cow::into_owned),
        client: client.name,
        is_named,
        permit,
        mark,
        expiry: asked
            .principal
            .expires()
            .map(|expires| Expiry::new(expires, routes.config.renew_before)),
        peer: caller.peer,
        framing,
        browser: is_browser(request.headers()),
    };
    let stream = EventStream::open(context, opening).await?;
    check.confirm(&asked, is_named, stream.state());
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

/// Counts the event stream against the limits of its client; `None` if there are no limits.
fn client_permit(
    context: &Context,
    client: &str,
    principal: &Principal,
    route: &Route,
    options: &StreamOptions,
    filters: &[FilterSet],
) -> Result<Option<ClientPermit>, Rejection> {
    let hashes = route.feed_hashes(options, filters);
    let acquired = context.client_limiter.acquire(client, principal, hashes);
    acquired.map_err(|throttled| {
        context
            .metrics
            .throttled_total
            .with_label_values(&[throttled.limit.as_str()])
            .inc();
        throttled.into()
    })
}
