//! Metrics and logs of the process.
//!
//! - [`metrics`]: every metric of the sidecar with name, labels and help text, and its rendering.
//!   Its table in docs/metrics.md is generated.
//! - [`logs`]: structured log on standard error. [`filter`] (of `crates/common`) checks
//!   `log.filter`; `writer` is the bounded queue and the thread that writes it; `panics` logs panics
//!   as one line each.

pub mod logs;
pub mod metrics;
mod panics;
mod writer;

pub use metrics::Metrics;
pub use sidestream_common::log_filter as filter;
