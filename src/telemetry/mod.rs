//! Metrics, traces and logs of the process.
//!
//! - [`metrics`]: every metric of the sidecar with name, labels and help text, and its rendering, also
//!   in the format of OpenMetrics ([`open_metrics`]), which has [`exemplars`]. Its table in
//!   docs/metrics.md is generated.
//! - [`trace`]: spans of sampled events and event streams, sent to a collector by OTLP.
//! - [`logs`]: structured log on standard error. [`filter`] (of `crates/common`) checks
//!   `log.filter`; `writer` is the bounded queue and the thread that writes it; `panics` logs panics
//!   as one line each.

pub mod exemplars;
pub mod logs;
pub mod metrics;
pub mod open_metrics;
mod panics;
pub mod trace;
mod writer;

pub use metrics::Metrics;
pub use sidestream_common::log_filter as filter;
pub use trace::Tracer;
