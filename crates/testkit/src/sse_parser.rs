//! Parser of the event stream format, step by step as in the WHATWG HTML standard, section 9.2.6.
//!
//! It is written from the standard and shares no code with the encoder of the product, so that both
//! cannot have the same defect.

/// Event as a browser dispatches it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Type; `message` if the block has none.
    pub name: String,
    /// Data lines, joined by LF.
    pub data: String,
    /// Last event id at the time of the dispatch.
    pub id: String,
}

/// State of the standard for an event stream and its reconnects.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    /// The last byte was CR; a following LF belongs to it.
    after_cr: bool,
    /// The first line, which may begin with a byte order mark, has ended.
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
    /// Parser of a connection that resumes after `last_event_id`. The id survives a reconnect.
    pub fn resuming(last_event_id: &str) -> Self {
        Self {
            id_buffer: last_event_id.to_owned(),
            last_event_id: last_event_id.to_owned(),
            ..Self::default()
        }
    }

    /// Reads `bytes` and returns the events that they complete. Bytes may be split anywhere.
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

    /// Value of `Last-Event-ID` for a reconnect.
    pub fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    /// Reconnect delay in milliseconds, if the server has sent one.
    pub fn retry(&self) -> Option<u64> {
        self.retry
    }

    /// All comments until now, without the leading colon.
    pub fn comments(&self) -> &[String] {
        &self.comments
    }

    /// Number of positions without an event: `sidestream.position`, which [`Parser::feed`] does not
    /// return, and blocks with only an id.
    pub fn positions(&self) -> u64 {
        self.positions
    }

    /// Returns true if a line or block is unfinished; at the end of the connection it is lost.
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
        // Decoding each line is the same as decoding the whole: a line end also ends an invalid
        // sequence.
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
            _ => {} // ignored, as in the standard
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
            assert_eq!(data, "{}", "data of a position");
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
