//! One NATS KV bucket (ADR-8): values are written, read, replaced at a revision and removed.
//!
//! The bucket is a stream `KV_name` with one message per subject. It uses the JetStream API of this
//! folder rather than async-nats' `kv::Store`, because it needs per-message TTL on an update at a
//! revision, `discard: new`, a distinction between "full", "wrong revision" and "unknown", and the
//! keys of a filter in a single request (decision record 0025). Keys are texts, values are bytes;
//! [`super::presence`] and others say what they mean.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL, NATS_ROLLUP};
use async_nats::{HeaderMap, Request};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::nats::connection::NatsConnection;
use crate::nats::jetstream::api::{Api, JetStreamError, NO_MESSAGE};
use crate::subject::BucketName;

/// 3 replicas: the bucket survives the loss of a server in a cluster of three.
const REPLICAS: u8 = 3;

/// 5 s for the server to confirm a write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Error code for a key that was written by another process meanwhile.
const WRONG_REVISION: u64 = 10071;

/// Error code for a message that cannot be stored. With the description below, the bucket is full:
/// writing replaces the value of a key, but does not remove other keys.
const STORE_FAILED: u64 = 10077;
const NO_ROOM: &str = "maximum bytes exceeded";

/// Sentence about a bucket that does not exist.
pub(super) const NOT_FOUND: &str = "bucket not found";

/// Header of a message that is a marker, not a value.
pub(super) const OPERATION: &str = "KV-Operation";

/// An existing bucket.
#[derive(Clone, Debug)]
pub(in crate::nats) struct Bucket {
    connection: NatsConnection,
    api: Api,
    name: BucketName,
    /// The server supports per-message TTL.
    has_message_ttl: bool,
    /// TTL of every value. `None`: values do not expire.
    pub(super) max_age: Option<Duration>,
}

/// Settings of a bucket that is created here. An existing one is used as it is.
#[derive(Clone, Copy, Debug)]
pub(in crate::nats) struct BucketSettings {
    pub(super) description: &'static str,
    pub(super) storage: Storage,
    /// TTL of every value. `None`: values do not expire.
    pub(super) max_age: Option<Duration>,
    /// Maximum number of bytes; further keys are rejected. `None`: not limited.
    pub(super) max_bytes: Option<u64>,
}

/// Storage of a bucket.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::nats) enum Storage {
    File,
    Memory,
}

/// State of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::nats) struct BucketState {
    /// Creation time. A bucket with another one is empty.
    pub(super) created: String,
    /// Revision of the oldest value.
    pub(super) first: u64,
    /// Revision of the newest value.
    pub(super) last: u64,
    /// Number of values and markers.
    pub(super) messages: u64,
    /// Bytes in use.
    pub(super) bytes: u64,
    /// Maximum number of bytes. `None`: not limited.
    pub(super) max_bytes: Option<u64>,
}

/// A value and its revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::nats) struct Value {
    pub(super) bytes: Vec<u8>,
    pub(super) revision: u64,
    /// The key was removed at this revision.
    pub(super) is_removed: bool,
}

/// Reason why a value was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::nats) enum WriteError {
    /// The key has another revision.
    WrongRevision,
    /// The bucket rejects this value.
    Rejected(String),
    /// The bucket is full.
    Full,
    /// The bucket is missing, or we are not permitted to write it.
    Unavailable(String),
    /// No confirmation: the value may be written or not.
    Unknown(String),
}

impl Bucket {
    /// Opens the bucket, creating it if it does not exist.
    pub(super) async fn open(
        connection: &NatsConnection,
        api: &Api,
        name: &BucketName,
        settings: &BucketSettings,
    ) -> Result<(Self, BucketState), JetStreamError> {
        let info: Info = match api
            .request(format!("STREAM.INFO.KV_{}", name.as_str()), &Empty {})
            .await
        {
            Err(JetStreamError::StreamNotFound) => create(api, name, settings).await?,
            info => info?,
        };
        let max_age = Some(Duration::from_nanos(info.config.max_age)).filter(|age| !age.is_zero());
        let (connection, api, name) = (connection.clone(), api.clone(), name.clone());
        let bucket = Self {
            connection,
            api,
            name,
            has_message_ttl: info.config.allow_msg_ttl,
            max_age,
        };
        Ok((bucket, info.into()))
    }

    /// As [`Self::state`], without a borrow.
    pub(super) async fn into_state(self) -> Result<BucketState, JetStreamError> {
        self.state().await
    }

    /// Current state of the bucket.
    pub(super) async fn state(&self) -> Result<BucketState, JetStreamError> {
        let info: Info = self
            .api
            .request(format!("STREAM.INFO.KV_{}", self.name.as_str()), &Empty {})
            .await?;
        Ok(info.into())
    }

    /// Writes a value that expires after `time_to_live`. With `at`, only if that revision is
    /// current; 0: only if the key was never written. Returns the new revision.
    pub(super) async fn put(
        &self,
        key: &str,
        value: Bytes,
        time_to_live: Option<Duration>,
        at: Option<u64>,
    ) -> Result<u64, WriteError> {
        let mut headers = HeaderMap::new();
        if let Some(time_to_live) = time_to_live.filter(|_| self.has_message_ttl) {
            headers.insert(
                NATS_MESSAGE_TTL,
                format!("{}s", time_to_live.as_secs().max(1)).as_str(),
            );
        }
        self.write(key, value, headers, at).await
    }

    /// Removes the value of a key, with its history, at this revision. Only one caller succeeds.
    pub(super) async fn remove(
        &self,
        key: &str,
        at: u64,
        marker_time_to_live: Duration,
    ) -> Result<u64, WriteError> {
        let mut headers = HeaderMap::new();
        headers.insert(OPERATION, "PURGE");
        headers.insert(NATS_ROLLUP, "sub");
        if self.has_message_ttl {
            headers.insert(
                NATS_MESSAGE_TTL,
                format!("{}s", marker_time_to_live.as_secs().max(1)).as_str(),
            );
        }
        self.write(key, Bytes::new(), headers, Some(at)).await
    }

    /// Deletes the messages of a key up to this revision. Watchers are not notified.
    pub(super) async fn erase(&self, key: &str, through: u64) -> Result<(), JetStreamError> {
        let subject = format!("$KV.{}.{key}", self.name.as_str());
        let request = Purge {
            filter: &subject,
            seq: through + 1,
        };
        let _: Purged = self
            .api
            .request(format!("STREAM.PURGE.KV_{}", self.name.as_str()), &request)
            .await?;
        Ok(())
    }

    async fn write(
        &self,
        key: &str,
        value: Bytes,
        mut headers: HeaderMap,
        at: Option<u64>,
    ) -> Result<u64, WriteError> {
        let subject = format!("$KV.{}.{key}", self.name.as_str());
        if let Some(revision) = at {
            headers.insert(
                NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
                revision.to_string().as_str(),
            );
        }
        let request = Request::new()
            .payload(value)
            .headers(headers)
            .timeout(Some(WRITE_TIMEOUT));
        let known = self.connection.state().denials(&subject);
        let client = self.connection.client();
        let answer = tokio::select! {
            answer = client.send_request(subject.clone(), request) => answer,
            () = self.connection.wait_denied(&subject, known) => {
                return Err(WriteError::Unavailable(format!("NATS denies {subject} to this user: add the permission")));
            }
        };
        let message = answer.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => WriteError::Unavailable(NOT_FOUND.to_owned()),
            RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
                WriteError::Rejected(error.to_string())
            }
            RequestErrorKind::TimedOut | RequestErrorKind::Other => {
                WriteError::Unknown(error.to_string())
            }
        })?;
        let confirmed: Confirmed = serde_json::from_slice(&message.payload)
            .map_err(|error| WriteError::Unknown(error.to_string()))?;
        match confirmed {
            Confirmed {
                error: Some(error), ..
            } if error.err_code == WRONG_REVISION => Err(WriteError::WrongRevision),
            Confirmed {
                error: Some(error), ..
            } if error.err_code == STORE_FAILED && error.description == NO_ROOM => {
                Err(WriteError::Full)
            }
            Confirmed {
                error: Some(error), ..
            } => Err(WriteError::Rejected(error.description)),
            Confirmed { error: None, seq } => Ok(seq),
        }
    }

    /// Keys that a filter selects, in no order; keys with a marker too. One request, at a cost that
    /// does not depend on the size of the bucket.
    pub(super) async fn keys(&self, filter: &str) -> Result<Vec<String>, JetStreamError> {
        let prefix = format!("$KV.{}.", self.name.as_str());
        let filter = Subjects {
            subjects_filter: format!("{prefix}{filter}"),
        };
        let info: SubjectsInfo = self
            .api
            .request(format!("STREAM.INFO.KV_{}", self.name.as_str()), &filter)
            .await?;
        let subjects = info.state.subjects.unwrap_or_default();
        let key = |subject: &String| subject.strip_prefix(&prefix).map(str::to_owned);
        Ok(subjects.keys().filter_map(key).collect())
    }

    /// Value of a key. `None` if it does not exist or was removed.
    pub(super) async fn get(&self, key: &str) -> Result<Option<Value>, JetStreamError> {
        Ok(self.last(key).await?.filter(|last| !last.is_removed))
    }

    /// Last message of a key: a value or a marker.
    async fn last(&self, key: &str) -> Result<Option<Value>, JetStreamError> {
        let request = Last {
            last_by_subj: format!("$KV.{}.{key}", self.name.as_str()),
        };
        // Not with a direct get: in a JSON response, headers that another client wrote cannot break
        // the connection.
        let answer = self
            .api
            .request(
                format!("STREAM.MSG.GET.KV_{}", self.name.as_str()),
                &request,
            )
            .await;
        let found: LastAnswer = match answer {
            Ok(found) => found,
            Err(JetStreamError::Failed(why)) if why == NO_MESSAGE => return Ok(None),
            Err(error) => return Err(error),
        };
        let message = found.message;
        let headers = STANDARD.decode(message.hdrs).unwrap_or_default();
        Ok(Some(Value {
            bytes: STANDARD.decode(message.data).unwrap_or_default(),
            revision: message.seq,
            is_removed: is_marker(&String::from_utf8_lossy(&headers)),
        }))
    }
}

/// Returns whether headers as text say that the message is a marker.
fn is_marker(headers: &str) -> bool {
    headers
        .lines()
        .filter_map(|line| line.split_once(':'))
        .any(|(name, value)| name.eq_ignore_ascii_case(OPERATION) && is_removal(value.trim()))
}

/// Returns whether the value of [`OPERATION`] removes the key.
pub(super) fn is_removal(operation: &str) -> bool {
    matches!(operation, "DEL" | "PURGE")
}

/// Describes a failed request as a sentence about the bucket.
pub(in crate::nats) fn explain(error: &JetStreamError) -> String {
    match error {
        JetStreamError::StreamNotFound => NOT_FOUND.to_owned(),
        JetStreamError::Rejected { text, .. } => format!("JetStream rejects the request: {text}"),
        _ => error.to_string(),
    }
}

/// Creates the bucket, with one replica if three are not possible.
async fn create(
    api: &Api,
    name: &BucketName,
    settings: &BucketSettings,
) -> Result<Info, JetStreamError> {
    match create_with(api, name, settings, REPLICAS).await {
        // A single server, or a cluster with too few servers.
        Err(JetStreamError::Failed(_) | JetStreamError::Rejected { .. }) => {
            create_with(api, name, settings, 1).await
        }
        created => created,
    }
}

async fn create_with(
    api: &Api,
    name: &BucketName,
    settings: &BucketSettings,
    num_replicas: u8,
) -> Result<Info, JetStreamError> {
    let max_age = settings.max_age.unwrap_or_default();
    let request = NewBucket {
        name: format!("KV_{}", name.as_str()),
        description: settings.description,
        subjects: [format!("$KV.{}.>", name.as_str())],
        max_msgs_per_subject: 1,
        max_age: max_age.as_nanos() as u64,
        max_bytes: settings
            .max_bytes
            .map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        storage: settings.storage,
        num_replicas,
        discard: "new",
        allow_rollup_hdrs: true,
        deny_delete: true,
        allow_direct: true,
        allow_msg_ttl: api.is_server_at_least(2, 11),
    };
    let created: Info = api
        .request(format!("STREAM.CREATE.KV_{}", name.as_str()), &request)
        .await?;
    tracing::info!(
        bucket = name.as_str(),
        replicas = num_replicas,
        "bucket created"
    );
    Ok(created)
}

#[derive(Serialize)]
struct NewBucket {
    name: String,
    description: &'static str,
    subjects: [String; 1],
    max_msgs_per_subject: u8,
    max_age: u64,
    max_bytes: i64,
    storage: Storage,
    num_replicas: u8,
    discard: &'static str,
    allow_rollup_hdrs: bool,
    deny_delete: bool,
    allow_direct: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_msg_ttl: bool,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Deserialize)]
struct Info {
    config: Settings,
    created: String,
    #[serde(default)]
    state: Numbers,
}

impl From<Info> for BucketState {
    fn from(info: Info) -> Self {
        let Numbers {
            first_seq,
            last_seq,
            messages,
            bytes,
        } = info.state;
        let max_bytes = u64::try_from(info.config.max_bytes)
            .ok()
            .filter(|bytes| *bytes > 0);
        Self {
            created: info.created,
            first: first_seq,
            last: last_seq,
            messages,
            bytes,
            max_bytes,
        }
    }
}

#[derive(Default, Deserialize)]
struct Numbers {
    #[serde(default)]
    first_seq: u64,
    #[serde(default)]
    last_seq: u64,
    #[serde(default)]
    messages: u64,
    #[serde(default)]
    bytes: u64,
}

#[derive(Deserialize)]
struct Settings {
    /// Nanoseconds; 0: no expiry.
    #[serde(default)]
    max_age: u64,
    /// -1: not limited.
    #[serde(default)]
    max_bytes: i64,
    #[serde(default)]
    allow_msg_ttl: bool,
}

#[derive(Serialize)]
struct Subjects {
    subjects_filter: String,
}

#[derive(Deserialize)]
struct SubjectsInfo {
    state: SubjectsState,
}

#[derive(Deserialize)]
struct SubjectsState {
    #[serde(default)]
    subjects: Option<std::collections::HashMap<String, u64>>,
}

#[derive(Serialize)]
struct Last {
    last_by_subj: String,
}

#[derive(Deserialize)]
struct LastAnswer {
    message: LastMessage,
}

#[derive(Deserialize)]
struct LastMessage {
    seq: u64,
    #[serde(default)]
    data: String,
    #[serde(default)]
    hdrs: String,
}

#[derive(Serialize)]
struct Purge<'a> {
    filter: &'a str,
    /// Messages before this sequence are deleted.
    seq: u64,
}

#[derive(Deserialize)]
struct Purged {}

#[derive(Deserialize)]
struct Confirmed {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    error: Option<Refused>,
}

#[derive(Deserialize)]
struct Refused {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}
