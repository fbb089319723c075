//! Sockets: listeners, their options, TLS.

pub mod config;

pub use config::{ListenConfig, TlsConfig};
