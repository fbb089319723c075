//! Responses of the admin port: status, headers and body.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

/// Media type of JSON.
pub(super) const JSON_TYPE: &str = "application/json";

/// Response of the admin port.
pub(super) type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Returns an error with its code, and a hint for the operator.
pub(super) fn error(status: StatusCode, code: &str, message: &str, hint: &str) -> Answer {
    json(
        status,
        &json!({ "error": { "code": code, "message": message, "hint": hint } }),
    )
}

/// Returns a JSON document.
pub(super) fn json(status: StatusCode, body: &Value) -> Answer {
    text(status, JSON_TYPE, format!("{body}\n"))
}

/// Returns a text.
pub(super) fn text(status: StatusCode, content_type: &'static str, text: String) -> Answer {
    response(status, content_type, Full::from(text).boxed_unsync())
}

/// Returns a response that is not cached.
pub(super) fn response(
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
