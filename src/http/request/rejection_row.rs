//! Row of a rejection code: status, label, retry rule, message and hint.

use hyper::StatusCode;

/// Row of a code in the table of rejections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) struct Row {
    /// `None`: the connection ends without a response.
    pub(in crate::http) status: Option<StatusCode>,
    pub(in crate::http) code: &'static str,
    /// A later attempt can succeed: the client is asked to retry, and its connection is closed.
    pub(in crate::http) is_temporary: bool,
    /// The connection ends with the response.
    pub(in crate::http) closes_connection: bool,
    pub(super) message: &'static str,
    pub(super) hint: &'static str,
}

impl Row {
    /// A rejection that stays until the client or the operator changes something.
    pub(super) const fn permanent(
        status: StatusCode,
        code: &'static str,
        message: &'static str,
        hint: &'static str,
    ) -> Self {
        Self {
            status: Some(status),
            code,
            is_temporary: false,
            closes_connection: false,
            message,
            hint,
        }
    }

    /// A rejection that ends by itself: the client retries on a new connection.
    pub(super) const fn temporary(
        status: StatusCode,
        code: &'static str,
        message: &'static str,
        hint: &'static str,
    ) -> Self {
        Self {
            is_temporary: true,
            closes_connection: true,
            ..Self::permanent(status, code, message, hint)
        }
    }

    /// The end of a connection that had no request to answer.
    pub(super) const fn without_response(
        code: &'static str,
        message: &'static str,
        hint: &'static str,
    ) -> Self {
        Self {
            status: None,
            code,
            is_temporary: false,
            closes_connection: true,
            message,
            hint,
        }
    }

    /// Closes the connection too, because the next request could begin elsewhere than the client
    /// and the proxies in front believe.
    pub(super) const fn closing(self) -> Self {
        Self {
            closes_connection: true,
            ..self
        }
    }

    /// Status of a response with this code. Codes without a status never have a response.
    pub(in crate::http) fn response_status(&self) -> StatusCode {
        self.status.unwrap_or(StatusCode::BAD_REQUEST)
    }
}
