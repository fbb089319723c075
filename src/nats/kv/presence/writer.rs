//! Writer of the presence bucket: changes in batches, and open entries again before they expire.
//!
//! One task per pod. It takes updates from the [`PresenceQueue`] and writes at most 100 at a time,
//! every 100 ms. Nothing waits for it, and a failing bucket never affects event streams: the health
//! check `presence` is degraded and writing is retried with a back-off.
//!
//! [`PresenceQueue`]: crate::presence::PresenceQueue
//!
//! ```text
//! step: not connected -> wait until up
//!       no bucket     -> open
//!       otherwise     -> check_bucket (every 3 s), then write one batch
//! ```
//!
//! The state of the bucket is read every 3 s. If it was recreated, purged or restarted empty, every
//! open entry is written again. Above three quarters of its size, entries of further event streams
//! are postponed until there is room; positions and replaced values are always written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::entries::{PresenceBucket, explain};
use super::shared::{FULL_HINT, Shared};
use crate::lifecycle::backoff::{Backoff, Jitter};
use crate::lifecycle::health::{Check, Status};
use crate::lifecycle::shutdown::Token;
use crate::nats::connection::NatsConnection;
use crate::nats::jetstream::api::{Api, JetStreamError};
use crate::nats::kv::bucket::{BucketState, WriteError};
use crate::presence::entry::ENDED_FOR;
use crate::presence::queue::PresenceUpdate;
use crate::subject::BucketName;

/// 100 ms: changes within it are written together and once.
const BATCH_DELAY: Duration = Duration::from_millis(100);

/// 100 concurrent writes; with `BATCH_DELAY` at most 1,000 per second.
const BATCH_MAX: usize = 100;

/// 3 s between reads of the bucket's state. A bucket that was lost while nothing had to be written
/// is created and filled again within seconds, for one small request.
const BUCKET_CHECK_INTERVAL: Duration = Duration::from_secs(3);

/// A quarter of the bucket is reserved for positions, which clients need, and for replaced values:
/// above three quarters, no entry of a further event stream is written.
const POSITION_SHARE: u64 = 4;

/// 2 KiB: the largest entry with its key and the server's overhead. Between two checks, at most as
/// many entries are written as fit if all are that large.
const ENTRY_BYTES_MAX: u64 = 2048;

/// One minute: how long the health check stays degraded after the bucket was full. A bucket at its
/// limit is full and not full in turns.
const FULL_FOR: Duration = Duration::from_secs(60);

/// 1 s: interval of checks for entries to write again.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// One minute: interval at which open entries are written again. They expire after twice that time.
const REWRITE_INTERVAL: Duration = Duration::from_secs(60);

/// 500 writes per second, half of the maximum, are for unchanged entries: with more than 30,000
/// event streams, each is written again less often.
const REWRITES_PER_SECOND: u32 = 500;

/// Delay after a failure: 1 s, doubled up to 30 s, half of it random.
const RETRY: Backoff = Backoff::new(
    Duration::from_secs(1),
    Duration::from_secs(30),
    Jitter::Half,
);

/// 2 s for the last writes when the process ends.
const LAST_WRITES_TIMEOUT: Duration = Duration::from_secs(2);

/// State of the writing task.
pub(super) struct Writer {
    shared: Arc<Shared>,
    connection: NatsConnection,
    api: Api,
    name: BucketName,
    /// Size of the bucket, if it is created here.
    max_bytes: u64,
    check: Check,
    bucket: Option<PresenceBucket>,
    /// Creation time of the last bucket.
    created: Option<String>,
    /// Newest confirmed revision of an entry of an open event stream: all entries of open event
    /// streams are at or before it. 0: none is written.
    written: u64,
    /// Time of the last check of the bucket.
    checked_at: Instant,
    /// Three quarters of the bucket or more are in use.
    is_almost_full: bool,
    /// Number of entries of further event streams that may be written before the next check.
    /// `None`: not limited.
    allowance: Option<u64>,
    /// Entries were postponed since then.
    has_postponed: bool,
    /// Postponed entries that are not counted as unwritten yet, because there may be room for them.
    uncounted: u64,
    /// Time at which the bucket was last full.
    full: Option<Instant>,
    /// The last write was confirmed: several may be sent at a time.
    is_confirmed: bool,
    /// Failures since the last confirmed write.
    failures: u32,
}

/// Wait before the next step.
enum Pause {
    /// More updates are waiting.
    Gather,
    /// Until something changes or has to be written again.
    Woken,
    /// Until NATS is connected.
    Up,
    /// Delay after a failure.
    Backoff(Duration),
}

impl Writer {
    /// `bucket`: its name, and its size if it is created here.
    pub(super) fn new(
        shared: Arc<Shared>,
        (connection, api): (NatsConnection, Api),
        (name, max_bytes): (&BucketName, u64),
        check: Check,
    ) -> Self {
        // Never failing: a pod without presence serves its clients as usual.
        check.set(Status::Ok);
        Self {
            shared,
            connection,
            api,
            name: name.clone(),
            max_bytes,
            check,
            bucket: None,
            created: None,
            written: 0,
            checked_at: Instant::now(),
            is_almost_full: false,
            allowance: None,
            has_postponed: false,
            uncounted: 0,
            full: None,
            is_confirmed: false,
            failures: 0,
        }
    }

    /// Writes until shutdown is requested, then writes the ended event streams.
    pub(super) async fn run(mut self, mut shutdown: Token) {
        let mut late = shutdown.clone();
        let timed_out = async {
            late.requested().await;
            sleep(LAST_WRITES_TIMEOUT).await;
        };
        let write = async {
            while !shutdown.is_requested() {
                // Never cancelled: writes in progress are awaited.
                let pause = self.step().await;
                tokio::select! {
                    biased;
                    () = shutdown.requested() => break,
                    () = self.pause(pause) => {}
                }
            }
            while self.shared.queue.has_ended() && self.write().await.is_ok() {}
        };
        tokio::select! {
            () = write => {}
            () = timed_out => tracing::warn!("shutdown timeout: the last ended event streams were not written to the presence bucket"),
        }
    }

    /// Opens the bucket, or writes one batch.
    async fn step(&mut self) -> Pause {
        if !self.connection.state().up {
            self.close();
            // The health check of the connections reports it already.
            self.shared.lock().error = "not connected to NATS".to_owned();
            return Pause::Up;
        }
        let done = match self.check_bucket().await {
            Ok(()) if self.bucket.is_some() => self.write().await,
            Ok(()) => self.open().await,
            Err(why) => Err(why),
        };
        match done {
            Ok(true) => Pause::Gather,
            Ok(false) => Pause::Woken,
            Err(why) => {
                self.shared.metrics.presence_errors_total.inc();
                self.report(&why);
                let wait = RETRY.delay(self.failures, fastrand::f64());
                self.failures = self.failures.saturating_add(1);
                Pause::Backoff(wait)
            }
        }
    }

    async fn pause(&mut self, pause: Pause) {
        match pause {
            Pause::Gather => sleep(BATCH_DELAY).await,
            Pause::Woken => {
                // After a timeout or a change, it is time to check.
                drop(timeout(CHECK_INTERVAL, self.shared.queue.wait()).await);
                sleep(BATCH_DELAY).await;
            }
            Pause::Up => drop(self.connection.wait_up().await),
            Pause::Backoff(wait) => sleep(wait).await,
        }
    }

    /// Opens the bucket. Returns true if there is more to do at once.
    async fn open(&mut self) -> Result<bool, String> {
        let opened =
            PresenceBucket::open(&self.connection, &self.api, &self.name, self.max_bytes).await;
        let (bucket, state) = opened.map_err(|error| explain(&error))?;
        if state.max_bytes.is_none() && self.created.as_ref() != Some(&state.created) {
            let remedy = format!(
                "nats stream edit KV_{} --max-bytes={}",
                self.name.as_str(),
                self.max_bytes
            );
            tracing::warn!(
                bucket = self.name.as_str(),
                remedy,
                "presence bucket has no max_bytes"
            );
        }
        self.note(&state);
        self.shared.lock().bucket = Some(bucket.clone());
        self.bucket = Some(bucket);
        Ok(true)
    }

    /// Reads the state of the bucket when it is due. The next step recreates a missing bucket.
    async fn check_bucket(&mut self) -> Result<(), String> {
        let is_behind = self.has_postponed && !self.is_almost_full;
        let is_time = is_behind || self.checked_at.elapsed() >= BUCKET_CHECK_INTERVAL;
        let Some(bucket) = self.bucket.clone().filter(|_| is_time) else {
            return Ok(());
        };
        match bucket.state().await {
            Ok(state) => self.note(&state),
            Err(error) => {
                self.checked_at = Instant::now();
                if error == JetStreamError::StreamNotFound {
                    self.close();
                }
                return Err(explain(&error));
            }
        }
        Ok(())
    }

    /// Compares the state of the bucket with the known one. Everything that was written into
    /// another bucket, or is no longer in this one, is written again.
    fn note(&mut self, state: &BucketState) {
        self.checked_at = Instant::now();
        // A memory bucket is empty after a restart of its server, with the same creation time; a
        // purged one begins at a later revision.
        let is_empty =
            self.written > 0 && (state.last < self.written || state.first > self.written);
        if is_empty || self.created.as_ref() != Some(&state.created) {
            if is_empty {
                tracing::info!(
                    bucket = self.name.as_str(),
                    "presence bucket lost its entries; writing them again"
                );
            }
            self.created = Some(state.created.clone());
            self.written = 0;
            self.shared.queue.rewrite_all();
        }
        let room = |max: u64| (max - max / POSITION_SHARE).saturating_sub(state.bytes);
        self.allowance = state.max_bytes.map(|max| room(max) / ENTRY_BYTES_MAX);
        self.is_almost_full = self.allowance == Some(0);
        if self.has_postponed && !self.is_almost_full {
            (self.has_postponed, self.uncounted) = (false, 0);
            self.shared.queue.continue_postponed();
        }
    }

    /// Removes the entries from a batch for which there may be no room. Returns the number of
    /// entries without room, those of earlier batches included.
    fn postpone(&mut self, batch: &mut Vec<PresenceUpdate>) -> u64 {
        let before = batch.len();
        batch.retain(|update| {
            if update.is_end || !update.is_new {
                return true;
            }
            match &mut self.allowance {
                Some(0) => {
                    self.shared.queue.postpone(update.number);
                    return false;
                }
                Some(left) => *left -= 1,
                None => {}
            }
            true
        });
        let postponed = before - batch.len();
        self.has_postponed |= postponed > 0;
        self.uncounted += postponed as u64;
        if self.is_almost_full {
            std::mem::take(&mut self.uncounted)
        } else {
            0
        }
    }

    /// Counts entries that were not written because the bucket is full, and updates the health
    /// check.
    fn note_full(&mut self, unwritten: u64) {
        if unwritten > 0 {
            self.shared.metrics.presence_full_total.inc_by(unwritten);
            self.full = Some(Instant::now());
        }
        if self.full.is_some_and(|full| full.elapsed() < FULL_FOR) {
            self.check.set(Status::Degraded(format!(
                "presence.bucket {}: {FULL_HINT}",
                self.name.as_str()
            )));
        } else {
            self.check.set(Status::Ok);
        }
    }

    /// Writes one batch. Returns true if more may follow at once.
    async fn write(&mut self) -> Result<bool, String> {
        let Some(bucket) = self.bucket.clone() else {
            return Err("bucket not open".to_owned());
        };
        let shared = Arc::clone(&self.shared);
        let queue = &shared.queue;
        let every = rewrite_interval(queue.len(), bucket.max_age());
        // One write until it succeeds: a rejection is then logged once, not a hundred times.
        let most = if self.is_confirmed { BATCH_MAX } else { 1 };
        let mut batch = queue.next_batch(most, every, Instant::now());
        let is_whole = batch.len() == most;
        let mut full = self.postpone(&mut batch);
        let written = join_all(batch.iter().map(|update| {
            bucket.put(
                &update.key,
                &update.entry,
                time_to_live(update, every),
                None,
            )
        }));
        let (mut failures, mut failure, mut is_closed) = (0, None, false);
        for (update, written) in batch.iter().zip(written.await) {
            let why = match written {
                Ok(revision) => {
                    if !update.is_end {
                        self.written = self.written.max(revision);
                    }
                    continue;
                }
                Err(WriteError::Full) => {
                    full += 1;
                    (self.is_almost_full, self.allowance) = (true, Some(0));
                    if !update.is_end && update.is_new {
                        self.has_postponed = true;
                        queue.postpone(update.number);
                    }
                    continue;
                }
                Err(WriteError::WrongRevision) => "wrong last revision".to_owned(),
                // Open entries are retried when they are due.
                Err(WriteError::Rejected(why)) => why,
                Err(WriteError::Unavailable(why)) => {
                    is_closed = true;
                    queue.requeue(update.clone(), true);
                    why
                }
                Err(WriteError::Unknown(why)) => {
                    is_closed = true;
                    queue.requeue(update.clone(), false);
                    why
                }
            };
            failures += 1;
            failure = Some(why);
        }
        let errors = &self.shared.metrics.presence_errors_total;
        errors.inc_by(queue.take_dropped());
        let Some(why) = failure else {
            self.note_full(full);
            let was_alone = !batch.is_empty() && !std::mem::replace(&mut self.is_confirmed, true);
            if was_alone {
                self.failures = 0;
            }
            return Ok(was_alone || is_whole || (self.has_postponed && !self.is_almost_full));
        };
        self.shared.metrics.presence_full_total.inc_by(full);
        // One more is counted with the reason.
        errors.inc_by(failures - 1);
        self.is_confirmed = false;
        if is_closed {
            self.close();
        }
        Err(why)
    }

    /// Closes the bucket: its state is read before anything is written or read again.
    fn close(&mut self) {
        self.bucket = None;
        self.is_confirmed = false;
        self.shared.lock().bucket = None;
    }

    /// Reports a failure to the operator. The health check logs it when it changes.
    fn report(&self, why: &str) {
        why.clone_into(&mut self.shared.lock().error);
        self.check.set(Status::Degraded(format!(
            "presence.bucket {}: {why}",
            self.name.as_str()
        )));
    }
}

/// Interval at which open entries are written again: before a bucket's TTL removes them, and slow
/// enough to leave half of the writes for changes.
fn rewrite_interval(open: usize, max_age: Option<Duration>) -> Duration {
    let paced = Duration::from_secs_f64(open as f64 / f64::from(REWRITES_PER_SECOND));
    let request = REWRITE_INTERVAL.max(paced);
    max_age
        .map_or(request, |age| request.min(age / 2))
        .max(CHECK_INTERVAL)
}

/// TTL of a value.
fn time_to_live(update: &PresenceUpdate, every: Duration) -> Duration {
    if update.is_end { ENDED_FOR } else { every * 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_entries_are_written_again_before_they_expire_and_within_the_rate() {
        let secs = Duration::from_secs;
        assert_eq!(rewrite_interval(10, None), secs(60));
        assert_eq!(rewrite_interval(30_000, Some(secs(600))), secs(60));
        assert_eq!(rewrite_interval(100_000, Some(secs(600))), secs(200));
        assert_eq!(rewrite_interval(10, Some(secs(30))), secs(15));
        assert_eq!(rewrite_interval(10, Some(secs(1))), secs(1));
    }
}
