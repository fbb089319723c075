//! Event as decoded from a NATS message: position, payload, name and tier.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::headers::EventHeaders;
use super::id::Position;
use super::version::Version;

/// The largest payload of an event, in bytes. NATS itself recommends at most 8 MiB. An event is
/// written to a client in one piece, so a larger one would delay all events after it.
pub const PAYLOAD_BYTES_MAX: usize = 8 << 20;

/// One event before it is encoded. The field order is deliberate: readers use the first three.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Event {
    /// Position in its source.
    pub position: Position,
    /// Time of receipt in this process: the start of `sidestream_delivery_seconds`.
    pub received: Instant,
    /// Tier set by the publisher (`Sidestream-Priority`).
    pub tier: Option<Tier>,
    /// It ends finite event streams (`Sidestream-End`).
    pub is_end: bool,
    /// Version of the payload set by the publisher (`Sidestream-Version`).
    pub version: Option<Version>,
    /// Number of its sample, if traces record it (`telemetry::trace::samples`).
    pub sample: Option<NonZeroU32>,
    /// NATS subject.
    pub subject: Arc<str>,
    /// Event name set by the publisher (`Sidestream-Event`).
    pub name: Option<EventName>,
    /// Other headers: the message id, and the attributes of a CloudEvent.
    pub headers: EventHeaders,
    /// Payload as published.
    pub data: Bytes,
}

/// Importance of an event when not all can be delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Skipped first.
    Telemetry,
    /// Skipped last, before a slow client's event stream ends.
    #[default]
    Normal,
    /// Never skipped while it is in the window, and never delayed.
    Critical,
}

impl Tier {
    /// All tiers, the first to be skipped first.
    pub const ALL: [Self; 3] = [Self::Telemetry, Self::Normal, Self::Critical];

    /// Value in configuration, headers and metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Telemetry => "telemetry",
            Self::Normal => "normal",
            Self::Critical => "critical",
        }
    }

    /// Parses the value, ignoring case.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|tier| tier.as_str().eq_ignore_ascii_case(word.trim()))
    }
}

/// Name of an event: the `event:` field.
///
/// It is 1 to 128 bytes long and has no control characters (a line end would end the field). It
/// does not start with `sidestream.`, which is reserved for control events, and does not end with
/// `;base64`, which marks an encoded payload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventName(Arc<str>);

/// Name of the event for a removed key.
const REMOVED: &str = "sidestream.removed";

impl EventName {
    /// Maximum length in bytes.
    pub const LENGTH_MAX: usize = 128;

    /// Suffix of the name of an event with a base64 payload.
    pub const ENCODED: &str = ";base64";

    /// Prefix of the names that publishers cannot use.
    const RESERVED: &str = "sidestream.";

    /// Parses a name; `None` if it is not valid in an `event:` field.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_valid = !text.is_empty()
            && text.len() <= Self::LENGTH_MAX
            && !text.chars().any(char::is_control)
            && !text.starts_with(' ') // A decoder removes one leading space.
            && !text.starts_with(Self::RESERVED)
            && !text.ends_with(Self::ENCODED);
        is_valid.then(|| Self(Arc::from(text)))
    }

    /// Name of the event for a removed key or removed messages of a subject. Publishers cannot use
    /// it.
    #[must_use]
    pub fn removed() -> Self {
        Self(Arc::from(REMOVED))
    }

    /// True for [`EventName::removed`].
    #[must_use]
    pub fn is_removed(&self) -> bool {
        *self.0 == *REMOVED
    }

    /// True if it is the name of an event that Sidestream itself makes.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with(Self::RESERVED)
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
