//! Parser of `text/event-stream`, without an allocation for each event.
//!
//! It shares no code with the sidecar, so that an error of the encoder cannot hide here. It keeps
//! only the beginning of a line: all fields that the tool counts are there.

use super::received::Received;
use super::sequence::Order;
use super::stamp::Stamp;

/// Something that a client received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// A complete event with a stamp.
    Event {
        /// Stamp of the publisher.
        stamp: Stamp,
        /// Position after the events received before.
        order: Order,
        /// True if the event has an `id:` field.
        id: bool,
    },
    /// A `sidestream.gap` event.
    Gap,
    /// A `sidestream.close` event.
    Close,
    /// A comment line.
    Heartbeat,
}

/// State of one event stream: its incomplete line, its incomplete event, and the record of its client.
#[derive(Debug)]
pub(crate) struct EventReader {
    line: [u8; LINE_MAX],
    /// Number of bytes in `line`; 0 between lines.
    line_len: usize,
    stamp: Option<Stamp>,
    /// True if the incomplete event has an `id:` field.
    id: bool,
    received: Received,
}

impl EventReader {
    /// Returns a reader for the beginning of a body.
    pub(crate) fn new(received: Received) -> Self {
        Self {
            line: [0; LINE_MAX],
            line_len: 0,
            stamp: None,
            id: false,
            received,
        }
    }

    /// Returns the record of its client.
    pub(crate) fn received(&self) -> &Received {
        &self.received
    }

    /// Parses a piece of the body, cut anywhere, and reports everything that it completes.
    pub(crate) fn push(&mut self, mut body: &[u8], seen: &mut impl FnMut(Seen)) {
        while let Some(end) = memchr::memchr(b'\n', body) {
            if self.line_len == 0 {
                self.line(&body[..end], seen);
            } else {
                self.keep(&body[..end]);
                let line = self.line;
                self.line(&line[..self.line_len], seen);
                self.line_len = 0;
            }
            body = &body[end + 1..];
        }
        self.keep(body);
    }

    /// Keeps the beginning of a line; the rest is padding.
    fn keep(&mut self, bytes: &[u8]) {
        let taken = bytes.len().min(LINE_MAX - self.line_len);
        self.line[self.line_len..self.line_len + taken].copy_from_slice(&bytes[..taken]);
        self.line_len += taken;
    }

    fn line(&mut self, line: &[u8], seen: &mut impl FnMut(Seen)) {
        match line.first() {
            None => self.dispatch(seen),
            Some(b'd') => {
                if let Some(stamp) = line.strip_prefix(b"data: ").and_then(Stamp::parse) {
                    self.stamp = Some(stamp);
                }
            }
            Some(b'i') => {
                if let Some(id) = line.strip_prefix(b"id: ") {
                    self.id = true;
                    self.received.set_id(id);
                }
            }
            Some(b'e') => match line {
                b"event: sidestream.gap" => seen(Seen::Gap),
                b"event: sidestream.close" => seen(Seen::Close),
                _ => {}
            },
            Some(b':') => seen(Seen::Heartbeat),
            Some(_) => {}
        }
    }

    fn dispatch(&mut self, seen: &mut impl FnMut(Seen)) {
        let id = std::mem::take(&mut self.id);
        if let Some(stamp) = self.stamp.take() {
            seen(self.received.event(stamp, id));
        }
    }
}

/// A stamp has at most 56 bytes: `data: {"t":`, two numbers of 20 digits, `,"s":` and the comma.
const LINE_MAX: usize = 64;
