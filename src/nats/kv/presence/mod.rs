//! Presence store of all pods in one NATS KV bucket: reads, limited in time and number.
//!
//! Implements [`PresenceStore`]. [`writer`] is the one task that writes; [`entries`] has the
//! requests to the bucket. Every read has a deadline and a semaphore, because a client or an
//! operator waits for it:
//!
//! ```text
//! find              what /connections lists of a client        3 s,    4 at a time
//! claim_position    a drained client reconnects without an id  500 ms, 64 at a time
//! discard_position  it reconnects with its own id              500 ms, 16 at a time
//! release_position  the claimed position could not be opened   500 ms
//! ```
//!
//! A position is claimed by replacing its entry at the revision that was read, so only one pod gets
//! it. After a failed or slow read, claims are skipped for [`PAUSE_AFTER_FAILURE`]: clients then
//! begin live at once.

mod entries;
mod shared;
mod writer;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::event::EventId;
use crate::lifecycle::shutdown::Token;
use crate::nats::client::Nats;
use crate::nats::jetstream::api::JetStreamError;
use crate::nats::kv::bucket::WriteError;
use crate::presence::entry::ENDED_FOR;
use crate::presence::queue::unix_millis;
use crate::presence::{
    BoxFuture, Claim, ClaimRequest, Entry, Found, Handover, Key, PresenceQueue, PresenceStore,
    Unavailable,
};
use crate::subject::BucketName;
use entries::{PresenceBucket, explain};
use shared::{FULL_HINT, Shared};
use writer::Writer;

/// 500 ms: maximum delay of a client that may have been handed over, before it begins live. A claim
/// usually takes 1 to 2 ms.
const CLAIM_TIMEOUT: Duration = Duration::from_millis(500);

/// 3 s: maximum delay of a list for an operator.
const FIND_TIMEOUT: Duration = Duration::from_secs(3);

/// 10 s without reads after one has failed or timed out, so that clients do not wait for another.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(10);

/// 64 claims at a time, against the load of a thousand clients that reconnect at once.
const CLAIMS_MAX: usize = 64;

/// 16 cleanups for clients that have their position, besides the claims. Without a queue: no client
/// waits for them.
const CLEANUPS_MAX: usize = 16;

/// 4 lists at a time.
const LISTS_MAX: usize = 4;

/// 64 recorded positions: a `client` with more is a group of clients and claims none.
const POSITIONS_OF_CLIENT_MAX: usize = 64;

/// Number of concurrent reads for one result.
const READ_AHEAD: usize = 16;

/// Presence store in a KV bucket.
pub(in crate::nats) struct KvPresenceStore {
    shared: Arc<Shared>,
    claim_permits: Semaphore,
    cleanup_permits: Semaphore,
    list_permits: Semaphore,
}

impl KvPresenceStore {
    /// Starts the writer. The token is dropped after the last write.
    pub(in crate::nats) fn start(
        nats: &Nats,
        name: &BucketName,
        max_bytes: u64,
        shutdown: Token,
    ) -> Arc<Self> {
        let inner = &*nats.0;
        let this = Arc::new(Self {
            shared: Arc::new(Shared::new(
                PresenceQueue::new(&inner.identity.pod, &inner.identity.boot),
                Arc::clone(&inner.metrics),
            )),
            claim_permits: Semaphore::new(CLAIMS_MAX),
            cleanup_permits: Semaphore::new(CLEANUPS_MAX),
            list_permits: Semaphore::new(LISTS_MAX),
        });
        let check = inner.health.check("presence", "not opened yet");
        let writer = Writer::new(
            Arc::clone(&this.shared),
            (inner.connections.control.clone(), inner.api.clone()),
            (name, max_bytes),
            check,
        );
        tokio::spawn(writer.run(shutdown));
        this
    }

    /// Returns the bucket, unless reads are paused.
    fn bucket(&self) -> Option<PresenceBucket> {
        let state = self.shared.lock();
        let paused = state.pause.is_some_and(|until| until > Instant::now());
        if paused { None } else { state.bucket.clone() }
    }

    /// Counts a failed read and pauses further reads.
    fn failed(&self, why: &str) {
        self.shared.metrics.presence_errors_total.inc();
        tracing::debug!(error = why, "presence bucket read failed");
        self.shared.lock().pause = Some(Instant::now() + PAUSE_AFTER_FAILURE);
    }

    /// Claims a position that is recorded for this client. Sets `is_recorded` if there is one: if
    /// the claim fails after that, the client receives a gap.
    async fn claim(
        bucket: &PresenceBucket,
        request: &ClaimRequest,
        is_recorded: &mut bool,
    ) -> Result<Claim, JetStreamError> {
        let keys = bucket.positions(&request.client).await?;
        if keys.len() > POSITIONS_OF_CLIENT_MAX {
            return Ok(Claim::Lost);
        }
        let now = unix_millis(SystemTime::now());
        let mut recorded = values(bucket, keys).await?;
        recorded.retain(|stored| {
            stored.entry.is_available_to(request, now) || stored.entry.is_claimed_from(request, now)
        });
        *is_recorded = !recorded.is_empty();
        // In the order of disconnection: two windows of one user get their positions back in that
        // order.
        recorded.sort_by_key(|stored| stored.revision);
        for stored in recorded {
            let Stored {
                key,
                entry,
                revision,
            } = stored;
            if !entry.is_available_to(request, now) {
                continue;
            }
            // Only one pod gets it: the first that writes at this revision.
            if let Some(revision) = replace(bucket, &key, &entry.claim(now), revision).await? {
                return Ok(Claim::Granted(Box::new(Handover {
                    key,
                    entry,
                    revision,
                })));
            }
        }
        Ok(if *is_recorded {
            Claim::Lost
        } else {
            Claim::Nothing
        })
    }

    /// Removes one recorded position that is at or before `has`: the equal one if present,
    /// otherwise the oldest.
    async fn remove_passed(
        bucket: &PresenceBucket,
        request: &ClaimRequest,
        has: &EventId,
    ) -> Result<(), JetStreamError> {
        let mut keys = bucket.positions(&request.client).await?;
        keys.truncate(POSITIONS_OF_CLIENT_MAX);
        let now = unix_millis(SystemTime::now());
        let mut left = values(bucket, keys).await?;
        left.retain(|stored| {
            stored.entry.is_available_to(request, now) && stored.entry.is_passed_by(has)
        });
        left.sort_by_key(|stored| (!has.is_same(&stored.entry.last_event_id), stored.revision));
        for stored in left {
            if replace(
                bucket,
                &stored.key,
                &stored.entry.remove(now),
                stored.revision,
            )
            .await?
            .is_some()
            {
                break;
            }
        }
        Ok(())
    }
}

/// Replaces the value at this revision. Returns the new revision, or `None` if the revision was no
/// longer current.
async fn replace(
    bucket: &PresenceBucket,
    key: &Key,
    entry: &Entry,
    revision: u64,
) -> Result<Option<u64>, JetStreamError> {
    match bucket.put(key, entry, ENDED_FOR, Some(revision)).await {
        Ok(revision) => Ok(Some(revision)),
        Err(WriteError::WrongRevision) => Ok(None),
        Err(WriteError::Full) => Err(JetStreamError::Failed(FULL_HINT.to_owned())),
        Err(
            WriteError::Rejected(why) | WriteError::Unavailable(why) | WriteError::Unknown(why),
        ) => Err(JetStreamError::Failed(why)),
    }
}

/// A value in the bucket with its key and revision.
struct Stored {
    key: Key,
    entry: Entry,
    revision: u64,
}

/// Reads the values of these keys with their revisions, and leaves out missing ones.
async fn values(bucket: &PresenceBucket, keys: Vec<Key>) -> Result<Vec<Stored>, JetStreamError> {
    let mut found = Vec::with_capacity(keys.len());
    let mut answers = stream::iter(keys)
        .map(|key| async move { bucket.get(&key).await.map(|value| (key, value)) })
        .buffered(READ_AHEAD);
    while let Some(answer) = answers.next().await {
        if let (key, Some((entry, revision))) = answer? {
            found.push(Stored {
                key,
                entry,
                revision,
            });
        }
    }
    Ok(found)
}

impl PresenceStore for KvPresenceStore {
    fn queue(&self) -> &PresenceQueue {
        &self.shared.queue
    }

    fn find<'a>(
        &'a self,
        client: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Found, Unavailable>> {
        Box::pin(async move {
            let Some(bucket) = self.shared.lock().bucket.clone() else {
                return Err(Unavailable(self.shared.lock().error.clone()));
            };
            let Ok(_permit) = self.list_permits.try_acquire() else {
                return Err(Unavailable(
                    "too many list requests at the same time".to_owned(),
                ));
            };
            let listed = async {
                let mut keys = bucket.keys(client).await?;
                let is_complete = keys.len() <= limit;
                keys.truncate(limit);
                Ok::<_, JetStreamError>((values(&bucket, keys).await?, is_complete))
            };
            match timeout_at(Instant::now() + FIND_TIMEOUT, listed).await {
                Ok(Ok((values, is_complete))) => {
                    let now = unix_millis(SystemTime::now());
                    let current = values
                        .into_iter()
                        .filter(|stored| stored.entry.is_current(now));
                    Ok(Found {
                        entries: current.map(|stored| (stored.key, stored.entry)).collect(),
                        is_complete,
                    })
                }
                Ok(Err(error)) => {
                    self.shared.metrics.presence_errors_total.inc();
                    Err(Unavailable(explain(&error)))
                }
                Err(_) => {
                    self.shared.metrics.presence_errors_total.inc();
                    Err(Unavailable(format!(
                        "no answer within {} s",
                        FIND_TIMEOUT.as_secs()
                    )))
                }
            }
        })
    }

    fn claim_position(&self, request: ClaimRequest) -> BoxFuture<'_, Claim> {
        Box::pin(async move {
            let Some(bucket) = self.bucket() else {
                return Claim::Nothing;
            };
            let deadline = Instant::now() + CLAIM_TIMEOUT;
            // Too many claims at a time are not a failure of the store: further clients begin live.
            let Ok(Ok(_permit)) = timeout_at(deadline, self.claim_permits.acquire()).await else {
                return Claim::Nothing;
            };
            let mut is_recorded = false;
            match timeout_at(deadline, Self::claim(&bucket, &request, &mut is_recorded)).await {
                Ok(Ok(claim)) => return claim,
                Ok(Err(error)) => self.failed(&explain(&error)),
                Err(_) => self.failed("no answer in time"),
            }
            if is_recorded {
                Claim::Lost
            } else {
                Claim::Nothing
            }
        })
    }

    fn discard_position(&self, request: ClaimRequest, has: EventId) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let (Some(bucket), Ok(_permit)) = (self.bucket(), self.cleanup_permits.try_acquire())
            else {
                return;
            };
            let deadline = Instant::now() + CLAIM_TIMEOUT;
            match timeout_at(deadline, Self::remove_passed(&bucket, &request, &has)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.failed(&explain(&error)),
                Err(_) => self.failed("no answer in time"),
            }
        })
    }

    fn release_position(&self, handover: Handover) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some(bucket) = self.bucket() else { return };
            let Handover {
                key,
                entry,
                revision,
            } = handover;
            let left = entry.expires.saturating_sub(unix_millis(SystemTime::now()));
            let put = bucket.put(&key, &entry, Duration::from_millis(left), Some(revision));
            if !matches!(
                timeout_at(Instant::now() + CLAIM_TIMEOUT, put).await,
                Ok(Ok(_))
            ) {
                self.failed("releasing the claimed position failed");
            }
        })
    }
}
