//! The one who writes: everything that has changed, in batches with a bound, and again before it expires.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::bucket::{Bucket, Look, Unwritten, explain};
use super::{FULL, KvPresenceStore};
use crate::lifecycle::health::{Check, Status};
use crate::lifecycle::shutdown::Token;
use crate::nats::connection::NatsConnection;
use crate::nats::jetstream::api::{Api, JetStreamError};
use crate::presence::Bucket as Name;
use crate::presence::entry::ENDED_FOR;
use crate::presence::queue::PresenceUpdate;

/// 100 ms: what changes within it is written together, and once.
const GATHER: Duration = Duration::from_millis(100);

/// 100 writes on their way at one time; with `GATHER` at most 1,000 a second.
const BATCH_MAX: usize = 100;

/// 3 s: how often the state of the bucket is read. A bucket that was lost while nothing had to be written is made and
/// filled again within seconds, for one small request.
const BUCKET_LOOK_EVERY: Duration = Duration::from_secs(3);

/// A quarter of the bucket is kept for positions, which clients need, and for what replaces a value: above three quarters
/// no entry of another event stream is written.
const ROOM_FOR_POSITIONS: u64 = 4;

/// 2 KiB: the largest entry, with its key and what the server adds. Between two looks no more entries are written than fit
/// when all are as large as that.
const ENTRY_BYTES_MAX: u64 = 2048;

/// A minute: how long the check stays degraded after the bucket was full. At its bound it is full and not full by turns.
const FULL_FOR: Duration = Duration::from_secs(60);

/// 1 s: how often it is looked whether something is to be written again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A minute: what is open is written again so often, and says nothing any more after twice that time.
const AGAIN_EVERY: Duration = Duration::from_secs(60);

/// 500 a second, half of what is written at most, go to what has not changed: of more than 30,000 event streams each is
/// written again less often.
const AGAIN_PER_SECOND: u32 = 500;

/// 1 s, doubled up to 30 s: how long nothing is tried after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// 2 s: for the last of it, when the process ends.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// The task that writes.
pub(super) struct Writer {
    registry: Arc<KvPresenceStore>,
    link: NatsConnection,
    api: Api,
    name: Name,
    /// Size of the bucket, if it is made here.
    max_bytes: u64,
    check: Check,
    bucket: Option<Bucket>,
    /// Which bucket it was last.
    created: Option<String>,
    /// The newest revision of an entry of an open event stream that is known to be written: all entries of open event
    /// streams are at or before it. 0: none is.
    written: u64,
    /// When the state of the bucket was read last.
    looked: Instant,
    /// Three quarters of it are in use, or all of it.
    is_crowded: bool,
    /// How many entries of other event streams may be written before the next look; none: as many as there are.
    allowance: Option<u64>,
    /// Some were left out since then.
    has_postponed: bool,
    /// How many of them are not counted yet, as it is not known yet whether there is room for them.
    uncounted: u64,
    /// When it was full last.
    full: Option<Instant>,
    /// The last write was confirmed: more than one may be tried at a time.
    is_proven: bool,
    backoff: Duration,
}

/// What comes before the next step.
enum Pause {
    /// More is waiting.
    Gather,
    /// Until something changes, or has to be written again.
    Woken,
    /// Until NATS is there.
    Up,
    /// Until it is worth another try.
    Backoff(Duration),
}

impl Writer {
    /// `bucket`: its name, and its size if it is made here.
    pub(super) fn new(
        registry: &Arc<KvPresenceStore>,
        (link, api): (NatsConnection, Api),
        (name, max_bytes): (&Name, u64),
        check: Check,
    ) -> Self {
        // Good until it is known otherwise, and never failing: a pod without its registry serves as ever.
        check.set(Status::Ok);
        Self {
            registry: Arc::clone(registry),
            link,
            api,
            name: name.clone(),
            max_bytes,
            check,
            bucket: None,
            created: None,
            written: 0,
            looked: Instant::now(),
            is_crowded: false,
            allowance: None,
            has_postponed: false,
            uncounted: 0,
            full: None,
            is_proven: false,
            backoff: BACKOFF.0,
        }
    }

    /// Writes until the drain, then what is left.
    pub(super) async fn run(mut self, mut drain: Token) {
        let mut late = drain.clone();
        let too_late = async {
            late.requested().await;
            sleep(LAST_WRITES).await;
        };
        let write = async {
            while !drain.is_requested() {
                // Never dropped half-way: what is on its way is waited for.
                let pause = self.step().await;
                tokio::select! {
                    biased;
                    () = drain.requested() => break,
                    () = self.pause(pause) => {}
                }
            }
            while self.registry.changes.has_ended() && self.write().await.is_ok() {}
        };
        tokio::select! {
            () = write => {}
            () = too_late => tracing::warn!("the registry was not told of the last ends in time"),
        }
    }

    /// Opens the bucket, or writes one batch.
    async fn step(&mut self) -> Pause {
        if !self.link.now().up {
            self.close();
            // The check of the connections says it already.
            self.registry.lock().trouble = "not connected to NATS".to_owned();
            return Pause::Up;
        }
        let done = match self.look().await {
            Ok(()) if self.bucket.is_some() => self.write().await,
            Ok(()) => self.open().await,
            Err(why) => Err(why),
        };
        match done {
            Ok(true) => Pause::Gather,
            Ok(false) => Pause::Woken,
            Err(why) => {
                self.registry.metrics.registry_errors_total.inc();
                self.tell(&why);
                let wait = self.backoff;
                self.backoff = (wait * 2).min(BACKOFF.1);
                Pause::Backoff(wait)
            }
        }
    }

    async fn pause(&mut self, pause: Pause) {
        match pause {
            Pause::Gather => sleep(GATHER).await,
            Pause::Woken => {
                // Either way it is time to look.
                drop(timeout(LOOK_EVERY, self.registry.changes.woken()).await);
                sleep(GATHER).await;
            }
            Pause::Up => drop(self.link.up().await),
            Pause::Backoff(wait) => sleep(wait).await,
        }
    }

    /// Opens the bucket. True: there is something to do at once.
    async fn open(&mut self) -> Result<bool, String> {
        let opened = Bucket::open(&self.link, &self.api, &self.name, self.max_bytes).await;
        let (bucket, look) = opened.map_err(|trouble| explain(&trouble))?;
        if look.max_bytes.is_none() && self.created.as_ref() != Some(&look.created) {
            let remedy = format!(
                "nats stream edit KV_{} --max-bytes={}",
                self.name.as_str(),
                self.max_bytes
            );
            tracing::warn!(
                bucket = self.name.as_str(),
                remedy,
                "bucket of the registry has no bound in bytes"
            );
        }
        self.note(&look);
        self.registry.lock().bucket = Some(bucket.clone());
        self.bucket = Some(bucket);
        Ok(true)
    }

    /// Reads the state of the bucket, when it is time. One that is gone is made again by the next step.
    async fn look(&mut self) -> Result<(), String> {
        let is_behind = self.has_postponed && !self.is_crowded;
        let is_time = is_behind || self.looked.elapsed() >= BUCKET_LOOK_EVERY;
        let Some(bucket) = self.bucket.clone().filter(|_| is_time) else {
            return Ok(());
        };
        match bucket.look().await {
            Ok(look) => self.note(&look),
            Err(trouble) => {
                self.looked = Instant::now();
                if trouble == JetStreamError::Missing {
                    self.close();
                }
                return Err(explain(&trouble));
            }
        }
        Ok(())
    }

    /// Compares the state of the bucket with what is known of it. What was written into another bucket, or is not in this
    /// one any more, is written again.
    fn note(&mut self, look: &Look) {
        self.looked = Instant::now();
        // A bucket in memory comes back empty, as the same one, when its server does; one that was purged begins later.
        let is_empty = self.written > 0 && (look.last < self.written || look.first > self.written);
        if is_empty || self.created.as_ref() != Some(&look.created) {
            if is_empty {
                tracing::info!(
                    bucket = self.name.as_str(),
                    "bucket of the registry lost its entries; writing them again"
                );
            }
            self.created = Some(look.created.clone());
            self.written = 0;
            self.registry.changes.forgotten();
        }
        let room = |max: u64| (max - max / ROOM_FOR_POSITIONS).saturating_sub(look.bytes);
        self.allowance = look.max_bytes.map(|max| room(max) / ENTRY_BYTES_MAX);
        self.is_crowded = self.allowance == Some(0);
        if self.has_postponed && !self.is_crowded {
            (self.has_postponed, self.uncounted) = (false, 0);
            self.registry.changes.continue_postponed();
        }
    }

    /// Takes those out of a batch for which there may be no room. Returns how many there is no room for, of earlier batches
    /// too.
    fn postpone(&mut self, batch: &mut Vec<PresenceUpdate>) -> u64 {
        let before = batch.len();
        batch.retain(|told| {
            if told.is_end || !told.is_new {
                return true;
            }
            match &mut self.allowance {
                Some(0) => {
                    self.registry.changes.postpone(told.number);
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
        if self.is_crowded {
            std::mem::take(&mut self.uncounted)
        } else {
            0
        }
    }

    /// Counts what was not written for want of room, and says how the bucket is.
    fn note_full(&mut self, unwritten: u64) {
        if unwritten > 0 {
            self.registry.metrics.registry_full_total.inc_by(unwritten);
            self.full = Some(Instant::now());
        }
        if self.full.is_some_and(|full| full.elapsed() < FULL_FOR) {
            self.check.set(Status::Warning(format!(
                "registry.bucket {}: {FULL}",
                self.name.as_str()
            )));
        } else {
            self.check.set(Status::Ok);
        }
    }

    /// Writes one batch. True: there may be more at once.
    async fn write(&mut self) -> Result<bool, String> {
        let Some(bucket) = self.bucket.clone() else {
            return Err("there is no bucket".to_owned());
        };
        let registry = Arc::clone(&self.registry);
        let changes = &registry.changes;
        let every = again_every(changes.len(), bucket.max_age);
        // One alone, until it is known that it works: what is refused is refused once, not a hundred times.
        let most = if self.is_proven { BATCH_MAX } else { 1 };
        let mut batch = changes.take(most, every, Instant::now());
        let is_whole = batch.len() == most;
        let mut full = self.postpone(&mut batch);
        let written = join_all(
            batch
                .iter()
                .map(|told| bucket.put(&told.key, &told.entry, lasts(told, every), None)),
        );
        let (mut failures, mut failure, mut is_closed) = (0, None, false);
        for (told, written) in batch.iter().zip(written.await) {
            let why = match written {
                Ok(revision) => {
                    if !told.is_end {
                        self.written = self.written.max(revision);
                    }
                    continue;
                }
                Err(Unwritten::Full) => {
                    full += 1;
                    (self.is_crowded, self.allowance) = (true, Some(0));
                    if !told.is_end && told.is_new {
                        self.has_postponed = true;
                        changes.postpone(told.number);
                    }
                    continue;
                }
                Err(Unwritten::Other) => "another revision stands there".to_owned(),
                // What is open is tried again when its time comes.
                Err(Unwritten::Refused(why)) => why,
                Err(Unwritten::Closed(why)) => {
                    is_closed = true;
                    changes.failed(told.clone(), true);
                    why
                }
                Err(Unwritten::Unknown(why)) => {
                    is_closed = true;
                    changes.failed(told.clone(), false);
                    why
                }
            };
            failures += 1;
            failure = Some(why);
        }
        let errors = &self.registry.metrics.registry_errors_total;
        errors.inc_by(changes.take_lost());
        let Some(why) = failure else {
            self.note_full(full);
            let was_alone = !batch.is_empty() && !std::mem::replace(&mut self.is_proven, true);
            if was_alone {
                self.backoff = BACKOFF.0;
            }
            return Ok(was_alone || is_whole || (self.has_postponed && !self.is_crowded));
        };
        self.registry.metrics.registry_full_total.inc_by(full);
        // One more is counted with the reason.
        errors.inc_by(failures - 1);
        self.is_proven = false;
        if is_closed {
            self.close();
        }
        Err(why)
    }

    /// The bucket is looked at anew before anything is written or read again.
    fn close(&mut self) {
        self.bucket = None;
        self.is_proven = false;
        self.registry.lock().bucket = None;
    }

    /// To the operator, once for each reason: the check logs what changes.
    fn tell(&self, why: &str) {
        why.clone_into(&mut self.registry.lock().trouble);
        self.check.set(Status::Warning(format!(
            "registry.bucket {}: {why}",
            self.name.as_str()
        )));
    }
}

/// How often what is open is written again: so often that no bucket forgets it, and so rarely that half of the writes
/// are left for what changes.
fn again_every(open: usize, max_age: Option<Duration>) -> Duration {
    let paced = Duration::from_secs_f64(open as f64 / f64::from(AGAIN_PER_SECOND));
    let wanted = AGAIN_EVERY.max(paced);
    max_age
        .map_or(wanted, |age| wanted.min(age / 2))
        .max(LOOK_EVERY)
}

/// After how long a value goes by itself.
fn lasts(told: &PresenceUpdate, every: Duration) -> Duration {
    if told.is_end { ENDED_FOR } else { every * 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_written_again_before_a_bucket_forgets_it_and_within_the_rate() {
        let secs = Duration::from_secs;
        assert_eq!(again_every(10, None), secs(60));
        assert_eq!(again_every(30_000, Some(secs(600))), secs(60));
        assert_eq!(again_every(100_000, Some(secs(600))), secs(200));
        assert_eq!(again_every(10, Some(secs(30))), secs(15));
        assert_eq!(again_every(10, Some(secs(1))), secs(1));
    }
}
