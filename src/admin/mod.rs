//! The operator's side: probes, metrics, connections, configuration, the control socket; on a thread of its own.

pub mod config;

pub use config::Config;
