//! Requests to JetStream, and what their failures mean for a human.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Request;
use async_nats::client::RequestErrorKind;
use async_nats::jetstream::consumer::{self, IntoConsumerConfig as _, pull};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{self, ErrorCode};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub(crate) use super::error::JetStreamError;
use super::error::SEQUENCE_MAX;
use crate::nats::connection::NatsConnection;
use crate::nats::republish::Republish;
use crate::sse::Position;
use crate::subject::{Filter, is_reserved};

/// How long JetStream may take to answer: 5 s, as its own clients wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// JetStream as we ask it, on the control connection: always by its current client, not by a `jetstream::Context`, which
/// keeps the client that it was built with.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    link: NatsConnection,
    consumers: Arc<AtomicU64>,
}

/// A JetStream stream as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// When it was created, in unix nanoseconds: another creation is another stream.
    pub created: i128,
    /// The sequence number of its first message; one more than the last when it has none.
    pub first_seq: u64,
    /// The sequence number of its last message, gone or not; 0 when there never was one.
    pub last_seq: u64,
    /// When its first message was published, in unix nanoseconds.
    pub first_time: i128,
    /// When its last message was published, in unix nanoseconds.
    pub last_time: i128,
    /// Which subjects it takes; empty for a mirror.
    pub subjects: Vec<String>,
    pub(crate) retention: Retention,
    /// What it sends on core NATS of all that it stores.
    pub republish: Option<Republish>,
    /// Its subjects, if all of them are NATS's own: these are never served.
    pub(crate) unservable: Option<String>,
}

/// When a JetStream stream lets go of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Retention {
    Limits,
    Interest,
    Workqueue,
}

/// A message as JetStream stores it.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    /// In unix nanoseconds.
    pub(crate) published: i128,
}

impl StreamState {
    /// The state of a stream that many can read.
    ///
    /// # Errors
    /// [`JetStreamError::Retention`] for one that deletes what was consumed, [`JetStreamError::Unservable`] and [`JetStreamError::Numbers`]
    /// for one that can deliver nothing.
    pub(crate) fn shareable(self) -> Result<Self, JetStreamError> {
        if let Some(stored) = self.unservable {
            return Err(JetStreamError::Unservable { stored });
        }
        if self.first_seq.max(self.last_seq) > SEQUENCE_MAX {
            return Err(JetStreamError::Numbers(self.first_seq));
        }
        match self.retention {
            Retention::Limits => Ok(self),
            Retention::Interest => Err(JetStreamError::Retention { kind: "interest" }),
            Retention::Workqueue => Err(JetStreamError::Retention { kind: "work-queue" }),
        }
    }
}

impl Api {
    pub(crate) fn new(link: NatsConnection) -> Self {
        Self {
            link,
            consumers: Arc::default(),
        }
    }

    /// Whether the server is of this version at least.
    pub(crate) fn is_server_at_least(&self, major: i64, minor: i64) -> bool {
        self.link.client().is_server_compatible(major, minor, 0)
    }

    /// A number that no other consumer of this process has: a reload follows one stream twice for a while.
    pub(crate) fn number_consumer(&self) -> u64 {
        self.consumers.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The JetStream stream as it is now.
    pub(crate) async fn describe(&self, stream: &str) -> Result<StreamState, JetStreamError> {
        let info: StreamInfo = self.ask(format!("STREAM.INFO.{stream}"), &Empty {}).await?;
        info.state()
            .ok_or_else(|| JetStreamError::Refused("its description cannot be read".to_owned()))
    }

    /// The same for a stream that many can read; a problem for one that deletes what was consumed.
    pub(crate) async fn describe_shareable(
        &self,
        stream: &str,
    ) -> Result<StreamState, JetStreamError> {
        self.describe(stream).await?.shareable()
    }

    /// Whether the message at this position is the one that was seen there.
    pub(crate) async fn still_holds(
        &self,
        stream: &str,
        seen: Position,
    ) -> Result<bool, JetStreamError> {
        match self.stored(stream, seen.seq, None).await {
            Ok(Some(stored)) => {
                Ok(seen.fingerprint == Some(Position::fingerprint_of(stored.published)))
            }
            // Deleted since, or nothing that we may look at.
            Ok(None) | Err(JetStreamError::Denied(_)) => Ok(true),
            Err(trouble) => Err(trouble),
        }
    }

    /// The first message from this position on that any of the filters selects.
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

    /// The message at this position, or the first one from there on that the filter selects.
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

    /// The number of the last message that the filter selects.
    pub(crate) async fn last_stored(
        &self,
        stream: &str,
        filter: &Filter,
    ) -> Result<Option<u64>, JetStreamError> {
        let request = MessageRequest {
            seq: None,
            next_by_subj: None,
            last_by_subj: Some(filter.as_str()),
        };
        Ok(self
            .message(stream, &request)
            .await?
            .map(|stored| stored.sequence))
    }

    async fn message(
        &self,
        stream: &str,
        request: &MessageRequest<'_>,
    ) -> Result<Option<Stored>, JetStreamError> {
        let found: Result<MessageAnswer, JetStreamError> =
            self.ask(format!("STREAM.MSG.GET.{stream}"), request).await;
        match found {
            Ok(answer) => match answer.message.stored() {
                Some(stored) => Ok(Some(stored)),
                None => Err(JetStreamError::Refused(
                    "a message cannot be read".to_owned(),
                )),
            },
            Err(JetStreamError::Refused(why)) if why == NO_MESSAGE => Ok(None),
            Err(trouble) => Err(trouble),
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
        self.ask(
            subject,
            &NewConsumer {
                stream_name: stream,
                config: config.into_consumer_config(),
            },
        )
        .await
    }

    /// Deletes a consumer and waits for it, for a second at the most. What cannot be deleted ends by itself.
    pub(crate) async fn delete(&self, stream: &str, consumer: &str) {
        let request = self
            .ask::<_, serde_json::Value>(format!("CONSUMER.DELETE.{stream}.{consumer}"), &Empty {});
        if !matches!(
            tokio::time::timeout(Duration::from_secs(1), request).await,
            Ok(Ok(_))
        ) {
            tracing::debug!(
                stream,
                consumer,
                "consumer left to its inactivity threshold"
            );
        }
    }

    /// Deletes a consumer without waiting.
    pub(crate) async fn forget(&self, stream: &str, consumer: &str) {
        let client = self.link.client();
        let subject = format!("$JS.API.CONSUMER.DELETE.{stream}.{consumer}");
        if client
            .publish_with_reply(subject, client.new_inbox(), Bytes::new())
            .await
            .is_err()
        {
            tracing::debug!(
                stream,
                consumer,
                "consumer left to its inactivity threshold"
            );
        }
    }

    pub(crate) async fn ask<T: Serialize + ?Sized, A: DeserializeOwned>(
        &self,
        subject: String,
        request: &T,
    ) -> Result<A, JetStreamError> {
        let full = format!("$JS.API.{subject}");
        let body = serde_json::to_vec(request)
            .map_err(|error| JetStreamError::Refused(error.to_string()))?;
        let request = Request::new().payload(body.into()).timeout(Some(PATIENCE));
        let known = self.link.now().denials(&full);
        let client = self.link.client();
        let answered = tokio::select! {
            answered = client.send_request(full.clone(), request) => answered,
            () = self.link.denied(&full, known) => return Err(JetStreamError::Denied(full)),
        };
        let answer = answered.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => JetStreamError::NoJetStream,
            RequestErrorKind::TimedOut => JetStreamError::Timeout,
            _ => JetStreamError::Refused(error.to_string()),
        })?;
        match serde_json::from_slice(&answer.payload) {
            Ok(Response::Ok(answer)) => Ok(answer),
            Ok(Response::Err { error }) => Err(refusal(&error)),
            Err(error) => Err(JetStreamError::Refused(format!(
                "its answer cannot be read: {error}"
            ))),
        }
    }
}

/// What a request for a message that is not there is answered.
pub(crate) const NO_MESSAGE: &str = "no message found";

fn refusal(error: &jetstream::Error) -> JetStreamError {
    match error.error_code() {
        ErrorCode::STREAM_NOT_FOUND => JetStreamError::Missing,
        ErrorCode::NO_MESSAGE_FOUND => JetStreamError::Refused(NO_MESSAGE.to_owned()),
        ErrorCode::JETSTREAM_NOT_ENABLED => JetStreamError::NoJetStream,
        code => JetStreamError::Rejected {
            code: code.0,
            status: error.code(),
            text: error.to_string(),
        },
    }
}

/// The part of `STREAM.INFO` that matters here. Read on our own: a field that a newer server adds or changes elsewhere
/// must not keep us from following the stream.
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

/// The origin of a mirror.
#[derive(Deserialize)]
struct Origin {
    #[serde(default)]
    name: String,
    #[serde(default)]
    subject_transforms: Option<Vec<serde::de::IgnoredAny>>,
}

impl StreamSettings {
    /// The stream's subjects, if all of them are NATS's own. Nothing is known of a stream with sources.
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
                .then(|| format!("what {} does", origin.name));
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
        // Without a source: everything.
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

impl StreamInfo {
    fn state(self) -> Option<StreamState> {
        let time = |text: Option<String>| text.and_then(|text| nanos(&text)).unwrap_or(0);
        Some(StreamState {
            unservable: self.config.unservable(),
            created: nanos(&self.created)?,
            // A stream that never had a message says 0 and 0.
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

/// A request that asks for nothing more than its subject says: not `null`, which the server does not take.
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
struct MessageAnswer {
    message: RawMessage,
}

#[derive(Deserialize)]
struct RawMessage {
    subject: String,
    seq: u64,
    time: String,
}

impl RawMessage {
    fn stored(self) -> Option<Stored> {
        Some(Stored {
            published: nanos(&self.time)?,
            subject: self.subject,
            sequence: self.seq,
        })
    }
}

/// A time as NATS writes it, in unix nanoseconds.
fn nanos(text: &str) -> Option<i128> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .map(OffsetDateTime::unix_timestamp_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_read_whatever_else_stands_in_it() {
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
    fn a_stream_of_subjects_that_are_never_served_is_known() {
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
            Some("what KV_a does")
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
