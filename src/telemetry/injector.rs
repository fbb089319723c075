//! Every metric of the injector, which is a process of its own.

use std::cell::RefCell;

use prometheus::{Encoder as _, Histogram, IntCounter, IntCounterVec, Registry, TextEncoder};

use super::logs;
use super::metrics::{Described, LOG_LINES_DROPPED, Registrar};

/// Seconds of a review: from a small pod to the API server's own patience.
const REVIEW_BUCKETS: [f64; 7] = [0.0005, 0.001, 0.005, 0.025, 0.1, 1.0, 5.0];

/// All of them, in a registry of their own.
pub struct InjectorMetrics {
    registry: Registry,
    described: Vec<Described>,
    /// `sidestream_injector_reviews_total{outcome}`
    pub reviews_total: IntCounterVec,
    /// `sidestream_injector_problems_total`
    pub problems_total: IntCounter,
    /// `sidestream_injector_review_seconds`
    pub review_seconds: Histogram,
    /// `sidestream_injector_refusals_total{port,code}`
    pub refusals_total: IntCounterVec,
    /// `sidestream_log_lines_dropped_total`
    pub log_lines_dropped_total: IntCounter,
}

impl InjectorMetrics {
    /// Registers every metric.
    ///
    /// # Errors
    /// When two metrics have one name: a defect of this file, which its test would show.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = Registrar {
            registry: &registry,
            described: RefCell::default(),
        };
        Ok(Self {
            reviews_total: r.counters(
                "injector_reviews_total",
                "Requests of the API server (or somebody else), by what became of the pod.",
                &["outcome"],
            )?,
            problems_total: r.counter("injector_problems_total", "Problems with annotations: in warnings, in the log, and in the annotation `sidestream.dev/warnings` of pods.")?,
            review_seconds: r.histogram("injector_review_seconds", "How long reviews took.", &REVIEW_BUCKETS)?,
            refusals_total: r.counters(
                "injector_refusals_total",
                "Connections closed and requests rejected on the injector's ports (`webhook`, `admin`), by code: `no_first_byte`, `evicted` (a newer connection needed the slot), `busy` (as many requests are being answered as the port or one peer address may have), `host_not_allowed` (a `Host` that is no address and not configured).",
                &["port", "code"],
            )?,
            log_lines_dropped_total: r.counter("log_lines_dropped_total", LOG_LINES_DROPPED)?,
            described: r.described.into_inner(),
            registry,
        })
    }

    /// What there is, in the order in which it was registered.
    #[must_use]
    pub fn described(&self) -> &[Described] {
        &self.described
    }

    /// Everything in Prometheus's text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.log_lines_dropped_total
            .inc_by(logs::take_dropped_lines());
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::error!(%error, "metrics could not be written");
        }
        String::from_utf8(out).unwrap_or_default()
    }
}

impl std::fmt::Debug for InjectorMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InjectorMetrics")
    }
}
