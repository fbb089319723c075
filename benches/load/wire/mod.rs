//! Parsers of the bytes between publisher, server and client: stamps, order, events in every framing,
//! HTTP/1.1.
//!
//! `tests/load_tool.rs` includes this folder and tests that no loss or duplicate stays undetected.

pub(crate) mod body;
pub(crate) mod coding;
pub(crate) mod events;
pub(crate) mod http1;
pub(crate) mod messages;
pub(crate) mod received;
pub(crate) mod sequence;
pub(crate) mod stamp;
