//! Responses of the webhook and of its admin port.
//!
//! Every error response has the body `{"error": {"code", "message"}}`. Reviews never reject a pod:
//! an invalid pod gets a warning (`sidestream_inject::review`), and only a request that is not a
//! review gets a 4xx.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, Request, StatusCode};
use serde_json::{Value, json};
use sidestream_common::request_head;
use sidestream_common::slots::{Busy, Slot};
use sidestream_inject::review;

use super::shared::Shared;
use crate::metrics::HOST_NOT_ALLOWED;

/// 8 MiB: an API server accepts objects of 3 MiB, and a review has one or two.
const BODY_BYTES_MAX: usize = 8 << 20;

/// 5 s for the whole body, and for a permit: the timeout that the webhook configuration gives the
/// API server.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// 2,000 characters of problems in a log line; the annotation of the pod has more.
const PROBLEMS_CHARS_MAX: usize = 2000;

const NO_SNIFF: HeaderValue = HeaderValue::from_static("nosniff");

/// One connection to the admin port, which has one request.
pub(super) struct AdminConnection {
    pub(super) slot: Arc<Slot>,
    /// Held until the response is written.
    pub(super) busy: OnceLock<Busy>,
    /// True if a line of the head ends without a carriage return.
    pub(super) has_bare_line_feed: Arc<AtomicBool>,
}

type Response = hyper::Response<Full<Bytes>>;

/// Responds on the admin port. Probes need no slot, so they are answered whatever other peers do.
pub(super) fn admin<B>(
    shared: &Shared,
    connection: &AdminConnection,
    request: &Request<B>,
) -> Response {
    if let Some(rejection) = reject_head(shared, connection, request) {
        return rejection;
    }
    match request.uri().path() {
        "/health/live" => respond(StatusCode::OK, &json!({ "live": true })),
        "/health" | "/health/ready" => health(shared),
        "/metrics" => {
            let Some(busy) = connection.slot.begin() else {
                return too_busy();
            };
            // Set once: a connection has one request.
            connection.busy.set(busy).ok();
            let mut response = Response::new(Full::new(Bytes::from(shared.metrics.render())));
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
                .headers_mut()
                .insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
            response
        }
        _ => reject(
            StatusCode::NOT_FOUND,
            "not_found",
            "available are /health, /health/live, /health/ready and /metrics",
        ),
    }
}

/// Rejects an ambiguous head, an unknown host and every method but GET and HEAD.
fn reject_head<B>(
    shared: &Shared,
    connection: &AdminConnection,
    request: &Request<B>,
) -> Option<Response> {
    if connection.has_bare_line_feed.load(Ordering::Relaxed) {
        let message = "a line of the request ends without a carriage return";
        return Some(reject(StatusCode::BAD_REQUEST, "bare_line_feed", message));
    }
    match request_head::host(request.version(), request.headers()) {
        Err(message) => return Some(reject(StatusCode::BAD_REQUEST, "bad_host", message)),
        Ok(Some(host)) if !request_head::is_known(host, &shared.admin_hosts) => {
            let rejections = &shared.metrics.refusals_total;
            rejections.with_label_values(&HOST_NOT_ALLOWED).inc();
            let [_, code] = HOST_NOT_ALLOWED;
            let message = "use an address or localhost, or add the host with --admin-host";
            return Some(reject(StatusCode::MISDIRECTED_REQUEST, code, message));
        }
        Ok(_) => {}
    }
    (!matches!(*request.method(), Method::GET | Method::HEAD)).then(|| {
        reject(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "only GET and HEAD",
        )
    })
}

/// Readiness, and the state of the certificate. A failed reload leaves the pod ready: the previous
/// certificate serves.
fn health(shared: &Shared) -> Response {
    let is_leaving = shared.is_shutting_down.load(Ordering::Relaxed);
    let error = shared.reload_error().clone();
    let status = if error.is_some() { "degraded" } else { "ok" };
    let checks = json!({ "certificate": { "status": status, "message": error } });
    let body = json!({ "ready": !is_leaving, "leaving": is_leaving, "checks": checks });
    if is_leaving {
        respond(StatusCode::SERVICE_UNAVAILABLE, &body)
    } else {
        respond(StatusCode::OK, &body)
    }
}

/// Responds to an API server.
pub(super) async fn review(
    shared: &Shared,
    slot: &Slot,
    peer: IpAddr,
    request: Request<Incoming>,
) -> Response {
    if request.uri().path() != "/inject" {
        return reject(
            StatusCode::NOT_FOUND,
            "not_found",
            "the webhook is at /inject",
        );
    }
    if request.method() != Method::POST {
        return reject(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "a review is sent by POST",
        );
    }
    let Some(_busy) = slot.begin() else {
        return too_busy();
    };
    let begin = Instant::now();
    let read = async {
        // The permit first: it bounds the bodies in memory.
        let permit = shared.reviews.acquire(peer).await;
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX);
        (permit, body.collect().await)
    };
    let Ok((_permit, body)) = tokio::time::timeout(BODY_TIMEOUT, read).await else {
        count(shared, "too_slow");
        let message = "the review did not arrive within 5 s";
        return reject(StatusCode::REQUEST_TIMEOUT, "too_slow", message);
    };
    let body = match body {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            count(shared, "too_large");
            let message = "a review has at most 8 MiB";
            return reject(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message);
        }
        Err(error) => {
            count(shared, "malformed");
            let message = format!("the body cannot be read: {error}");
            return reject(StatusCode::BAD_REQUEST, "malformed", &message);
        }
    };
    let reviewed = review::answer(&body, &shared.defaults);
    let seconds = begin.elapsed().as_secs_f64();
    shared.metrics.review_seconds.observe(seconds);
    match reviewed {
        Ok(reviewed) => {
            count(shared, reviewed.outcome.label());
            let problems = reviewed.problems.len() as u64;
            shared.metrics.problems_total.inc_by(problems);
            log(shared, &reviewed);
            respond(StatusCode::OK, &reviewed.body)
        }
        Err(error) => {
            count(shared, "malformed");
            reject(StatusCode::BAD_REQUEST, "malformed", &error.to_string())
        }
    }
}

fn count(shared: &Shared, outcome: &str) {
    let reviews = &shared.metrics.reviews_total;
    reviews.with_label_values(&[outcome]).inc();
}

/// Response if the port, or one peer address, has its maximum of requests in progress.
fn too_busy() -> Response {
    let mut response = reject(
        StatusCode::SERVICE_UNAVAILABLE,
        "busy",
        "this port, or this peer address, is busy",
    );
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// Logs an object with invalid annotations, at a bounded rate: many pods with one mistake would
/// fill the log.
fn log(shared: &Shared, reviewed: &review::Answer) {
    let review::Object {
        kind,
        namespace,
        name,
        owner,
    } = &reviewed.object;
    let outcome = reviewed.outcome.label();
    if reviewed.problems.is_empty() {
        tracing::debug!(outcome, kind, namespace, name, owner, "reviewed");
        return;
    }
    if shared.problem_lines.check().is_err() {
        shared.suppressed_lines.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let left_out = shared.suppressed_lines.swap(0, Ordering::Relaxed);
    let problems = reviewed.problems.join("; ");
    let problems: String = problems.chars().take(PROBLEMS_CHARS_MAX).collect();
    tracing::warn!(
        kind,
        namespace,
        name,
        owner,
        outcome,
        problems,
        left_out,
        "wrong sidestream.dev annotations"
    );
}

fn reject(status: StatusCode, code: &str, message: &str) -> Response {
    respond(
        status,
        &json!({ "error": { "code": code, "message": message } }),
    )
}

fn respond(status: StatusCode, body: &Value) -> Response {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    response
}
