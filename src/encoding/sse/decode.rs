//! Decoder of `text/event-stream` for clients (WHATWG HTML, section 9.2.6).
//!
//! [`Decoder::next`] takes bytes in pieces of any size and returns one event, position or retry
//! time at a time. An event is dispatched at the blank line that ends it; a truncated event is
//! dropped. Lines end with LF, CR or CRLF, so a CR at the end of a piece is followed by an optional
//! LF in the next one. `sidestream tail` and the tests use it.

use std::time::Duration;

use memchr::memchr2;

/// Incremental decoder. Its memory is bounded by `limit` plus the allocator's rounding.
#[derive(Debug)]
pub struct Decoder {
    limit: usize,
    /// Start of the current line, if it arrived in several pieces.
    line: Vec<u8>,
    /// The previous piece ended with CR; an LF that follows belongs to the same line end.
    after_cr: bool,
    /// Matched bytes of a byte order mark; `None` after the first other byte.
    mark: Option<usize>,
    event: String,
    data: String,
    id: String,
    /// The current block has an `id` line.
    has_id: bool,
}

/// One decoded item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// Event.
    Event(ReceivedEvent),
    /// Block with an id and without data: it sets the position, nothing is dispatched.
    Position(String),
    /// Reconnection time from now on.
    Retry(Duration),
}

/// Event as a client receives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedEvent {
    /// Position after this event; empty if the server has sent none.
    pub id: String,
    /// Event name; `message` if the server sent none.
    pub event: String,
    /// Payload.
    pub data: String,
}

/// The server sent an event larger than the decoder's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server sent an event of more than {limit} bytes")]
pub struct TooLarge {
    /// Limit in bytes.
    pub limit: usize,
}

impl Decoder {
    /// Creates a decoder that holds at most `limit` bytes of one event.
    ///
    /// `last_event_id` is the position of the previous connection; an event without an id keeps it.
    /// (By the letter of the standard a reconnect resets it; browsers keep it.)
    #[must_use]
    pub fn new(limit: usize, last_event_id: &str) -> Self {
        Self {
            limit,
            line: Vec::new(),
            after_cr: false,
            mark: Some(0),
            event: String::new(),
            data: String::new(),
            id: last_event_id.to_owned(),
            has_id: false,
        }
    }

    /// Consumes bytes from the front of `piece` up to the end of the first item. `None`: the piece
    /// is consumed, and the decoder needs the next one.
    ///
    /// # Errors
    /// [`TooLarge`] ends the stream: the decoder must not be used afterwards.
    pub fn next(&mut self, piece: &mut &[u8]) -> Result<Option<Decoded>, TooLarge> {
        self.skip_mark(piece);
        while !piece.is_empty() {
            if std::mem::take(&mut self.after_cr) && piece[0] == b'\n' {
                *piece = &piece[1..];
                continue;
            }
            let Some(end) = memchr2(b'\n', b'\r', piece) else {
                self.buffer(piece)?;
                *piece = &[];
                break;
            };
            let (line, rest) = (&piece[..end], &piece[end + 1..]);
            self.after_cr = piece[end] == b'\r';
            *piece = rest;
            if let Some(decoded) = self.line(line)? {
                return Ok(Some(decoded));
            }
        }
        Ok(None)
    }

    /// Skips a byte order mark at the start, which may arrive byte by byte.
    fn skip_mark(&mut self, piece: &mut &[u8]) {
        while let (Some(seen), Some(byte)) = (self.mark, piece.first()) {
            if *byte == BYTE_ORDER_MARK[seen] {
                *piece = &piece[1..];
                self.mark = Some(seen + 1).filter(|seen| *seen < BYTE_ORDER_MARK.len());
            } else {
                // Not a byte order mark after all: the skipped bytes belong to the first line.
                self.line.extend_from_slice(&BYTE_ORDER_MARK[..seen]);
                self.mark = None;
            }
        }
    }

    fn buffer(&mut self, piece: &[u8]) -> Result<(), TooLarge> {
        self.check_limit(piece.len())?;
        self.line.extend_from_slice(piece);
        Ok(())
    }

    fn check_limit(&self, more: usize) -> Result<(), TooLarge> {
        let held = self.line.len() + self.data.len() + self.event.len() + self.id.len();
        if held + more > self.limit {
            Err(TooLarge { limit: self.limit })
        } else {
            Ok(())
        }
    }

    /// Processes the end of a line whose start may be buffered.
    fn line(&mut self, end: &[u8]) -> Result<Option<Decoded>, TooLarge> {
        self.check_limit(end.len())?;
        if self.line.is_empty() {
            return Ok(self.field(end));
        }
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(end);
        let decoded = self.field(&line);
        // Keep the memory for the next line, unless one long line made it large.
        line.clear();
        line.shrink_to(LINE_CAPACITY_MAX);
        self.line = line;
        Ok(decoded)
    }

    fn field(&mut self, line: &[u8]) -> Option<Decoded> {
        if line.is_empty() {
            return self.dispatch();
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = colon.map_or((line, &line[..0]), |colon| {
            (&line[..colon], &line[colon + 1..])
        });
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => {
                self.data.push_str(&String::from_utf8_lossy(value));
                self.data.push('\n');
            }
            b"event" => self.event = String::from_utf8_lossy(value).into_owned(),
            b"id" if !value.contains(&0) => {
                self.id = String::from_utf8_lossy(value).into_owned();
                self.has_id = true;
            }
            b"retry" => return retry(value).map(Decoded::Retry),
            // A comment (its field name is empty), or a field of a later standard.
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Decoded> {
        let event = std::mem::take(&mut self.event);
        let mut data = std::mem::take(&mut self.data);
        let has_id = std::mem::take(&mut self.has_id);
        if data.pop().is_none() {
            return has_id.then(|| Decoded::Position(self.id.clone()));
        }
        let event = if event.is_empty() {
            "message".to_owned()
        } else {
            event
        };
        Some(Decoded::Event(ReceivedEvent {
            id: self.id.clone(),
            event,
            data,
        }))
    }
}

/// Parses a `retry` value of ASCII digits; saturates at `u64::MAX`.
fn retry(value: &[u8]) -> Option<Duration> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    digits.then(|| {
        let digit = |sum: u64, byte: &u8| {
            sum.saturating_mul(10)
                .saturating_add(u64::from(byte - b'0'))
        };
        Duration::from_millis(value.iter().fold(0, digit))
    })
}

const BYTE_ORDER_MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// 64 KiB: usual lines are far shorter.
const LINE_CAPACITY_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests;
