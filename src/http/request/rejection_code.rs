//! Codes of rejections: one closed list.
//!
//! Every code has a row in `rejection_table`. The same enum labels
//! `sidestream_refusals_total`, whose series exist with 0 from the start. A code without a status
//! belongs to a connection that ends before a request could be answered.
//!
//! `docs/troubleshooting.md` lists every code; a test keeps it complete.

/// Declares the enum and its list of all variants from one list.
macro_rules! rejection_codes {
    ($($(#[$doc:meta])+ $code:ident,)+) => {
        /// Code of a rejection: the `code` of the JSON body and the label of
        /// `sidestream_refusals_total`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(in crate::http) enum RejectionCode {
            $($(#[$doc])+ $code,)+
        }

        impl RejectionCode {
            /// Number of codes.
            pub(in crate::http) const COUNT: usize = [$(stringify!($code)),+].len();

            /// Every code, in the order of the enum.
            pub(in crate::http) const ALL: [Self; Self::COUNT] = [$(Self::$code),+];
        }
    };
}

rejection_codes! {
    /// No route has this path.
    NotFound,
    /// The method is not GET, HEAD or OPTIONS.
    MethodNotAllowed,
    /// The `Accept` header excludes `text/event-stream`.
    NotAcceptable,
    /// The route offers WebSocket only, and the request asks for no upgrade.
    UpgradeRequired,
    /// The `wait` of a long poll is not a duration.
    BadWait,
    /// The request is not a valid WebSocket handshake.
    BadHandshake,
    /// The `Origin` of a WebSocket is neither that of the request nor in `cors.origins`.
    OriginNotAllowed,
    /// The route does not support the version that the client asks for.
    VersionNotSupported,
    /// The sunset of the version that the client asks for is over.
    VersionGone,
    /// A variable of the route has no value, or one that cannot be part of a subject.
    BadVariable,
    /// A requested subject is not a valid NATS subject.
    BadSubject,
    /// The request names more subjects than `limits.subjects_per_request`.
    TooManySubjects,
    /// A requested subject is outside of the route's `allow`.
    SubjectNotAllowed,
    /// The `Host` header is missing on HTTP/1.1, repeated, or not a host.
    BadHost,
    /// The head is not a valid HTTP/1 request.
    Malformed,
    /// The head has more than 16 KiB or more than 64 fields.
    HeadTooLarge,
    /// The request target is longer than the parser accepts.
    TargetTooLong,
    /// The head has a line feed without a carriage return.
    BareLineFeed,
    /// The head has `Content-Length` and `Transfer-Encoding`.
    TwoLengths,
    /// The request has a body: its event stream could not have the connection for itself.
    UnexpectedBody,
    /// The content of a gRPC call is not protobuf, is compressed, or needs another version of HTTP.
    UnsupportedMediaType,
    /// The content of a gRPC call is not the request of the method.
    BadMessage,
    /// The message of a gRPC call is longer than 8 KiB.
    MessageTooLarge,
    /// The request has no credentials of the route's providers.
    Unauthenticated,
    /// The credentials are invalid or expired.
    InvalidToken,
    /// The credentials or the name of the client are revoked.
    Revoked,
    /// An authentication endpoint forbids the request.
    Forbidden,
    /// The principal does not have a claim that the route reads.
    ClaimMissing,
    /// Too many authentications of this address have failed recently.
    TooManyAuthenticationFailures,
    /// Too many requests of this address needed a call to an authentication endpoint.
    TooManyAuthentications,
    /// A provider cannot verify credentials at the moment.
    AuthenticationUnavailable,
    /// The claims of the principal do not fit into a ticket.
    ClaimsTooLarge,
    /// The principal buys tickets too often.
    TooManyTickets,
    /// The bucket of the tickets is full.
    TicketsFull,
    /// `since` or `last` cannot be read.
    BadBegin,
    /// `since` or `last` is beyond what the route allows.
    BeginOutOfRange,
    /// Events after the client's `Last-Event-ID` are no longer retained.
    LastEventIdExpired,
    /// NATS has not answered yet.
    NatsNotConnected,
    /// NATS rejects what the event stream needs until an operator changes something.
    NatsRejected,
    /// `limits.connections` is reached.
    TooManyConnections,
    /// File descriptors in use exceed `limits.file_descriptors.reject`.
    NoFileDescriptors,
    /// The load level is `reject`.
    Overloaded,
    /// `limits.per_client.connections` is reached.
    TooManyConnectionsOfClient,
    /// `limits.per_client.filter_sets` is reached.
    TooManyFilterSetsOfClient,
    /// `limits.per_client.connects` is exceeded.
    TooManyConnects,
    /// The pod answers as many probes of `sidestream doctor` as it can.
    TooManyProbes,
    /// `limits.feeds` is reached.
    TooManyFeeds,
    /// `limits.replays.queued` is reached.
    TooManyReplays,
    /// The state of the client's subjects does not fit into `limits.window_bytes`.
    StateTooLarge,
    /// The application beside this sidecar cannot be connected.
    ApplicationUnreachable,
    /// The application closed the connection, or its response is not HTTP.
    ApplicationInvalid,
    /// The application answered an `EventSource` with 429 or 5xx.
    ApplicationFailed,
    /// The application has not answered in time.
    ApplicationTimeout,
    /// `application.connections` is reached.
    ApplicationBusy,
    /// The client accepts a response of the cache only, and none is fresh.
    NotCached,
    /// The client has not sent the body of its request in time.
    BodyTimeout,
    /// The method is not passed to the application.
    MethodNotPassed,
    /// The pod is shutting down.
    Draining,
    /// The connection sent nothing, or ended before its first request.
    NoRequest,
    /// The head of a request was not complete in time.
    RequestTimeout,
    /// A TLS handshake arrived on a clear-text port.
    TlsOnClearPort,
    /// The TLS handshake failed.
    TlsHandshake,
    /// The TLS handshake was not complete in time.
    TlsHandshakeTimeout,
    /// The file descriptor reserve is exhausted: the connection is reset before it is read.
    ConnectionReset,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hyper::StatusCode;

    use super::*;

    #[test]
    fn every_code_has_a_label_of_its_own() {
        let codes: BTreeSet<_> = RejectionCode::ALL.map(|code| code.row().code).into();
        assert_eq!(codes.len(), RejectionCode::ALL.len());
        for (index, code) in RejectionCode::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, index, "{code:?}");
        }
    }

    #[test]
    fn temporary_rejections_are_503_and_429() {
        for code in RejectionCode::ALL {
            let row = code.row();
            let is_retryable = matches!(
                row.status,
                Some(StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
            );
            assert_eq!(row.is_temporary, is_retryable, "{code:?}");
            assert!(!row.message.is_empty() && !row.hint.is_empty(), "{code:?}");
        }
    }

    #[test]
    fn every_code_is_documented() {
        let page = include_str!("../../../docs/troubleshooting.md");
        for code in RejectionCode::ALL {
            let code = format!("`{}`", code.row().code);
            assert!(
                page.contains(&code),
                "{code} is not in docs/troubleshooting.md"
            );
        }
    }
}
