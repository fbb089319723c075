//! Line in the log for a request that the application answers, at level `debug`.
//!
//! It has the request id that the application received, so that one search finds the request in the
//! logs of proxies, sidecar and application. The query is not logged: it may have a token.

use std::net::IpAddr;
use std::time::Instant;

use hyper::header::HeaderValue;
use hyper::{Request, StatusCode};

/// Request whose answer is logged.
pub(super) struct RequestLog {
    began: Instant,
    id: HeaderValue,
}

impl RequestLog {
    /// Begins with the id that the application receives. `None` if the log has another level.
    pub(super) fn begin(id: &HeaderValue) -> Option<Self> {
        tracing::enabled!(tracing::Level::DEBUG).then(|| Self {
            began: Instant::now(),
            id: id.clone(),
        })
    }

    /// Logs the head of the answer. `sent`: the request of the client.
    pub(super) fn end(&self, client: IpAddr, sent: &Request<()>, status: StatusCode) {
        let id = self.id.to_str().ok();
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
