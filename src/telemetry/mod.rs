//! What the process tells about itself: metrics and logs.

pub mod filter;
pub mod injector;
mod lines;
pub mod logs;
pub mod metrics;
mod panics;
mod writer;

pub use injector::InjectorMetrics;
pub use metrics::Metrics;
