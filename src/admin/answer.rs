//! What the admin answers to a request: one match over the paths.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::{Parts, connections, health};

/// Prometheus's text format (exposition formats, version 0.0.4).
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON_TYPE: &str = "application/json";

/// Answers a request. Never waits.
pub(super) fn answer<B>(parts: &Parts, request: &Request<B>) -> Response<Full<Bytes>> {
    let page: fn(&Parts, Option<&str>) -> Response<Full<Bytes>> = match request.uri().path() {
        "/health" => |parts, _| probe(health::is_ready(parts), &health::report(parts)),
        "/health/live" => |_, _| json(StatusCode::OK, &json!({ "live": true })),
        "/health/ready" => |parts, _| probe(health::is_ready(parts), &health::readiness(parts)),
        "/metrics" => |parts, _| response(StatusCode::OK, METRICS_TYPE, parts.metrics.render()),
        "/connections" => |parts, query| match connections::Query::parse(query.unwrap_or_default()) {
            Ok(query) => json(StatusCode::OK, &connections::list(&parts.registry, &query)),
            Err(message) => error(StatusCode::BAD_REQUEST, "bad_query", &message, connections::HINT),
        },
        "/config" => |parts, _| json(StatusCode::OK, &(parts.config)()),
        _ => {
            let hint = "/health, /health/live, /health/ready, /metrics, /connections, /config";
            return error(StatusCode::NOT_FOUND, "not_found", "the admin has no such page", hint);
        }
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let hint = "what changes something goes over the control socket";
        let mut refused = error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "only GET and HEAD", hint);
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    page(parts, request.uri().query())
}

fn probe(ready: bool, body: &Value) -> Response<Full<Bytes>> {
    json(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}

fn error(status: StatusCode, code: &str, message: &str, hint: &str) -> Response<Full<Bytes>> {
    json(status, &json!({ "error": { "code": code, "message": message, "hint": hint } }))
}

fn json(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    response(status, JSON_TYPE, format!("{body}\n"))
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
