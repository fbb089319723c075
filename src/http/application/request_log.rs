//! Line in the log for a request that the application answers, at level `debug`.
//!
//! It has the request id that the application received, so that one search finds the request in the
//! logs of proxies, sidecar and application. The query is not logged: it may have a token.

use std::net::IpAddr;
use std::time::Instant;

use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Request, StatusCode};

use super::fields::X_REQUEST_ID;

/// Request whose answer is logged.
pub(super) struct RequestLog {
    began: Instant,
    id: Option<HeaderValue>,
}

impl RequestLog {
    /// Begins with the fields that the application receives. `None` if the log has another level.
    pub(super) fn begin(fields: &HeaderMap) -> Option<Self> {
        tracing::enabled!(tracing::Level::DEBUG).then(|| Self {
            began: Instant::now(),
            id: fields.get(&X_REQUEST_ID).cloned(),
        })
    }

    /// Logs the head of the answer. `sent`: the request of the client.
    pub(super) fn end(&self, client: IpAddr, sent: &Request<()>, status: StatusCode) {
        let id = self.id.as_ref().and_then(|id| id.to_str().ok());
        tracing::debug!(
            client.addr = %client,
            method = sent.method().as_str(),
            path = sent.uri().path(),
            request_id = id,
            status = status.as_u16(),
            seconds = self.began.elapsed().as_secs_f64(),
            "request passed to the application"
        );
    }
}
