//! Entries of presence in their bucket: keys by client, values as JSON.

use std::time::Duration;

use crate::nats::connection::NatsConnection;
use crate::nats::jetstream::api::{Api, JetStreamError};
use crate::nats::kv::bucket::{self, Bucket, BucketSettings, BucketState, Storage, WriteError};
use crate::presence::entry::{POSITION, token};
use crate::presence::{Entry, Key};
use crate::subject::BucketName;

/// 10 min. On a server without per-message TTL (before 2.11), entries of a dead pod disappear after
/// this time. Until then, their `expires` field marks them as obsolete.
const MAX_AGE: Duration = Duration::from_secs(600);

/// An existing bucket of entries.
#[derive(Clone, Debug)]
pub(super) struct PresenceBucket(Bucket);

impl PresenceBucket {
    /// Opens the bucket, creating it if it does not exist.
    pub(super) async fn open(
        connection: &NatsConnection,
        api: &Api,
        name: &BucketName,
        max_bytes: u64,
    ) -> Result<(Self, BucketState), JetStreamError> {
        let settings = BucketSettings {
            description: "sidestream presence: connected clients of all pods",
            // Its loss costs nothing: within a minute everything is written again.
            storage: Storage::Memory,
            max_age: Some(MAX_AGE),
            max_bytes: Some(max_bytes),
        };
        let (bucket, state) = Bucket::open(connection, api, name, &settings).await?;
        Ok((Self(bucket), state))
    }

    /// TTL of every value. `None`: values do not expire.
    pub(super) fn max_age(&self) -> Option<Duration> {
        self.0.max_age
    }

    /// Current state of the bucket.
    pub(super) async fn state(&self) -> Result<BucketState, JetStreamError> {
        self.0.state().await
    }

    /// Writes an entry that expires after `time_to_live`. With `at`, only if that revision is
    /// current. Returns the new revision.
    pub(super) async fn put(
        &self,
        key: &Key,
        entry: &Entry,
        time_to_live: Duration,
        at: Option<u64>,
    ) -> Result<u64, WriteError> {
        let value =
            serde_json::to_vec(entry).map_err(|error| WriteError::Rejected(error.to_string()))?;
        self.0
            .put(&key.encode(), value.into(), Some(time_to_live), at)
            .await
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

    async fn keys_under(&self, filter: &str) -> Result<Vec<Key>, JetStreamError> {
        let found = self.0.keys(filter).await?;
        // Sorted by connection, so that a list has the same order each time.
        let mut keys: Vec<Key> = found.iter().filter_map(|key| Key::decode(key)).collect();
        keys.sort_by(|one, other| {
            (&one.connection, one.is_position).cmp(&(&other.connection, other.is_position))
        });
        Ok(keys)
    }

    /// Entry of a key and its revision. `None` if it does not exist or is not an entry.
    pub(super) async fn get(&self, key: &Key) -> Result<Option<(Entry, u64)>, JetStreamError> {
        let found = self.0.get(&key.encode()).await?;
        Ok(found.and_then(|value| {
            let entry = serde_json::from_slice(&value.bytes).ok()?;
            Some((entry, value.revision))
        }))
    }
}

/// Describes a failed request as a sentence about the bucket.
pub(super) fn explain(error: &JetStreamError) -> String {
    match error {
        JetStreamError::Failed(why) if why.contains("insufficient") => {
            format!("{error}: lower presence.max_bytes, or give JetStream more memory")
        }
        _ => bucket::explain(error),
    }
}
