//! One open event stream as the operator sees it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use super::CloseReason;

/// An open event stream.
///
/// All of it is called from other threads than the one that serves the stream, also while that one is stalled:
/// nothing here waits.
pub trait StreamHandle: Send + Sync {
    /// The `route` label: the path as it is configured.
    fn route(&self) -> &Arc<str>;

    /// Whose it is.
    fn client(&self) -> &str;

    /// What waits for it now.
    fn lag(&self) -> Lag;

    /// Whether its own socket has refused bytes for too long while events wait.
    fn is_slow(&self) -> bool;

    /// What is held in memory for it alone, estimated, in bytes.
    fn memory_bytes(&self) -> u64;

    /// Everything there is to tell.
    fn describe(&self) -> StreamInfo;

    /// Asks it to end; returns at once. The first reason stands.
    fn close(&self, close: CloseReason);
}

/// What `/connections` tells of one event stream; its names are the keys of that JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StreamInfo {
    /// Who it is, by the route's `client`.
    pub client: String,
    /// The path as it is configured.
    #[serde(serialize_with = "text")]
    pub route: Arc<str>,
    /// The filters that it reads.
    pub subjects: Vec<String>,
    /// How it is connected.
    pub protocol: Protocol,
    /// Whether its connection is encrypted.
    pub tls: bool,
    /// Where its connection comes from; behind a proxy the proxy.
    pub remote: SocketAddr,
    /// Where it stands.
    pub state: State,
    /// When it was opened, in milliseconds of Unix time.
    pub opened: u64,
    /// The last id that was written to it; empty before the first.
    pub last_event_id: String,
    /// What waits for it.
    pub lag: Lag,
    /// What was written to it.
    pub sent: Sent,
    /// What is held in memory for it alone, estimated.
    #[serde(rename = "memory", serialize_with = "bytes")]
    pub memory_bytes: u64,
    /// Whether it is slow.
    pub slow: bool,
    /// How many gaps it was told.
    pub gaps: u64,
}

/// Head minus cursor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lag {
    /// Events that wait.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// For how long the oldest of them has waited.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub age: Duration,
}

impl Lag {
    /// The larger of the two in each respect.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            events: self.events.max(other.events),
            bytes: self.bytes.max(other.bytes),
            age: self.age.max(other.age),
        }
    }
}

/// What one event stream was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// Events, control events left out.
    pub events: u64,
    /// Bytes of the event stream, those of HTTP and TLS left out.
    pub bytes: u64,
}

/// Where an event stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Accepted, nothing sent yet.
    Connecting,
    /// Live.
    Active,
    /// Came back with an id and has not caught up yet; over all pods also: was handed over, and is expected elsewhere.
    Reconnecting,
    /// At its end.
    Closed,
}

impl State {
    /// As logs and JSON write it.
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

/// What an event stream is carried by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Protocol {
    /// Delimited by the close.
    #[serde(rename = "http/1.0")]
    Http10,
    /// Chunked.
    #[serde(rename = "http/1.1")]
    Http11,
    /// One stream of many in its connection.
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
    fn labels_and_json_name_protocols_and_states_alike() {
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
