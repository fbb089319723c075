//! From a request to its answer: decides between an event stream and a rejection.
//!
//! ```text
//! answer_call -> respond, as a request for the path that the message of a gRPC call names
//! answer -> tickets, at their path
//!        -> respond: head -> authenticate -> route's subjects and client -> admission -> client limits
//!                    -> EventStream::open   (`open_stream`, from the admission)
//!                    -> answer_probe, in place of the subjects, for `sidestream doctor`
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

use std::sync::Arc;
use std::time::Instant;

use hyper::Method;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ALLOW, CONNECTION, HeaderValue,
};

use super::admission::admit;
use super::answer::{Answer, METHODS, options, reject, reject_call, reject_websocket};
use super::authenticate::{authenticate, has_ticket, with_stream};
use super::call::{self, Call};
use super::cors;
use super::open_stream::{RequestedStream, framing, open_stream};
use super::probe_answer::{answer_probe, is_probe};
use super::rejection::Rejection;
use super::rejection_code::RejectionCode;
use super::request::{Caller, Request};
use super::revoked::RevocationCheck;
use super::target::TargetParts;
use super::tickets;
use super::upgrade::{self, Handshake};
use super::version::version;
use crate::encoding::Framing;
use crate::http::application::request_body::RequestBody;
use crate::http::context::Context;
use crate::http::route::{RouteMatch, Routes};
use crate::net::request_head;
use crate::presence::Protocol;

/// Form of a request for an event stream.
#[derive(Clone, Copy)]
enum Asked {
    /// GET or HEAD of the path of a route, or a WebSocket.
    Request { has_body: bool },
    /// A call of gRPC or gRPC-Web.
    Call {
        framing: Framing,
        deadline: Option<Instant>,
    },
}

/// Methods of the path of calls.
const CALL_METHODS: HeaderValue = HeaderValue::from_static("POST, OPTIONS");

impl Asked {
    fn deadline(self) -> Option<Instant> {
        match self {
            Self::Request { .. } => None,
            Self::Call { deadline, .. } => deadline,
        }
    }
}

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

/// Answers a call of gRPC or gRPC-Web.
pub(in crate::http) async fn answer_call(
    context: &Arc<Context>,
    routes: &Routes,
    caller: &Caller,
    request: hyper::Request<RequestBody>,
) -> Answer {
    let (head, body) = request.into_parts();
    let head = hyper::Request::from_parts(head, ());
    match *head.method() {
        Method::POST => {}
        Method::OPTIONS => return preflight_of_call(routes, &head),
        _ => {
            let message = "a call is a POST request";
            let rejection = Rejection::new(RejectionCode::MethodNotAllowed, message);
            let mut answer = reject(context, &rejection, &head);
            answer.headers_mut().insert(ALLOW, CALL_METHODS);
            return answer;
        }
    }
    let framing = match call::framing(&head) {
        Ok(framing) => framing,
        Err(rejection) => return reject(context, &rejection, &head),
    };
    let call = match Call::read(&head, body).await {
        Ok(call) => call,
        Err(rejection) => return reject_call(context, &rejection, &head, framing),
    };
    let request = &call.request;
    let found = routes.find(request.uri().path());
    let route = found.as_ref().map(|found| found.route);
    let asked = Asked::Call {
        framing,
        deadline: call.deadline,
    };
    let responded = respond(context, routes, found, caller, request, asked).await;
    let mut answer =
        responded.unwrap_or_else(|rejection| reject_call(context, &rejection, request, framing));
    if let Some(route) = route {
        let headers = answer.headers_mut();
        cors::answer(&route.config.cors, request.headers(), headers);
        if headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
            headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, call::EXPOSED);
        }
    }
    answer
}

/// Answers a CORS preflight of a call. It does not name the route: every route that offers calls to
/// this origin counts, and the call itself is answered by the rules of its route.
fn preflight_of_call(routes: &Routes, request: &hyper::Request<()>) -> Answer {
    let mut answer = Answer::Text(options(CALL_METHODS));
    let offering = routes
        .routes
        .iter()
        .filter(|route| route.config.framings.contains(&Framing::GrpcWeb))
        .map(|route| (&route.config.cors, &route.cors_headers));
    cors::preflight_of_any(
        offering,
        HeaderValue::from_static("POST"),
        &call::REQUEST_HEADERS,
        request.headers(),
        answer.headers_mut(),
    );
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
    let asked = Asked::Request { has_body };
    let responded = respond(context, routes, found, caller, request, asked);
    let mut answer = match responded.await {
        Ok(answer) => answer,
        Err(rejection) => reject_as_asked(context, &rejection, request),
    };
    let Some(route) = route else { return answer };
    let headers = answer.headers_mut();
    route.add_vary(headers);
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

/// Rejects a request, a WebSocket of a page in its own form.
fn reject_as_asked<B>(
    context: &Context,
    rejection: &Rejection,
    request: &hyper::Request<B>,
) -> Answer {
    let is_closed = rejection.stream == Some(Framing::WebSocket)
        || rejection.code.row().is_temporary && upgrade::accepts_close(request.headers());
    let is_websocket = is_closed && upgrade::is_websocket(request);
    match is_websocket.then(|| Handshake::new(request)) {
        Some(Ok(handshake)) => reject_websocket(context, rejection, request, &handshake),
        _ => reject(context, rejection, request),
    }
}

async fn respond<B: Sync>(
    context: &Arc<Context>,
    routes: &Routes,
    found: Option<RouteMatch<'_>>,
    caller: &Caller,
    request: &hyper::Request<B>,
    form: Asked,
) -> Result<Answer, Rejection> {
    request_head::host(request.version(), request.headers())
        .map_err(|reason| Rejection::new(RejectionCode::BadHost, reason))?;
    let RouteMatch { route, variables } = found.ok_or(RejectionCode::NotFound)?;
    let asked = Request::new(&routes.config, caller, request, variables);
    match *request.method() {
        Method::GET | Method::HEAD => {}
        Method::OPTIONS => return Ok(Answer::Text(options(METHODS))),
        Method::CONNECT if upgrade::is_websocket(request) => {}
        _ => return Err(RejectionCode::MethodNotAllowed.into()),
    }
    let (framing, handshake) = match form {
        Asked::Request { .. } => match upgrade::handshake(route, request)? {
            Some(handshake) => (Framing::WebSocket, Some(handshake)),
            None => (framing(route, request.headers())?, None),
        },
        Asked::Call { framing, .. } if route.config.framings.contains(&Framing::GrpcWeb) => {
            (framing, None)
        }
        Asked::Call { .. } => {
            let message = "`framings` of the route has no `grpc_web`";
            return Err(Rejection::new(RejectionCode::NotAcceptable, message));
        }
    };
    let parts = TargetParts::new(&routes.config, caller.peer, request);
    if handshake.is_some() {
        let target = parts.target(request.headers(), asked.remote, None);
        upgrade::check_origin(request.headers(), &target, &route.config.cors)?;
    }
    let version = version(route, &asked, framing)?;
    // The data of an extended CONNECT is no body: it has the client's messages.
    let has_body = matches!(form, Asked::Request { has_body: true });
    if has_body && request.method() != Method::CONNECT {
        return Err(RejectionCode::UnexpectedBody.into());
    }
    if request.method() != Method::HEAD && has_ticket(routes, route, &asked) {
        // Before the ticket is spent: it is valid on another pod, and later.
        admit(context, caller.over_limit)?;
    }
    let as_stream = |rejection| with_stream(route, rejection, request, framing);
    let check = RevocationCheck::begin(context);
    let authenticated = authenticate(context, routes, route, parts, asked).await;
    let asked = authenticated.map_err(as_stream)?;
    let can_be_probe = matches!(form, Asked::Request { .. }) && handshake.is_none();
    if can_be_probe && request.method() == Method::GET && is_probe(route, request.headers()) {
        admit(context, caller.over_limit)?;
        return Ok(answer_probe(context, route, caller, request.headers())?);
    }
    let filters = route.filters(&asked, routes.config.subjects_per_request_max)?;
    let coding = route.coding(framing, request.headers());
    let options = route.feed_options(framing, coding, version, &asked)?;
    let subscriptions = match framing {
        Framing::WebSocket => {
            route.subscriptions(&asked, &options, routes.config.subjects_per_request_max)?
        }
        _ => None,
    };
    let client = route.client(&asked)?;
    check.client(&asked, &client).map_err(as_stream)?;
    let requested = RequestedStream {
        route,
        framing,
        handshake,
        filters,
        options,
        client,
        subscriptions,
        expiry: asked.principal.expires(),
        deadline: form.deadline(),
    };
    open_stream(
        context,
        &routes.config,
        caller,
        request.method(),
        &asked,
        &check,
        requested,
    )
    .await
}
