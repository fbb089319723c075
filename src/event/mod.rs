//! Events and event ids, without I/O: the types that every source and every framing share.
//!
//! [`event`] is the decoded NATS message. [`id`] is the position that a client sends back as
//! `Last-Event-ID`. The folder `encoding` turns both into bytes.

pub mod event;
pub mod headers;
pub mod id;
mod version;

pub use self::event::{Event, EventName, PAYLOAD_BYTES_MAX, Tier};
pub use headers::EventHeaders;
pub use id::{EventId, Fingerprint, InvalidId, Position, SourceTag};
pub use version::Version;
