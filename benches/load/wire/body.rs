//! Body of an event stream in any framing.

use super::coding::{Coding, Decoder};
use super::events::{EventReader, Seen};
use super::messages::{Cut, MessageReader};
use super::received::Received;

/// Framing that the clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Framing {
    /// Server-Sent Events
    Sse,
    /// Lines of JSON
    Ndjson,
    /// WebSocket messages
    #[value(name = "websocket")]
    WebSocket,
    /// gRPC over HTTP/2, gRPC-Web over HTTP/1.1
    Grpc,
}

/// Reader of a body, which may be compressed.
pub(crate) struct BodyReader {
    decoder: Option<Decoder>,
    parser: Parser,
}

/// Parser of a body.
#[derive(Debug)]
enum Parser {
    /// Server-Sent Events.
    Events(EventReader),
    /// All other framings.
    Messages(MessageReader),
}

impl BodyReader {
    /// Returns a reader for the beginning of a body.
    pub(crate) fn new(framing: Framing, coding: Option<Coding>, received: Received) -> Self {
        Self {
            decoder: coding.map(Decoder::new),
            parser: Parser::new(framing, received),
        }
    }

    /// Parses a piece of the body, cut anywhere, and reports everything that it completes.
    ///
    /// Bytes that cannot be decoded are missing events.
    pub(crate) fn push(&mut self, body: &[u8], seen: &mut impl FnMut(Seen)) {
        match &mut self.decoder {
            Some(decoder) => self.parser.push(decoder.push(body), seen),
            None => self.parser.push(body, seen),
        }
    }

    /// Returns the id that the client would resume from, if it is stored.
    pub(crate) fn last_id(&self) -> Option<&[u8]> {
        self.received().last_id()
    }

    /// Returns the number of the last event; 0 before the first one.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.received().last_sequence()
    }

    fn received(&self) -> &Received {
        match &self.parser {
            Parser::Events(reader) => reader.received(),
            Parser::Messages(reader) => reader.received(),
        }
    }

    /// Returns the number of pings since the last call. The client has to answer them.
    pub(crate) fn take_pings(&mut self) -> usize {
        match &mut self.parser {
            Parser::Events(_) => 0,
            Parser::Messages(reader) => reader.take_pings(),
        }
    }
}

impl Parser {
    fn new(framing: Framing, received: Received) -> Self {
        let cut = match framing {
            Framing::Sse => return Self::Events(EventReader::new(received)),
            Framing::Ndjson => Cut::Lines,
            Framing::WebSocket => Cut::Frames,
            Framing::Grpc => Cut::Prefixed,
        };
        Self::Messages(MessageReader::new(cut, received))
    }

    fn push(&mut self, body: &[u8], seen: &mut impl FnMut(Seen)) {
        match self {
            Self::Events(reader) => reader.push(body, seen),
            Self::Messages(reader) => reader.push(body, seen),
        }
    }
}
