//! Closed list of framings, each with its encoder.

use serde::Serialize;

use super::encoder::Encoder;
use super::envelope::Envelope;
use super::grpc::Grpc;
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
    /// gRPC-Web: one length-prefixed protobuf message per event. In configuration also gRPC.
    GrpcWeb,
    /// gRPC over HTTP/2: the same messages, and trailers of HTTP/2. Its name is that of
    /// [`Framing::GrpcWeb`].
    #[serde(rename = "grpc_web")]
    Grpc,
    /// One JSON document per request, when there are events or the wait is over.
    LongPoll,
}

impl Framing {
    /// All framings, in the order of the variants.
    pub const ALL: [Self; 6] = [
        Self::Sse,
        Self::Ndjson,
        Self::WebSocket,
        Self::GrpcWeb,
        Self::Grpc,
        Self::LongPoll,
    ];

    /// Framings of a route that names none.
    pub const DEFAULT: [Self; 2] = [Self::Sse, Self::Ndjson];

    /// Framing of the encoding that every buffered event has. The payload is kept inside it.
    pub const STORED: Self = Self::Sse;

    /// Number of framings whose encodings have a place of their own in every event: the variants after
    /// the stored one, up to [`Self::WebSocket`]. The one after them is [`Self::GrpcWeb`].
    pub const FURTHER: usize = Self::WebSocket as usize;

    /// Framings whose event streams can be compressed: those of a response body without messages.
    pub const COMPRESSED: [Self; 2] = [Self::Sse, Self::Ndjson];

    /// Value in configuration, logs and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sse => "sse",
            Self::Ndjson => "ndjson",
            Self::WebSocket => "websocket",
            Self::GrpcWeb | Self::Grpc => "grpc_web",
            Self::LongPoll => "long_poll",
        }
    }

    /// Framing in which the feeds of its clients encode events. A long poll copies them.
    #[must_use]
    pub const fn of_events(self) -> Self {
        match self {
            Self::LongPoll => Self::Ndjson,
            Self::Grpc => Self::GrpcWeb,
            other => other,
        }
    }

    /// Returns true for gRPC and gRPC-Web, which clients ask for by a call of a method.
    #[must_use]
    pub const fn is_grpc(self) -> bool {
        matches!(self, Self::GrpcWeb | Self::Grpc)
    }

    /// Envelope of encoded events in a transport with this one. A WebSocket message has no chunk
    /// around it.
    #[must_use]
    pub fn envelope(self, of_transport: Envelope) -> Envelope {
        match self {
            Self::WebSocket => Envelope::NONE,
            _ => of_transport,
        }
    }

    /// Media type of the response body. `None`: the client asks for it by an upgrade.
    #[must_use]
    pub const fn media_type(self) -> Option<&'static str> {
        match self {
            Self::Sse => Some("text/event-stream"),
            Self::Ndjson => Some("application/x-ndjson"),
            Self::WebSocket => None,
            Self::GrpcWeb => Some("application/grpc-web+proto"),
            Self::Grpc => Some("application/grpc"),
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
            Self::GrpcWeb => &Grpc {
                has_trailer_frame: true,
            },
            Self::Grpc => &Grpc {
                has_trailer_frame: false,
            },
            Self::LongPoll => &long_poll::LongPoll,
        }
    }
}
