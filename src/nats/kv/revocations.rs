//! Watcher of the bucket of revocations: keeps [`Revocations`] up to date and ends event streams.
//!
//! One task per pod. Everything that it awaits runs beside a tick of 100 ms:
//!
//! ```text
//! follow: wait until connected -> open or create the bucket -> watch after the last revision
//!         -> updates -> Revocations::apply -> (at most every 100 ms) StreamTable::end_revoked
//! tick:   ends event streams that wait, removes expired entries, sets check and metrics
//! ```
//!
//! A bucket with another creation time, or that ends before the last revision, is read again from
//! the start. Entries that this pod knows stay until they expire, whatever happens to the bucket.
//!
//! Expired keys are removed by the server (2.11 and newer, if they were written with a TTL).
//! Otherwise, once an hour, a pod that finds more than [`LEFTOVER_MAX`] of them reads the bucket
//! again and erases ten per second.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

use super::bucket::{Bucket, BucketSettings, BucketState, Storage, WriteError, explain};
use super::watch::{Update, Watch};
use crate::auth::revocations::entry::{parse_key, parse_times};
use crate::auth::revocations::{Change, ENTRIES_MAX, Entry, Kind, Revocations};
use crate::lifecycle::backoff::{Backoff, Jitter};
use crate::lifecycle::health::{Check, Status};
use crate::lifecycle::shutdown::Token;
use crate::nats::client::Nats;
use crate::nats::jetstream::error::JetStreamError;
use crate::presence::StreamTable;
use crate::subject::BucketName;
use crate::telemetry::Metrics;

const SETTINGS: BucketSettings = BucketSettings {
    description: "sidestream: revoked credentials, and clients to disconnect",
    storage: Storage::File,
    // Each entry has its own end.
    max_age: None,
    max_bytes: None,
};

/// 100 ms: revocations that arrive within it are applied to open event streams in one search.
const TICK: Duration = Duration::from_millis(100);

/// 10 s after the start, a pod is ready also if the bucket could not be read.
const START_MAX: Duration = Duration::from_secs(10);

/// 65,536 values wait for a search of the open event streams while a large bucket is read.
const WAITING_MAX: usize = 65_536;

/// Interval of searches for expired keys in the bucket, half of it random.
const CLEANUP_EVERY: Duration = Duration::from_secs(3600);

/// 1,000 expired keys are left in the bucket.
const LEFTOVER_MAX: u64 = 1000;

/// 10,000 keys of one cleanup, about 17 minutes at ten per second.
const ERASE_MAX: usize = 10_000;

/// One minute for the clocks of pods that differ, and for watchers that are reconnecting.
const ERASE_AFTER: Duration = Duration::from_secs(60);

/// 5 min between complete reads of a bucket that did not fit into memory.
const REREAD_EVERY: Duration = Duration::from_secs(300);

/// 10 s before another malformed entry is logged.
const LOG_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Delay after a failure: 0.1 s, doubled up to 5 s, half of it random.
const RETRY: Backoff = Backoff::new(
    Duration::from_millis(100),
    Duration::from_secs(5),
    Jitter::Half,
);

/// 10 s for the connection of a command.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// State of the task.
pub(in crate::nats) struct Watcher {
    nats: Nats,
    bucket: BucketName,
    revocations: Arc<Revocations>,
    streams: StreamTable,
    check: Check,
    metrics: Arc<Metrics>,
    ticks: Interval,
    started: Instant,
    /// Creation time of the bucket.
    created: Option<String>,
    /// Last revision that was applied.
    last: u64,
    /// Kicks up to this revision were applied before a complete read.
    kicked: u64,
    /// Reason why changes do not arrive.
    problem: Option<String>,
    /// Failures since the last update.
    failures: u32,
    /// Time of the last search of open event streams.
    searched: Instant,
    /// The bucket must be read again from the start.
    must_read: bool,
    last_read: Instant,
    next_cleanup: Instant,
    erasing: Option<JoinHandle<()>>,
    logged: Option<Instant>,
}

/// Key whose messages are erased up to a revision.
struct Leftover {
    key: String,
    revision: u64,
}

impl Watcher {
    pub(in crate::nats) fn new(
        nats: Nats,
        bucket: &BucketName,
        revocations: Arc<Revocations>,
        streams: StreamTable,
    ) -> Self {
        let inner = &*nats.0;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = Instant::now();
        Self {
            check: inner.health.check("revocations", "not read yet"),
            metrics: Arc::clone(&inner.metrics),
            bucket: bucket.clone(),
            revocations,
            streams,
            ticks,
            started: now,
            created: None,
            last: 0,
            kicked: 0,
            problem: Some("not read yet".to_owned()),
            failures: 0,
            searched: now,
            must_read: false,
            last_read: now,
            next_cleanup: now + CLEANUP_EVERY.mul_f64(0.5 + fastrand::f64() / 2.0),
            erasing: None,
            logged: None,
            nats,
        }
    }

    /// Follows the bucket until shutdown is requested.
    pub(in crate::nats) async fn run(mut self, mut shutdown: Token) {
        let follow = async {
            loop {
                let Err(why) = self.follow().await;
                self.revocations.set_lost();
                tracing::debug!(why, "watch of the revocations ended; retrying");
                self.problem = Some(why);
                self.report();
                let delay = RETRY.delay(self.failures, fastrand::f64());
                self.failures = self.failures.saturating_add(1);
                self.ticking(sleep(delay)).await;
            }
        };
        tokio::select! {
            () = shutdown.requested() => {}
            () = follow => {}
        }
    }

    /// Opens the bucket and follows it until something fails.
    async fn follow(&mut self) -> Result<std::convert::Infallible, String> {
        let mut connection = self.nats.0.connections.control.clone();
        if !connection.state().up {
            self.revocations.set_lost();
            self.problem = Some("not connected to NATS".to_owned());
            self.report();
            self.ticking(connection.wait_up()).await;
        }
        let nats = self.nats.clone();
        let name = self.bucket.clone();
        let opened = self
            .ticking(Bucket::open(&connection, &nats.0.api, &name, &SETTINGS))
            .await;
        let (bucket, state) = opened.map_err(|error| explain(&error))?;
        let is_complete_read = self.begin_read(&state);
        let watch = self.ticking(Watch::start(&nats, &name, self.last)).await;
        let mut watch = watch.map_err(|error| explain(&error))?;
        let mut leftovers = Vec::new();
        loop {
            let updates = self.ticking(watch.next()).await;
            if updates.is_current || !updates.updates.is_empty() {
                self.failures = 0;
            }
            self.apply(&updates.updates, &mut leftovers);
            if self.searched.elapsed() >= TICK || self.revocations.ended_len() >= WAITING_MAX {
                self.end_streams().await;
            }
            if let Some(lost) = updates.lost {
                return Err(format!("the watch was lost: {lost:?}"));
            }
            if updates.is_current {
                if self.problem.take().is_some() {
                    self.revocations.set_current();
                    self.report();
                }
                if is_complete_read && !leftovers.is_empty() {
                    self.erase(bucket.clone(), std::mem::take(&mut leftovers));
                }
                self.check_bucket(&bucket).await?;
            }
            if self.must_read {
                return Err("reading the bucket again".to_owned());
            }
        }
    }

    /// Decides where the watch begins. Returns true if the bucket is read from the start.
    fn begin_read(&mut self, state: &BucketState) -> bool {
        let is_other = self.created.as_ref() != Some(&state.created) || state.last < self.last;
        if is_other {
            self.created = Some(state.created.clone());
            (self.last, self.kicked) = (0, 0);
        } else if self.must_read {
            self.kicked = self.kicked.max(self.last);
            self.last = 0;
        }
        self.must_read = false;
        let is_complete_read = self.last == 0;
        if is_complete_read {
            self.last_read = Instant::now();
            self.revocations.read_begins();
        }
        is_complete_read
    }

    /// Applies updates, and collects expired keys.
    fn apply(&mut self, updates: &[Update], leftovers: &mut Vec<Leftover>) {
        let now = unix_now();
        // Kicks before the start of this process concern event streams that have ended.
        let is_first_read = !self.revocations.was_read();
        let mut changes = Vec::with_capacity(updates.len());
        for update in updates {
            self.last = self.last.max(update.revision);
            let times = update.value.as_ref().map(|value| parse_times(value));
            let (Some((kind, value)), None | Some(Some(_))) = (parse_key(&update.key), times)
            else {
                self.reject(update.revision);
                continue;
            };
            let times = times.flatten();
            let end = times.map_or_else(
                || Duration::from_nanos(u64::try_from(update.published).unwrap_or_default()),
                |times| Duration::from_secs(times.until.into()),
            );
            if end + ERASE_AFTER < now && leftovers.len() < ERASE_MAX {
                leftovers.push(Leftover {
                    key: update.key.clone(),
                    revision: update.revision,
                });
            }
            if kind == Kind::Kick && (is_first_read || update.revision <= self.kicked) {
                continue;
            }
            changes.push(Change { kind, value, times });
        }
        if changes.is_empty() {
            return;
        }
        let not_stored = self.revocations.apply(&changes);
        let ignored = &self.metrics.revocation_entries_ignored_total;
        ignored.with_label_values(&["full"]).inc_by(not_stored);
    }

    /// Counts a malformed entry. Its key is not logged: it has the subject of a client.
    fn reject(&mut self, revision: u64) {
        let ignored = &self.metrics.revocation_entries_ignored_total;
        ignored.with_label_values(&["malformed"]).inc();
        if self.logged.is_none_or(|at| at.elapsed() >= LOG_AGAIN_AFTER) {
            self.logged = Some(Instant::now());
            tracing::warn!(
                bucket = self.bucket.as_str(),
                revision,
                "malformed entry of the revocations ignored"
            );
        }
    }

    /// Ends the event streams that the last changes concern, on a thread for blocking work: a
    /// search of many event streams must not delay this shard.
    async fn end_streams(&mut self) {
        self.searched = Instant::now();
        let ended = self.revocations.take_ended();
        if ended.is_empty() || self.streams.is_empty() {
            return;
        }
        let streams = self.streams.clone();
        let search = tokio::task::spawn_blocking(move || streams.end_revoked(&ended));
        let Ok(counts) = search.await else { return };
        for (kind, count) in Kind::ALL.into_iter().zip(counts) {
            let total = &self.metrics.revocation_streams_ended_total;
            total.with_label_values(&[kind.as_str()]).inc_by(count);
        }
    }

    /// Reads the state of the bucket when a cleanup is due.
    async fn check_bucket(&mut self, bucket: &Bucket) -> Result<(), String> {
        let now = Instant::now();
        let known = self.revocations.len();
        let fits = known < ENTRIES_MAX / 10 * 9;
        if self.revocations.is_incomplete() && fits && self.last_read.elapsed() >= REREAD_EVERY {
            self.must_read = true;
        }
        if now < self.next_cleanup {
            return Ok(());
        }
        self.next_cleanup = now + CLEANUP_EVERY.mul_f64(0.5 + fastrand::f64() / 2.0);
        let state = self.ticking(bucket.clone().into_state()).await;
        let state = state.map_err(|error| explain(&error))?;
        self.must_read |= state.messages > known as u64 + LEFTOVER_MAX;
        Ok(())
    }

    /// Erases expired keys slowly, in a task of its own. Only one runs at a time.
    fn erase(&mut self, bucket: Bucket, leftovers: Vec<Leftover>) {
        if self
            .erasing
            .as_ref()
            .is_some_and(|task| !task.is_finished())
        {
            return;
        }
        self.erasing = Some(tokio::spawn(async move {
            for Leftover { key, revision } in leftovers {
                if let Err(error) = bucket.erase(&key, revision).await {
                    tracing::debug!(%error, "expired revocations not erased");
                    return;
                }
                sleep(TICK).await;
            }
        }));
    }

    /// Waits for a future and does what is due every 100 ms meanwhile.
    async fn ticking<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        loop {
            tokio::select! {
                biased;
                value = &mut future => return value,
                _ = self.ticks.tick() => {
                    self.end_streams().await;
                    self.revocations.sweep();
                    self.report();
                }
            }
        }
    }

    /// Sets check and metrics.
    fn report(&self) {
        let entries = self.revocations.len();
        let gauge = i64::try_from(entries).unwrap_or(i64::MAX);
        self.metrics.revocations.set(gauge);
        let why = match &self.problem {
            Some(why) => why.clone(),
            None if self.revocations.is_incomplete() => format!(
                "more than {ENTRIES_MAX} entries: further ones end open event streams, and their clients may return"
            ),
            None => return self.check.set(Status::Ok),
        };
        let name = self.bucket.as_str();
        let why = format!("authentication.revocations.bucket {name}: {why}");
        let is_starting = !self.revocations.was_read() && self.started.elapsed() < START_MAX;
        self.check.set(if is_starting {
            Status::Failing(why)
        } else {
            Status::Degraded(why)
        });
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(task) = &self.erasing {
            task.abort();
        }
    }
}

/// Writes an entry, as the commands `revoke` and `kick` do. Creates the bucket if it is missing.
pub(in crate::nats) async fn write(
    nats: &Nats,
    bucket: &BucketName,
    entry: &Entry,
) -> Result<(), String> {
    let mut connection = nats.0.connections.control.clone();
    if timeout(CONNECT_TIMEOUT, connection.wait_up())
        .await
        .is_err()
    {
        return Err(match nats.0.health.report().get("nats") {
            Some(Status::Failing(why) | Status::Degraded(why)) => why.clone(),
            Some(Status::Ok) | None => "not connected to NATS".to_owned(),
        });
    }
    let opened = Bucket::open(&connection, &nats.0.api, bucket, &SETTINGS).await;
    let (bucket, _) = opened.map_err(|error| match error {
        JetStreamError::Denied(_) => error.to_string(),
        error => explain(&error),
    })?;
    let left = Duration::from_secs(entry.until().into()).saturating_sub(unix_now());
    let payload = entry.payload().into();
    let written = bucket.put(&entry.key(), payload, Some(left), None).await;
    written.map(|_| ()).map_err(|error| match error {
        WriteError::WrongRevision => "another process writes the same key".to_owned(),
        WriteError::Full => "the bucket is full: raise its `max_bytes`".to_owned(),
        WriteError::Rejected(why) | WriteError::Unavailable(why) => why,
        WriteError::Unknown(why) => format!("not confirmed: {why}"),
    })
}

fn unix_now() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}
