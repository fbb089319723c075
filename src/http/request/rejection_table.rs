//! Table of rejections: status, label, message and hint of every code.

use hyper::StatusCode;

use super::rejection_code::RejectionCode;
use super::rejection_row::Row;

impl RejectionCode {
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
            Self::VersionNotSupported => Row::permanent(
                Status::NOT_ACCEPTABLE,
                "version_not_supported",
                "the route does not support the version",
                "ask for a version that the message names, or for none: see `versions` of the route",
            ),
            Self::VersionGone => Row::permanent(
                Status::GONE,
                "version_gone",
                "the version is no longer available",
                "update the client to the current version of the payloads",
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
            Self::UnsupportedMediaType => Row::permanent(
                Status::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "the content is not protobuf of gRPC or gRPC-Web",
                "send application/grpc over HTTP/2, or application/grpc-web+proto; without compression",
            ),
            Self::BadMessage => Row::permanent(
                Status::BAD_REQUEST,
                "bad_message",
                "the message of the call is not valid",
                "send one SubscribeRequest of proto/sidestream/v1/events.proto",
            ),
            Self::MessageTooLarge => Row::permanent(
                Status::PAYLOAD_TOO_LARGE,
                "message_too_large",
                "the message of the call is too large",
                "at most 8 KiB: use a shorter path and query",
            ),
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
            Self::TooManyProbes => Row::temporary(
                Status::TOO_MANY_REQUESTS,
                "too_many_probes",
                "this pod answers other probes of `sidestream doctor`",
                "wait until the other runs have ended",
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
