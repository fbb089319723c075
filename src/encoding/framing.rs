//! Closed list of framings, each with its encoder.

use serde::Serialize;

use super::encoder::Encoder;
use super::envelope::Envelope;
use super::{long_poll, ndjson, sse, websocket};

/// Form of events and control messages in the response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Framing {
    /// Server-Sent Events.
    #[default]
    Sse,
    /// Newline-delimited JSON: one object per line.
    Ndjson,
    /// WebSocket: one object per text message.
    #[serde(rename = "websocket")]
    WebSocket,
    /// One JSON document per request, when there are events or the wait is over.
    LongPoll,
}

impl Framing {
    /// All framings, in the order of the variants.
    pub const ALL: [Self; 4] = [Self::Sse, Self::Ndjson, Self::WebSocket, Self::LongPoll];

    /// Framings of a route that names none.
    pub const DEFAULT: [Self; 2] = [Self::Sse, Self::Ndjson];

    /// Framing of the encoding that every buffered event has. The payload is kept inside it.
    pub const STORED: Self = Self::Sse;

    /// Number of framings that have encodings of events beside the stored one: the variants after
    /// it, up to [`Self::WebSocket`].
    pub const FURTHER: usize = Self::WebSocket as usize;

    /// Value in configuration, logs and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sse => "sse",
            Self::Ndjson => "ndjson",
            Self::WebSocket => "websocket",
            Self::LongPoll => "long_poll",
        }
    }

    /// Framing in which the feeds of its clients encode events. A long poll copies them.
    #[must_use]
    pub const fn of_events(self) -> Self {
        match self {
            Self::LongPoll => Self::Ndjson,
            other => other,
        }
    }

    /// Envelope of encoded events in a transport with this one. A WebSocket message has no chunk
    /// around it.
    #[must_use]
    pub fn envelope(self, of_transport: Envelope) -> Envelope {
        match self {
            Self::WebSocket => Envelope::NONE,
            Self::Sse | Self::Ndjson | Self::LongPoll => of_transport,
        }
    }

    /// Media type of the response body. `None`: the client asks for it by an upgrade.
    #[must_use]
    pub const fn media_type(self) -> Option<&'static str> {
        match self {
            Self::Sse => Some("text/event-stream"),
            Self::Ndjson => Some("application/x-ndjson"),
            Self::WebSocket => None,
            Self::LongPoll => Some("application/json"),
        }
    }

    /// Returns the encoder of this framing.
    #[must_use]
    pub fn encoder(self) -> &'static dyn Encoder {
        match self {
            Self::Sse => &sse::Sse,
            Self::Ndjson => &ndjson::Ndjson,
            Self::WebSocket => &websocket::WebSocket,
            Self::LongPoll => &long_poll::LongPoll,
        }
    }
}
