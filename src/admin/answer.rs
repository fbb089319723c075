//! Responses of the admin port: one match over the paths.
//!
//! A request is checked first (one valid `Host`, lines that end in CRLF, a known name), then
//! routed. Protected pages need a token or a client certificate. Every page but `/connections` is
//! computed at once. Health checks need no permit; the other requests count as busy in the slot of
//! their connection, and lists need a permit of their own.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::access::{Access, Denied};
use super::connections::{self, ListError};
use super::health;
use super::list::List;
use super::parts::Parts;
use crate::net::request_head;
use crate::net::slots::{Busy, Slot};

/// Prometheus's text format (exposition formats, version 0.0.4).
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON_TYPE: &str = "application/json";

/// 1 s: scrapes and lists take less.
const BUSY_RETRY_SECONDS: u64 = 1;

/// 2: one for a person and one for a program. A list has up to 10,000 event streams.
pub(super) const LISTS_MAX: usize = 2;

/// Codes of rejections that are counted.
pub(super) const COUNTED: [&str; 7] = [
    TOO_MANY_LISTS,
    HOST_NOT_ALLOWED,
    UNAUTHENTICATED,
    INVALID_TOKEN,
    TOO_MANY_FAILURES,
    CERTIFICATE_REQUIRED,
    TLS_HANDSHAKE,
];

const TOO_MANY_LISTS: &str = "too_many_lists";
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

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Page that is computed at once.
type Page = fn(&Parts) -> Answer;

/// Context of one connection, which has one request.
pub(super) struct RequestContext {
    pub(super) parts: Arc<Parts>,
    /// Allowed names in `Host`, besides addresses and `localhost`.
    pub(super) hosts: Arc<[String]>,
    pub(super) access: Arc<Access>,
    /// Address of the client.
    pub(super) peer: IpAddr,
    /// The client has presented a certificate of `client_ca`.
    pub(super) has_certificate: bool,
    /// Set if a line of the request head ends without a carriage return.
    pub(super) has_bare_line_feed: Arc<AtomicBool>,
    /// Permits for lists of connections.
    pub(super) lists: Arc<Semaphore>,
    pub(super) slot: Slot,
    /// Held until the response is written.
    pub(super) busy: OnceLock<Busy>,
}

/// Responds to a request. Only lists of the cluster wait, for some seconds at most.
///
/// Health checks take no permit, so they are answered whatever else is open.
pub(super) async fn respond<B>(context: &RequestContext, request: &Request<B>) -> Answer {
    let parts = &context.parts;
    if let Some(rejection) = reject(context, request) {
        return rejection;
    }
    let path = request.uri().path();
    let page: Option<Page> = match path {
        "/health" => Some(|parts| probe(health::is_ready(parts), &health::report(parts))),
        "/health/live" => Some(|_| json(StatusCode::OK, &json!({ "live": true }))),
        "/health/ready" => Some(|parts| probe(health::is_ready(parts), &health::readiness(parts))),
        "/metrics" => Some(|parts| text(StatusCode::OK, METRICS_TYPE, parts.metrics.render())),
        "/config" => Some(|parts| json(StatusCode::OK, &(parts.config)())),
        // The only page that may wait.
        "/connections" => None,
        _ => {
            let hint = "/health, /health/live, /health/ready, /metrics, /connections, /config";
            return error(
                StatusCode::NOT_FOUND,
                "not_found",
                "no such page on the admin port",
                hint,
            );
        }
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let hint = "use the control socket for commands";
        let mut rejected = error(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "only GET and HEAD",
            hint,
        );
        rejected
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return rejected;
    }
    if is_protected(path)
        && let Err(denied) = context.access.check(
            context.peer,
            context.has_certificate,
            request.headers(),
            Instant::now(),
        )
    {
        return denied_answer(context, path, denied);
    }
    if !is_probe(path) {
        let Some(busy) = context.slot.begin() else {
            return unavailable(
                "busy",
                "this port, or your address, has reached its limit of concurrent requests",
            );
        };
        // Set once: a connection has one request.
        context.busy.set(busy).ok();
    }
    match page {
        Some(page) => page(parts),
        None => connections(context, request.uri().query()).await,
    }
}

fn is_probe(path: &str) -> bool {
    matches!(path, "/health" | "/health/live" | "/health/ready")
}

/// Pages with data of clients and of the configuration.
fn is_protected(path: &str) -> bool {
    matches!(path, "/connections" | "/config")
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
    let mut answer = error(status, code, message, hint);
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
        let counted = &self.parts.metrics.admin_refusals_total;
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
            if !is_probe(request.uri().path()) && !request_head::is_known(host, &context.hosts) =>
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
    let Ok(permit) = context.lists.clone().try_acquire_owned() else {
        context.count(TOO_MANY_LISTS);
        return unavailable(
            TOO_MANY_LISTS,
            "two other lists of connections are being read",
        );
    };
    match connections::entries(&context.parts.streams, query).await {
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

fn error(status: StatusCode, code: &str, message: &str, hint: &str) -> Answer {
    json(
        status,
        &json!({ "error": { "code": code, "message": message, "hint": hint } }),
    )
}

fn json(status: StatusCode, body: &Value) -> Answer {
    text(status, JSON_TYPE, format!("{body}\n"))
}

fn text(status: StatusCode, content_type: &'static str, text: String) -> Answer {
    response(status, content_type, Full::from(text).boxed_unsync())
}

fn response(
    status: StatusCode,
    content_type: &'static str,
    body: UnsyncBoxBody<Bytes, Infallible>,
) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
        .headers_mut()
        .insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
