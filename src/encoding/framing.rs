//! Closed list of framings, each with its encoder.

use serde::Serialize;

use super::encoder::Encoder;
use super::{ndjson, sse};

/// Form of events and control messages in the response body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Framing {
    /// Server-Sent Events.
    #[default]
    Sse,
    /// Newline-delimited JSON: one object per line.
    Ndjson,
}

impl Framing {
    /// All framings, in the order of the variants.
    pub const ALL: [Self; 2] = [Self::Sse, Self::Ndjson];

    /// Framing of the encoding that every buffered event has. The payload is kept inside it.
    pub const STORED: Self = Self::Sse;

    /// Value in configuration, logs and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sse => "sse",
            Self::Ndjson => "ndjson",
        }
    }

    /// Media type of the response body.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Sse => "text/event-stream",
            Self::Ndjson => "application/x-ndjson",
        }
    }

    /// Returns the encoder of this framing.
    #[must_use]
    pub fn encoder(self) -> &'static dyn Encoder {
        match self {
            Self::Sse => &sse::Sse,
            Self::Ndjson => &ndjson::Ndjson,
        }
    }
}
