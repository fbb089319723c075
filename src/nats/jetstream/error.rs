//! Errors of JetStream requests: meaning, whether waiting helps, and the remedy for the operator.
//!
//! [`JetStreamError::explain`] is the text of health checks and logs.
//! [`JetStreamError::is_permanent`] decides between retrying and rejecting clients. Error codes are
//! classified in two tables; a code in neither is classified by its HTTP status.

use crate::event::SourceTag;

/// Highest sequence that NATS delivers to a consumer: it compares sequences as signed numbers.
pub(crate) const SEQUENCE_MAX: u64 = i64::MAX as u64;

/// Reason why a JetStream request failed. The text does not name the stream;
/// [`JetStreamError::explain`] adds it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JetStreamError {
    /// There is no such stream.
    #[error("JetStream has no such stream; waiting until it is created")]
    StreamNotFound,
    /// The stream deletes messages after they are consumed.
    #[error(
        "{kind} retention deletes consumed messages, so clients cannot share the stream; use a mirror with limits retention"
    )]
    Retention {
        /// Name of its retention policy.
        kind: &'static str,
    },
    /// The server denies this subject.
    #[error("NATS denies {0} to this user: add the permission")]
    Denied(String),
    /// No responder for JetStream requests.
    #[error("no responder for JetStream: enable JetStream for this account")]
    NoJetStream,
    /// No response in time.
    #[error("JetStream does not respond")]
    Timeout,
    /// Another stream has the same source tag in event ids.
    #[error(
        "stream {other} has the same tag {tag} in event ids (hash collision): give one of them an `identity` in the configuration"
    )]
    TagCollision {
        /// Name of that stream.
        other: String,
        /// Tag of both.
        tag: SourceTag,
    },
    /// The stream does not republish, but its source is configured to read republished messages.
    #[error(
        "the stream does not republish, so it cannot be read with `delivery: republish`: configure `republish` on it (`nats stream edit STREAM --republish-source='>' --republish-destination='live.>'`), or leave `delivery` at `shared`"
    )]
    NotRepublished,
    /// The stream republishes without payloads.
    #[error(
        "the stream republishes headers only, so no payload can be read with `delivery: republish`: republish without `headers_only`, or leave `delivery` at `shared`"
    )]
    HeadersOnly,
    /// The stream does not republish everything that a route reads.
    #[error(
        "the stream republishes only {source_filter}, not all of {filter}, which a route reads with `delivery: republish`: widen the source of its `republish`, narrow the route, or leave `delivery` at `shared`"
    )]
    Uncovered {
        /// Filter of the route.
        filter: String,
        /// Source of the stream's republish configuration.
        source_filter: String,
    },
    /// An invalid response, or a request that could not be sent.
    #[error("JetStream request failed: {0}")]
    Failed(String),
    /// An error response of JetStream.
    #[error("JetStream rejects the request: {text}{}", suffix(*code))]
    Rejected {
        /// Error code (`err_code`). 0 for the status of a pull request, which has none.
        code: u64,
        /// Status, as in HTTP.
        status: usize,
        /// Description with both codes.
        text: String,
    },
    /// The stream stores only subjects that are never served.
    #[error(
        "the stream stores only {stored}, and subjects that begin with `$` or `_INBOX` are never served: no route can receive anything from it; name a KV bucket as `bucket`, or use a stream that sources it with a subject transform (`$KV.config.>` to `config.>`)"
    )]
    Unservable {
        /// Subjects of the stream.
        stored: String,
    },
    /// The stream of a KV bucket has other subjects than its keys.
    #[error(
        "the stream does not store {keys}, the keys of the bucket: name the bucket itself in `bucket`, not a mirror of it"
    )]
    NotABucket {
        /// Subjects of the keys.
        keys: String,
    },
    /// The stream's sequences are higher than a consumer delivers.
    #[error(
        "the stream begins at sequence {0}, and NATS delivers no message above {SEQUENCE_MAX} to a consumer: create the stream with a smaller `first_seq`"
    )]
    SequenceTooHigh(u64),
}

impl JetStreamError {
    /// Returns the problem as a sentence that names the stream.
    #[must_use]
    pub fn explain(&self, stream: &str) -> String {
        match (self, stream.strip_prefix("KV_")) {
            (Self::StreamNotFound, Some(bucket)) => format!(
                "stream {stream}: there is no KV bucket {bucket}; waiting until it is created (`nats kv add {bucket}`)"
            ),
            _ => format!("stream {stream}: {self}"),
        }
    }

    /// Returns true if waiting does not help: the response stays the same until an operator changes
    /// the stream, the account, the permissions or the configuration. Everything else is an outage.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::StreamNotFound | Self::NoJetStream | Self::Timeout | Self::Failed(_) => false,
            Self::Retention { .. }
            | Self::Denied(_)
            | Self::TagCollision { .. }
            | Self::NotRepublished
            | Self::HeadersOnly
            | Self::Uncovered { .. }
            | Self::Unservable { .. }
            | Self::NotABucket { .. }
            | Self::SequenceTooHigh(_) => true,
            Self::Rejected {
                code: 0,
                status,
                text,
            } => is_permanent_status(*status, text),
            Self::Rejected { code, status, .. } => is_permanent_code(*code, *status),
        }
    }
}

/// Errors that only an operator can resolve, with the remedy. Codes and meanings:
/// `server/errors.json` of nats-server.
const PERMANENT: [(u64, &str); 15] = [
    (
        10002,
        "raise the limits of the account, or delete streams and consumers",
    ),
    (
        10023,
        "give JetStream more memory or storage on the server, or delete streams and consumers",
    ),
    (
        10025,
        "nats-server does not understand the request: use one of the versions that sidestream supports",
    ),
    (
        10026,
        "raise `max_consumers` of the stream or of the account: each pod needs one consumer for a stream, and up to `limits.replays.running` for replays",
    ),
    (
        10028,
        "give JetStream more memory on the server (`max_mem`), or delete consumers and streams that use it",
    ),
    (
        10035,
        "the account does not exist on this server: check `nats.credentials`",
    ),
    (10039, "enable JetStream for this account"),
    (
        10047,
        "give JetStream more storage on the server (`max_file`), or delete streams",
    ),
    (
        10093,
        "the routes ask for subjects that the stream does not have: compare `subjects` of both",
    ),
    (
        10121,
        "raise `max_ack_pending` of the stream's `consumer_limits`, of the account or of the server",
    ),
    (
        10125,
        "raise `max_request_batch` in `jetstream { limits }` of the server",
    ),
    (
        10153,
        "raise `inactive_threshold` of the stream's `consumer_limits`",
    ),
    (
        10185,
        "upgrade nats-server: it does not support what the stream needs",
    ),
    (
        10194,
        "upgrade nats-server: it does not support what the stream needs",
    ),
    (
        10195,
        "upgrade nats-server: it does not support what the consumer needs",
    ),
];

/// Errors that pass without an operator: elections, servers that start or are unreachable, names
/// that are chosen again.
const TEMPORARY: [u64; 27] = [
    10004, 10005, 10006, 10007, 10008, 10009, 10012, 10013, 10014, 10037, 10040, 10041, 10043,
    10044, 10048, 10051, 10056, 10060, 10072, 10075, 10077, 10104, 10105, 10118, 10119, 10148,
    10149,
];

/// Returns true if an error with this code lasts until an operator resolves it. A code in neither
/// table is permanent if its status is 4xx, except the statuses that ask for a retry.
fn is_permanent_code(code: u64, status: usize) -> bool {
    if TEMPORARY.contains(&code) {
        return false;
    }
    remedy(code).is_some() || is_fault_of_the_request(status)
}

/// The same for the status of a pull request: size limits stay, every other status passes.
fn is_permanent_status(status: usize, text: &str) -> bool {
    let is_limit = text.contains("Exceeded Max") && !text.contains("Exceeded MaxWaiting");
    status == 400 || is_limit
}

fn is_fault_of_the_request(status: usize) -> bool {
    (400..500).contains(&status) && !matches!(status, 404 | 408 | 409 | 429)
}

/// Remedy for an error code as the end of a sentence, or an empty text.
fn suffix(code: u64) -> String {
    remedy(code).map_or_else(String::new, |remedy| format!(": {remedy}"))
}

fn remedy(code: u64) -> Option<&'static str> {
    PERMANENT
        .iter()
        .find(|(known, _)| *known == code)
        .map(|(_, remedy)| *remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(code: u64, status: usize) -> JetStreamError {
        JetStreamError::Rejected {
            code,
            status,
            text: format!("x (code {status}, error code {code})"),
        }
    }

    #[test]
    fn every_error_code_is_either_permanent_or_temporary() {
        // Errors of requests for streams, consumers and messages, with their status in nats-server.
        for (code, status, is_permanent) in [
            (10002, 400, true),  // account resources exceeded
            (10003, 400, true),  // bad request
            (10004, 503, false), // incomplete results
            (10005, 400, false), // no suitable peers
            (10007, 500, false), // not assigned to this server
            (10008, 503, false), // temporarily unavailable
            (10009, 500, false), // not the leader
            (10012, 500, false), // consumer creation failed
            (10013, 400, false), // consumer name in use
            (10014, 404, false), // consumer not found
            (10023, 503, true),  // insufficient resources
            (10025, 400, true),  // invalid JSON
            (10026, 400, true),  // maximum consumers limit reached
            (10028, 500, true),  // memory resources exceeded
            (10035, 503, true),  // no account
            (10037, 404, false), // no message found
            (10039, 503, true),  // not enabled for the account
            (10041, 500, false), // raft
            (10047, 500, true),  // storage resources exceeded
            (10051, 500, false), // stream failed
            (10072, 500, false), // temporary storage failed
            (10082, 400, true),  // ack policy required
            (10093, 400, true),  // filter not a subset
            (10104, 500, false), // consumer store failed
            (10105, 400, false), // consumer exists
            (10118, 500, false), // stream offline
            (10119, 500, false), // consumer offline
            (10121, 400, true),  // max ack pending
            (10125, 400, true),  // max request batch
            (10126, 400, true),  // consumer replicas
            (10138, 400, true),  // overlapping filters
            (10148, 400, false), // consumer exists
            (10153, 400, true),  // inactive threshold
            (10157, 400, true),  // pedantic
            (10167, 429, false), // too many requests
            (10185, 412, true),  // API level
            (10194, 500, true),  // stream offline, unsupported
            (10195, 500, true),  // consumer offline, unsupported
            (19999, 400, true),  // a later one
            (19999, 500, false),
            (19999, 503, false),
        ] {
            assert_eq!(
                rejected(code, status).is_permanent(),
                is_permanent,
                "{code} {status}"
            );
        }
        let both: Vec<_> = PERMANENT
            .iter()
            .filter(|(code, _)| TEMPORARY.contains(code))
            .collect();
        assert!(both.is_empty(), "{both:?}");
    }

    #[test]
    fn size_limits_of_a_pull_request_are_permanent_and_other_statuses_are_not() {
        let status = |status, text: &str| {
            JetStreamError::Rejected {
                code: 0,
                status,
                text: text.to_owned(),
            }
            .is_permanent()
        };
        assert!(status(409, "409 Exceeded MaxRequestBatch of 1"));
        assert!(status(409, "409 Exceeded MaxRequestMaxBytes of 1"));
        assert!(status(400, "400 Bad Request"));
        for text in [
            "409 Exceeded MaxWaiting",
            "409 Consumer is push based",
            "409 Server Shutdown",
        ] {
            assert!(!status(409, text), "{text}");
        }
    }

    #[test]
    fn outages_are_temporary() {
        for error in [
            JetStreamError::StreamNotFound,
            JetStreamError::NoJetStream,
            JetStreamError::Timeout,
            JetStreamError::Failed("x".to_owned()),
        ] {
            assert!(!error.is_permanent(), "{error:?}");
        }
        assert!(JetStreamError::Denied("a".to_owned()).is_permanent());
    }

    #[test]
    fn permanent_error_is_explained_with_its_code_and_remedy() {
        let text = rejected(10026, 400).explain("ORDERS");
        assert!(
            text.contains("ORDERS")
                && text.contains("10026")
                && text.contains("raise `max_consumers`"),
            "{text}"
        );
    }

    #[test]
    fn explanation_names_the_stream_and_the_remedy() {
        let text = JetStreamError::Retention { kind: "work-queue" }.explain("JOBS");
        assert!(
            text.contains("JOBS") && text.contains("work-queue") && text.contains("use a mirror"),
            "{text}"
        );
        assert!(
            JetStreamError::StreamNotFound
                .explain("A")
                .contains("no such stream")
        );
        assert!(
            JetStreamError::Denied("$JS.API.STREAM.INFO.A".into())
                .explain("A")
                .contains("$JS.API.STREAM.INFO.A")
        );
    }
}
