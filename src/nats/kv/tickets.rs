//! Store of tickets in a NATS KV bucket: each entry is read and removed by one pod.
//!
//! ```text
//! put    write the entry if the key was never written
//! take   read the entry and its revision -> remove it at that revision: one writer succeeds
//! ```
//!
//! Reads go to the leader of the stream, so that an entry that one pod has written is found by all
//! others. Both operations end after [`TIMEOUT`], and at most [`OPERATIONS_MAX`] run at a time.
//!
//! One task per store ([`Keeper`]) opens the bucket, creates it if it is missing, and sets the check
//! `tickets`. An operation that does not find the bucket wakes the task and tries once more.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::bucket::{Bucket, BucketSettings, NOT_FOUND, Storage, WriteError, explain};
use crate::auth::tickets::{PutError, TicketKey, TicketStore, Unavailable};
use crate::lifecycle::backoff::{Backoff, Jitter};
use crate::lifecycle::health::{Check, Status};
use crate::nats::client::Nats;
use crate::nats::connection::NatsConnection;
use crate::nats::jetstream::api::{Api, JetStreamError};
use crate::subject::BucketName;

/// 2 s for one operation. A client waits for it.
const TIMEOUT: Duration = Duration::from_secs(2);

/// 256 operations at a time, against the load of a thousand clients that reconnect at once. Others
/// wait within their time.
const OPERATIONS_MAX: usize = 256;

/// 32 MiB: about 40,000 tickets with small claims that are neither spent nor expired. Not more,
/// because JetStream reserves it.
const MAX_BYTES: u64 = 32 * 1024 * 1024;

/// 3 s between reads of the bucket's state: a bucket that was deleted is created again.
const CHECK_INTERVAL: Duration = Duration::from_secs(3);

/// One minute: how long the check stays degraded after an operation has failed. A full bucket is
/// full and not full in turns.
const FAILED_FOR: Duration = Duration::from_secs(60);

/// 5 s without operations after the server has denied one: each would be logged as a violation.
const PAUSE_AFTER_DENIAL: Duration = Duration::from_secs(5);

/// Delay after a failure: 0.25 s, doubled up to 5 s, half of it random.
const RETRY: Backoff = Backoff::new(
    Duration::from_millis(250),
    Duration::from_secs(5),
    Jitter::Half,
);

/// Ticket store in a KV bucket. Dropping it ends its task.
pub(in crate::nats) struct KvTicketStore {
    shared: Arc<Shared>,
    /// Life of a ticket.
    ttl: Duration,
    permits: Semaphore,
    keeper: AbortHandle,
}

/// State that the store shares with its task.
struct Shared {
    /// The bucket, while it is open.
    bucket: watch::Sender<Option<Bucket>>,
    /// Wakes the task: an operation has failed.
    failed: Notify,
    /// Last failure of an operation.
    failure: Mutex<Option<RecordedFailure>>,
}

struct RecordedFailure {
    why: String,
    at: Instant,
    is_denial: bool,
}

impl KvTicketStore {
    /// Starts the task of a store. Needs a runtime.
    pub(in crate::nats) fn start(nats: &Nats, name: &BucketName, ttl: Duration) -> Arc<Self> {
        let inner = &*nats.0;
        let shared = Arc::new(Shared {
            bucket: watch::Sender::new(None),
            failed: Notify::new(),
            failure: Mutex::default(),
        });
        let keeper = Keeper {
            shared: Arc::clone(&shared),
            connection: inner.connections.control.clone(),
            api: inner.api.clone(),
            name: name.clone(),
            settings: BucketSettings {
                description: "sidestream: tickets for event streams",
                // Its loss costs a client one request: it buys another ticket.
                storage: Storage::Memory,
                max_age: Some(ttl),
                max_bytes: Some(MAX_BYTES),
            },
            // Never failing: a pod without tickets serves all other clients.
            check: inner.health.degraded("tickets", Status::Ok),
            failures: 0,
            was_closed: false,
        };
        Arc::new(Self {
            shared,
            ttl,
            permits: Semaphore::new(OPERATIONS_MAX),
            keeper: tokio::spawn(keeper.run()).abort_handle(),
        })
    }

    /// Runs an operation on the open bucket, within [`TIMEOUT`], and once more if it fails because
    /// the bucket is missing.
    async fn run<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        key: &TicketKey,
        operation: impl Fn(Bucket) -> F,
    ) -> Result<T, Failure> {
        let attempts = async {
            let Ok(_permit) = self.permits.acquire().await else {
                return Err(Failure::Paused);
            };
            if self.shared.is_paused() {
                return Err(Failure::Paused);
            }
            match operation(self.shared.opened().await).await {
                Err(Failure::Missing) => {
                    self.shared.bucket.send_replace(None);
                    self.shared.failed.notify_one();
                    operation(self.shared.opened().await).await
                }
                done => done,
            }
        };
        let done = timeout(TIMEOUT, attempts).await;
        let done = done.unwrap_or_else(|_| Err(Failure::Other("no answer within 2 s".to_owned())));
        if let Err(failure) = &done {
            self.shared.record(key, failure);
        }
        done
    }
}

/// Reason why an operation failed.
enum Failure {
    Full,
    /// The bucket does not exist.
    Missing,
    /// The server denies the operation to this user.
    Denied(String),
    /// The server has denied one recently.
    Paused,
    Other(String),
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Full => Self::Full,
            WriteError::Unavailable(why) if why == NOT_FOUND => Self::Missing,
            WriteError::Unavailable(why) => Self::Denied(why),
            WriteError::WrongRevision => Self::Other("the key has another revision".to_owned()),
            WriteError::Rejected(why) | WriteError::Unknown(why) => Self::Other(why),
        }
    }
}

impl From<JetStreamError> for Failure {
    fn from(error: JetStreamError) -> Self {
        match error {
            JetStreamError::StreamNotFound => Self::Missing,
            JetStreamError::Denied(_) => Self::Denied(error.to_string()),
            _ => Self::Other(explain(&error)),
        }
    }
}

impl Shared {
    /// Waits until the bucket is open.
    async fn opened(&self) -> Bucket {
        let mut bucket = self.bucket.subscribe();
        let opened = bucket.wait_for(Option::is_some).await;
        match opened.ok().and_then(|opened| opened.clone()) {
            Some(bucket) => bucket,
            // Not reached: the sender is part of this state.
            None => std::future::pending().await,
        }
    }

    /// Records a failed operation for the check.
    fn record(&self, key: &TicketKey, failure: &Failure) {
        let why = match failure {
            Failure::Paused => return,
            Failure::Full => {
                "the bucket is full: raise its `max_bytes`, or shorten `ttl`".to_owned()
            }
            Failure::Missing => NOT_FOUND.to_owned(),
            // No text that differs for each ticket: the check logs its changes.
            Failure::Denied(why) | Failure::Other(why) => why.replace(key.as_str(), ">"),
        };
        *self.lock() = Some(RecordedFailure {
            why,
            at: Instant::now(),
            is_denial: matches!(failure, Failure::Denied(_)),
        });
        self.failed.notify_one();
    }

    fn is_paused(&self) -> bool {
        self.lock()
            .as_ref()
            .is_some_and(|last| last.is_denial && last.at.elapsed() < PAUSE_AFTER_DENIAL)
    }

    fn lock(&self) -> MutexGuard<'_, Option<RecordedFailure>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TicketStore for KvTicketStore {
    fn put(&self, key: TicketKey, entry: Vec<u8>) -> BoxFuture<'_, Result<(), PutError>> {
        Box::pin(async move {
            let entry = Bytes::from(entry);
            let put = self
                .run(&key, |bucket| put(bucket, &key, entry.clone(), self.ttl))
                .await;
            put.map_err(|failure| match failure {
                Failure::Full => PutError::Full,
                Failure::Missing | Failure::Denied(_) | Failure::Paused | Failure::Other(_) => {
                    PutError::Unavailable
                }
            })
        })
    }

    fn take(&self, key: TicketKey) -> BoxFuture<'_, Result<Option<Vec<u8>>, Unavailable>> {
        Box::pin(async move {
            let taken = self.run(&key, |bucket| take(bucket, &key, self.ttl)).await;
            taken.map_err(|_| Unavailable)
        })
    }
}

async fn put(bucket: Bucket, key: &TicketKey, entry: Bytes, ttl: Duration) -> Result<(), Failure> {
    bucket.put(key.as_str(), entry, Some(ttl), Some(0)).await?;
    Ok(())
}

async fn take(bucket: Bucket, key: &TicketKey, ttl: Duration) -> Result<Option<Vec<u8>>, Failure> {
    let Some(value) = bucket.get(key.as_str()).await? else {
        return Ok(None);
    };
    match bucket.remove(key.as_str(), value.revision, ttl).await {
        Ok(_) => Ok(Some(value.bytes)),
        // Another request was first.
        Err(WriteError::WrongRevision) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Drop for KvTicketStore {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl fmt::Debug for KvTicketStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvTicketStore")
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

/// Task that keeps the bucket open.
struct Keeper {
    shared: Arc<Shared>,
    connection: NatsConnection,
    api: Api,
    name: BucketName,
    settings: BucketSettings,
    check: Check,
    /// Failures since the bucket was last open.
    failures: u32,
    /// The bucket could not be opened, or the connection was lost: failures until now are obsolete
    /// once it is open.
    was_closed: bool,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            if !self.connection.state().up {
                self.close("not connected to NATS".to_owned());
                self.connection.wait_up().await;
            }
            let generation = self.connection.generation();
            let pause = self.open().await;
            let failed = async {
                self.shared.failed.notified().await;
                // Not more often, whatever operations report.
                sleep(RETRY.delay(self.failures, fastrand::f64())).await;
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = failed => {}
                () = self.connection.wait_down(generation) => {}
            }
        }
    }

    /// Opens the bucket, or reads its state again. Returns the time until the next one.
    async fn open(&mut self) -> Duration {
        let opened = Bucket::open(&self.connection, &self.api, &self.name, &self.settings).await;
        let bucket = match opened {
            Ok((bucket, _)) => bucket,
            Err(error) => {
                self.close(explain(&error));
                let pause = RETRY.delay(self.failures, fastrand::f64());
                self.failures = self.failures.saturating_add(1);
                return pause;
            }
        };
        self.failures = 0;
        let recent = {
            let mut failure = self.shared.lock();
            failure.take_if(|last| self.was_closed || last.at.elapsed() >= FAILED_FOR);
            failure.as_ref().map(|last| last.why.clone())
        };
        self.was_closed = false;
        let problem = recent.or_else(|| self.short_lived(&bucket));
        self.shared.bucket.send_replace(Some(bucket));
        self.report(problem);
        CHECK_INTERVAL
    }

    /// Returns a sentence if values live shorter than tickets.
    fn short_lived(&self, bucket: &Bucket) -> Option<String> {
        let (age, ttl) = (bucket.max_age?, self.settings.max_age?);
        (age < ttl).then(|| {
            format!(
                "values live for {age:?} only: nats stream edit KV_{} --max-age={ttl:?}",
                self.name.as_str()
            )
        })
    }

    fn close(&mut self, why: String) {
        self.was_closed = true;
        self.shared.bucket.send_replace(None);
        self.report(Some(why));
    }

    /// Sets the check, which logs a change.
    fn report(&self, problem: Option<String>) {
        self.check.set(match problem {
            None => Status::Ok,
            Some(why) => Status::Degraded(format!(
                "authentication.tickets.bucket {}: {why}",
                self.name.as_str()
            )),
        });
    }
}
