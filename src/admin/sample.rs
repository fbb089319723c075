//! Gauges that are computed before each scrape: lag per route, slow clients, health checks, progress
//! of the drain.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::answer::COUNTED;
use super::parts::Parts;
use crate::lifecycle::health::Status;
use crate::lifecycle::phase::Phase;
use crate::presence::RouteLag;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::set_state;

/// Registers the samplers.
pub(super) fn install(metrics: &Metrics, parts: &Parts) {
    let (streams, drain, health) = (
        parts.streams.clone(),
        parts.drain.clone(),
        parts.health.clone(),
    );
    // Initialised to zero: the increase from an absent series to 1 would not fire an alert.
    for code in COUNTED {
        metrics
            .admin_refusals_total
            .with_label_values(&["admin", code])
            .reset();
    }
    let routes = Mutex::<BTreeMap<Arc<str>, RouteLag>>::default();
    metrics.sample_with(move |metrics| {
        let mut routes = routes.lock().unwrap_or_else(PoisonError::into_inner);
        // Routes without event streams report 0 and not their last lag.
        for route in routes.values_mut() {
            *route = RouteLag::default();
        }
        routes.extend(streams.lag());
        for (route, lag) in &*routes {
            set(metrics, route, lag);
        }
    });
    metrics.sample_with(move |metrics| {
        // Removes the series of checks that are gone, such as that of a removed stream.
        metrics.health_check.reset();
        for (check, status) in health.report() {
            for name in Status::NAMES {
                let value = i64::from(name == status.as_str());
                metrics
                    .health_check
                    .with_label_values(&[&*check, name])
                    .set(value);
            }
        }
    });
    metrics.sample_with(move |metrics| {
        let progress = *drain.borrow();
        let phases = Phase::ALL.map(Phase::as_str);
        set_state(&metrics.drain_phase, phases, progress.phase.as_str());
        metrics.drain_streams_left.set(gauge(progress.streams_left));
    });
}

fn set(metrics: &Metrics, route: &str, now: &RouteLag) {
    metrics
        .lag_events
        .with_label_values(&[route])
        .set(gauge(now.lag.events));
    metrics
        .lag_bytes
        .with_label_values(&[route])
        .set(gauge(now.lag.bytes));
    metrics
        .lag_seconds
        .with_label_values(&[route])
        .set(now.lag.age.as_secs_f64());
    metrics
        .slow_clients
        .with_label_values(&[route])
        .set(gauge(now.slow));
}

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
