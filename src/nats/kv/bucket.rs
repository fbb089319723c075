//! One NATS KV bucket (ADR-8) as the registry needs it: made if it is missing, written, read, replaced at a revision.

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
use crate::presence::{Bucket as Name, Entry, Key};

/// 10 min: on a server without expiry of single messages (before 2.11) what a dead pod has left goes after that; until
/// then its own `expires` tells readers that it says nothing.
const MAX_AGE: Duration = Duration::from_secs(600);

/// 3: the registry survives the loss of a server, where there are three.
const REPLICAS: u8 = 3;

/// 5 s: how long the server may take to confirm a write.
const CONFIRMED: Duration = Duration::from_secs(5);

/// What the server says when another has written the key meanwhile.
const WRONG_REVISION: u64 = 10071;

/// What the server says when a message cannot be stored. With the description below, for want of room; a bucket replaces
/// the value of a key, and makes no room by removing others.
const STORE_FAILED: u64 = 10077;
const NO_ROOM: &str = "maximum bytes exceeded";

/// A bucket that is there.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    link: NatsConnection,
    api: Api,
    name: Name,
    /// Whether the server takes an expiry for a single message.
    expires_single: bool,
    /// After how long everything goes; none: never.
    pub(super) max_age: Option<Duration>,
}

/// State of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// When it was made: another one knows nothing.
    pub(super) created: String,
    /// Revision of the oldest value that is there.
    pub(super) first: u64,
    /// Revision of the newest value that was written.
    pub(super) last: u64,
    /// Bytes in use.
    pub(super) bytes: u64,
    /// Bytes that it takes; none: as many as the server has.
    pub(super) max_bytes: Option<u64>,
}

/// Why a value was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unwritten {
    /// Another revision stands there.
    Other,
    /// The bucket does not take this one.
    Refused(String),
    /// It has no room for another key.
    Full,
    /// It takes none: it is gone, or not ours to write.
    Closed(String),
    /// Nobody knows.
    Unknown(String),
}

impl Bucket {
    /// Looks at the bucket, and makes it if it is missing.
    pub(super) async fn open(
        link: &NatsConnection,
        api: &Api,
        name: &Name,
        max_bytes: u64,
    ) -> Result<(Self, Look), JetStreamError> {
        let info: Info = match api
            .ask(format!("STREAM.INFO.KV_{}", name.as_str()), &Empty {})
            .await
        {
            Err(JetStreamError::Missing) => create(api, name, max_bytes).await?,
            looked => looked?,
        };
        let max_age = Some(Duration::from_nanos(info.config.max_age)).filter(|age| !age.is_zero());
        let (link, api, name) = (link.clone(), api.clone(), name.clone());
        let bucket = Self {
            link,
            api,
            name,
            expires_single: info.config.allow_msg_ttl,
            max_age,
        };
        Ok((bucket, info.into()))
    }

    /// The state of the bucket now.
    pub(super) async fn look(&self) -> Result<Look, JetStreamError> {
        let info: Info = self
            .api
            .ask(format!("STREAM.INFO.KV_{}", self.name.as_str()), &Empty {})
            .await?;
        Ok(info.into())
    }

    /// Writes a value that goes by itself after `lasts`; at a revision only if that one stands there. The new revision.
    pub(super) async fn put(
        &self,
        key: &Key,
        entry: &Entry,
        lasts: Duration,
        at: Option<u64>,
    ) -> Result<u64, Unwritten> {
        let subject = format!("$KV.{}.{}", self.name.as_str(), key.encode());
        let payload =
            serde_json::to_vec(entry).map_err(|error| Unwritten::Refused(error.to_string()))?;
        let mut headers = HeaderMap::new();
        if self.expires_single {
            headers.insert(
                NATS_MESSAGE_TTL,
                format!("{}s", lasts.as_secs().max(1)).as_str(),
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
            .timeout(Some(CONFIRMED));
        let known = self.link.now().denials(&subject);
        let client = self.link.client();
        let answer = tokio::select! {
            answer = client.send_request(subject.clone(), request) => answer,
            () = self.link.denied(&subject, known) => {
                return Err(Unwritten::Closed(format!("NATS refuses {subject} to this user: permission missing")));
            }
        };
        let message = answer.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => {
                Unwritten::Closed("there is no bucket any more".to_owned())
            }
            RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
                Unwritten::Refused(error.to_string())
            }
            RequestErrorKind::TimedOut | RequestErrorKind::Other => {
                Unwritten::Unknown(error.to_string())
            }
        })?;
        let confirmed: Confirmed = serde_json::from_slice(&message.payload)
            .map_err(|error| Unwritten::Unknown(error.to_string()))?;
        match confirmed {
            Confirmed {
                error: Some(error), ..
            } if error.err_code == WRONG_REVISION => Err(Unwritten::Other),
            Confirmed {
                error: Some(error), ..
            } if error.err_code == STORE_FAILED && error.description == NO_ROOM => {
                Err(Unwritten::Full)
            }
            Confirmed {
                error: Some(error), ..
            } => Err(Unwritten::Refused(error.description)),
            Confirmed { error: None, seq } => Ok(seq),
        }
    }

    /// The keys of a client: of each event stream, its position if one is recorded, or else its entry.
    pub(super) async fn keys(&self, client: &str) -> Result<Vec<Key>, JetStreamError> {
        let mut keys = self.keys_under(&format!("{}.>", token(client))).await?;
        // The position comes after the entry of its event stream, and replaces it.
        keys.reverse();
        keys.dedup_by(|entry, position| entry.connection == position.connection);
        keys.reverse();
        Ok(keys)
    }

    /// The keys of the positions that are recorded of a client.
    pub(super) async fn positions(&self, client: &str) -> Result<Vec<Key>, JetStreamError> {
        self.keys_under(&format!("{}.*.{POSITION}", token(client)))
            .await
    }

    /// The keys that a filter selects. One request, whose cost does not grow with the bucket.
    async fn keys_under(&self, filter: &str) -> Result<Vec<Key>, JetStreamError> {
        let prefix = format!("$KV.{}.", self.name.as_str());
        let filter = Subjects {
            subjects_filter: format!("{prefix}{filter}"),
        };
        let info: SubjectsInfo = self
            .api
            .ask(format!("STREAM.INFO.KV_{}", self.name.as_str()), &filter)
            .await?;
        let subjects = info.state.subjects.unwrap_or_default();
        let key = |subject: &String| Key::decode(subject.strip_prefix(&prefix)?);
        // By connection: a list is the same each time.
        let mut keys: Vec<Key> = subjects.keys().filter_map(key).collect();
        keys.sort_by(|one, other| {
            (&one.connection, one.is_position).cmp(&(&other.connection, other.is_position))
        });
        Ok(keys)
    }

    /// What stands under a key, and its revision; nothing if it is not there, or not ours.
    pub(super) async fn get(&self, key: &Key) -> Result<Option<(Entry, u64)>, JetStreamError> {
        let subject = format!("$KV.{}.{}", self.name.as_str(), key.encode());
        let request = Last {
            last_by_subj: subject,
        };
        // Not by a direct get: as JSON no header that somebody has put there can cost the connection.
        let answer = self
            .api
            .ask(
                format!("STREAM.MSG.GET.KV_{}", self.name.as_str()),
                &request,
            )
            .await;
        let found: LastAnswer = match answer {
            Ok(found) => found,
            Err(JetStreamError::Refused(why)) if why == NO_MESSAGE => return Ok(None),
            Err(trouble) => return Err(trouble),
        };
        let payload = STANDARD.decode(found.message.data).unwrap_or_default();
        Ok(serde_json::from_slice(&payload)
            .ok()
            .map(|entry| (entry, found.message.seq)))
    }
}

/// Why JetStream did not do what it was asked, as a sentence about the bucket.
pub(super) fn explain(trouble: &JetStreamError) -> String {
    match trouble {
        JetStreamError::Missing => "there is no such bucket any more".to_owned(),
        JetStreamError::Denied(subject) => {
            format!("NATS refuses {subject} to this user: permission missing")
        }
        JetStreamError::NoJetStream => {
            "nobody answers for JetStream: is it enabled for this account?".to_owned()
        }
        JetStreamError::Timeout => "JetStream does not answer".to_owned(),
        JetStreamError::Refused(why) if why.contains("insufficient") => {
            format!(
                "JetStream refuses: {why}: lower registry.max_bytes, or give JetStream more memory"
            )
        }
        JetStreamError::Refused(why) => format!("JetStream refuses: {why}"),
        JetStreamError::Rejected { text, .. } => format!("JetStream rejects the request: {text}"),
        // What only a stream of events can have.
        _ => trouble.explain("-"),
    }
}

/// Makes the bucket with one replica where there cannot be three.
async fn create(api: &Api, name: &Name, max_bytes: u64) -> Result<Info, JetStreamError> {
    let make = async |num_replicas| {
        let wanted = NewBucket {
            name: format!("KV_{}", name.as_str()),
            description: "who is connected where, by sidestream",
            subjects: [format!("$KV.{}.>", name.as_str())],
            max_msgs_per_subject: 1,
            max_age: MAX_AGE.as_nanos() as u64,
            max_bytes,
            // Losing it costs nothing: within a minute all of it is written again.
            storage: "memory",
            num_replicas,
            discard: "new",
            allow_rollup_hdrs: true,
            deny_delete: true,
            allow_direct: true,
            allow_msg_ttl: api.is_server_at_least(2, 11),
        };
        let made: Result<Info, JetStreamError> = api
            .ask(format!("STREAM.CREATE.KV_{}", name.as_str()), &wanted)
            .await;
        if made.is_ok() {
            tracing::info!(
                bucket = name.as_str(),
                replicas = num_replicas,
                "bucket of the registry created"
            );
        }
        made
    };
    match make(REPLICAS).await {
        // A single server, or too few of them.
        Err(JetStreamError::Refused(_) | JetStreamError::Rejected { .. }) => make(1).await,
        made => made,
    }
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

impl From<Info> for Look {
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
    /// Nanoseconds; 0: never.
    #[serde(default)]
    max_age: u64,
    /// -1: no bound.
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
