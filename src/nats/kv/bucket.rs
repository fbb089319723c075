//! Requests to one NATS KV bucket (ADR-8): create, write, read, replace at a revision.
//!
//! The bucket is a stream `KV_name` with one message per subject. It uses the JetStream API of this
//! folder rather than async-nats' `kv::Store`, because it needs per-message TTL on an update at a
//! revision, a memory stream with `discard: new`, a distinction between "full", "wrong revision"
//! and "unknown", and the list of one client's keys in a single request (decision record 0025).

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use async_nats::{HeaderMap, Request};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::nats::connection::NatsConnection;
use crate::nats::jetstream::api::{Api, JetStreamError, NO_MESSAGE};
use crate::presence::entry::{POSITION, token};
use crate::presence::{BucketName, Entry, Key};

/// 10 min. On a server without per-message TTL (before 2.11), entries of a dead pod disappear after
/// this time. Until then, their `expires` field marks them as obsolete.
const MAX_AGE: Duration = Duration::from_secs(600);

/// 3 replicas: presence survives the loss of a server in a cluster of three.
const REPLICAS: u8 = 3;

/// 5 s for the server to confirm a write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Error code for a key that was written by another pod meanwhile.
const WRONG_REVISION: u64 = 10071;

/// Error code for a message that cannot be stored. With the description below, the bucket is full:
/// writing replaces the value of a key, but does not remove other keys.
const STORE_FAILED: u64 = 10077;
const NO_ROOM: &str = "maximum bytes exceeded";

/// An existing bucket.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    connection: NatsConnection,
    api: Api,
    name: BucketName,
    /// The server supports per-message TTL.
    has_message_ttl: bool,
    /// TTL of every value. `None`: values do not expire.
    pub(super) max_age: Option<Duration>,
}

/// State of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BucketState {
    /// Creation time. A bucket with another one is empty.
    pub(super) created: String,
    /// Revision of the oldest value.
    pub(super) first: u64,
    /// Revision of the newest value.
    pub(super) last: u64,
    /// Bytes in use.
    pub(super) bytes: u64,
    /// Maximum number of bytes. `None`: not limited.
    pub(super) max_bytes: Option<u64>,
}

/// Reason why a value was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WriteError {
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
        max_bytes: u64,
    ) -> Result<(Self, BucketState), JetStreamError> {
        let info: Info = match api
            .request(format!("STREAM.INFO.KV_{}", name.as_str()), &Empty {})
            .await
        {
            Err(JetStreamError::StreamNotFound) => create(api, name, max_bytes).await?,
            checked_at => checked_at?,
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

    /// Current state of the bucket.
    pub(super) async fn state(&self) -> Result<BucketState, JetStreamError> {
        let info: Info = self
            .api
            .request(format!("STREAM.INFO.KV_{}", self.name.as_str()), &Empty {})
            .await?;
        Ok(info.into())
    }

    /// Writes a value that expires after `time_to_live`. With `at`, only if that revision is
    /// current. Returns the new revision.
    pub(super) async fn put(
        &self,
        key: &Key,
        entry: &Entry,
        time_to_live: Duration,
        at: Option<u64>,
    ) -> Result<u64, WriteError> {
        let subject = format!("$KV.{}.{}", self.name.as_str(), key.encode());
        let payload =
            serde_json::to_vec(entry).map_err(|error| WriteError::Rejected(error.to_string()))?;
        let mut headers = HeaderMap::new();
        if self.has_message_ttl {
            headers.insert(
                NATS_MESSAGE_TTL,
                format!("{}s", time_to_live.as_secs().max(1)).as_str(),
            );
        }
        if let Some(revision) = at {
            headers.insert(
                NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
                revision.to_string().as_str(),
            );
        }
        let request = Request::new()
            .payload(payload.into())
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
            RequestErrorKind::NoResponders => {
                WriteError::Unavailable("bucket not found".to_owned())
            }
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

    /// Keys of a client: for each event stream its recorded position, or else its entry.
    pub(super) async fn keys(&self, client: &str) -> Result<Vec<Key>, JetStreamError> {
        let mut keys = self.keys_under(&format!("{}.>", token(client))).await?;
        // The position sorts after the entry of its event stream, and replaces it.
        keys.reverse();
        keys.dedup_by(|entry, position| entry.connection == position.connection);
        keys.reverse();
        Ok(keys)
    }

    /// Keys of the positions recorded for a client.
    pub(super) async fn positions(&self, client: &str) -> Result<Vec<Key>, JetStreamError> {
        self.keys_under(&format!("{}.*.{POSITION}", token(client)))
            .await
    }

    /// Keys that a filter selects. One request, at a cost that does not depend on the size of the
    /// bucket.
    async fn keys_under(&self, filter: &str) -> Result<Vec<Key>, JetStreamError> {
        let prefix = format!("$KV.{}.", self.name.as_str());
        let filter = Subjects {
            subjects_filter: format!("{prefix}{filter}"),
        };
        let info: SubjectsInfo = self
            .api
            .request(format!("STREAM.INFO.KV_{}", self.name.as_str()), &filter)
            .await?;
        let subjects = info.state.subjects.unwrap_or_default();
        let key = |subject: &String| Key::decode(subject.strip_prefix(&prefix)?);
        // Sorted by connection, so that a list has the same order each time.
        let mut keys: Vec<Key> = subjects.keys().filter_map(key).collect();
        keys.sort_by(|one, other| {
            (&one.connection, one.is_position).cmp(&(&other.connection, other.is_position))
        });
        Ok(keys)
    }

    /// Value of a key and its revision. `None` if it does not exist or is not an entry.
    pub(super) async fn get(&self, key: &Key) -> Result<Option<(Entry, u64)>, JetStreamError> {
        let subject = format!("$KV.{}.{}", self.name.as_str(), key.encode());
        let request = Last {
            last_by_subj: subject,
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
        let payload = STANDARD.decode(found.message.data).unwrap_or_default();
        Ok(serde_json::from_slice(&payload)
            .ok()
            .map(|entry| (entry, found.message.seq)))
    }
}

/// Describes a failed request as a sentence about the bucket.
pub(super) fn explain(error: &JetStreamError) -> String {
    match error {
        JetStreamError::StreamNotFound => "bucket not found".to_owned(),
        JetStreamError::Failed(why) if why.contains("insufficient") => {
            format!("{error}: lower presence.max_bytes, or give JetStream more memory")
        }
        JetStreamError::Rejected { text, .. } => format!("JetStream rejects the request: {text}"),
        _ => error.to_string(),
    }
}

/// Creates the bucket, with one replica if three are not possible.
async fn create(api: &Api, name: &BucketName, max_bytes: u64) -> Result<Info, JetStreamError> {
    match create_with(api, name, max_bytes, REPLICAS).await {
        // A single server, or a cluster with too few servers.
        Err(JetStreamError::Failed(_) | JetStreamError::Rejected { .. }) => {
            create_with(api, name, max_bytes, 1).await
        }
        created => created,
    }
}

async fn create_with(
    api: &Api,
    name: &BucketName,
    max_bytes: u64,
    num_replicas: u8,
) -> Result<Info, JetStreamError> {
    let request = NewBucket {
        name: format!("KV_{}", name.as_str()),
        description: "sidestream presence: connected clients of all pods",
        subjects: [format!("$KV.{}.>", name.as_str())],
        max_msgs_per_subject: 1,
        max_age: MAX_AGE.as_nanos() as u64,
        max_bytes,
        // Its loss costs nothing: within a minute everything is written again.
        storage: "memory",
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
        "presence bucket created"
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
    max_bytes: u64,
    storage: &'static str,
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
            bytes,
        } = info.state;
        let max_bytes = u64::try_from(info.config.max_bytes)
            .ok()
            .filter(|bytes| *bytes > 0);
        Self {
            created: info.created,
            first: first_seq,
            last: last_seq,
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
}

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
