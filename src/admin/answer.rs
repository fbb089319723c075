//! Responses of the admin port: one match over the paths.
//!
//! A request is checked first (one valid `Host`, lines that end in CRLF, a known name), then
//! routed. Protected pages need a token, a session or a client certificate. Health checks need no
//! permit; the other requests count as busy in the slot of their connection. Lists and event streams
//! have permits of their own, and event streams do not count as busy: a scrape finds its slot,
//! however many pages are open.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Body;
use hyper::header::{ACCEPT, ALLOW, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Method, Request, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::access::{Access, Denied};
use super::connections::{self, ListError};
use super::health;
use super::list::List;
use super::page::{self, Form};
use super::parts::Parts;
use super::response::{Answer, JSON_TYPE, error, json, response, text};
use super::stream::Watch;
use super::tap::{self, TapError, TapRequest};
use super::viewers::Viewers;
use crate::net::request_head;
use crate::net::slots::{Busy, Slot};
use crate::telemetry::open_metrics;

/// Prometheus's text format (exposition formats, version 0.0.4).
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const EVENTS_TYPE: &str = "text/event-stream";

/// 1 s: scrapes and lists take less.
const BUSY_RETRY_SECONDS: u64 = 1;

/// 2: one for a person and one for a program. A list has up to 10,000 event streams.
pub(super) const LISTS_MAX: usize = 2;

/// Codes of rejections that are counted.
pub(super) const COUNTED: [&str; 10] = [
    TOO_MANY_LISTS,
    TOO_MANY_VIEWERS,
    TOO_MANY_TAPS,
    CROSS_ORIGIN,
    HOST_NOT_ALLOWED,
    UNAUTHENTICATED,
    INVALID_TOKEN,
    TOO_MANY_FAILURES,
    CERTIFICATE_REQUIRED,
    TLS_HANDSHAKE,
];

const TOO_MANY_LISTS: &str = "too_many_lists";
const TOO_MANY_VIEWERS: &str = "too_many_viewers";
const TOO_MANY_TAPS: &str = "too_many_taps";
const CROSS_ORIGIN: &str = "cross_origin";
const HOST_NOT_ALLOWED: &str = "host_not_allowed";
const UNAUTHENTICATED: &str = "unauthenticated";
const INVALID_TOKEN: &str = "invalid_token";
const TOO_MANY_FAILURES: &str = "too_many_authentication_failures";
const CERTIFICATE_REQUIRED: &str = "certificate_required";
const TLS_HANDSHAKE: &str = "tls_handshake";

/// Challenges of RFC 6750, section 3.
const NO_TOKEN: HeaderValue = HeaderValue::from_static(r#"Bearer realm="sidestream-admin""#);
const WRONG_TOKEN: HeaderValue = HeaderValue::from_static(
    r#"Bearer realm="sidestream-admin", error="invalid_token", error_description="the token is wrong""#,
);

/// Target of a request.
enum Target {
    /// Computed at once.
    Computed(fn(&Parts) -> Answer),
    Metrics,
    Connections,
    Page,
    /// File of the page.
    File(Answer),
    Form(Form),
    Snapshots,
    /// Routes that can be tapped, and whether they can.
    Routes,
    Tap,
}

/// State that all connections of the port share.
pub(super) struct Port {
    pub(super) parts: Arc<Parts>,
    /// Allowed names in `Host`, besides addresses and `localhost`.
    pub(super) hosts: Vec<String>,
    pub(super) access: Access,
    /// Permits for lists of connections.
    pub(super) lists: Arc<Semaphore>,
    pub(super) viewers: Viewers,
    pub(super) taps: Arc<Semaphore>,
    /// `admin.tap`
    pub(super) is_tap_on: bool,
    pub(super) is_tls: bool,
}

/// Context of one connection, which has one request.
pub(super) struct RequestContext {
    pub(super) port: Arc<Port>,
    /// Address of the client.
    pub(super) peer: IpAddr,
    /// The client has presented a certificate of `client_ca`.
    pub(super) has_certificate: bool,
    /// Set if a line of the request head ends without a carriage return.
    pub(super) has_bare_line_feed: Arc<AtomicBool>,
    pub(super) slot: Slot,
    /// Held until the response is written.
    pub(super) busy: OnceLock<Busy>,
    /// Watch of the response.
    pub(super) watch: Watch,
}

impl Target {
    fn find(path: &str) -> Option<Self> {
        Some(match path {
            "/health" => {
                Self::Computed(|parts| probe(health::is_ready(parts), &health::report(parts)))
            }
            "/health/live" => Self::Computed(|_| json(StatusCode::OK, &json!({ "live": true }))),
            "/health/ready" => {
                Self::Computed(|parts| probe(health::is_ready(parts), &health::readiness(parts)))
            }
            "/metrics" => Self::Metrics,
            "/config" => Self::Computed(|parts| json(StatusCode::OK, &(parts.config)())),
            "/connections" => Self::Connections,
            "/" => Self::Page,
            "/page/events" => Self::Snapshots,
            "/page/routes" => Self::Routes,
            "/page/tap" => Self::Tap,
            _ => match page::form(path) {
                Some(form) => Self::Form(form),
                None => Self::File(page::file(path)?),
            },
        })
    }

    /// Returns the methods, as in `Allow`.
    fn methods(&self) -> &'static str {
        match self {
            Self::Form(_) => "POST",
            _ => "GET, HEAD",
        }
    }

    fn is_event_stream(&self) -> bool {
        matches!(self, Self::Snapshots | Self::Tap)
    }
}

/// Responds to a request. Lists of the cluster, forms and new taps wait, for some seconds at most.
///
/// Health checks take no permit, so they are answered whatever else is open.
pub(super) async fn respond<B>(context: &RequestContext, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if let Some(rejection) = reject(context, &request) {
        return rejection;
    }
    let path = request.uri().path();
    let Some(target) = Target::find(path) else {
        let hint = "/, /health, /health/live, /health/ready, /metrics, /connections, /config";
        let message = "no such page on the admin port";
        return error(StatusCode::NOT_FOUND, "not_found", message, hint);
    };
    let methods = target.methods();
    if !methods.split(", ").any(|method| method == request.method()) {
        return method_not_allowed(methods);
    }
    if is_protected(path)
        && let Err(denied) = context.port.access.check(
            context.peer,
            context.has_certificate,
            request.headers(),
            Instant::now(),
        )
    {
        return denied_answer(context, path, denied);
    }
    if !is_probe(path) && !target.is_event_stream() {
        let Some(busy) = context.slot.begin() else {
            return unavailable(
                "busy",
                "this port, or your address, has reached its limit of concurrent requests",
            );
        };
        // Set once: a connection has one request.
        context.busy.set(busy).ok();
    }
    let query = request.uri().query();
    match target {
        Target::Computed(page) => page(&context.port.parts),
        Target::Metrics => metrics(&context.port.parts, request.headers()),
        Target::Connections => connections(context, query).await,
        Target::Page => page::page(),
        Target::File(file) => file,
        Target::Form(form) => submit(context, form, request).await,
        Target::Snapshots if request.method() == Method::HEAD => events_head(),
        Target::Snapshots => snapshots(context),
        Target::Routes => routes(context, request.headers()),
        Target::Tap => open_tap(context, request.method(), query).await,
    }
}

fn method_not_allowed(methods: &'static str) -> Answer {
    let hint = "use the control socket for commands";
    let message = format!("only {methods}");
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let mut rejected = error(status, "method_not_allowed", &message, hint);
    let headers = rejected.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static(methods));
    rejected
}

/// Answers a form of the page. A wrong token is answered with the form.
async fn submit<B>(context: &RequestContext, form: Form, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if page::is_cross_origin(request.headers()) {
        context.count(CROSS_ORIGIN);
        let hint = "open the admin page and use its own form";
        let message = "the form is of another origin";
        return error(StatusCode::FORBIDDEN, CROSS_ORIGIN, message, hint);
    }
    let port = &context.port;
    let (access, peer) = (&port.access, context.peer);
    match page::submit(access, peer, port.is_tls, form, request).await {
        Ok(answer) => answer,
        Err(denied) => denied_answer(context, "/", denied),
    }
}

fn events_head() -> Answer {
    response(StatusCode::OK, EVENTS_TYPE, Full::default().boxed_unsync())
}

/// Returns the event stream of the page.
fn snapshots(context: &RequestContext) -> Answer {
    let Some(snapshots) = context.port.viewers.enter() else {
        context.count(TOO_MANY_VIEWERS);
        return unavailable(TOO_MANY_VIEWERS, "eight other pages are open on this pod");
    };
    response(StatusCode::OK, EVENTS_TYPE, context.watch.body(snapshots))
}

/// Reason why this client cannot open taps.
#[derive(Clone, Copy, Serialize)]
struct NoTap {
    code: &'static str,
    message: &'static str,
    hint: &'static str,
}

fn no_tap(context: &RequestContext) -> Option<NoTap> {
    let port = &context.port;
    NoTap::find(port.is_tap_on, port.access.is_protected(), context.peer)
}

impl NoTap {
    fn find(is_tap_on: bool, is_protected: bool, peer: IpAddr) -> Option<Self> {
        if !is_tap_on {
            return Some(Self {
                code: "tap_disabled",
                message: "payloads are not shown on this pod",
                hint: "set `admin.tap: true` and restart the sidecar",
            });
        }
        // Of this machine: `kubectl port-forward`, the demo, or the same pod.
        let is_private = is_protected || peer.to_canonical().is_loopback();
        (!is_private).then_some(Self {
            code: "tap_not_protected",
            message: "without a token, payloads are shown to this machine only",
            hint: "set `admin.token`, or use `kubectl port-forward`",
        })
    }
}

/// Returns the routes that can be tapped, and what the page needs to know about this client.
fn routes(context: &RequestContext, headers: &HeaderMap) -> Answer {
    let body = json!({
        "tap": no_tap(context),
        "session": context.port.access.has_session(headers),
        "routes": context.port.parts.taps.routes(),
    });
    json(StatusCode::OK, &body)
}

/// Opens a tap, or returns the reason why it is not possible.
async fn open_tap(context: &RequestContext, method: &Method, query: Option<&str>) -> Answer {
    let port = &context.port;
    if let Some(reason) = no_tap(context) {
        return error(
            StatusCode::FORBIDDEN,
            reason.code,
            reason.message,
            reason.hint,
        );
    }
    if method == Method::HEAD {
        return events_head();
    }
    let Ok(permit) = port.taps.clone().try_acquire_owned() else {
        context.count(TOO_MANY_TAPS);
        return unavailable(TOO_MANY_TAPS, "two other taps are open on this pod");
    };
    let request = TapRequest::parse(query.unwrap_or_default());
    match port.parts.taps.open(request).await {
        Ok(cursors) => {
            let events = tap::events(cursors, port.viewers.ended(), permit);
            response(StatusCode::OK, EVENTS_TYPE, context.watch.body(events))
        }
        Err(TapError::UnknownRoute) => error(
            StatusCode::NOT_FOUND,
            "tap_unknown_route",
            "there is no such route",
            "/page/routes lists the routes in force",
        ),
        Err(TapError::Filter(message)) => error(
            StatusCode::BAD_REQUEST,
            "tap_bad_value",
            &message,
            "a value is one token; a variable that is a whole subject takes a filter",
        ),
        Err(TapError::NotAllowed(message)) => error(
            StatusCode::FORBIDDEN,
            "tap_not_allowed",
            &message,
            "use a subject that clients of the route can read",
        ),
        Err(TapError::Unavailable(message)) => unavailable("tap_unavailable", message),
    }
}

/// Returns the metrics in the format that the scraper asks for.
fn metrics(parts: &Parts, headers: &HeaderMap) -> Answer {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    if accept.is_some_and(open_metrics::is_preferred) {
        let text_of_metrics = parts.metrics.render_open_metrics();
        return text(StatusCode::OK, open_metrics::CONTENT_TYPE, text_of_metrics);
    }
    text(StatusCode::OK, METRICS_TYPE, parts.metrics.render())
}

fn is_probe(path: &str) -> bool {
    matches!(path, "/health" | "/health/live" | "/health/ready")
}

/// Pages with data of clients and of the configuration.
fn is_protected(path: &str) -> bool {
    matches!(
        path,
        "/" | "/connections" | "/config" | "/page/events" | "/page/routes" | "/page/tap"
    )
}

fn denied_answer(context: &RequestContext, path: &str, denied: Denied) -> Answer {
    let (status, code, message, hint) = match denied {
        Denied::NoToken => (
            StatusCode::UNAUTHORIZED,
            UNAUTHENTICATED,
            "this page needs a token",
            "send `Authorization: Bearer` with the value of `admin.token`",
        ),
        Denied::WrongToken => (
            StatusCode::UNAUTHORIZED,
            INVALID_TOKEN,
            "the token is wrong",
            "send one `Authorization` header with the value of `admin.token`",
        ),
        Denied::TooManyFailures(_) => (
            StatusCode::TOO_MANY_REQUESTS,
            TOO_MANY_FAILURES,
            "too many wrong tokens",
            "try again later, with the value of `admin.token`",
        ),
        Denied::NoCertificate => (
            StatusCode::FORBIDDEN,
            CERTIFICATE_REQUIRED,
            "this page needs a client certificate",
            "present a certificate of `admin.tls.client_ca`, or set `admin.token`",
        ),
    };
    context.count(code);
    tracing::debug!(client.addr = %context.peer, path, code, "admin request rejected");
    let mut answer = match path {
        "/" => page::denied(status, denied),
        _ => error(status, code, message, hint),
    };
    let headers = answer.headers_mut();
    match denied {
        Denied::NoToken => drop(headers.insert(WWW_AUTHENTICATE, NO_TOKEN)),
        Denied::WrongToken => drop(headers.insert(WWW_AUTHENTICATE, WRONG_TOKEN)),
        Denied::TooManyFailures(wait) => {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds(wait)));
        }
        Denied::NoCertificate => {}
    }
    answer
}

/// Returns whole seconds, rounded up.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl RequestContext {
    /// Counts a failed TLS handshake.
    pub(super) fn count_handshake(&self) {
        self.count(TLS_HANDSHAKE);
    }

    fn count(&self, code: &str) {
        let counted = &self.port.parts.metrics.admin_refusals_total;
        counted.with_label_values(&["admin", code]).inc();
    }
}

/// Rejects malformed requests, and requests for another host, which a page in a browser may have
/// made.
fn reject<B>(context: &RequestContext, request: &Request<B>) -> Option<Answer> {
    if context.has_bare_line_feed.load(Ordering::Relaxed) {
        let message = "a line of the request ends without a carriage return";
        return Some(error(
            StatusCode::BAD_REQUEST,
            "bare_line_feed",
            message,
            "end lines with CRLF",
        ));
    }
    match request_head::host(request.version(), request.headers()) {
        Err(why) => {
            let hint = "send one Host header, with the host of the URL";
            Some(error(StatusCode::BAD_REQUEST, "bad_host", why, hint))
        }
        // Load balancers probe under any name, and probes return neither clients nor configuration.
        Ok(Some(host))
            if !is_probe(request.uri().path())
                && !request_head::is_known(host, &context.port.hosts) =>
        {
            context.count(HOST_NOT_ALLOWED);
            let hint = "use an IP address or localhost, or add the name to `admin.hosts`";
            Some(error(
                StatusCode::MISDIRECTED_REQUEST,
                HOST_NOT_ALLOWED,
                "host name not allowed on this port",
                hint,
            ))
        }
        Ok(_) => None,
    }
}

async fn connections(context: &RequestContext, query: Option<&str>) -> Answer {
    let query = match connections::Query::parse(query.unwrap_or_default()) {
        Ok(query) => query,
        Err(message) => {
            return error(
                StatusCode::BAD_REQUEST,
                "bad_query",
                &message,
                connections::HINT,
            );
        }
    };
    let Ok(permit) = context.port.lists.clone().try_acquire_owned() else {
        context.count(TOO_MANY_LISTS);
        return unavailable(
            TOO_MANY_LISTS,
            "two other lists of connections are being read",
        );
    };
    match connections::entries(&context.port.parts.streams, query).await {
        Ok(entries) => response(
            StatusCode::OK,
            JSON_TYPE,
            List::new(entries, permit).boxed_unsync(),
        ),
        Err(ListError::NotConfigured) => {
            let hint = "set `presence.bucket`, or query each pod without `scope`";
            error(
                StatusCode::NOT_FOUND,
                "presence_not_configured",
                "presence is not configured",
                hint,
            )
        }
        Err(ListError::Unavailable(why)) => {
            let hint = "the check `presence` on /health has the reason; without `scope`, the clients of this pod are listed";
            error(
                StatusCode::SERVICE_UNAVAILABLE,
                "presence_unavailable",
                &why,
                hint,
            )
        }
    }
}

fn unavailable(code: &str, message: &str) -> Answer {
    let mut rejected = error(StatusCode::SERVICE_UNAVAILABLE, code, message, "try again");
    rejected
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from(BUSY_RETRY_SECONDS));
    rejected
}

fn probe(ready: bool, body: &Value) -> Answer {
    json(
        if ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        },
        body,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_shown_if_the_tap_is_on_and_a_token_or_this_machine_protects_them() {
        let code = |is_on, is_protected, peer: &str| {
            let reason = NoTap::find(is_on, is_protected, peer.parse().unwrap());
            reason.map(|reason| reason.code)
        };
        assert_eq!(code(false, true, "127.0.0.1"), Some("tap_disabled"));
        for local in ["127.0.0.1", "127.0.0.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(code(true, false, local), None, "{local}");
        }
        for other in ["10.1.2.3", "fe80::1", "0.0.0.0"] {
            assert_eq!(
                code(true, false, other),
                Some("tap_not_protected"),
                "{other}"
            );
            assert_eq!(code(true, true, other), None, "{other}");
        }
    }
}
