//! The client's side of `text/event-stream`: bytes in any pieces to what they mean (WHATWG HTML, section 9.2.6).

use std::fmt;
use std::time::Duration;

use memchr::memchr2;

/// Reads an event stream. Its memory is bounded: `limit` bytes and what the allocator adds.
#[derive(Debug)]
pub struct Decoder {
    limit: usize,
    /// The present line, if it came in more than one piece.
    line: Vec<u8>,
    /// The last line ended with CR at the end of a piece: an LF that comes next belongs to it.
    after_cr: bool,
    /// How much of a byte order mark may still come, and has come; `None` after the first other byte.
    mark: Option<usize>,
    event: String,
    data: String,
    id: String,
    /// The present block has an `id` line.
    positioned: bool,
}

/// What a piece of an event stream means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// An event.
    Event(ReceivedEvent),
    /// A block with an id and no data: the position moves, nothing is dispatched.
    Position(String),
    /// How long to wait before a reconnect, from now on.
    Retry(Duration),
}

/// An event as it arrives at a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedEvent {
    /// The position after this event; empty if the server gave none so far.
    pub id: String,
    /// Its name; `message` if the server gave none.
    pub event: String,
    /// Its payload.
    pub data: String,
}

/// The server sent an event that is larger than the decoder may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    /// The limit, in bytes.
    pub limit: usize,
}

impl Decoder {
    /// A decoder that holds at most `limit` bytes of one event.
    ///
    /// `last_event_id` is the position of the connection before: an event that has no id keeps it. (By the letter of the
    /// standard it would be forgotten on a reconnect; browsers keep it.)
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
            positioned: false,
        }
    }

    /// Takes bytes from the front of `piece` up to the end of the first thing that means something. `None`: the piece is
    /// used up, and the decoder waits for the next one.
    ///
    /// # Errors
    /// [`TooLarge`] ends the stream: the decoder must not be used after it.
    pub fn next(&mut self, piece: &mut &[u8]) -> Result<Option<Decoded>, TooLarge> {
        self.skip_mark(piece);
        while !piece.is_empty() {
            if std::mem::take(&mut self.after_cr) && piece[0] == b'\n' {
                *piece = &piece[1..];
                continue;
            }
            let Some(end) = memchr2(b'\n', b'\r', piece) else {
                self.hold(piece)?;
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

    /// Drops a byte order mark at the very beginning, which may come byte by byte.
    fn skip_mark(&mut self, piece: &mut &[u8]) {
        while let (Some(seen), Some(byte)) = (self.mark, piece.first()) {
            if *byte == BYTE_ORDER_MARK[seen] {
                *piece = &piece[1..];
                self.mark = Some(seen + 1).filter(|seen| *seen < BYTE_ORDER_MARK.len());
            } else {
                // It only looked like one: what was skipped belongs to the first line.
                self.line.extend_from_slice(&BYTE_ORDER_MARK[..seen]);
                self.mark = None;
            }
        }
    }

    fn hold(&mut self, piece: &[u8]) -> Result<(), TooLarge> {
        self.check(piece.len())?;
        self.line.extend_from_slice(piece);
        Ok(())
    }

    fn check(&self, more: usize) -> Result<(), TooLarge> {
        let held = self.line.len() + self.data.len() + self.event.len() + self.id.len();
        if held + more > self.limit {
            Err(TooLarge { limit: self.limit })
        } else {
            Ok(())
        }
    }

    /// Takes the end of a line whose beginning may be held.
    fn line(&mut self, end: &[u8]) -> Result<Option<Decoded>, TooLarge> {
        self.check(end.len())?;
        if self.line.is_empty() {
            return Ok(self.field(end));
        }
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(end);
        let decoded = self.field(&line);
        // Its memory serves the next line, unless one long line made it large.
        line.clear();
        line.shrink_to(LINE_KEPT);
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
                self.positioned = true;
            }
            b"retry" => return retry(value).map(Decoded::Retry),
            // A comment, whose name is empty, or a field of a later standard.
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Decoded> {
        let event = std::mem::take(&mut self.event);
        let mut data = std::mem::take(&mut self.data);
        let positioned = std::mem::take(&mut self.positioned);
        if data.pop().is_none() {
            return positioned.then(|| Decoded::Position(self.id.clone()));
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

/// ASCII digits only; anything else is no `retry` field. More than a `u64` holds is for ever.
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

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the server sent an event of more than {} bytes",
            self.limit
        )
    }
}

impl std::error::Error for TooLarge {}

const BYTE_ORDER_MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// Usual lines are far below it.
const LINE_KEPT: usize = 64 << 10;

#[cfg(test)]
mod tests;
