//! Connections: from the listener to a request.
//!
//! ```text
//! listen           accepts, takes a connection permit
//! connection_task  the one task of a connection: handshake, then streaming
//! detect           HTTP/1, HTTP/2 or TLS, by the first bytes
//! connection       hyper for HTTP/1 requests; hands over to h1::stream or h2::connection
//! ```

pub(in crate::http) mod connection;
pub(in crate::http) mod connection_task;
pub(in crate::http) mod detect;
pub(in crate::http) mod listen;
