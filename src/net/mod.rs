//! Sockets: listeners, their options, TLS, what the kernel tells of them.

pub mod config;
pub mod listener;
pub mod queue;
pub mod request_head;
pub mod slots;
pub mod socket;
pub mod sockets;
mod table;
mod text;
pub mod tls;

pub use config::{ListenConfig, TlsConfig};
pub use listener::{Listener, Sharing};
pub use text::AddressText;
pub use tls::{Tls, TlsError};
