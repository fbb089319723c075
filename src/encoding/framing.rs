//! Closed list of framings, each with its encoder.

use super::encoder::Encoder;
use super::sse;

/// Form of events and control messages in the response body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Framing {
    /// Server-Sent Events.
    #[default]
    Sse,
}

impl Framing {
    /// Framing of the encoding that every buffered event has. The payload is kept inside it.
    pub const STORED: Self = Self::Sse;

    /// Media type of the response body.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Sse => "text/event-stream",
        }
    }

    /// Returns the encoder of this framing.
    #[must_use]
    pub fn encoder(self) -> &'static dyn Encoder {
        match self {
            Self::Sse => &sse::Sse,
        }
    }
}
