//! Requests to the JetStream API (`$JS.API.>`), as JSON on the control connection.
//!
//! Responses are parsed into types of this module that name only the fields used here: a field that
//! a newer server adds or changes elsewhere must not stop a tailer. Every request has a timeout of
//! 5 s and ends early if the server denies its subject. Messages are read with `STREAM.MSG.GET`,
//! not with a direct get: the response is JSON, so that headers of stored messages are never parsed
//! by the client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Request;
use async_nats::client::RequestErrorKind;
use async_nats::jetstream::consumer::{self, IntoConsumerConfig as _, pull};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{self, ErrorCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub(crate) use super::error::JetStreamError;
use super::error::SEQUENCE_MAX;
use crate::event::{Fingerprint, Position, SourceTag};
use crate::nats::connection::NatsConnection;
use crate::nats::decode::message::has_end;
use crate::nats::republish::mapping::Republish;
use crate::subject::{Filter, is_reserved};

/// 5 s for a response, as in JetStream clients.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// JetStream API on the control connection. Requests use the connection's current client; a
/// `jetstream::Context` would keep the client that it was created with, even after its replacement.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    connection: NatsConnection,
    consumers: Arc<AtomicU64>,
}

/// State of a JetStream stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// Creation time in unix nanoseconds: a stream with another creation time is another stream.
    pub created: i128,
    /// Sequence of the first message; one more than the last if the stream is empty.
    pub first_seq: u64,
    /// Sequence of the last message, deleted or not; 0 if there never was one.
    pub last_seq: u64,
    /// Publish time of the first message, in unix nanoseconds.
    pub first_time: i128,
    /// Publish time of the last message, in unix nanoseconds.
    pub last_time: i128,
    /// Subjects of the stream; empty for a mirror.
    pub subjects: Vec<String>,
    pub(crate) retention: Retention,
    /// Republish configuration.
    pub republish: Option<Republish>,
    /// Subjects of the stream, if all of them are reserved by NATS and therefore never served.
    pub(crate) unservable: Option<String>,
}

/// Retention policy of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Retention {
    Limits,
    Interest,
    Workqueue,
}

/// A stored message.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    /// In unix nanoseconds.
    pub(crate) published: i128,
    /// It ends finite event streams.
    pub(crate) is_end: bool,
}

impl StreamState {
    /// Returns the state of a stream that many clients can read.
    ///
    /// # Errors
    /// [`JetStreamError::Retention`] if the stream deletes consumed messages;
    /// [`JetStreamError::Unservable`] and [`JetStreamError::SequenceTooHigh`] if it can deliver
    /// nothing.
    pub(crate) fn shareable(self) -> Result<Self, JetStreamError> {
        if let Some(stored) = self.unservable {
            return Err(JetStreamError::Unservable { stored });
        }
        if self.first_seq.max(self.last_seq) > SEQUENCE_MAX {
            return Err(JetStreamError::SequenceTooHigh(self.first_seq));
        }
        match self.retention {
            Retention::Limits => Ok(self),
            Retention::Interest => Err(JetStreamError::Retention { kind: "interest" }),
            Retention::Workqueue => Err(JetStreamError::Retention { kind: "work-queue" }),
        }
    }
}

impl Api {
    pub(crate) fn new(connection: NatsConnection) -> Self {
        Self {
            connection,
            consumers: Arc::default(),
        }
    }

    /// Returns true if the server has at least this version.
    pub(crate) fn is_server_at_least(&self, major: i64, minor: i64) -> bool {
        self.connection
            .client()
            .is_server_compatible(major, minor, 0)
    }

    /// Returns a number that no other consumer of this process has: during a reload, two tailers
    /// follow one stream.
    pub(crate) fn next_consumer_number(&self) -> u64 {
        self.consumers.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Current state of a stream.
    pub(crate) async fn stream_info(&self, stream: &str) -> Result<StreamState, JetStreamError> {
        let info: StreamInfo = self
            .request(format!("STREAM.INFO.{stream}"), &Empty {})
            .await?;
        info.state()
            .ok_or_else(|| JetStreamError::Failed("invalid STREAM.INFO response".to_owned()))
    }

    /// Current state of a stream that many clients can read; an error for one that deletes consumed
    /// messages.
    pub(crate) async fn shareable_stream_info(
        &self,
        stream: &str,
    ) -> Result<StreamState, JetStreamError> {
        self.stream_info(stream).await?.shareable()
    }

    /// Returns true if the message at this position is the one that was received there.
    pub(crate) async fn holds_same_message(
        &self,
        stream: &str,
        seen: Position,
    ) -> Result<bool, JetStreamError> {
        match self.stored(stream, seen.seq, None).await {
            Ok(Some(stored)) => {
                let stored = Fingerprint::of_publish_time(stored.published);
                Ok(seen
                    .fingerprint
                    .is_some_and(|seen| seen.agrees_with(stored)))
            }
            // Deleted since, or we are not permitted to read it.
            Ok(None) | Err(JetStreamError::Denied(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// First message from this sequence on that any of the filters selects.
    pub(crate) async fn next_stored(
        &self,
        stream: &str,
        from: u64,
        filters: &[Filter],
    ) -> Result<Option<Stored>, JetStreamError> {
        let asked = filters
            .iter()
            .map(|filter| self.stored(stream, from, Some(filter)));
        let found = futures_util::future::try_join_all(asked).await?;
        Ok(found
            .into_iter()
            .flatten()
            .min_by_key(|stored| stored.sequence))
    }

    /// Message at this sequence, or the first one from it on that the filter selects.
    pub(crate) async fn stored(
        &self,
        stream: &str,
        from: u64,
        filter: Option<&Filter>,
    ) -> Result<Option<Stored>, JetStreamError> {
        let (seq, next_by_subj) = (Some(from), filter.map(Filter::as_str));
        self.message(
            stream,
            &MessageRequest {
                seq,
                next_by_subj,
                last_by_subj: None,
            },
        )
        .await
    }

    /// Message at this sequence, or the first one after it.
    pub(crate) async fn stored_from(
        &self,
        stream: &str,
        from: u64,
    ) -> Result<Option<Stored>, JetStreamError> {
        let request = MessageRequest {
            seq: Some(from),
            next_by_subj: Some(">"),
            last_by_subj: None,
        };
        self.message(stream, &request).await
    }

    /// Last message that any of the filters selects.
    pub(crate) async fn newest_stored(
        &self,
        stream: &str,
        filters: &[Filter],
    ) -> Result<Option<Stored>, JetStreamError> {
        let asked = filters
            .iter()
            .map(|filter| self.last_stored(stream, filter));
        let found = futures_util::future::try_join_all(asked).await?;
        Ok(found
            .into_iter()
            .flatten()
            .max_by_key(|stored| stored.sequence))
    }

    /// Last message that the filter selects.
    pub(crate) async fn last_stored(
        &self,
        stream: &str,
        filter: &Filter,
    ) -> Result<Option<Stored>, JetStreamError> {
        let request = MessageRequest {
            seq: None,
            next_by_subj: None,
            last_by_subj: Some(filter.as_str()),
        };
        self.message(stream, &request).await
    }

    async fn message(
        &self,
        stream: &str,
        request: &MessageRequest<'_>,
    ) -> Result<Option<Stored>, JetStreamError> {
        let found: Result<MessageResponse, JetStreamError> = self
            .request(format!("STREAM.MSG.GET.{stream}"), request)
            .await;
        match found {
            Ok(response) => match response.message.stored() {
                Some(stored) => Ok(Some(stored)),
                None => Err(JetStreamError::Failed(
                    "invalid STREAM.MSG.GET response".to_owned(),
                )),
            },
            Err(JetStreamError::Failed(why)) if why == NO_MESSAGE => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates a consumer.
    pub(crate) async fn create(
        &self,
        stream: &str,
        config: pull::Config,
    ) -> Result<consumer::Info, JetStreamError> {
        let name = config.name.clone().unwrap_or_default();
        let mut subject = format!("CONSUMER.CREATE.{stream}.{name}");
        if !config.filter_subject.is_empty() {
            subject = format!("{subject}.{}", config.filter_subject);
        }
        self.request(
            subject,
            &NewConsumer {
                stream_name: stream,
                config: config.into_consumer_config(),
            },
        )
        .await
    }

    /// Deletes a consumer and waits at most 1 s. If that fails, its inactivity threshold deletes
    /// it.
    pub(crate) async fn delete(&self, stream: &str, consumer: &str) {
        let request = self.request::<_, serde_json::Value>(
            format!("CONSUMER.DELETE.{stream}.{consumer}"),
            &Empty {},
        );
        if !matches!(
            tokio::time::timeout(Duration::from_secs(1), request).await,
            Ok(Ok(_))
        ) {
            tracing::debug!(
                stream,
                consumer,
                "consumer not deleted; its inactivity threshold removes it"
            );
        }
    }

    /// Requests the deletion of a consumer without waiting.
    pub(crate) async fn delete_later(&self, stream: &str, consumer: &str) {
        let client = self.connection.client();
        let subject = format!("$JS.API.CONSUMER.DELETE.{stream}.{consumer}");
        if client
            .publish_with_reply(subject, client.new_inbox(), Bytes::new())
            .await
            .is_err()
        {
            tracing::debug!(
                stream,
                consumer,
                "consumer not deleted; its inactivity threshold removes it"
            );
        }
    }

    pub(crate) async fn request<T: Serialize + ?Sized, A: DeserializeOwned>(
        &self,
        subject: String,
        request: &T,
    ) -> Result<A, JetStreamError> {
        let full = format!("$JS.API.{subject}");
        let body = serde_json::to_vec(request)
            .map_err(|error| JetStreamError::Failed(error.to_string()))?;
        let message = Request::new()
            .payload(body.into())
            .timeout(Some(REQUEST_TIMEOUT));
        let known = self.connection.state().denials(&full);
        let client = self.connection.client();
        let response = tokio::select! {
            response = client.send_request(full.clone(), message) => response,
            () = self.connection.wait_denied(&full, known) => return Err(JetStreamError::Denied(full)),
        };
        let response = response.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => JetStreamError::NoJetStream,
            RequestErrorKind::TimedOut => JetStreamError::Timeout,
            _ => JetStreamError::Failed(error.to_string()),
        })?;
        match serde_json::from_slice(&response.payload) {
            Ok(Response::Ok(response)) => Ok(response),
            Ok(Response::Err { error }) => Err(error_of(&error)),
            Err(error) => Err(JetStreamError::Failed(format!("invalid response: {error}"))),
        }
    }
}

/// Error text for a message that does not exist.
pub(crate) const NO_MESSAGE: &str = "no message found";

fn error_of(error: &jetstream::Error) -> JetStreamError {
    match error.error_code() {
        ErrorCode::STREAM_NOT_FOUND => JetStreamError::StreamNotFound,
        ErrorCode::NO_MESSAGE_FOUND => JetStreamError::Failed(NO_MESSAGE.to_owned()),
        ErrorCode::JETSTREAM_NOT_ENABLED => JetStreamError::NoJetStream,
        code => JetStreamError::Rejected {
            code: code.0,
            status: error.code(),
            text: error.to_string(),
        },
    }
}

/// Fields of `STREAM.INFO` that are used here. Parsed with our own types, so that a field that a
/// newer server adds or changes elsewhere does not stop a tailer.
#[derive(Deserialize)]
struct StreamInfo {
    config: StreamSettings,
    created: String,
    state: StreamNumbers,
}

#[derive(Deserialize)]
struct StreamSettings {
    retention: Retention,
    #[serde(default)]
    subjects: Option<Vec<String>>,
    #[serde(default)]
    republish: Option<RepublishSettings>,
    #[serde(default)]
    subject_transform: Option<Transform>,
    #[serde(default)]
    mirror: Option<Origin>,
    #[serde(default)]
    sources: Option<Vec<serde::de::IgnoredAny>>,
}

#[derive(Deserialize)]
struct Transform {
    #[serde(default)]
    dest: String,
}

/// Origin of a mirror.
#[derive(Deserialize)]
struct Origin {
    #[serde(default)]
    name: String,
    #[serde(default)]
    subject_transforms: Option<Vec<serde::de::IgnoredAny>>,
}

impl StreamSettings {
    /// Returns the stream's subjects if all of them are reserved by NATS. The subjects of a stream
    /// with sources are unknown.
    fn unservable(&self) -> Option<String> {
        let is_transformed = self
            .subject_transform
            .as_ref()
            .is_some_and(|transform| !is_reserved(&transform.dest));
        if is_transformed || self.sources.is_some() {
            return None;
        }
        if let Some(origin) = &self.mirror {
            let is_bucket = origin.name.starts_with("KV_") || origin.name.starts_with("OBJ_");
            return (is_bucket && origin.subject_transforms.is_none())
                .then(|| format!("the subjects of {}", origin.name));
        }
        let subjects = self.subjects.as_deref().unwrap_or_default();
        let is_own = !subjects.is_empty() && subjects.iter().all(|subject| is_reserved(subject));
        is_own.then(|| subjects.join(", "))
    }
}

#[derive(Deserialize)]
struct RepublishSettings {
    #[serde(default)]
    src: String,
    dest: String,
    #[serde(default)]
    headers_only: bool,
}

impl RepublishSettings {
    fn republish(self) -> Republish {
        // Without a source, everything is republished.
        let source = if self.src.is_empty() {
            ">".to_owned()
        } else {
            self.src
        };
        Republish {
            source,
            destination: self.dest,
            headers_only: self.headers_only,
        }
    }
}

#[derive(Deserialize)]
struct StreamNumbers {
    first_seq: u64,
    last_seq: u64,
    #[serde(default)]
    first_ts: Option<String>,
    #[serde(default)]
    last_ts: Option<String>,
}

impl StreamState {
    /// Position after this sequence number, with the fingerprint of the message there if it is the
    /// stream's last one.
    pub(in crate::nats) fn position_after(&self, seq: u64, tag: SourceTag) -> Position {
        // The server reports the first year if there was no message, and the time may be missing.
        let is_last = self.first_seq <= seq && seq == self.last_seq && self.last_time > 0;
        Position {
            tag,
            seq,
            fingerprint: is_last.then(|| Fingerprint::of_publish_time(self.last_time)),
        }
    }
}

impl StreamInfo {
    fn state(self) -> Option<StreamState> {
        let time = |text: Option<String>| text.and_then(|text| nanos(&text)).unwrap_or(0);
        Some(StreamState {
            unservable: self.config.unservable(),
            created: nanos(&self.created)?,
            // A stream without any message yet reports 0 and 0.
            first_seq: self.state.first_seq.max(1),
            last_seq: self.state.last_seq,
            first_time: time(self.state.first_ts),
            last_time: time(self.state.last_ts),
            subjects: self.config.subjects.unwrap_or_default(),
            retention: self.config.retention,
            republish: self.config.republish.map(RepublishSettings::republish),
        })
    }
}

/// Body of a request without parameters: an object, because the server rejects `null`.
#[derive(Serialize)]
struct Empty {}

/// Body of a request that creates a consumer.
#[derive(Serialize)]
struct NewConsumer<'a> {
    stream_name: &'a str,
    config: consumer::Config,
}

#[derive(Serialize)]
struct MessageRequest<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_by_subj: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_by_subj: Option<&'a str>,
}

#[derive(Deserialize)]
struct MessageResponse {
    message: RawMessage,
}

#[derive(Deserialize)]
struct RawMessage {
    subject: String,
    seq: u64,
    time: String,
    /// Base64.
    #[serde(default)]
    hdrs: String,
}

impl RawMessage {
    fn stored(self) -> Option<Stored> {
        Some(Stored {
            published: nanos(&self.time)?,
            subject: self.subject,
            sequence: self.seq,
            is_end: BASE64
                .decode(self.hdrs)
                .is_ok_and(|headers| has_end(&headers)),
        })
    }
}

/// Parses a time as NATS writes it, into unix nanoseconds.
fn nanos(text: &str) -> Option<i128> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .map(OffsetDateTime::unix_timestamp_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_info_with_unknown_fields_is_parsed() {
        let text = r#"{"type":"x","config":{"name":"A","retention":"limits","subjects":["a.>"],"new":{"x":1}},
            "created":"2026-11-22T13:50:34.925287721Z","state":{"messages":0,"first_seq":0,"last_seq":0,
            "first_ts":"0001-01-01T00:00:00Z","last_ts":"0001-01-01T00:00:00Z"}}"#;
        let info: StreamInfo = serde_json::from_str(text).unwrap();
        let state = info.state().unwrap();
        assert_eq!(state.created, 1_795_355_434_925_287_721);
        assert_eq!((state.first_seq, state.last_seq), (1, 0));
        assert_eq!(state.retention, Retention::Limits);
    }

    #[test]
    fn position_after_the_last_message_has_its_fingerprint() {
        let position = |first_seq: u64, seq: u64, time: &str| {
            let text = format!(
                r#"{{"config":{{"name":"A","retention":"limits"}},"created":"2026-11-22T13:50:34Z",
                "state":{{"first_seq":{first_seq},"last_seq":7,"last_ts":"{time}"}}}}"#
            );
            let info: StreamInfo = serde_json::from_str(&text).unwrap();
            let tag = SourceTag::of_identity("a");
            info.state().unwrap().position_after(seq, tag).fingerprint
        };
        let time = "2026-11-22T13:50:34.925287721Z";
        let known = Fingerprint::of_publish_time(1_795_355_434_925_287_721);
        assert_eq!(position(1, 7, time), Some(known));
        assert_eq!(position(7, 7, time), Some(known));
        assert_eq!(position(1, 6, time), None);
        assert_eq!(position(8, 7, time), None, "the stream is empty");
        assert_eq!(position(1, 7, "0001-01-01T00:00:00Z"), None);
        assert_eq!(position(1, 7, "no time"), None);
    }

    #[test]
    fn stream_with_only_reserved_subjects_is_detected() {
        let stored = |settings: &str| {
            let settings: StreamSettings =
                serde_json::from_str(&format!(r#"{{"retention":"limits",{settings}}}"#)).unwrap();
            settings.unservable()
        };
        assert_eq!(
            stored(r#""subjects":["$KV.a.>"]"#).as_deref(),
            Some("$KV.a.>")
        );
        assert_eq!(
            stored(r#""subjects":["$O.a.C.>","$O.a.M.>"]"#).as_deref(),
            Some("$O.a.C.>, $O.a.M.>")
        );
        assert_eq!(
            stored(r#""mirror":{"name":"KV_a"}"#).as_deref(),
            Some("the subjects of KV_a")
        );
        for settings in [
            r#""subjects":["$KV.a.>","a.>"]"#,
            r#""subjects":["$KV.a.>"],"subject_transform":{"src":"$KV.a.>","dest":"a.>"}"#,
            r#""subjects":["$KV.a.>"],"sources":[{"name":"A"}]"#,
            r#""mirror":{"name":"KV_a","subject_transforms":[{"src":"$KV.a.>","dest":"a.>"}]}"#,
            r#""mirror":{"name":"A"}"#,
            r#""subjects":["a.>"]"#,
        ] {
            assert_eq!(stored(settings), None, "{settings}");
        }
    }
}
