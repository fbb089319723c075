//! Bytes in, dispatches out: the event stream format of the WHATWG HTML standard, section 9.2.6, step by step.
//!
//! Written from the standard and not from our encoder, so that both cannot share a mistake.

/// An event as a browser would hand it to its listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The type: `message` if the block named none.
    pub name: String,
    /// The data lines, joined by LF.
    pub data: String,
    /// The last event id at the moment of the dispatch.
    pub id: String,
}

/// The state that the standard keeps for an event stream and its reconnections.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    /// The last byte was CR: an LF now belongs to it.
    after_cr: bool,
    /// The first line, which may begin with a byte order mark, is over.
    begun: bool,
    event_type: String,
    data: String,
    id_buffer: String,
    last_event_id: String,
    retry: Option<u64>,
    comments: Vec<String>,
    positions: u64,
}

impl Parser {
    /// A parser for a connection that resumes at `last_event_id`: the id survives a reconnection.
    pub fn resuming(last_event_id: &str) -> Self {
        Self {
            id_buffer: last_event_id.to_owned(),
            last_event_id: last_event_id.to_owned(),
            ..Self::default()
        }
    }

    /// Reads `bytes` and returns the events that they complete. How the bytes are cut makes no difference.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for &byte in bytes {
            let follows_cr = std::mem::take(&mut self.after_cr);
            match byte {
                b'\n' if follows_cr => {}
                b'\n' => events.extend(self.end_line()),
                b'\r' => {
                    self.after_cr = true;
                    events.extend(self.end_line());
                }
                _ => self.line.push(byte),
            }
        }
        events
    }

    /// The id that a reconnection would send in `Last-Event-ID`.
    pub fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    /// The reconnection time in milliseconds, if the server has set one.
    pub fn retry(&self) -> Option<u64> {
        self.retry
    }

    /// Every comment so far, without its leading colon.
    pub fn comments(&self) -> &[String] {
        &self.comments
    }

    /// Positions without an event so far: `sidestream.position`, which [`Parser::feed`] does not return, and blocks that
    /// have nothing but an id.
    pub fn positions(&self) -> u64 {
        self.positions
    }

    /// Whether bytes of an unfinished line or block are held; at the end of the connection they are lost.
    pub fn mid_block(&self) -> bool {
        !self.line.is_empty()
            || !self.data.is_empty()
            || !self.event_type.is_empty()
            || self.id_buffer != self.last_event_id
    }

    fn end_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        let mut bytes = line.as_slice();
        if !std::mem::replace(&mut self.begun, true) {
            bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
        }
        // Line by line is the same as decoding the whole: a line end also ends a broken sequence.
        let text = String::from_utf8_lossy(bytes);
        if text.is_empty() {
            return self.dispatch();
        }
        match text.split_once(':') {
            Some(("", comment)) => self.comments.push(comment.to_owned()),
            Some((field, value)) => self.field(field, value.strip_prefix(' ').unwrap_or(value)),
            None => self.field(&text, ""),
        }
        None
    }

    fn field(&mut self, name: &str, value: &str) {
        match name {
            "event" => value.clone_into(&mut self.event_type),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => value.clone_into(&mut self.id_buffer),
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.retry = value.parse().ok().or(self.retry);
            }
            _ => {} // the standard: the field is ignored
        }
    }

    fn dispatch(&mut self) -> Option<Event> {
        let moved = self.id_buffer != self.last_event_id;
        self.last_event_id.clone_from(&self.id_buffer);
        let event_type = std::mem::take(&mut self.event_type);
        let mut data = std::mem::take(&mut self.data);
        if data.is_empty() {
            self.positions += u64::from(moved);
            return None;
        }
        data.pop(); // the LF after the last data line
        let name = if event_type.is_empty() {
            "message".to_owned()
        } else {
            event_type
        };
        if name == "sidestream.position" {
            assert_eq!(data, "{}", "what a position has for data");
            self.positions += 1;
            return None;
        }
        Some(Event {
            name,
            data,
            id: self.last_event_id.clone(),
        })
    }
}
