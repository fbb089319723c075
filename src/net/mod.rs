//! Sockets of the sidecar: listeners, TLS and socket states.
//!
//! Listeners, connection slots, socket options, TLS and the checks of request heads are those of
//! `crates/common`, which the injector uses as well. This folder adds the `listen:` section of the
//! configuration ([`config`]), TCP sockets as the kernel lists them ([`sockets`], [`queue`]), and
//! addresses as text ([`AddressText`]).

pub mod config;
pub mod proxy_timeout;
pub mod queue;
pub mod sockets;
mod table;
mod text;

pub use config::ListenConfig;
pub use sidestream_common::listener::{Listener, Sharing};
pub use sidestream_common::tls::{Tls, TlsConfig, TlsError};
pub use sidestream_common::{listener, request_head, slots, socket, tls};
pub use text::AddressText;
