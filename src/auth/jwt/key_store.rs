//! Keys of one provider in memory, kept up to date by one task.
//!
//! ```text
//! KeyFollower (task) -- load, every 15 min or when asked --> watch --> Keys --> requests
//!                    <-- a token with an unknown key id ----------------'
//! ```
//!
//! - One task loads, so there is one fetch at a time; requests wait for its result.
//! - A failed load keeps the keys, degrades the check, and is repeated with back-off, after 10 s at
//!   most.
//! - An unknown key id causes a load, but none within 10 s of the last one: a client can name any
//!   key id.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus::{IntCounter, IntGauge};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::key_origin::{KeyOrigin, LOAD_TIMEOUT};
use super::key_set::KeySet;
use crate::lifecycle::backoff::{Backoff, Jitter, spread};
use crate::lifecycle::health::{Check, Health, Status};
use crate::telemetry::Metrics;

/// 0.5 s to 10 s between failed loads: recovery takes seconds, and an issuer that is down is not
/// flooded by its clients.
const BACKOFF: Backoff = Backoff::new(
    Duration::from_millis(500),
    Duration::from_secs(10),
    Jitter::Half,
);

/// 10 s between a load and one for an unknown key id.
const ASKED_PAUSE: Duration = Duration::from_secs(10);

/// Keys of one provider. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    state: watch::Receiver<State>,
    asked: Arc<Notify>,
}

/// Task that keeps the keys up to date. Dropping it stops the task; the keys stay as they are.
#[derive(Debug)]
pub(in crate::auth) struct KeyFollower(JoinHandle<()>);

impl Drop for KeyFollower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Result of the loads until now.
#[derive(Debug, Default)]
struct State {
    /// Keys of the last load that succeeded; none before.
    keys: Arc<KeySet>,
    /// Last load, if there was one.
    last: Option<Load>,
}

/// A load that has ended.
#[derive(Clone, Copy, Debug)]
struct Load {
    at: Instant,
    /// Time of the next one, if it failed.
    retry: Option<Instant>,
}

/// The keys cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unavailable {
    /// Time until the next load.
    pub(super) retry_after: Duration,
}

impl Keys {
    /// Returns keys that never change.
    pub(super) fn fixed(keys: KeySet) -> Self {
        let last = Some(Load {
            at: Instant::now(),
            retry: None,
        });
        let keys = Arc::new(keys);
        Self {
            state: watch::channel(State { keys, last }).1,
            asked: Arc::default(),
        }
    }

    /// Starts to load keys. Needs a runtime.
    pub(super) fn follow(
        origin: KeyOrigin,
        provider: &str,
        health: &Health,
        metrics: &Metrics,
    ) -> (Self, KeyFollower) {
        let (publish, state) = watch::channel(State::default());
        let asked = Arc::<Notify>::default();
        let reports = Reports::new(provider, health, metrics);
        let task = tokio::spawn(follow(origin, publish, Arc::clone(&asked), reports));
        (Self { state, asked }, KeyFollower(task))
    }

    /// Returns the keys that are known.
    pub(super) fn current(&self) -> Arc<KeySet> {
        Arc::clone(&self.state.borrow().keys)
    }

    /// Returns newer keys than these, which lack the key of a token. Loads them if the last load is
    /// older than ten seconds. `None`: they are up to date, so the key does not exist.
    ///
    /// # Errors
    /// If newer keys cannot be loaded.
    pub(super) async fn newer(
        &self,
        than: &Arc<KeySet>,
    ) -> Result<Option<Arc<KeySet>>, Unavailable> {
        let mut state = self.state.clone();
        if let Some(answer) = state.borrow_and_update().newer(than, ASKED_PAUSE) {
            return answer;
        }
        self.asked.notify_one();
        // A load that is running when the time is over failed, as the next one would.
        let changed = timeout(LOAD_TIMEOUT, state.changed()).await;
        if !matches!(changed, Ok(Ok(()))) {
            return Err(Unavailable {
                retry_after: LOAD_TIMEOUT,
            });
        }
        let answer = state.borrow().newer(than, Duration::MAX);
        answer.unwrap_or(Ok(None))
    }
}

impl State {
    /// Returns the answer of [`Keys::newer`], or nothing if the last load is older than `age`.
    fn newer(
        &self,
        than: &Arc<KeySet>,
        age: Duration,
    ) -> Option<Result<Option<Arc<KeySet>>, Unavailable>> {
        if !Arc::ptr_eq(than, &self.keys) {
            return Some(Ok(Some(Arc::clone(&self.keys))));
        }
        let load = self.last.filter(|load| load.at.elapsed() < age)?;
        Some(match load.retry {
            None => Ok(None),
            Some(retry) => Err(Unavailable {
                retry_after: retry
                    .saturating_duration_since(Instant::now())
                    .max(Duration::from_secs(1)),
            }),
        })
    }
}

/// Loads until the task is stopped.
async fn follow(
    origin: KeyOrigin,
    publish: watch::Sender<State>,
    asked: Arc<Notify>,
    reports: Reports,
) {
    let mut failures = 0_u32;
    loop {
        let loaded = origin.load().await;
        let now = Instant::now();
        reports.report(&loaded, publish.borrow().keys.len());
        let delay = if loaded.is_ok() {
            failures = 0;
            spread(origin.interval(), fastrand::f64())
        } else {
            failures = failures.saturating_add(1);
            BACKOFF.delay(failures - 1, fastrand::f64())
        };
        let retry = loaded.is_err().then(|| now + delay);
        publish.send_modify(|state| {
            state.last = Some(Load { at: now, retry });
            if let Ok(keys) = loaded {
                state.keys = Arc::new(keys);
            }
        });
        let due = sleep(delay);
        tokio::pin!(due);
        loop {
            tokio::select! {
                () = &mut due => break,
                // The request may have been made during the load that has just ended.
                () = asked.notified() => if now.elapsed() >= ASKED_PAUSE { break },
            }
        }
    }
}

/// Health check, metrics and log of one provider.
struct Reports {
    provider: Box<str>,
    check: Check,
    succeeded: IntCounter,
    failed: IntCounter,
    loaded_at: IntGauge,
}

impl Reports {
    fn new(provider: &str, health: &Health, metrics: &Metrics) -> Self {
        let loads = |result| {
            metrics
                .authentication_key_loads_total
                .with_label_values(&[provider, result])
        };
        Self {
            provider: provider.into(),
            check: health.degraded(format!("authentication:{provider}"), Status::Ok),
            succeeded: loads("succeeded"),
            failed: loads("failed"),
            loaded_at: metrics
                .authentication_keys_loaded_timestamp_seconds
                .with_label_values(&[provider]),
        }
    }

    /// Reports a load; `kept` is the number of keys that are used after a failure.
    fn report(&self, loaded: &Result<KeySet, super::key_origin::LoadError>, kept: usize) {
        match loaded {
            Ok(keys) => {
                self.succeeded.inc();
                let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
                self.loaded_at
                    .set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
                tracing::debug!(provider = &*self.provider, keys = keys.len(), "keys loaded");
                self.check.set(Status::Ok);
            }
            Err(error) => {
                self.failed.inc();
                let effect = if kept == 0 {
                    "tokens are rejected until they are"
                } else {
                    "those of the last load are in use"
                };
                self.check.set(Status::Degraded(format!(
                    "the keys cannot be loaded, {effect}: {error}"
                )));
            }
        }
    }
}
