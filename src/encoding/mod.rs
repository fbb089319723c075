//! Encodings of an event stream, without I/O: one file per framing.
//!
//! A framing is the form of events and control messages in the response body. [`Framing`] is the
//! closed list; each has one [`Encoder`], which writes everything that a client receives:
//!
//! ```text
//! event      once per event, shared by all clients       Encoding
//! opening, gap, position, heartbeat, close, id           bytes of one client
//! ```
//!
//! An encoder knows no transport. The bytes of events have room for an [`Envelope`], which a
//! transport fills once for all clients ([`envelope`]). With a [`coding`] they are compressed, once for
//! all clients, too. [`sse::decode`] is the decoder of
//! `sidestream tail`.

pub mod coding;
mod encoder;
pub mod envelope;
mod framing;
pub mod grpc;
mod long_poll;
mod ndjson;
pub mod sse;
mod strict_json;
pub mod websocket;

pub use coding::Coding;
pub use encoder::{Encoder, EventParts, GapNotice};
pub use envelope::{Encoding, Envelope, Enveloped, RunBuilder};
pub use framing::Framing;
