//! What the process tells about itself: metrics and logs.

pub mod logs;
pub mod metrics;

pub use metrics::Metrics;
