//! Server-Sent Events as a format, without I/O: events, encoder, decoder and event ids.
//!
//! [`event`] is the decoded NATS message, [`encode`] turns it into bytes, [`id`] is the position
//! that a client sends back as `Last-Event-ID`, and [`decode`] is the client's side, for
//! `sidestream tail` and tests.

pub mod decode;
pub mod encode;
pub mod event;
pub mod id;

pub use event::{Event, EventName, Tier};
pub use id::{EventId, InvalidId, Position, SourceTag};
