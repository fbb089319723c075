//! What the webhook and its admin port answer to a request.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::Shared;
use crate::injector::review;
use crate::lifecycle::health::Status;
use crate::net::request_head;
use crate::net::slots::{Busy, Slot};

/// 8 MiB: an API server takes objects of 3 MiB, and a review has one, or two.
const BODY_BYTES_MAX: usize = 8 << 20;

/// 5 s: for the whole body, and for a permit. The API server asks to be answered within 5 s as well.
const BODY_DEADLINE: Duration = Duration::from_secs(5);

/// 2,000 characters of problems in a line of the log; the pod's annotation has more.
const PROBLEMS_CHARS_MAX: usize = 2000;

const NO_SNIFF: HeaderValue = HeaderValue::from_static("nosniff");

/// Labels of a request to the admin port with another host.
pub(super) const HOST_NOT_ALLOWED: [&str; 2] = ["admin", "host_not_allowed"];

/// One connection to the admin port, which is one request.
pub(super) struct Asker {
    pub(super) slot: Arc<Slot>,
    /// Held until the answer is written.
    pub(super) busy: OnceLock<Busy>,
    /// Whether a line of the head ends without a carriage return.
    pub(super) has_bare_line_feed: Arc<AtomicBool>,
}

type Answer = Response<Full<Bytes>>;

/// Answers on the admin port. Probes need no slot.
pub(super) fn probe<B>(shared: &Shared, asker: &Asker, request: &Request<B>) -> Answer {
    if asker.has_bare_line_feed.load(Ordering::Relaxed) {
        return refuse(
            StatusCode::BAD_REQUEST,
            "bare_line_feed",
            "a line of the request ends without a carriage return",
        );
    }
    match request_head::host(request.version(), request.headers()) {
        Err(why) => return refuse(StatusCode::BAD_REQUEST, "bad_host", why),
        Ok(Some(host)) if !request_head::is_known(host, &shared.admin_hosts) => {
            shared
                .metrics
                .refusals_total
                .with_label_values(&HOST_NOT_ALLOWED)
                .inc();
            let message = "ask by address or as localhost, or name the host with --admin-host";
            return refuse(
                StatusCode::MISDIRECTED_REQUEST,
                HOST_NOT_ALLOWED[1],
                message,
            );
        }
        Ok(_) => {}
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "only GET and HEAD",
        );
    }
    match request.uri().path() {
        "/health/live" => answer(StatusCode::OK, &json!({ "live": true })),
        "/health" | "/health/ready" => {
            let leaving = shared.leaving.load(Ordering::Relaxed);
            let ready = shared.health.is_ready() && !leaving;
            let checks = shared.health.report().into_iter().map(|(name, status)| {
                let (status, message) = match status {
                    Status::Ok => ("ok", None),
                    Status::Degraded(why) => ("degraded", Some(why)),
                    Status::Failing(why) => ("failing", Some(why)),
                };
                (name, json!({ "status": status, "message": message }))
            });
            let checks: serde_json::Map<String, Value> = checks.collect();
            let status = if ready {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            answer(
                status,
                &json!({ "ready": ready, "leaving": leaving, "checks": checks }),
            )
        }
        "/metrics" => {
            let Some(busy) = asker.slot.begin() else {
                return too_busy();
            };
            // Set once: a connection is one request.
            asker.busy.set(busy).ok();
            let mut metrics = Response::new(Full::new(Bytes::from(shared.metrics.render())));
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            metrics.headers_mut().insert(CONTENT_TYPE, kind);
            metrics
                .headers_mut()
                .insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
            metrics
        }
        _ => refuse(
            StatusCode::NOT_FOUND,
            "not_found",
            "there are /health, /health/live, /health/ready, /metrics",
        ),
    }
}

/// Answers the API server.
pub(super) async fn review(
    shared: &Arc<Shared>,
    slot: &Slot,
    peer: IpAddr,
    request: Request<Incoming>,
) -> Answer {
    if request.uri().path() != "/inject" {
        return refuse(
            StatusCode::NOT_FOUND,
            "not_found",
            "the webhook is at /inject",
        );
    }
    if request.method() != Method::POST {
        return refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "a review is sent by POST",
        );
    }
    let Some(_busy) = slot.begin() else {
        return too_busy();
    };
    let begun = Instant::now();
    let outcome = |label: &str| {
        shared
            .metrics
            .reviews_total
            .with_label_values(&[label])
            .inc()
    };
    let read = async {
        // A permit before the body: what is in memory is bounded.
        let permit = shared.reviews.acquire(peer).await;
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX)
            .collect()
            .await;
        (permit, body.map(http_body_util::Collected::to_bytes))
    };
    let Ok((_permit, body)) = tokio::time::timeout(BODY_DEADLINE, read).await else {
        outcome("too_slow");
        return refuse(
            StatusCode::REQUEST_TIMEOUT,
            "too_slow",
            "the review did not come within 5 s",
        );
    };
    let body = match body {
        Ok(body) => body,
        Err(error) if error.is::<LengthLimitError>() => {
            outcome("too_large");
            return refuse(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                "a review has 8 MiB at most",
            );
        }
        Err(error) => {
            outcome("malformed");
            return refuse(
                StatusCode::BAD_REQUEST,
                "malformed",
                &format!("the body cannot be read: {error}"),
            );
        }
    };
    let reviewed = review::answer(&body, &shared.defaults);
    shared
        .metrics
        .review_seconds
        .observe(begun.elapsed().as_secs_f64());
    match reviewed {
        Ok(reviewed) => {
            outcome(reviewed.outcome.label());
            shared
                .metrics
                .problems_total
                .inc_by(reviewed.problems.len() as u64);
            log(shared, &reviewed);
            answer(StatusCode::OK, &reviewed.body)
        }
        Err(why) => {
            outcome("malformed");
            refuse(StatusCode::BAD_REQUEST, "malformed", &why)
        }
    }
}

/// As many requests are being answered as this port, or one peer address, may have.
fn too_busy() -> Answer {
    let mut answer = refuse(
        StatusCode::SERVICE_UNAVAILABLE,
        "busy",
        "this port, or this peer address, is busy",
    );
    answer
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

/// One line for an object with problems, at a bounded rate: a crowd of pods with the same mistake would fill the log.
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
    if shared.problem_lines.take(1).is_err() {
        shared.lines_left_out.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let left_out = shared.lines_left_out.swap(0, Ordering::Relaxed);
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

fn refuse(status: StatusCode, code: &str, message: &str) -> Answer {
    answer(
        status,
        &json!({ "error": { "code": code, "message": message } }),
    )
}

fn answer(status: StatusCode, body: &Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
        .headers_mut()
        .insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    answer
}
