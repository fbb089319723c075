//! The load of the pod, looked at a few times a second however busy its other threads are.

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

/// 250 ms: a shortage that is over is seen well within a second.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// 50: on kernels before 6.2, where open descriptors have to be listed, looking takes at most 2 % of a core.
const COST_SHARE: u32 = 50;

/// Core messages that were dropped since the last look count as so many that wait: they ask for level 2 while it goes on.
const DROPPED: f64 = 50_000.0;

/// What is looked at, and where it is told.
pub(super) struct Watched {
    pub(super) limiter: Arc<ConnectionLimiter>,
    pub(super) budget: Arc<Budget>,
    pub(super) loop_lag: LoopLagProbes,
    /// There once NATS has been begun with.
    pub(super) sources: Arc<OnceLock<Arc<Sources>>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Health,
    pub(super) level: SharedLevel,
}

impl Watched {
    /// Looks for ever.
    pub(super) async fn watch(self) {
        let check = self.health.check("file_descriptors", "not counted yet");
        let pressure_check = self.health.check("pressure", "not measured yet");
        pressure_check.set(Status::Ok);
        let mut monitor = LoadMonitor::default();
        let (mut next, mut told, mut dropped) = (Instant::now(), None, 0);
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let began = Instant::now();
            if began >= next {
                if let Err(error) = self.limiter.refresh(descriptors::open) {
                    tracing::debug!(%error, "open file descriptors cannot be counted");
                }
                next = began + began.elapsed() * COST_SHARE;
            }
            report_headroom(&check, &self.limiter, &mut told);
            let readings = self.read(&mut dropped);
            if let Some(change) = monitor.update(readings, Instant::now()) {
                let (from, to) = (change.from.number(), change.to.number());
                self.level.set(change.to);
                self.metrics.pressure_level.set(to.into());
                let measure = change
                    .cause
                    .map(|(measure, _)| tracing::field::display(measure));
                let (value, does) = (change.cause.map(|(_, value)| value), change.to.explain());
                tracing::warn!(from, to, measure, value, does, "pressure");
                pressure_check.set(match change.to {
                    LoadLevel::None => Status::Ok,
                    level => Status::Warning(format!("level {to}: {}", level.explain())),
                });
            }
        }
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

/// Where what is in use stands on the way from `warn`, which is 0, to `reject`, which is 1.
fn between(limiter: &ConnectionLimiter) -> f64 {
    let Thresholds { warn, reject } = limiter.thresholds();
    let share = limiter.in_use() as f64 * 100.0 / limiter.limit() as f64;
    // Both may be the same: then there is no way between.
    (share - f64::from(warn)) / f64::from(reject - warn).max(f64::MIN_POSITIVE)
}

/// Says how file descriptors stand. Once it has warned it goes on until there is some room, or a client that comes and
/// goes would write a line each time.
fn report_headroom(check: &Check, limiter: &ConnectionLimiter, told: &mut Option<FdHeadroom>) {
    let (limit, thresholds) = (limiter.limit(), limiter.thresholds());
    let eased = limiter.in_use() + limit / 50;
    let headroom = match (limiter.headroom(), *told) {
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
    *told = Some(headroom);
    check.set(match headroom {
        FdHeadroom::Ample => Status::Ok,
        FdHeadroom::Low => Status::Warning(format!(
            "more than {} % of {limit} are in use",
            thresholds.warn
        )),
        FdHeadroom::Reserved | FdHeadroom::Exhausted => Status::Warning(format!(
            "more than {} % of {limit} are in use: new event streams are refused",
            thresholds.reject
        )),
    });
}
