//! The one who writes: everything that has changed, in batches with a bound, and again before it expires.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::KvRegistry;
use super::bucket::{Bucket, Unwritten, explain};
use crate::lifecycle::drain::Watch;
use crate::lifecycle::health::{Check, Health, Status};
use crate::nats::api::Api;
use crate::nats::client::Link;
use crate::registry::Bucket as Name;
use crate::registry::changes::Told;
use crate::registry::entry::ENDED_FOR;

/// 100 ms: what changes within it is written together, and once.
const GATHER: Duration = Duration::from_millis(100);

/// 100 writes on their way at one time; with `GATHER` at most 1,000 a second.
const BATCH_MAX: usize = 100;

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
    registry: Arc<KvRegistry>,
    link: Link,
    api: Api,
    name: Name,
    check: Check,
    bucket: Option<Bucket>,
    /// Which bucket it was last.
    created: Option<String>,
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
    pub(super) fn new(registry: &Arc<KvRegistry>, link: Link, api: Api, name: &Name, health: &Health) -> Self {
        let check = health.check("registry", "not opened yet");
        // Good until it is known otherwise, and never failing: a pod without its registry serves as ever.
        check.set(Status::Ok);
        let (registry, name) = (Arc::clone(registry), name.clone());
        let (bucket, created, is_proven, backoff) = (None, None, false, BACKOFF.0);
        Self { registry, link, api, name, check, bucket, created, is_proven, backoff }
    }

    /// Writes until the drain, then what is left.
    pub(super) async fn run(mut self, mut drain: Watch) {
        let mut late = drain.clone();
        let too_late = async {
            late.signaled().await;
            sleep(LAST_WRITES).await;
        };
        let write = async {
            while !drain.is_signaled() {
                // Never dropped half-way: what is on its way is waited for.
                let pause = self.step().await;
                tokio::select! {
                    biased;
                    () = drain.signaled() => break,
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
        let done = match self.bucket {
            Some(_) => self.write().await,
            None => self.open().await,
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
        let opened = Bucket::open(&self.link, &self.api, &self.name).await;
        let bucket = opened.map_err(|trouble| explain(&trouble))?;
        if self.created.as_ref() != Some(&bucket.created) {
            self.created = Some(bucket.created.clone());
            self.registry.changes.forgotten();
        }
        self.registry.lock().bucket = Some(bucket.clone());
        self.bucket = Some(bucket);
        Ok(true)
    }

    /// Writes one batch. True: there may be more at once.
    async fn write(&mut self) -> Result<bool, String> {
        let Some(bucket) = &self.bucket else { return Err("there is no bucket".to_owned()) };
        let changes = &self.registry.changes;
        let every = again_every(changes.len(), bucket.max_age);
        // One alone, until it is known that it works: what is refused is refused once, not a hundred times.
        let most = if self.is_proven { BATCH_MAX } else { 1 };
        let batch = changes.take(most, every, std::time::Instant::now());
        let written = join_all(batch.iter().map(|told| bucket.put(&told.key, &told.entry, lasts(told, every), None)));
        let (mut failures, mut failure, mut is_closed) = (0, None, false);
        for (told, written) in batch.iter().zip(written.await) {
            let why = match written {
                Ok(_) => continue,
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
            self.check.set(Status::Ok);
            let was_alone = !batch.is_empty() && !std::mem::replace(&mut self.is_proven, true);
            if was_alone {
                self.backoff = BACKOFF.0;
            }
            return Ok(was_alone || batch.len() == BATCH_MAX);
        };
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
        self.check.set(Status::Warning(format!("registry.bucket {}: {why}", self.name.as_str())));
    }
}

/// How often what is open is written again: so often that no bucket forgets it, and so rarely that half of the writes
/// are left for what changes.
fn again_every(open: usize, max_age: Option<Duration>) -> Duration {
    let paced = Duration::from_secs_f64(open as f64 / f64::from(AGAIN_PER_SECOND));
    let wanted = AGAIN_EVERY.max(paced);
    max_age.map_or(wanted, |age| wanted.min(age / 2)).max(LOOK_EVERY)
}

/// After how long a value goes by itself.
fn lasts(told: &Told, every: Duration) -> Duration {
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
