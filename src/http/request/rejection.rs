//! No, before an event stream: each case with its status, its code and what helps.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::StatusCode;

use crate::limit::Throttled;
use crate::limit::clients::Limit;
use crate::sse::encode;

/// Why a request gets no event stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) enum Rejection {
    /// No route has this path.
    NotFound,
    /// Something else than GET, HEAD or OPTIONS.
    Method,
    /// The client does not take `text/event-stream`.
    NotAcceptable,
    /// A variable of the route has no value, or one that cannot stand in a subject.
    Variable(String),
    /// A subject that is none.
    Subject(&'static str),
    /// More subjects than `limits.subjects_per_request`.
    TooManySubjects,
    /// A subject outside of what the route allows.
    NotAllowed(String),
    /// No `Host` header on HTTP/1.1, several, or one that is no host.
    Host(&'static str),
    /// A head that cannot be read.
    Malformed,
    /// A head of more than 16 KiB, or of more than 64 fields.
    HeadTooLarge,
    /// A target of more than 64 KiB.
    TargetTooLong,
    /// A line feed without a carriage return in the head.
    BareLineFeed,
    /// A GET with a body: its event stream could not have the connection for itself.
    Body,
    /// What follows the client's last event is retained no more.
    Expired,
    /// NATS has not been heard from yet.
    NotReady,
    /// NATS rejects what the event stream needs until an operator changes something.
    Rejected,
    /// As many connections as `limits.connections`.
    Connections,
    /// File descriptors in use beyond `limits.file_descriptors.reject`.
    Descriptors,
    /// The pod is pressed so hard that those who are there already are served less.
    Overloaded,
    /// The client has reached a limit of `limits.per_client`.
    Throttled(Throttled),
    /// As many feeds as `limits.feeds`.
    Feeds,
    /// As many replays as `limits.replays.queued`.
    ReplaySlots,
    /// The pod is about to end.
    Draining,
}

/// How long a program is told to wait after a refusal that will pass.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl Rejection {
    /// Status, and the code in the body and in `sidestream_refusals_total`.
    pub(in crate::http) fn row(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::NotAcceptable => (StatusCode::NOT_ACCEPTABLE, "not_acceptable"),
            Self::Variable(_) => (StatusCode::BAD_REQUEST, "bad_variable"),
            Self::Subject(_) => (StatusCode::BAD_REQUEST, "bad_subject"),
            Self::TooManySubjects => (StatusCode::BAD_REQUEST, "too_many_subjects"),
            Self::NotAllowed(_) => (StatusCode::FORBIDDEN, "subject_not_allowed"),
            Self::Host(_) => (StatusCode::BAD_REQUEST, "bad_host"),
            Self::Malformed => (StatusCode::BAD_REQUEST, "malformed"),
            Self::HeadTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "head_too_large",
            ),
            Self::TargetTooLong => (StatusCode::URI_TOO_LONG, "target_too_long"),
            Self::BareLineFeed => (StatusCode::BAD_REQUEST, "bare_line_feed"),
            Self::Body => (StatusCode::BAD_REQUEST, "unexpected_body"),
            Self::Expired => (StatusCode::RANGE_NOT_SATISFIABLE, "last_event_id_expired"),
            Self::NotReady => (StatusCode::SERVICE_UNAVAILABLE, "nats_not_connected"),
            Self::Rejected => (StatusCode::SERVICE_UNAVAILABLE, "nats_rejected"),
            Self::Connections => (StatusCode::SERVICE_UNAVAILABLE, "too_many_connections"),
            Self::Descriptors => (StatusCode::SERVICE_UNAVAILABLE, "no_file_descriptors"),
            Self::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
            Self::Throttled(Throttled {
                limit: Limit::Connections,
                ..
            }) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_connections_of_client",
            ),
            Self::Throttled(Throttled {
                limit: Limit::FilterSets,
                ..
            }) => (
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_filter_sets_of_client",
            ),
            Self::Throttled(_) => (StatusCode::TOO_MANY_REQUESTS, "too_many_connects"),
            Self::Feeds => (StatusCode::SERVICE_UNAVAILABLE, "too_many_feeds"),
            Self::ReplaySlots => (StatusCode::SERVICE_UNAVAILABLE, "too_many_replays"),
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        }
    }

    /// Whether it passes by itself: a browser is then told to come back, and its connection is not kept.
    pub(in crate::http) fn passes(&self) -> bool {
        matches!(
            self.row().0,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
        )
    }

    /// Whether the connection ends with the answer: it may pass by itself, or the next head may begin elsewhere than the
    /// client and the proxies before it believe.
    pub(in crate::http) fn ends_connection(&self) -> bool {
        self.passes() || matches!(self, Self::Body | Self::Host(_) | Self::BareLineFeed)
    }

    /// How long the client shall wait, with chance in it: those who are refused together shall not return together.
    pub(in crate::http) fn wait(&self) -> Duration {
        let chance = RETRY_AFTER.mul_f64(0.5 + fastrand::f64());
        match self {
            Self::Throttled(Throttled {
                wait: Some(wait), ..
            }) => *wait + chance,
            _ => chance,
        }
    }

    /// The JSON of the answer.
    pub(in crate::http) fn body(&self) -> Bytes {
        let (message, hint) = self.explain();
        let error = serde_json::json!({ "error": { "code": self.row().1, "message": message, "hint": hint } });
        Bytes::from(error.to_string())
    }

    /// What a browser gets instead of a status: any but 200 would end its EventSource for good.
    pub(in crate::http) fn browser_body(&self) -> Bytes {
        let wait = self.wait();
        let reason = if *self == Self::Draining {
            "drain"
        } else {
            "overload"
        };
        let mut out = BytesMut::with_capacity(128);
        encode::put_close(&mut out, reason, wait, None::<&str>);
        out.freeze()
    }

    fn explain(&self) -> (String, &'static str) {
        match self {
            Self::NotFound => (
                "no route has this path".into(),
                "see `routes` in the configuration",
            ),
            Self::Method => (
                "event streams are read with GET".into(),
                "GET, HEAD and OPTIONS are answered",
            ),
            Self::NotAcceptable => (
                "the answer would be text/event-stream".into(),
                "leave Accept out, or accept text/event-stream",
            ),
            Self::Variable(variable) => (
                format!("{variable} is missing or cannot stand in a subject"),
                "a variable fills one token: not empty, no `.`, `*`, `>`, white space or control character",
            ),
            Self::Subject(why) => ((*why).into(), "NATS subjects are tokens joined by dots"),
            Self::TooManySubjects => (
                "too many subjects".into(),
                "open a second event stream, or ask for a wildcard",
            ),
            Self::NotAllowed(subject) => (
                format!("{subject} is not within what this route allows"),
                "ask for a subset of the route's subjects",
            ),
            Self::Host(why) => (
                (*why).into(),
                "send one Host header, with the host of the URL",
            ),
            Self::Malformed => ("the request is not HTTP/1.1".into(), "see RFC 9112"),
            Self::HeadTooLarge => (
                "the head of the request is too large".into(),
                "at most 16 KiB and 64 fields: send fewer or smaller cookies",
            ),
            Self::TargetTooLong => (
                "the target of the request is too long".into(),
                "at most 16 KiB with all headers",
            ),
            Self::BareLineFeed => (
                "a line of the request ends without a carriage return".into(),
                "end lines with CRLF",
            ),
            Self::Body => (
                "a GET for an event stream has no body".into(),
                "leave the body out",
            ),
            Self::Expired => (
                "what follows this Last-Event-ID is retained no more".into(),
                "connect without Last-Event-ID, or with `expired: gap` on the route",
            ),
            Self::NotReady => ("NATS is not connected yet".into(), "try again"),
            Self::Rejected => (
                "NATS rejects reading what this event stream needs".into(),
                "`/health` on the admin port names the error code and the remedy",
            ),
            Self::Connections => (
                "this pod serves as many connections as it may".into(),
                "try again",
            ),
            Self::Descriptors => (
                "this pod has as many files and connections open as it may".into(),
                "try again",
            ),
            Self::Overloaded => ("this pod is overloaded".into(), "try again"),
            Self::Throttled(Throttled {
                limit: Limit::Connections,
                ..
            }) => (
                "this client has as many event streams open as it may".into(),
                "end one, or share one among its readers",
            ),
            Self::Throttled(Throttled {
                limit: Limit::FilterSets,
                ..
            }) => (
                "this client reads as many different sets of subjects as it may".into(),
                "end an event stream, or read several subjects with a wildcard",
            ),
            Self::Throttled(_) => (
                "this client opens event streams too often".into(),
                "wait as long as Retry-After says, and keep what is open",
            ),
            Self::Feeds => (
                "this pod serves as many different subjects as it may".into(),
                "try again",
            ),
            Self::ReplaySlots => (
                "too many clients wait for what they have missed".into(),
                "try again",
            ),
            Self::Draining => (
                "this pod is about to end".into(),
                "try again: another one answers",
            ),
        }
    }
}
