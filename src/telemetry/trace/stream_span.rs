//! Span of an event stream: it ends when the event stream is dropped.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanKind, Status};

use super::context::TraceContext;
use super::samples::SpanIds;
use super::span::{EndedSpan, number};
use super::waiting::Waiting;

/// Span of a request for an event stream, and of that event stream. Dropping it ends the span.
#[derive(Debug)]
pub struct StreamSpan {
    waiting: Arc<Waiting>,
    ids: SpanIds,
    parent: Option<TraceContext>,
    began: Instant,
    began_at: SystemTime,
    /// Set by [`StreamSpan::describe`].
    attributes: Vec<KeyValue>,
    /// `None`: the request was rejected.
    end: Option<StreamEnd>,
}

/// End of an event stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamEnd {
    /// Label of the close reason.
    pub reason: &'static str,
    /// The operator should look at it.
    pub is_error: bool,
    /// Events that the client received.
    pub events: u64,
    /// Bytes that the client received.
    pub bytes: u64,
    /// Gaps that the client received.
    pub gaps: u32,
    /// Events that it missed, where the number is known.
    pub missed_events: u32,
}

impl StreamEnd {
    /// Returns the end of a request that is answered without an event stream.
    #[must_use]
    pub fn without_events(reason: &'static str) -> Self {
        Self {
            reason,
            is_error: false,
            events: 0,
            bytes: 0,
            gaps: 0,
            missed_events: 0,
        }
    }
}

/// Description of an event stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamDescription<'s> {
    /// Path of the route, with the names of its variables.
    pub route: &'s str,
    /// Label of the protocol.
    pub protocol: &'static str,
    /// Label of the framing.
    pub framing: &'static str,
    /// The connection has TLS.
    pub tls: bool,
    /// The request has an id.
    pub is_resumed: bool,
}

impl StreamSpan {
    pub(super) fn new(waiting: Arc<Waiting>, ids: SpanIds, parent: Option<TraceContext>) -> Self {
        Self {
            waiting,
            ids,
            parent,
            began: Instant::now(),
            began_at: SystemTime::now(),
            attributes: Vec::new(),
            end: None,
        }
    }

    /// Sets the attributes that are known when it opens.
    pub fn describe(&mut self, description: StreamDescription<'_>) {
        // Those of the semantic conventions for HTTP servers.
        let version = match description.protocol {
            "h2" => "2",
            "http/1.0" => "1.0",
            _ => "1.1",
        };
        let scheme = if description.tls { "https" } else { "http" };
        self.attributes = vec![
            KeyValue::new("http.route", description.route.to_owned()),
            KeyValue::new("network.protocol.name", "http"),
            KeyValue::new("network.protocol.version", version),
            KeyValue::new("url.scheme", scheme),
            KeyValue::new("sidestream.framing", description.framing),
            KeyValue::new("sidestream.resumed", description.is_resumed),
        ];
    }

    /// Sets its end. Without one the request counts as rejected.
    pub fn set_end(&mut self, end: StreamEnd) {
        self.end = Some(end);
    }

    /// Takes the fields of the ended span.
    fn take_ended(&mut self) -> EndedSpan {
        let mut attributes = std::mem::take(&mut self.attributes);
        let status = match self.end {
            None => {
                attributes.push(KeyValue::new("error.type", "rejected"));
                Status::error("rejected")
            }
            Some(end) => {
                attributes.extend([
                    KeyValue::new("sidestream.close_reason", end.reason),
                    KeyValue::new("sidestream.events", number(end.events)),
                    KeyValue::new("sidestream.bytes", number(end.bytes)),
                    KeyValue::new("sidestream.gaps", number(end.gaps.into())),
                    KeyValue::new("sidestream.missed_events", number(end.missed_events.into())),
                ]);
                if end.is_error {
                    attributes.push(KeyValue::new("error.type", end.reason));
                    Status::error(end.reason)
                } else {
                    Status::Unset
                }
            }
        };
        EndedSpan {
            name: "event_stream",
            kind: SpanKind::Server,
            ids: self.ids,
            parent: self.parent.take(),
            link: None,
            began: self.began_at,
            ended: self.began_at + self.began.elapsed(),
            attributes,
            status,
        }
    }
}

impl Drop for StreamSpan {
    fn drop(&mut self) {
        let waiting = self.waiting.clone();
        waiting.end(|| self.take_ended());
    }
}
