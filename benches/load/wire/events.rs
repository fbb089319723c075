//! Reads `text/event-stream` for what the tool counts, without an allocation per event.

use super::sequence::{Order, Sequence};
use super::stamp::Stamp;

/// One thing that a client has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// A stamped event, finished by its blank line.
    Event {
        /// What the publisher wrote.
        stamp: Stamp,
        /// How it continues what this client had before.
        order: Order,
        /// Whether the event carried an `id:` field.
        id: bool,
    },
    /// A `sidestream.gap` event.
    Gap,
    /// A `sidestream.close` event.
    Close,
    /// A comment line.
    Heartbeat,
}

/// The event stream of one client: the line that is not complete yet, the event that is not complete yet, the order so far.
#[derive(Debug)]
pub(crate) struct EventReader {
    line: [u8; LINE_MAX],
    /// Bytes of `line` in use; 0 between lines.
    line_len: usize,
    stamp: Option<Stamp>,
    /// The `id:` of the event that is not complete yet.
    id: bool,
    sequence: Sequence,
    /// The last id of all, where it is remembered.
    last_id: Option<Vec<u8>>,
}

impl EventReader {
    /// A reader at the beginning of a body.
    pub(crate) fn new() -> Self {
        Self {
            line: [0; LINE_MAX],
            line_len: 0,
            stamp: None,
            id: false,
            sequence: Sequence::default(),
            last_id: None,
        }
    }

    /// A reader that had everything up to the event `sequence` before.
    pub(crate) fn after(sequence: u64) -> Self {
        Self {
            sequence: Sequence::after(sequence),
            ..Self::new()
        }
    }

    /// A reader that remembers the last id.
    pub(crate) fn remembering() -> Self {
        Self {
            last_id: Some(Vec::new()),
            ..Self::new()
        }
    }

    /// The id that a client would come back with, if it is remembered.
    pub(crate) fn last_id(&self) -> Option<&[u8]> {
        self.last_id.as_deref().filter(|id| !id.is_empty())
    }

    /// Takes a piece of the body, cut anywhere, and tells everything that it completes.
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

    /// Keeps the beginning of a line; what stands behind it is padding.
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
                    if let Some(last) = &mut self.last_id {
                        last.clear();
                        last.extend_from_slice(id);
                    }
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
            let order = self.sequence.observe(stamp.sequence);
            seen(Seen::Event { stamp, order, id });
        }
    }
}

/// A stamp needs 56 bytes at most (`data: {"t":`, two numbers of 20 digits, `,"s":` and the comma).
const LINE_MAX: usize = 64;
