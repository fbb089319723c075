//! Metrics and logs of the process.
//!
//! - [`metrics`]: every metric of the sidecar with name, labels and help text, and its rendering.
//!   [`injector`]: the metrics of the injector. docs/metrics.md is generated from both.
//! - [`logs`]: structured log on standard error. [`filter`] checks `log.filter`; `writer` is the
//!   bounded queue and the thread that writes it; `panics` logs panics as one line each.

pub mod filter;
pub mod injector;
pub mod logs;
pub mod metrics;
mod panics;
mod writer;

pub use injector::InjectorMetrics;
pub use metrics::Metrics;
