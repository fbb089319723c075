//! Passes one request to the application and its response to the client.

use std::sync::Arc;

use hyper::header::{HeaderValue, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};

use super::cache::{self, Sent};
use super::client::{Application, Failure};
use super::fields::{self, Hop, HopVersion};
use super::request_body::RequestBody;
use super::request_log::RequestLog;
use super::response_body::PassedBody;
use super::subscribe::{self, Asking};
use super::tunnel::Tunnel;
use crate::encoding::Framing;
use crate::http::context::Context;
use crate::http::request::admission::admit_request;
use crate::http::request::answer::{Answer, reject};
use crate::http::request::call::is_call;
use crate::http::request::client_address::{client_address, is_trusted};
use crate::http::request::rejection::Rejection;
use crate::http::request::rejection_code::RejectionCode;
use crate::http::request::request::{Caller, is_browser};
use crate::http::request::target::TargetParts;
use crate::http::route::Routes;
use crate::net::request_head;

/// Returns the application if it receives this request: neither a route nor the tickets have its
/// path, and it is not that of gRPC calls.
pub(in crate::http) fn application_of<B>(
    routes: &Routes,
    request: &Request<B>,
) -> Option<Arc<Application>> {
    let application = routes.application.as_ref()?;
    let path = request.uri().path();
    let is_own =
        routes.find(path).is_some() || routes.tickets_at(path).is_some() || is_call(routes, path);
    (!is_own).then(|| Arc::clone(application))
}

/// Passes a request.
pub(in crate::http) async fn pass(
    context: &Arc<Context>,
    routes: &Routes,
    application: &Application,
    caller: &Caller,
    request: Request<RequestBody>,
) -> Answer {
    let (head, body) = request.into_parts();
    // A rejection, and what the application receives of it, depend on the head as it was sent.
    let sent = Request::from_parts(head, ());
    let is_event_source = || sent.method() == Method::GET && is_browser(sent.headers());
    let mut log = None;
    let passed = match check(context, caller, &sent) {
        Ok(path) => {
            let id = fields::request_id(sent.headers());
            log = RequestLog::begin(&id);
            let asking = routes.subscribe.as_ref().map(|subscribe| Asking {
                context,
                routes,
                subscribe,
                caller,
                request: &sent,
                has_body: !body.is_empty(),
            });
            let head = || for_application(routes, application, caller, &sent, &path, id.clone());
            exchange(application, &sent, asking, head, body, &is_event_source).await
        }
        Err(rejection) => Err(rejection),
    };
    let answer = passed.unwrap_or_else(|rejection| {
        let stream = is_event_source().then_some(Framing::Sse);
        let rejection = Rejection {
            stream,
            ..rejection
        };
        reject(context, &rejection, &sent)
    });
    if let Some(log) = log {
        let config = &routes.config;
        let client = client_address(
            caller.peer.remote().ip(),
            sent.headers(),
            &config.trusted_proxies,
            config.forwarded_header,
        );
        log.end(client, &sent, answer.status());
    }
    answer
}

/// Checks that a request may pass, and returns its path and query.
fn check(
    context: &Context,
    caller: &Caller,
    sent: &Request<()>,
) -> Result<PathAndQuery, Rejection> {
    check_head(sent)?;
    let path = sent.uri().path_and_query();
    let path = path.filter(|path| path.path().starts_with('/'));
    let path = path.ok_or(RejectionCode::NotFound)?;
    admit_request(context, caller.over_limit)?;
    Ok(path.clone())
}

/// Sends a request to the application, and returns its response or the event stream that it asks
/// for. `head` returns the head that the application receives.
async fn exchange(
    application: &Application,
    sent: &Request<()>,
    asking: Option<Asking<'_>>,
    head: impl Fn() -> Parts,
    body: RequestBody,
    is_event_source: &(impl Fn() -> bool + Sync),
) -> Result<Answer, Rejection> {
    let answered = match application.cache().filter(|_| !is_event_source()) {
        Some(cache) => cache::send(cache, application, head(), body).await?,
        None => {
            let answered = application.send(head, body).await;
            let (response, in_progress) = answered.map_err(RejectionCode::from)?;
            Sent::Application(response, in_progress, None)
        }
    };
    let (mut response, in_progress, cache_reason) = match answered {
        Sent::Complete(response) => return Ok(Answer::Passed(response)),
        Sent::Application(response, in_progress, reason) => (response, in_progress, reason),
    };
    let is_failed =
        response.status() == StatusCode::TOO_MANY_REQUESTS || response.status().is_server_error();
    if is_failed && is_event_source() {
        // Any status but 200 would end the client for good.
        return Err(RejectionCode::ApplicationFailed.into());
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let upgrade: Option<OnUpgrade> = response.extensions_mut().remove();
        let upgrade = upgrade.filter(|_| fields::is_websocket(sent.headers()));
        let upgrade = upgrade.ok_or(RejectionCode::ApplicationInvalid)?;
        let (mut head, _) = response.into_parts();
        fields::for_tunnel(&mut head.headers);
        let head = Response::from_parts(head, ());
        return Ok(Answer::Tunnel(head, Tunnel::new(upgrade, in_progress)));
    }
    if let Some(asking) = asking
        && subscribe::is_requested(&asking, &response)
    {
        let (head, body) = response.into_parts();
        // The application is done, however long the event stream lasts.
        drop((body, in_progress));
        // In a box: its future is several times as large as that of a passed request.
        return Ok(Box::pin(subscribe::answer(&asking, head.headers)).await);
    }
    fields::for_client(response.headers_mut());
    if let Some(reason) = cache_reason {
        reason.add_to(response.headers_mut());
    }
    Ok(Answer::Passed(
        response.map(|body| PassedBody::new(body, in_progress)),
    ))
}

/// Rejects a head that the parser accepts and that servers read differently.
fn check_head(sent: &Request<()>) -> Result<(), Rejection> {
    let bad_host = |reason| Rejection::new(RejectionCode::BadHost, reason);
    let host = request_head::host(sent.version(), sent.headers()).map_err(bad_host)?;
    if matches!(*sent.method(), Method::CONNECT | Method::TRACE) {
        return Err(RejectionCode::MethodNotPassed.into());
    }
    // A host in the target wins (RFC 9112, 3.2.2; RFC 9113, 8.3.1), which not all servers know.
    let named = sent.uri().authority().zip(host);
    if named.is_some_and(|(authority, host)| !authority.as_str().eq_ignore_ascii_case(host)) {
        return Err(bad_host(
            "the target and the Host header name different hosts",
        ));
    }
    // The parser reads the last coding only, and the field is removed: the application would take
    // the others for content.
    let mut codings = sent.headers().get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    if codings.next().is_some_and(|first| !is_chunked(first)) || codings.next().is_some() {
        let reason = "Transfer-Encoding has another value than `chunked`";
        return Err(Rejection::new(RejectionCode::Malformed, reason));
    }
    Ok(())
}

/// Returns the head of a request as the application receives it.
fn for_application(
    routes: &Routes,
    application: &Application,
    caller: &Caller,
    sent: &Request<()>,
    path: &PathAndQuery,
    request_id: HeaderValue,
) -> Parts {
    let config = &routes.config;
    let peer = caller.peer.remote().ip();
    let client = client_address(
        peer,
        sent.headers(),
        &config.trusted_proxies,
        config.forwarded_header,
    );
    let parts = TargetParts {
        method: sent.method(),
        uri: sent.uri(),
        peer: caller.peer,
        trusted: &config.trusted_proxies,
        header: config.forwarded_header,
    };
    let target = parts.target(sent.headers(), client, None);
    let hop = Hop {
        peer,
        is_trusted: is_trusted(peer, &config.trusted_proxies),
        header: config.forwarded_header,
        version: match sent.version() {
            Version::HTTP_09 | Version::HTTP_10 => HopVersion::Http10,
            Version::HTTP_2 => HopVersion::Http2,
            _ => HopVersion::Http11,
        },
    };
    let (mut head, ()) = Request::new(()).into_parts();
    head.method = sent.method().clone();
    head.uri = application.uri(path);
    head.headers = sent.headers().clone();
    fields::for_application(&mut head.headers, &target, hop, request_id);
    head
}

impl From<Failure> for RejectionCode {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Busy => Self::ApplicationBusy,
            Failure::Unreachable => Self::ApplicationUnreachable,
            Failure::Closed | Failure::Invalid => Self::ApplicationInvalid,
            Failure::Slow => Self::ApplicationTimeout,
            Failure::ClientBody => Self::BodyTimeout,
            Failure::MalformedBody => Self::Malformed,
        }
    }
}
