//! What the admin answers to a request: one match over the paths.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::connections::{self, NoList};
use super::{Parts, health};

/// Prometheus's text format (exposition formats, version 0.0.4).
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON_TYPE: &str = "application/json";

/// What is answered at once.
type Page = fn(&Parts) -> Response<Full<Bytes>>;

/// Answers a request. Waits only for what other pods are asked, for seconds at most.
pub(super) async fn answer<B>(parts: &Parts, request: &Request<B>) -> Response<Full<Bytes>> {
    let page: Option<Page> = match request.uri().path() {
        "/health" => Some(|parts| probe(health::is_ready(parts), &health::report(parts))),
        "/health/live" => Some(|_| json(StatusCode::OK, &json!({ "live": true }))),
        "/health/ready" => Some(|parts| probe(health::is_ready(parts), &health::readiness(parts))),
        "/metrics" => Some(|parts| response(StatusCode::OK, METRICS_TYPE, parts.metrics.render())),
        "/config" => Some(|parts| json(StatusCode::OK, &(parts.config)())),
        // The only one that may wait.
        "/connections" => None,
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
    match page {
        Some(page) => page(parts),
        None => connections(parts, request.uri().query()).await,
    }
}

async fn connections(parts: &Parts, query: Option<&str>) -> Response<Full<Bytes>> {
    let query = match connections::Query::parse(query.unwrap_or_default()) {
        Ok(query) => query,
        Err(message) => return error(StatusCode::BAD_REQUEST, "bad_query", &message, connections::HINT),
    };
    match connections::list(&parts.registry, &query).await {
        Ok(list) => json(StatusCode::OK, &list),
        Err(NoList::NotConfigured) => {
            let hint = "name a bucket as `registry.bucket`, or ask each pod without `scope`";
            error(StatusCode::NOT_FOUND, "no_registry", "this pod keeps no registry over all pods", hint)
        }
        Err(NoList::Unavailable(why)) => {
            let hint = "the check `registry` on /health says more; without `scope` this pod's own clients are listed";
            error(StatusCode::SERVICE_UNAVAILABLE, "registry_unavailable", &why, hint)
        }
    }
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
