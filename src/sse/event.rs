//! What a message becomes once and every client receives: the event, its name and its tier.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::id::Position;

/// One event before it is encoded. In this order: readers look at the first three only.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Event {
    /// Where it stands in its source.
    pub position: Position,
    /// When this process received it: the start of `sidestream_delivery_seconds`.
    pub received: Instant,
    /// The tier its publisher gave it (`Sidestream-Priority`), if it gave one.
    pub tier: Option<Tier>,
    /// The NATS subject it was published on.
    pub subject: Arc<str>,
    /// The name its publisher gave it (`Sidestream-Event`), if it gave one.
    pub name: Option<EventName>,
    /// What its publisher calls it (`Nats-Msg-Id`), where a repetition has to be noticed here: on core subjects.
    pub message_id: Option<Box<str>>,
    /// The payload as published.
    pub data: Bytes,
}

/// How much an event matters when not everything can be delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Skipped first.
    Telemetry,
    /// Skipped when a client is about to be given up.
    #[default]
    Normal,
    /// Never skipped while it is in the window, never delayed.
    Critical,
}

impl Tier {
    /// Every tier, the most dispensable first.
    pub const ALL: [Self; 3] = [Self::Telemetry, Self::Normal, Self::Critical];

    /// The word used in configuration, headers and metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Telemetry => "telemetry",
            Self::Normal => "normal",
            Self::Critical => "critical",
        }
    }

    /// Reads the word, whatever its case; anything else is no tier.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|tier| tier.as_str().eq_ignore_ascii_case(word.trim()))
    }
}

/// The name of an event: the `event:` field.
///
/// It holds no control character (one would end the field), is 1 to 128 bytes long, does not begin with `sidestream.`, which
/// is kept for control events, and does not end in `;base64`, which says that the payload is encoded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventName(Arc<str>);

impl EventName {
    /// The longest name, in bytes.
    pub const LENGTH_MAX: usize = 128;

    /// The end of the name of an event whose payload is base64.
    pub const ENCODED: &str = ";base64";

    /// Takes a name that can stand in an `event:` field, or nothing.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let sound = !text.is_empty()
            && text.len() <= Self::LENGTH_MAX
            && !text.chars().any(char::is_control)
            && !text.starts_with(' ') // A decoder removes one leading space.
            && !text.starts_with("sidestream.")
            && !text.ends_with(Self::ENCODED);
        sound.then(|| Self(Arc::from(text)))
    }

    /// The name of an event that says that a key or the messages of a subject were removed. No publisher can give it.
    #[must_use]
    pub fn removed() -> Self {
        Self(Arc::from("sidestream.removed"))
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
