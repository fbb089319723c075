//! The registry over all pods in a NATS KV bucket: what is read of it, bounded in time and number.

mod bucket;
mod writer;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::Nats;
use crate::lifecycle::shutdown::Token;
use crate::nats::jetstream::api::JetStreamError;
use crate::presence::entry::ENDED_FOR;
use crate::presence::queue::millis;
use crate::presence::{
    Bucket as Name, Claim, Entry, Found, Handover, Key, Later, PresenceQueue, PresenceStore,
    Unavailable, Wanted,
};
use crate::sse::EventId;
use crate::telemetry::Metrics;
use bucket::{Bucket, Unwritten};
use writer::Writer;

/// 500 ms: what a client that may have been handed over waits at most, before it begins live. It takes one or two.
const TAKE_OVER_MAX: Duration = Duration::from_millis(500);

/// 3 s: what an operator waits at most.
const FIND_MAX: Duration = Duration::from_secs(3);

/// 10 s: after a reading that failed, or was too slow, nobody is kept waiting for another.
const PAUSE: Duration = Duration::from_secs(10);

/// 64 clients are looked for at one time: what a thousand coming back at once do to the servers.
const LOOKED_FOR_MAX: usize = 64;

/// 16 that have their position are looked for beside them, without a queue: nobody waits for that.
const TIDIED_MAX: usize = 16;

/// 4 lists at one time.
const LISTS_MAX: usize = 4;

/// 64 recorded positions: a `client` with more than that is no client but a group of them, and takes nothing over.
const POSITIONS_OF_CLIENT_MAX: usize = 64;

/// Reason for the operator that something was not written for want of room.
const FULL: &str = "the bucket is full, and new entries are left out: raise `max_bytes` of the bucket, or bound what a client \
    may open (limits.per_client)";

/// Values that are read at the same time for one answer.
const READ_AHEAD: usize = 16;

/// The registry in a bucket.
pub(super) struct KvPresenceStore {
    changes: PresenceQueue,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    looking: Semaphore,
    tidying: Semaphore,
    listing: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    /// The bucket, while it can be written.
    bucket: Option<Bucket>,
    /// Why there is none.
    trouble: String,
    /// Until when nobody looks.
    pause: Option<Instant>,
}

impl KvPresenceStore {
    /// Begins to write; the watch is released when the last of it is written.
    pub(super) fn start(nats: &Nats, name: &Name, max_bytes: u64, drain: Token) -> Arc<Self> {
        let inner = &*nats.0;
        let this = Arc::new(Self {
            changes: PresenceQueue::new(&inner.identity.pod, &inner.identity.boot),
            metrics: Arc::clone(&inner.metrics),
            state: Mutex::new(State {
                trouble: "not opened yet".to_owned(),
                ..State::default()
            }),
            looking: Semaphore::new(LOOKED_FOR_MAX),
            tidying: Semaphore::new(TIDIED_MAX),
            listing: Semaphore::new(LISTS_MAX),
        });
        let check = inner.health.check("registry", "not opened yet");
        let writer = Writer::new(
            &this,
            (inner.links.control.clone(), inner.api.clone()),
            (name, max_bytes),
            check,
        );
        tokio::spawn(writer.run(drain));
        this
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bucket, if it is worth asking.
    fn bucket(&self) -> Option<Bucket> {
        let state = self.lock();
        let paused = state.pause.is_some_and(|until| until > Instant::now());
        if paused { None } else { state.bucket.clone() }
    }

    /// A reading that failed: those who come next are not kept waiting for the same.
    fn failed(&self, why: &str) {
        self.metrics.registry_errors_total.inc();
        tracing::debug!(why, "the registry does not answer");
        self.lock().pause = Some(Instant::now() + PAUSE);
    }

    /// Claims a position that is recorded for this client. `is_recorded` becomes true when there is one: if the claim fails
    /// after that, the client receives a gap.
    async fn claim(
        bucket: &Bucket,
        wanted: &Wanted,
        is_recorded: &mut bool,
    ) -> Result<Claim, JetStreamError> {
        let keys = bucket.positions(&wanted.client).await?;
        if keys.len() > POSITIONS_OF_CLIENT_MAX {
            return Ok(Claim::Lost);
        }
        let now = millis(SystemTime::now());
        let mut recorded = values(bucket, keys).await?;
        recorded.retain(|(_, entry, _)| {
            entry.is_left_for(wanted, now) || entry.is_claimed_from(wanted, now)
        });
        *is_recorded = !recorded.is_empty();
        // First who left first: two windows of one user come back in the order in which they were sent away.
        recorded.sort_by_key(|(_, _, revision)| *revision);
        for (key, entry, revision) in recorded {
            if !entry.is_left_for(wanted, now) {
                continue;
            }
            // Only one gets it: the one that writes at this revision first.
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

    /// Removes one position that is at or before `has`: the same one if it is there, or else the oldest.
    async fn remove_passed(
        bucket: &Bucket,
        wanted: &Wanted,
        has: &EventId,
    ) -> Result<(), JetStreamError> {
        let mut keys = bucket.positions(&wanted.client).await?;
        keys.truncate(POSITIONS_OF_CLIENT_MAX);
        let now = millis(SystemTime::now());
        let mut left = values(bucket, keys).await?;
        left.retain(|(_, entry, _)| entry.is_left_for(wanted, now) && entry.is_passed_by(has));
        left.sort_by_key(|(_, entry, revision)| (!has.is_same(&entry.last_event_id), *revision));
        for (key, entry, revision) in left {
            if replace(bucket, &key, &entry.remove(now), revision)
                .await?
                .is_some()
            {
                break;
            }
        }
        Ok(())
    }
}

/// Writes a value in the place of this revision; its own revision, or none if another one was there already.
async fn replace(
    bucket: &Bucket,
    key: &Key,
    entry: &Entry,
    revision: u64,
) -> Result<Option<u64>, JetStreamError> {
    match bucket.put(key, entry, ENDED_FOR, Some(revision)).await {
        Ok(revision) => Ok(Some(revision)),
        Err(Unwritten::Other) => Ok(None),
        Err(Unwritten::Full) => Err(JetStreamError::Refused(FULL.to_owned())),
        Err(Unwritten::Refused(why) | Unwritten::Closed(why) | Unwritten::Unknown(why)) => {
            Err(JetStreamError::Refused(why))
        }
    }
}

/// The values of these keys, with their revisions; those that are gone are left out.
async fn values(bucket: &Bucket, keys: Vec<Key>) -> Result<Vec<(Key, Entry, u64)>, JetStreamError> {
    let mut found = Vec::with_capacity(keys.len());
    let mut answers = stream::iter(keys)
        .map(|key| async move { bucket.get(&key).await.map(|value| (key, value)) })
        .buffered(READ_AHEAD);
    while let Some(answer) = answers.next().await {
        if let (key, Some((entry, revision))) = answer? {
            found.push((key, entry, revision));
        }
    }
    Ok(found)
}

impl PresenceStore for KvPresenceStore {
    fn changes(&self) -> &PresenceQueue {
        &self.changes
    }

    fn find<'a>(&'a self, client: &'a str, limit: usize) -> Later<'a, Result<Found, Unavailable>> {
        Box::pin(async move {
            let Some(bucket) = self.lock().bucket.clone() else {
                return Err(Unavailable(self.lock().trouble.clone()));
            };
            let Ok(_place) = self.listing.try_acquire() else {
                return Err(Unavailable("too many lists at one time".to_owned()));
            };
            let listed = async {
                let mut keys = bucket.keys(client).await?;
                let is_complete = keys.len() <= limit;
                keys.truncate(limit);
                Ok::<_, JetStreamError>((values(&bucket, keys).await?, is_complete))
            };
            match timeout_at(Instant::now() + FIND_MAX, listed).await {
                Ok(Ok((values, is_complete))) => {
                    let now = millis(SystemTime::now());
                    let current = values
                        .into_iter()
                        .filter(|(_, entry, _)| entry.is_current(now));
                    Ok(Found {
                        entries: current.map(|(key, entry, _)| (key, entry)).collect(),
                        is_complete,
                    })
                }
                Ok(Err(trouble)) => {
                    self.metrics.registry_errors_total.inc();
                    Err(Unavailable(bucket::explain(&trouble)))
                }
                Err(_) => {
                    self.metrics.registry_errors_total.inc();
                    Err(Unavailable(format!(
                        "no answer within {} s",
                        FIND_MAX.as_secs()
                    )))
                }
            }
        })
    }

    fn take_over(&self, wanted: Wanted) -> Later<'_, Claim> {
        Box::pin(async move {
            let Some(bucket) = self.bucket() else {
                return Claim::Nothing;
            };
            let deadline = Instant::now() + TAKE_OVER_MAX;
            // Too many at one time is no failure of the registry: those who do not get a place begin live.
            let Ok(Ok(_place)) = timeout_at(deadline, self.looking.acquire()).await else {
                return Claim::Nothing;
            };
            let mut is_recorded = false;
            match timeout_at(deadline, Self::claim(&bucket, &wanted, &mut is_recorded)).await {
                Ok(Ok(claim)) => return claim,
                Ok(Err(trouble)) => self.failed(&bucket::explain(&trouble)),
                Err(_) => self.failed("no answer in time"),
            }
            if is_recorded {
                Claim::Lost
            } else {
                Claim::Nothing
            }
        })
    }

    fn remove(&self, wanted: Wanted, has: EventId) -> Later<'_, ()> {
        Box::pin(async move {
            let (Some(bucket), Ok(_place)) = (self.bucket(), self.tidying.try_acquire()) else {
                return;
            };
            let deadline = Instant::now() + TAKE_OVER_MAX;
            match timeout_at(deadline, Self::remove_passed(&bucket, &wanted, &has)).await {
                Ok(Ok(())) => {}
                Ok(Err(trouble)) => self.failed(&bucket::explain(&trouble)),
                Err(_) => self.failed("no answer in time"),
            }
        })
    }

    fn give_back(&self, handover: Handover) -> Later<'_, ()> {
        Box::pin(async move {
            let Some(bucket) = self.bucket() else { return };
            let Handover {
                key,
                entry,
                revision,
            } = handover;
            let left = entry.expires.saturating_sub(millis(SystemTime::now()));
            let put = bucket.put(&key, &entry, Duration::from_millis(left), Some(revision));
            if !matches!(
                timeout_at(Instant::now() + TAKE_OVER_MAX, put).await,
                Ok(Ok(_))
            ) {
                self.failed("what was taken over in vain could not be left again");
            }
        })
    }
}
