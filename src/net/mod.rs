//! Sockets: listeners, their options, TLS.

pub mod config;
pub mod listener;
pub mod queue;
pub mod socket;
pub mod tls;

pub use config::{ListenConfig, TlsConfig};
pub use listener::{Listener, Sharing};
pub use tls::{Tls, TlsError};
