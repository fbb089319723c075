//! Rejections: a client gets an error instead of an event stream.
//!
//! [`Rejection`] is one occurrence: a code (`rejection_code`) and the details of this request.
//! `respond` turns it into a response:
//!
//! - programs get the status, `Retry-After` for temporary rejections, and a JSON body
//!   `{"error":{"code","message","hint"}}`;
//! - browsers get 200 with `retry:` and `sidestream.close` for temporary rejections and for missing
//!   or invalid credentials, because an `EventSource` stops for good after any other status.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::StatusCode;

use super::challenge::Challenge;
use super::rejection_code::RejectionCode;
use crate::encoding::Framing;
use crate::http::config::RETRY_UNAUTHENTICATED;
use crate::limit::Throttled;
use crate::limit::clients::Limit;

/// Base of `Retry-After`; the value is drawn between half of it and one and a half times it.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// One rejected request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) struct Rejection {
    pub(in crate::http) code: RejectionCode,
    /// Message of this request instead of the row's.
    pub(in crate::http) message: Option<String>,
    /// Time until the limit of the client admits another request.
    pub(in crate::http) wait: Option<Duration>,
    /// The answer is an event stream in this framing, which ends at once.
    pub(in crate::http) stream: Option<Framing>,
    /// Value of `WWW-Authenticate`.
    pub(in crate::http) challenge: Option<Challenge>,
}

impl From<RejectionCode> for Rejection {
    fn from(code: RejectionCode) -> Self {
        Self {
            code,
            message: None,
            wait: None,
            stream: None,
            challenge: None,
        }
    }
}

impl From<Throttled> for Rejection {
    fn from(throttled: Throttled) -> Self {
        let code = match throttled.limit {
            Limit::Connections => RejectionCode::TooManyConnectionsOfClient,
            Limit::FilterSets => RejectionCode::TooManyFilterSetsOfClient,
            // A limit of events delays them and rejects nothing.
            Limit::Connects | Limit::Events => RejectionCode::TooManyConnects,
        };
        Self {
            wait: throttled.wait,
            ..code.into()
        }
    }
}

impl Rejection {
    /// Rejection with a message about this request.
    pub(in crate::http) fn new(code: RejectionCode, message: impl Into<String>) -> Self {
        Self {
            message: Some(message.into()),
            ..code.into()
        }
    }

    /// Rejection of a client that may retry after a time.
    pub(in crate::http) fn after(code: RejectionCode, wait: Duration) -> Self {
        Self {
            wait: Some(wait),
            ..code.into()
        }
    }

    /// Time that the client waits before it retries. It is random, so that clients that were
    /// rejected together do not return together (no thundering herd).
    pub(in crate::http) fn retry_after(&self) -> Duration {
        let base = if self.is_unauthenticated() {
            RETRY_UNAUTHENTICATED
        } else {
            RETRY_AFTER
        };
        self.wait.unwrap_or_default() + base.mul_f64(0.5 + fastrand::f64())
    }

    fn is_unauthenticated(&self) -> bool {
        self.code == RejectionCode::Forbidden
            || self.code.row().status == Some(StatusCode::UNAUTHORIZED)
    }

    /// JSON body for programs.
    pub(in crate::http) fn body(&self) -> Bytes {
        let row = self.code.row();
        let message = self.message.as_deref().unwrap_or(row.message);
        let error = serde_json::json!({
            "error": { "code": row.code, "message": message, "hint": row.hint },
        });
        Bytes::from(error.to_string())
    }

    /// Event stream that ends at once. For browsers: any status but 200 would end their
    /// `EventSource` for good.
    pub(in crate::http) fn stream_body(&self, framing: Framing) -> Bytes {
        let reason = match self.code {
            RejectionCode::Draining => "drain",
            _ if self.is_unauthenticated() => "unauthenticated",
            _ => "overload",
        };
        let mut out = BytesMut::with_capacity(128);
        framing
            .encoder()
            .put_close(&mut out, reason, self.retry_after(), None);
        out.freeze()
    }
}
