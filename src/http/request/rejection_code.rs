//! Codes of rejections: one closed list, with one row per code.
//!
//! The same enum labels `sidestream_refusals_total`, whose series exist with 0 from the start. A
//! code without a status belongs to a connection that ends before a request could be answered.
//!
//! `docs/troubleshooting.md` lists every code; a test keeps it complete.

use hyper::StatusCode;

use super::rejection_row::Row;

/// Code of a rejection: the `code` of the JSON body and the label of `sidestream_refusals_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum RejectionCode {
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

impl RejectionCode {
    /// Every code, in the order of the enum.
    pub(in crate::http) const ALL: [Self; 58] = [
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::NotAcceptable,
        Self::UpgradeRequired,
        Self::BadWait,
        Self::BadHandshake,
        Self::OriginNotAllowed,
        Self::BadVariable,
        Self::BadSubject,
        Self::TooManySubjects,
        Self::SubjectNotAllowed,
        Self::BadHost,
        Self::Malformed,
        Self::HeadTooLarge,
        Self::TargetTooLong,
        Self::BareLineFeed,
        Self::TwoLengths,
        Self::UnexpectedBody,
        Self::Unauthenticated,
        Self::InvalidToken,
        Self::Revoked,
        Self::Forbidden,
        Self::ClaimMissing,
        Self::TooManyAuthenticationFailures,
        Self::TooManyAuthentications,
        Self::AuthenticationUnavailable,
        Self::ClaimsTooLarge,
        Self::TooManyTickets,
        Self::TicketsFull,
        Self::BadBegin,
        Self::BeginOutOfRange,
        Self::LastEventIdExpired,
        Self::NatsNotConnected,
        Self::NatsRejected,
        Self::TooManyConnections,
        Self::NoFileDescriptors,
        Self::Overloaded,
        Self::TooManyConnectionsOfClient,
        Self::TooManyFilterSetsOfClient,
        Self::TooManyConnects,
        Self::TooManyFeeds,
        Self::TooManyReplays,
        Self::StateTooLarge,
        Self::ApplicationUnreachable,
        Self::ApplicationInvalid,
        Self::ApplicationFailed,
        Self::ApplicationTimeout,
        Self::ApplicationBusy,
        Self::NotCached,
        Self::BodyTimeout,
        Self::MethodNotPassed,
        Self::Draining,
        Self::NoRequest,
        Self::RequestTimeout,
        Self::TlsOnClearPort,
        Self::TlsHandshake,
        Self::TlsHandshakeTimeout,
        Self::ConnectionReset,
    ];

    /// Row of the table.
    pub(in crate::http) const fn row(self) -> Row {
        use StatusCode as Status;
        match self {
            Self::NotFound => Row::permanent(
                Status::NOT_FOUND,
                "not_found",
                "no route has this path",
                "see `routes` in the configuration",
            ),
            Self::MethodNotAllowed => Row::permanent(
                Status::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "event streams are read with GET",
                "use a method of the Allow header",
            ),
            Self::NotAcceptable => Row::permanent(
                Status::NOT_ACCEPTABLE,
                "not_acceptable",
                "the client accepts no media type of the route",
                "remove the Accept header, or accept a media type that the message names",
            ),
            Self::UpgradeRequired => Row::permanent(
                Status::UPGRADE_REQUIRED,
                "upgrade_required",
                "this route is read with a WebSocket",
                "use ws:// or wss://, or add another framing to `framings` of the route",
            ),
            Self::BadWait => Row::permanent(
                Status::BAD_REQUEST,
                "bad_wait",
                "`wait` is not a duration",
                "write seconds or milliseconds, such as `30s` or `500ms`",
            ),
            Self::BadHandshake => Row::permanent(
                Status::BAD_REQUEST,
                "bad_handshake",
                "the request is not a valid WebSocket handshake",
                "use a WebSocket library, and the subprotocol `sidestream.v1` or none",
            ),
            Self::OriginNotAllowed => Row::permanent(
                Status::FORBIDDEN,
                "origin_not_allowed",
                "this route allows no WebSocket of pages of this origin",
                "add the origin to `cors.origins` of the route",
            ),
            Self::BadVariable => Row::permanent(
                Status::BAD_REQUEST,
                "bad_variable",
                "a variable of the route is missing or cannot be part of a subject",
                "a variable fills one token: not empty, no `.`, `*`, `>`, white space or control character",
            ),
            Self::BadSubject => Row::permanent(
                Status::BAD_REQUEST,
                "bad_subject",
                "the subject is not valid",
                "NATS subjects are tokens joined by dots",
            ),
            Self::TooManySubjects => Row::permanent(
                Status::BAD_REQUEST,
                "too_many_subjects",
                "too many subjects",
                "open a second event stream, or use a wildcard",
            ),
            Self::SubjectNotAllowed => Row::permanent(
                Status::FORBIDDEN,
                "subject_not_allowed",
                "this route does not allow the subject",
                "request a subset of the route's subjects",
            ),
            Self::BadHost => Row::permanent(
                Status::BAD_REQUEST,
                "bad_host",
                "the Host header is not valid",
                "send one Host header, with the host of the URL",
            )
            .closing(),
            Self::Malformed => Row::permanent(
                Status::BAD_REQUEST,
                "malformed",
                "the request is not HTTP/1.1",
                "see RFC 9112",
            )
            .closing(),
            Self::HeadTooLarge => Row::permanent(
                Status::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "head_too_large",
                "the head of the request is too large",
                "at most 16 KiB and 64 fields: send fewer or smaller cookies",
            )
            .closing(),
            Self::TargetTooLong => Row::permanent(
                Status::URI_TOO_LONG,
                "target_too_long",
                "the target of the request is too long",
                "at most 16 KiB with all headers",
            )
            .closing(),
            Self::BareLineFeed => Row::permanent(
                Status::BAD_REQUEST,
                "bare_line_feed",
                "a line of the request ends without a carriage return",
                "end lines with CRLF",
            )
            .closing(),
            Self::TwoLengths => Row::permanent(
                Status::BAD_REQUEST,
                "two_lengths",
                "the request has Content-Length and Transfer-Encoding",
                "send one of them",
            )
            .closing(),
            Self::UnexpectedBody => Row::permanent(
                Status::BAD_REQUEST,
                "unexpected_body",
                "a GET request for an event stream has no body",
                "remove the body",
            )
            .closing(),
            Self::Unauthenticated => Row::permanent(
                Status::UNAUTHORIZED,
                "unauthenticated",
                "the request has no credentials",
                "send `Authorization: Bearer` with a token, or the cookie of the route's provider",
            ),
            Self::InvalidToken => Row::permanent(
                Status::UNAUTHORIZED,
                "invalid_token",
                "the credentials are not valid",
                "get a new token, and check issuer, audience and clock",
            ),
            Self::Revoked => Row::permanent(
                Status::UNAUTHORIZED,
                "revoked",
                "the credentials are revoked",
                "authenticate again: credentials that are issued after the revocation of a subject or client are valid",
            ),
            Self::Forbidden => Row::permanent(
                Status::FORBIDDEN,
                "forbidden",
                "the client may not read this route",
                "the authentication endpoint of the route decides: see its log",
            ),
            Self::ClaimMissing => Row::permanent(
                Status::FORBIDDEN,
                "claim_missing",
                "the credentials do not have a claim that this route needs",
                "add the claim at the identity provider, and get a new token",
            ),
            Self::TooManyAuthenticationFailures => Row::temporary(
                Status::TOO_MANY_REQUESTS,
                "too_many_authentication_failures",
                "too many authentications from this address have failed",
                "wait as long as Retry-After says, and send valid credentials",
            ),
            Self::TooManyAuthentications => Row::temporary(
                Status::TOO_MANY_REQUESTS,
                "too_many_authentications",
                "too many requests from this address had to be authenticated",
                "wait as long as Retry-After says; behind a proxy, set `trusted_proxies`",
            ),
            Self::AuthenticationUnavailable => Row::temporary(
                Status::SERVICE_UNAVAILABLE,
                "authentication_unavailable",
                "credentials cannot be verified at the moment",
                "try again; `/health` on the admin port names the provider and the reason",
            ),
            Self::ClaimsTooLarge => Row::permanent(
                Status::FORBIDDEN,
                "claims_too_large",
                "the claims of the credentials are too large for a ticket",
                "use credentials with fewer claims: a ticket keeps at most 8 KiB",
            ),
            Self::TooManyTickets => Row::temporary(
                Status::TOO_MANY_REQUESTS,
                "too_many_tickets",
                "this client buys tickets too often",
                "wait as long as Retry-After says, and buy one ticket per event stream",
            ),
            Self::TicketsFull => Row::temporary(
                Status::SERVICE_UNAVAILABLE,
                "tickets_full",
                "the bucket of tickets is full",
                "try again; if it stays full, raise `max_bytes` of the bucket",
            ),
            Self::BadBegin => Row::permanent(
                Status::BAD_REQUEST,
                "bad_begin",
                "the beginning of the event stream is not valid",
                "`since` is a time such as 2026-11-29T10:00:00Z or a duration such as 5m, `last` a number of events",
            ),
            Self::BeginOutOfRange => Row::permanent(
                Status::BAD_REQUEST,
                "begin_out_of_range",
                "the event stream cannot begin that far back",
                "ask for less; `begin_by_client` of the route has the bounds",
            ),
            Self::LastEventIdExpired => Row::permanent(
                Status::RANGE_NOT_SATISFIABLE,
                "last_event_id_expired",
                "events after this Last-Event-ID are no longer retained",
                "connect without Last-Event-ID, or set `expired: gap` on the route",
            ),
            Self::NatsNotConnected => Row::temporary(
                Status::SERVICE_UNAVAILABLE,
                "nats_not_connected",
                "NATS is not connected yet",
                "try again",
            ),
            Self::NatsRejected => Row::temporary(
                Status::SERVICE_UNAVAILABLE,
                "nats_rejected",
                "NATS rejects reading what this event stream needs",
                "`/health` on the admin port names the error code and the remedy",
            ),
            Self::TooManyConnections => Row::temporary(
                Status::SERVICE_UNAVAILABLE,
                "too_many_connections",
                "this pod has reached its limit of connections",
                "try again",
            ),
            Self::NoFileDescriptors => Row::temporary(
                Status::SERVICE_UNAVAILABLE,
                "no_file_descriptors",
                "this pod has reached its limit of file descriptors",
                "try again",
            ),
            Self::Overloaded => Row::temporary(
                Status::SERVICE_UNAVAILABLE,
                "overloaded",
                "this pod is overloaded",
                "try again",
            ),
            Self::TooManyConnectionsOfClient => Row::temporary(
                Status::SERVICE_UNAVAILABLE,
                "too_many_connections_of_client",
                "this client has reached its limit of open event streams",
                "end one, or share one among several readers",
            ),
            Self::TooManyFilterSetsOfClient => Row::temporary(
                Status::TOO_MANY_REQUESTS,
                "too_many_filter_sets_of_client",
                "this client has reached its limit of different sets of subjects",
                "end an event stream, or read several subjects with a wildcard",
            ),
            Self::TooManyConnects => Row::temporary(
                Status::TOO_MANY_REQUESTS,
                "too_many_connects",
                "this client opens event streams too often",
                "wait as long as Retry-After says, and keep open event streams",
            ),
            Self::TooManyFeeds => Row::temporary(
                Status::SERVICE_UNAVAILABLE,
                "too_many_feeds",
                "this pod has reached its limit of different sets of subjects",
                "try again",
            ),
            Self::TooManyReplays => Row::temporary(
                Status::SERVICE_UNAVAILABLE,
                "too_many_replays",
                "too many clients wait for missed events",
                "try again",
            ),
            Self::StateTooLarge => Row::temporary(
                Status::SERVICE_UNAVAILABLE,
                "state_too_large",
                "the state of these subjects does not fit into memory",
                "raise `limits.window_bytes`, or ask for fewer subjects",
            ),
            Self::ApplicationUnreachable => Row::permanent(
                Status::BAD_GATEWAY,
                "application_unreachable",
                "the application cannot be connected",
                "the application is starting, has ended, or listens on another port than `application.address`",
            ),
            Self::ApplicationInvalid => Row::permanent(
                Status::BAD_GATEWAY,
                "application_invalid",
                "the application closed the connection, or did not answer in HTTP",
                "the log of the application has the reason",
            ),
            Self::ApplicationFailed => Row::permanent(
                Status::BAD_GATEWAY,
                "application_failed",
                "the application rejected the request at the moment",
                "the log of the application has the reason",
            ),
            Self::ApplicationTimeout => Row::permanent(
                Status::GATEWAY_TIMEOUT,
                "application_timeout",
                "the application did not answer in time",
                "answer within `application.response_timeout`, or raise it",
            ),
            Self::ApplicationBusy => Row::temporary(
                Status::SERVICE_UNAVAILABLE,
                "application_busy",
                "too many requests to the application are in progress",
                "try again; `application.connections` is the limit",
            ),
            Self::NotCached => Row::permanent(
                Status::GATEWAY_TIMEOUT,
                "not_cached",
                "no fresh response is in the cache",
                "send the request without `Cache-Control: only-if-cached`",
            ),
            Self::BodyTimeout => Row::permanent(
                Status::REQUEST_TIMEOUT,
                "body_timeout",
                "the body of the request was not complete in time",
                "send the body without long pauses",
            )
            .closing(),
            Self::MethodNotPassed => Row::permanent(
                Status::NOT_IMPLEMENTED,
                "method_not_passed",
                "CONNECT and TRACE are not passed to the application",
                "use another method",
            ),
            Self::Draining => Row::temporary(
                Status::SERVICE_UNAVAILABLE,
                "draining",
                "this pod is shutting down",
                "try again: another pod answers",
            ),
            Self::NoRequest => Row::without_response(
                "no_request",
                "the connection ended without a request",
                "many of them: port scanners, or a health check without a request",
            ),
            Self::RequestTimeout => Row::without_response(
                "request_timeout",
                "the head of the request was not complete in time",
                "send the head within 10 s",
            ),
            Self::TlsOnClearPort => Row::without_response(
                "tls_on_clear_port",
                "TLS handshake on a clear-text port",
                "use http://, or set `tls` on the listener",
            ),
            Self::TlsHandshake => Row::without_response(
                "tls_handshake",
                "the TLS handshake failed",
                "use https:// and TLS 1.2 or 1.3, with a client certificate if the listener has a `client_ca`",
            ),
            Self::TlsHandshakeTimeout => Row::without_response(
                "tls_handshake_timeout",
                "the TLS handshake was not complete in time",
                "complete the handshake within 5 s",
            ),
            Self::ConnectionReset => Row::without_response(
                "connection_reset",
                "the file descriptor reserve is exhausted",
                "more pods, or a higher limit of file descriptors",
            ),
        }
    }
}

const _: () = assert!(
    RejectionCode::ALL.len() == RejectionCode::ConnectionReset as usize + 1,
    "the list has every variant; the last one is ConnectionReset"
);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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
