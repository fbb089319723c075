//! Metrics of the injector, on its admin port.
//!
//! Names begin with `sidestream_injector_`, except that of dropped log lines, which the sidecar has
//! as well. Every label has a closed set of values, and each series exists from the start with the
//! value 0. The table of `docs/metrics.md` is written by the test at the end of this file.

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
};

use crate::logs;

/// Seconds of a review: from a small pod to the timeout of an API server.
const REVIEW_BUCKETS: [f64; 7] = [0.0005, 0.001, 0.005, 0.025, 0.1, 1.0, 5.0];

/// Values of the label `outcome`: those of `sidestream_inject::review::Outcome`, and reviews
/// without an answer.
const OUTCOMES: [&str; 8] = [
    "injected",
    "unchanged",
    "skipped",
    "left",
    "checked",
    "malformed",
    "too_large",
    "too_slow",
];

/// Labels of a request to the admin port with a `Host` that is not allowed.
pub(crate) const HOST_NOT_ALLOWED: [&str; 2] = ["admin", "host_not_allowed"];

/// All metrics, in a registry of their own.
pub(crate) struct Metrics {
    registry: Registry,
    /// `sidestream_injector_reviews_total{outcome}`
    pub(crate) reviews_total: IntCounterVec,
    /// `sidestream_injector_problems_total`
    pub(crate) problems_total: IntCounter,
    /// `sidestream_injector_review_seconds`
    pub(crate) review_seconds: Histogram,
    /// `sidestream_injector_refusals_total{port,code}`
    pub(crate) refusals_total: IntCounterVec,
    log_lines_dropped_total: IntCounter,
}

impl Metrics {
    /// Registers every metric.
    ///
    /// # Errors
    /// If two metrics have one name: a defect of this file that its test finds.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let options =
            |name: &str, help: &str| Opts::new(name, help).namespace("sidestream_injector");
        let reviews_total = IntCounterVec::new(
            options(
                "reviews_total",
                "Requests of API servers, by the result for the pod.",
            ),
            &["outcome"],
        )?;
        for outcome in OUTCOMES {
            reviews_total.with_label_values(&[outcome]);
        }
        let problems_total = IntCounter::with_opts(options(
            "problems_total",
            "Invalid annotations: each is in a warning, in the log, and in the annotation `sidestream.dev/warnings` of the pod.",
        ))?;
        let review_seconds = Histogram::with_opts(
            HistogramOpts::new("review_seconds", "Duration of reviews.")
                .namespace("sidestream_injector")
                .buckets(REVIEW_BUCKETS.to_vec()),
        )?;
        let refusals_total = IntCounterVec::new(
            options(
                "refusals_total",
                "Connections closed and requests rejected on the ports `webhook` and `admin`, by code: `no_first_byte`, \
                 `evicted` (a newer connection needed the slot), `busy` (the port or one peer address has its maximum of \
                 requests in progress), `host_not_allowed` (the `Host` is neither an address nor configured).",
            ),
            &["port", "code"],
        )?;
        refusals_total.with_label_values(&HOST_NOT_ALLOWED);
        let log_lines_dropped_total = IntCounter::with_opts(
            Opts::new(
                "log_lines_dropped_total",
                "Log lines that were dropped because standard error did not accept them: a hanging log collector, \
                 a full disk or a closed pipe.",
            )
            .namespace("sidestream"),
        )?;
        registry.register(Box::new(reviews_total.clone()))?;
        registry.register(Box::new(problems_total.clone()))?;
        registry.register(Box::new(review_seconds.clone()))?;
        registry.register(Box::new(refusals_total.clone()))?;
        registry.register(Box::new(log_lines_dropped_total.clone()))?;
        Ok(Self {
            registry,
            reviews_total,
            problems_total,
            review_seconds,
            refusals_total,
            log_lines_dropped_total,
        })
    }

    /// All metrics in the text format of Prometheus.
    pub(crate) fn render(&self) -> String {
        let counted = self.log_lines_dropped_total.get();
        self.log_lines_dropped_total
            .inc_by(logs::dropped_lines().saturating_sub(counted));
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::error!(%error, "metrics could not be encoded");
        }
        String::from_utf8(out).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // here a failure is the result

    use std::path::Path;

    use prometheus::proto::{MetricFamily, MetricType};

    use super::*;

    /// Head of the injector's table in `docs/metrics.md`; the table ends with the file.
    const HEAD: &str = "| name | type | labels | what it is |\n| --- | --- | --- | --- |\n";

    fn row(family: &MetricFamily) -> String {
        let kind = match family.get_field_type() {
            MetricType::COUNTER => "counter",
            MetricType::HISTOGRAM => "histogram",
            other => panic!("{other:?}"),
        };
        let labels: Vec<_> = family.get_metric()[0]
            .get_label()
            .iter()
            .map(|label| format!("`{}`", label.name()))
            .collect();
        let (name, help) = (family.name(), family.help());
        assert!(help.ends_with('.') && !help.contains('|'), "{name}: {help}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "))
    }

    #[test]
    fn documentation_lists_every_metric_of_the_injector() {
        let metrics = Metrics::new().unwrap();
        let table: String = metrics.registry.gather().iter().map(row).collect();
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        let text = std::fs::read_to_string(&page).unwrap();
        let begin = text.rfind(HEAD).unwrap() + HEAD.len();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&page, format!("{}{table}", &text[..begin])).unwrap();
            return;
        }
        assert_eq!(
            text[begin..],
            table,
            "docs/metrics.md is out of date: UPDATE_DOCS=1 cargo test -p sidestream-injector metrics"
        );
    }
}
