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
use super::api::Trouble;
use crate::lifecycle::drain::Watch;
use crate::registry::changes::millis;
use crate::registry::entry::ENDED_FOR;
use crate::registry::{Bucket as Name, Changes, Cluster, Entry, Found, Handover, Key, Later, Unavailable, Wanted};
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

/// 64: a `client` with more event streams than that is no client but a group of them, and takes nothing over.
const STREAMS_OF_CLIENT_MAX: usize = 64;

/// Values that are read at the same time for one answer.
const READ_AHEAD: usize = 16;

/// The registry in a bucket.
pub(super) struct KvRegistry {
    changes: Changes,
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

impl KvRegistry {
    /// Begins to write; the watch is released when the last of it is written.
    pub(super) fn start(nats: &Nats, name: &Name, drain: Watch) -> Arc<Self> {
        let inner = &*nats.0;
        let this = Arc::new(Self {
            changes: Changes::new(&inner.identity.pod, &inner.identity.boot),
            metrics: Arc::clone(&inner.metrics),
            state: Mutex::new(State { trouble: "not opened yet".to_owned(), ..State::default() }),
            looking: Semaphore::new(LOOKED_FOR_MAX),
            tidying: Semaphore::new(TIDIED_MAX),
            listing: Semaphore::new(LISTS_MAX),
        });
        let writer = Writer::new(&this, inner.links.control.clone(), inner.api.clone(), name, &inner.health);
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

    async fn look(bucket: &Bucket, wanted: &Wanted) -> Result<Option<Handover>, Trouble> {
        let keys = bucket.keys(&wanted.client).await?;
        if keys.len() > STREAMS_OF_CLIENT_MAX {
            return Ok(None);
        }
        let now = millis(SystemTime::now());
        let mut left = values(bucket, keys).await?;
        left.retain(|(_, entry, _)| entry.is_left_for(wanted, now));
        // First who left first: two windows of one user come back in the order in which they were sent away. One that
        // has its own position takes what says the same.
        left.sort_by_key(|(_, entry, revision)| {
            (wanted.last_event_id.as_ref().is_some_and(|id| *id != entry.last_event_id), *revision)
        });
        for (key, entry, revision) in left {
            // Only one gets it: whoever writes at this revision first.
            match bucket.put(&key, &entry.taken_over(now), ENDED_FOR, Some(revision)).await {
                Ok(revision) => return Ok(Some(Handover { key, entry, revision })),
                Err(Unwritten::Other) => {}
                Err(Unwritten::Refused(why) | Unwritten::Closed(why) | Unwritten::Unknown(why)) => {
                    return Err(Trouble::Refused(why));
                }
            }
        }
        Ok(None)
    }
}

/// The values of these keys, with their revisions; those that are gone are left out.
async fn values(bucket: &Bucket, keys: Vec<Key>) -> Result<Vec<(Key, Entry, u64)>, Trouble> {
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

impl Cluster for KvRegistry {
    fn changes(&self) -> &Changes {
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
                Ok::<_, Trouble>((values(&bucket, keys).await?, is_complete))
            };
            match timeout_at(Instant::now() + FIND_MAX, listed).await {
                Ok(Ok((values, is_complete))) => {
                    let now = millis(SystemTime::now());
                    let current = values.into_iter().filter(|(_, entry, _)| entry.is_current(now));
                    Ok(Found { entries: current.map(|(key, entry, _)| (key, entry)).collect(), is_complete })
                }
                Ok(Err(trouble)) => {
                    self.metrics.registry_errors_total.inc();
                    Err(Unavailable(bucket::explain(&trouble)))
                }
                Err(_) => {
                    self.metrics.registry_errors_total.inc();
                    Err(Unavailable(format!("no answer within {} s", FIND_MAX.as_secs())))
                }
            }
        })
    }

    fn take_over(&self, wanted: Wanted) -> Later<'_, Option<Handover>> {
        Box::pin(async move {
            let bucket = self.bucket()?;
            let deadline = Instant::now() + TAKE_OVER_MAX;
            // Too many at one time is no failure of the registry: those who do not get a place begin live.
            let _place = match wanted.last_event_id {
                None => timeout_at(deadline, self.looking.acquire()).await.ok()?.ok()?,
                Some(_) => self.tidying.try_acquire().ok()?,
            };
            match timeout_at(deadline, Self::look(&bucket, &wanted)).await {
                Ok(Ok(found)) => found,
                Ok(Err(trouble)) => {
                    self.failed(&bucket::explain(&trouble));
                    None
                }
                Err(_) => {
                    self.failed("no answer in time");
                    None
                }
            }
        })
    }

    fn give_back(&self, handover: Handover) -> Later<'_, ()> {
        Box::pin(async move {
            let Some(bucket) = self.bucket() else { return };
            let Handover { key, entry, revision } = handover;
            let left = entry.expires.saturating_sub(millis(SystemTime::now()));
            let put = bucket.put(&key, &entry, Duration::from_millis(left), Some(revision));
            if !matches!(timeout_at(Instant::now() + TAKE_OVER_MAX, put).await, Ok(Ok(_))) {
                self.failed("what was taken over in vain could not be left again");
            }
        })
    }
}
