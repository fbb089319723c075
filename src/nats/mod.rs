//! The upstream side: connections to NATS, and messages that become events.

pub mod config;

pub use config::Config;
