//! Load level: measures four times a second what can become scarce, and publishes one level.
//!
//! Runs on the admin thread, so that the measurement does not wait for busy shards. Each pass
//! counts file descriptors, memory of windows, event-loop lag of the shards and messages that NATS
//! has ready; [`LoadMonitor`] turns the readings into a level. Event streams read the level from
//! [`SharedLevel`]; the operator sees it in the check `pressure`, in the log and in the metrics.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use super::sources::Sources;
use crate::feed::Budget;
use crate::lifecycle::health::{Check, Health, Status};
use crate::limit::load_level::{LoadMonitor, Readings, SharedLevel};
use crate::limit::{
    ConnectionLimiter, FdHeadroom, LoadLevel, LoopLagProbes, Thresholds, descriptors,
};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::set_state;

/// 250 ms: the level falls well within a second after a shortage ends.
const MEASURE_EVERY: Duration = Duration::from_millis(250);

/// 50: kernels before 6.2 have to list open descriptors; counting then takes at most 2 % of a core.
const COST_SHARE: u32 = 50;

/// Pending messages assumed while NATS drops core messages: a value that asks for level 2.
const DROPPED: f64 = 50_000.0;

/// Inputs of the measurement, and the places where its result is published.
pub(super) struct Watched {
    pub(super) limiter: Arc<ConnectionLimiter>,
    pub(super) budget: Arc<Budget>,
    pub(super) loop_lag: LoopLagProbes,
    /// Set once the NATS side has started.
    pub(super) sources: Arc<OnceLock<Arc<Sources>>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Health,
    pub(super) level: SharedLevel,
}

impl Watched {
    /// Measures until the runtime ends.
    pub(super) async fn watch(self) {
        let check = self.health.check("file_descriptors", "not counted yet");
        let pressure_check = self.health.check("pressure", "not measured yet");
        pressure_check.set(Status::Ok);
        let mut monitor = LoadMonitor::default();
        self.report_level(LoadLevel::None);
        let (mut next, mut last, mut dropped) = (Instant::now(), None, 0);
        let mut ticks = interval(MEASURE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let began = Instant::now();
            if began >= next {
                if let Err(error) = self.limiter.refresh(descriptors::open) {
                    tracing::debug!(%error, "cannot count open file descriptors");
                }
                next = began + began.elapsed() * COST_SHARE;
            }
            report_headroom(&check, &self.limiter, &mut last);
            let readings = self.read(&mut dropped);
            if let Some(change) = monitor.update(readings, Instant::now()) {
                let (from, to) = (change.from.number(), change.to.number());
                self.level.set(change.to);
                self.report_level(change.to);
                let measure = change
                    .cause
                    .map(|(measure, _)| tracing::field::display(measure));
                let (value, does) = (change.cause.map(|(_, value)| value), change.to.explain());
                tracing::warn!(from, to, measure, value, does, "pressure");
                pressure_check.set(match change.to {
                    LoadLevel::None => Status::Ok,
                    level => Status::Degraded(format!("level {to}: {}", level.explain())),
                });
            }
        }
    }

    /// Sets the gauge of every level.
    fn report_level(&self, level: LoadLevel) {
        let levels = LoadLevel::ALL.map(LoadLevel::as_str);
        set_state(&self.metrics.pressure_level, levels, level.as_str());
    }

    fn read(&self, dropped: &mut u64) -> Readings {
        let before = std::mem::replace(dropped, self.metrics.nats_slow_consumer_total.get());
        let pending = self.sources.get().map_or(0, |sources| sources.pending()) as f64;
        Readings {
            descriptors: between(&self.limiter),
            window_bytes: self.budget.used() as f64 / self.budget.max().max(1) as f64,
            loop_lag: self.loop_lag.lag().as_secs_f64(),
            pending: if *dropped > before {
                pending.max(DROPPED)
            } else {
                pending
            },
        }
    }
}

/// Use of descriptors between the thresholds: 0 at `warn`, 1 at `reject`.
fn between(limiter: &ConnectionLimiter) -> f64 {
    let Thresholds { warn, reject } = limiter.thresholds();
    let share = limiter.in_use() as f64 * 100.0 / limiter.limit() as f64;
    // The thresholds may be equal.
    (share - f64::from(warn)) / f64::from(reject - warn).max(f64::MIN_POSITIVE)
}

/// Sets the check `file_descriptors`. It recovers with a margin of 2 %: otherwise a single client
/// that connects and disconnects would log a line each time.
fn report_headroom(check: &Check, limiter: &ConnectionLimiter, last: &mut Option<FdHeadroom>) {
    let (limit, thresholds) = (limiter.limit(), limiter.thresholds());
    let eased = limiter.in_use() + limit / 50;
    let headroom = match (limiter.headroom(), *last) {
        (FdHeadroom::Ample, Some(FdHeadroom::Low))
            if eased * 100 >= limit * u64::from(thresholds.warn) =>
        {
            FdHeadroom::Low
        }
        (FdHeadroom::Low, Some(FdHeadroom::Reserved))
            if eased * 100 >= limit * u64::from(thresholds.reject) =>
        {
            FdHeadroom::Reserved
        }
        (FdHeadroom::Exhausted, _) => FdHeadroom::Reserved,
        (headroom, _) => headroom,
    };
    *last = Some(headroom);
    check.set(match headroom {
        FdHeadroom::Ample => Status::Ok,
        FdHeadroom::Low => Status::Degraded(format!(
            "more than {} % of {limit} are in use",
            thresholds.warn
        )),
        FdHeadroom::Reserved | FdHeadroom::Exhausted => Status::Degraded(format!(
            "more than {} % of {limit} are in use: new event streams are rejected",
            thresholds.reject
        )),
    });
}
