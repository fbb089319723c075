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

pub(crate) use super::error::JetStreamError;
use super::stream_state::{StreamInfo, StreamState, nanos};
use crate::event::{Fingerprint, Position};
use crate::nats::connection::NatsConnection;
use crate::nats::decode::message::has_end;
use crate::subject::Filter;

/// 5 s for a response, as in JetStream clients.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// JetStream API on the control connection. Requests use the connection's current client; a
/// `jetstream::Context` would keep the client that it was created with, even after its replacement.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    connection: NatsConnection,
    consumers: Arc<AtomicU64>,
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
