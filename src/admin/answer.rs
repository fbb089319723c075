//! What the admin answers to a request: one match over the paths.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::connections::{self, NoList};
use super::list::List;
use super::{Parts, health};
use crate::net::request_head;
use crate::net::slots::{Busy, Slot};

/// Prometheus's text format (exposition formats, version 0.0.4).
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON_TYPE: &str = "application/json";

/// 1 s: scrapes and lists are over soon.
const BUSY_RETRY_SECONDS: u64 = 1;

/// 2: a person and a program. A list describes up to 10,000 event streams.
pub(super) const LISTS_MAX: usize = 2;

/// The label of the admin port, and the code of a list that is one too many.
pub(super) const TOO_MANY_LISTS: [&str; 2] = ["admin", "too_many_lists"];

/// The same for a request with another host.
pub(super) const HOST_NOT_ALLOWED: [&str; 2] = ["admin", "host_not_allowed"];

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// A page that needs no waiting.
type Page = fn(&Parts) -> Answer;

/// One connection, which is one request.
pub(super) struct Asker {
    pub(super) parts: Arc<Parts>,
    /// Names under which it may be asked.
    pub(super) hosts: Arc<[String]>,
    /// Whether a line of the head ends without a carriage return.
    pub(super) has_bare_line_feed: Arc<AtomicBool>,
    /// Permits for lists.
    pub(super) lists: Arc<Semaphore>,
    pub(super) slot: Slot,
    /// Held until the answer is written.
    pub(super) busy: OnceLock<Busy>,
}

/// Answers a request. Waits for other pods at most, for some seconds.
///
/// Health checks take nothing that could be used up: whatever else is open, a probe is answered.
pub(super) async fn answer<B>(asker: &Asker, request: &Request<B>) -> Answer {
    let parts = &asker.parts;
    if let Some(rejection) = reject(asker, request) {
        return rejection;
    }
    let path = request.uri().path();
    let page: Option<Page> = match path {
        "/health" => Some(|parts| probe(health::is_ready(parts), &health::report(parts))),
        "/health/live" => Some(|_| json(StatusCode::OK, &json!({ "live": true }))),
        "/health/ready" => Some(|parts| probe(health::is_ready(parts), &health::readiness(parts))),
        "/metrics" => Some(|parts| text(StatusCode::OK, METRICS_TYPE, parts.metrics.render())),
        "/config" => Some(|parts| json(StatusCode::OK, &(parts.config)())),
        // The only one that may wait.
        "/connections" => None,
        _ => {
            let hint = "/health, /health/live, /health/ready, /metrics, /connections, /config";
            return error(
                StatusCode::NOT_FOUND,
                "not_found",
                "the admin has no such page",
                hint,
            );
        }
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let hint = "what changes something goes over the control socket";
        let mut refused = error(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "only GET and HEAD",
            hint,
        );
        refused
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    if !is_probe(path) {
        let Some(busy) = asker.slot.begin() else {
            return later(
                "busy",
                "this port answers as many requests as it, or one peer address, may have",
            );
        };
        // Set once: a connection is one request.
        asker.busy.set(busy).ok();
    }
    match page {
        Some(page) => page(parts),
        None => connections(asker, request.uri().query()).await,
    }
}

fn is_probe(path: &str) -> bool {
    matches!(path, "/health" | "/health/live" | "/health/ready")
}

/// Requests that are malformed, or that a page in a browser may have made for another host.
fn reject<B>(asker: &Asker, request: &Request<B>) -> Option<Answer> {
    if asker.has_bare_line_feed.load(Ordering::Relaxed) {
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
        // Load balancers send probes under any name, and a probe returns no list of clients and no configuration.
        Ok(Some(host))
            if !is_probe(request.uri().path()) && !request_head::is_known(host, &asker.hosts) =>
        {
            asker
                .parts
                .metrics
                .admin_refusals_total
                .with_label_values(&HOST_NOT_ALLOWED)
                .inc();
            let hint = "ask by address or as localhost, or add the name to `admin.hosts`";
            Some(error(
                StatusCode::MISDIRECTED_REQUEST,
                HOST_NOT_ALLOWED[1],
                "this port is not asked by that name",
                hint,
            ))
        }
        Ok(_) => None,
    }
}

async fn connections(asker: &Asker, query: Option<&str>) -> Answer {
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
    let Ok(permit) = asker.lists.clone().try_acquire_owned() else {
        asker
            .parts
            .metrics
            .admin_refusals_total
            .with_label_values(&TOO_MANY_LISTS)
            .inc();
        return later(
            TOO_MANY_LISTS[1],
            "two lists of connections are being read already",
        );
    };
    match connections::entries(&asker.parts.registry, query).await {
        Ok(entries) => response(
            StatusCode::OK,
            JSON_TYPE,
            List::new(entries, permit).boxed_unsync(),
        ),
        Err(NoList::NotConfigured) => {
            let hint = "name a bucket as `presence.bucket`, or ask each pod without `scope`";
            error(
                StatusCode::NOT_FOUND,
                "presence_not_configured",
                "this pod keeps no registry over all pods",
                hint,
            )
        }
        Err(NoList::Unavailable(why)) => {
            let hint = "the check `presence` on /health says more; without `scope` this pod's own clients are listed";
            error(
                StatusCode::SERVICE_UNAVAILABLE,
                "presence_unavailable",
                &why,
                hint,
            )
        }
    }
}

fn later(code: &str, message: &str) -> Answer {
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
