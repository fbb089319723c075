//! Report of the pod about a request, as `http::request::probe` writes it.

use serde::Deserialize;

/// Report of a pod.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PodReport {
    /// HTTP version in which the request reached the pod.
    pub(super) protocol: String,
    /// Bytes that HTTP/2 flow control allowed at once; `None` on HTTP/1.
    pub(super) window: Option<u64>,
    pub(super) heartbeat_ms: u64,
    /// The doctor's `Last-Event-ID` arrived.
    pub(super) last_event_id: bool,
    /// An `Origin` arrived.
    pub(super) origin: bool,
    /// Header fields of an event stream, as the pod sends them.
    pub(super) head: Vec<(String, String)>,
    pub(super) request: RequestFields,
}

/// Header fields of the request, as the pod received them.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RequestFields {
    /// Those that name proxies.
    pub(super) fields: Vec<(String, String)>,
    /// Names of others.
    pub(super) names: Vec<String>,
}
