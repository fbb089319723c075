//! End of a call: its status, and when the client may retry.

use std::borrow::Cow;
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// Status code of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// A finite event stream is complete.
    Ok = 0,
    /// The client can correct the request.
    InvalidArgument = 3,
    /// The deadline of the client has passed.
    DeadlineExceeded = 4,
    /// No route has the path.
    NotFound = 5,
    /// The client may not read this.
    PermissionDenied = 7,
    /// A limit of the client is reached.
    ResourceExhausted = 8,
    /// The version of the payloads has ended.
    FailedPrecondition = 9,
    /// The position or the beginning is older than what is retained.
    OutOfRange = 11,
    /// The route, or the server, does not support what the client asks for.
    Unimplemented = 12,
    /// The server is at fault.
    Internal = 13,
    /// The client reconnects, perhaps to another pod.
    Unavailable = 14,
    /// The credentials are missing, invalid, expired or revoked.
    Unauthenticated = 16,
}

/// Trailers of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trailers<'t> {
    /// Status of the call.
    pub status: Status,
    /// Explanation for developers.
    pub message: Cow<'t, str>,
    /// Code of a rejection, or reason of a close. `OK` has an empty one.
    pub code: &'t str,
    /// Time that the client waits before it retries.
    pub retry: Option<Duration>,
}

/// Bytes of `grpc-message` that are percent-encoded: all but printable ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

impl<'t> Trailers<'t> {
    /// Trailers of an event stream that ends with a reason of `close`.
    #[must_use]
    pub fn closed(reason: &'t str, retry: Duration) -> Self {
        let status = match reason {
            "unauthenticated" | "expired" | "revoked" => Status::Unauthenticated,
            "deadline" => Status::DeadlineExceeded,
            _ => Status::Unavailable,
        };
        Self {
            status,
            message: format!("the event stream ended: {reason}").into(),
            code: reason,
            retry: Some(retry),
        }
    }

    /// Trailers of a finite event stream that is complete.
    #[must_use]
    pub const fn ended() -> Self {
        Self {
            status: Status::Ok,
            message: Cow::Borrowed(""),
            code: "",
            retry: None,
        }
    }

    /// Returns names and values, as trailers of HTTP/2 or lines of gRPC-Web have them.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, String)> {
        let message = utf8_percent_encode(&self.message, ENCODED).to_string();
        let retry = self.retry.map(|retry| retry.as_millis().to_string());
        let fields = [
            ("grpc-status", Some((self.status as u8).to_string())),
            ("grpc-message", Some(message)),
            ("sidestream-code", Some(self.code.to_owned())),
            ("grpc-retry-pushback-ms", retry),
        ];
        fields
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_percent_encoded() {
        let trailers = Trailers {
            message: "100 % of \u{fc}\r\n".into(),
            ..Trailers::ended()
        };
        let fields: Vec<_> = trailers.fields().collect();
        let message = "100 %25 of %C3%BC%0D%0A".to_owned();
        assert_eq!(
            fields,
            [("grpc-status", "0".to_owned()), ("grpc-message", message)]
        );
    }

    #[test]
    fn reasons_of_a_close_have_a_status() {
        for (reason, status) in [
            ("drain", Status::Unavailable),
            ("kicked", Status::Unavailable),
            ("expired", Status::Unauthenticated),
            ("revoked", Status::Unauthenticated),
            ("deadline", Status::DeadlineExceeded),
        ] {
            let trailers = Trailers::closed(reason, Duration::from_secs(1));
            assert_eq!(trailers.status, status, "{reason}");
        }
    }
}
