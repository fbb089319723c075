//! Handle of one open event stream, as seen by the admin port, the drain and the metrics.
//!
//! Implemented by the HTTP side. Every method may be called from any thread, also while the event
//! stream's own thread is stalled, and none of them waits.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use super::CloseReason;
use crate::encoding::Framing;

/// An open event stream.
///
/// Every method is called from other threads than the one that serves the stream, also while that
/// one is stalled: none may wait.
pub trait StreamHandle: Send + Sync {
    /// The `route` label: path of the route as configured.
    fn route(&self) -> &Arc<str>;

    /// Name of the client.
    fn client(&self) -> &str;

    /// Current lag of the client.
    fn lag(&self) -> Lag;

    /// Returns true if its socket has not accepted bytes for too long while events are waiting.
    fn is_slow(&self) -> bool;

    /// Estimated memory that only this event stream uses, in bytes.
    fn memory_bytes(&self) -> u64;

    /// Complete information about the event stream.
    fn describe(&self) -> StreamInfo;

    /// Asks it to end, and returns at once. The first reason counts.
    fn close(&self, close: CloseReason);
}

/// Information about one event stream. The field names are the JSON keys of `/connections`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StreamInfo {
    /// Client name, from the route's `client`.
    pub client: String,
    /// Path of the route as configured.
    #[serde(serialize_with = "text")]
    pub route: Arc<str>,
    /// Filters of the event stream.
    pub subjects: Vec<String>,
    /// HTTP version of its connection.
    pub protocol: Protocol,
    /// Form of the response body.
    pub framing: Framing,
    /// The connection is encrypted.
    pub tls: bool,
    /// Remote address of the connection; behind a proxy, that of the proxy.
    pub remote: SocketAddr,
    /// State of the event stream.
    pub state: State,
    /// Start time, in milliseconds of Unix time.
    pub opened: u64,
    /// Last event id that was written; empty before the first.
    pub last_event_id: String,
    /// Lag of the client.
    pub lag: Lag,
    /// Amount that was written.
    pub sent: Sent,
    /// Estimated memory that only this event stream uses.
    #[serde(rename = "memory", serialize_with = "bytes")]
    pub memory_bytes: u64,
    /// The client is slow.
    pub slow: bool,
    /// Number of gaps that the client received.
    pub gaps: u64,
}

/// Distance between head and cursor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lag {
    /// Number of waiting events.
    pub events: u64,
    /// Bytes of the waiting events.
    pub bytes: u64,
    /// Age of the oldest waiting event.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub age: Duration,
}

impl Lag {
    /// Returns the larger of the two in each field.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            events: self.events.max(other.events),
            bytes: self.bytes.max(other.bytes),
            age: self.age.max(other.age),
        }
    }
}

/// Amount written to one event stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// Number of events, without control events.
    pub events: u64,
    /// Bytes of the event stream, without those of HTTP and TLS.
    pub bytes: u64,
}

/// State of an event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Accepted, nothing sent yet.
    Connecting,
    /// Live.
    Active,
    /// Resumed from an id and not caught up yet. In the presence bucket also: ended by a drain, and
    /// expected on another pod.
    Reconnecting,
    /// Ended.
    Closed,
}

impl State {
    /// Name in logs and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Active => "active",
            Self::Reconnecting => "reconnecting",
            Self::Closed => "closed",
        }
    }
}

/// Protocol of an event stream's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Protocol {
    /// The response ends with the connection.
    #[serde(rename = "http/1.0")]
    Http10,
    /// Chunked response.
    #[serde(rename = "http/1.1")]
    Http11,
    /// One of many streams of a connection.
    #[serde(rename = "h2")]
    H2,
}

impl Protocol {
    /// The `protocol` label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "http/1.0",
            Self::Http11 => "http/1.1",
            Self::H2 => "h2",
        }
    }
}

fn text<S: Serializer>(text: &Arc<str>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(text)
}

fn bytes<S: Serializer>(bytes: &u64, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Bytes {
        bytes: u64,
    }
    Bytes { bytes: *bytes }.serialize(to)
}

fn seconds<S: Serializer>(age: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(age.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_json_use_the_same_names() {
        for protocol in [Protocol::Http10, Protocol::Http11, Protocol::H2] {
            assert_eq!(serde_json::to_value(protocol).unwrap(), protocol.as_str());
        }
        for state in [
            State::Connecting,
            State::Active,
            State::Reconnecting,
            State::Closed,
        ] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
