//! The format of Server-Sent Events, pure: events, their encoding, their ids.

pub mod decode;
pub mod encode;
pub mod event;
pub mod id;

pub use event::{Event, EventName, Tier};
pub use id::{EventId, InvalidId, Position, SourceTag};
