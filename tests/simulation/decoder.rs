//! Decoder of one HTTP/1 response with an event stream, as Server-Sent Events or newline-delimited
//! JSON (RFC 9112, WHATWG HTML 9.2.6).
//!
//! Written for the simulation and strict: every byte has to be one that the sidecar may send there.
//! It shares no code with the sidecar, whose encoder it checks.

use sidestream::feed::{Gap, GapReason};

/// One thing that a client notices.
#[derive(Debug)]
pub(crate) enum Item {
    /// Fields of an event without `retry:`, up to the blank line. A line of JSON has the same text.
    Event {
        text: String,
        id: String,
    },
    Gap {
        gap: Gap,
        id: String,
    },
    Position {
        id: String,
    },
    Close {
        reason: String,
        id: String,
    },
    /// Code of a response with another status than 200.
    Rejection {
        code: String,
    },
    /// The last chunk.
    End,
}

#[derive(Debug, Default)]
pub(crate) struct Decoder {
    phase: Phase,
    is_chunked: bool,
    is_ndjson: bool,
    /// Received, not yet decoded.
    bytes: Vec<u8>,
    /// Body, from the start of the current block.
    text: Vec<u8>,
    /// Length of the body.
    pub(crate) body_bytes: u64,
    /// Number of events, without control events.
    pub(crate) events: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Phase {
    #[default]
    Head,
    /// Bytes that are left of a rejection's body.
    Rejected(usize),
    ChunkHead,
    /// Bytes that are left of a chunk.
    Chunk(usize),
    /// Body that ends with the connection.
    Rest,
    Ended,
}

impl Decoder {
    /// Decodes the next bytes of the response.
    pub(crate) fn decode(&mut self, bytes: &[u8]) -> Vec<Item> {
        self.bytes.extend_from_slice(bytes);
        let mut items = Vec::new();
        while self.advance(&mut items) {}
        items
    }

    /// Returns true if only a part of an event has arrived.
    pub(crate) fn is_inside_event(&self) -> bool {
        !self.text.is_empty()
    }

    /// Decodes one part; false if its end has not arrived.
    fn advance(&mut self, items: &mut Vec<Item>) -> bool {
        match self.phase {
            Phase::Head => {
                let Some(head) = self.take_through(b"\r\n\r\n") else {
                    return false;
                };
                self.phase = self.decode_head(&head);
            }
            Phase::Rejected(length) => {
                if self.bytes.len() < length {
                    return false;
                }
                let body = String::from_utf8(self.bytes.drain(..length).collect()).unwrap();
                let (_, code) = body
                    .split_once(r#""code":""#)
                    .expect("a rejection has a code");
                let code = code.split('"').next().unwrap().to_owned();
                items.push(Item::Rejection { code });
                self.phase = Phase::Ended;
            }
            Phase::ChunkHead => {
                let Some(line) = self.take_through(b"\r\n") else {
                    return false;
                };
                let length = usize::from_str_radix(line.trim_end(), 16).expect("a chunk's length");
                if length > 0 {
                    self.phase = Phase::Chunk(length);
                } else {
                    self.phase = Phase::Ended;
                    assert!(self.text.is_empty(), "the last event is complete");
                    items.push(Item::End);
                }
            }
            Phase::Chunk(0) => {
                let Some(end) = self.take_through(b"\r\n") else {
                    return false;
                };
                assert_eq!(end, "\r\n", "a chunk is as long as its head says");
                self.phase = Phase::ChunkHead;
            }
            Phase::Chunk(left) => {
                let length = left.min(self.bytes.len());
                self.decode_body(length, items);
                self.phase = Phase::Chunk(left - length);
                return length > 0;
            }
            Phase::Rest => {
                let length = self.bytes.len();
                self.decode_body(length, items);
                return false;
            }
            Phase::Ended => {
                if self.bytes.len() >= 2 && self.is_chunked {
                    assert_eq!(self.bytes, b"\r\n", "nothing follows the last chunk");
                    self.bytes.clear();
                }
                return false;
            }
        }
        true
    }

    fn decode_head(&mut self, head: &str) -> Phase {
        let head = head.to_lowercase();
        let field = |name: &str| {
            head.lines()
                .filter_map(|line| line.split_once(": "))
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value)
        };
        if !head.starts_with("http/1.1 200") && !head.starts_with("http/1.0 200") {
            let length = field("content-length").expect("a rejection has a length");
            return Phase::Rejected(length.parse().unwrap());
        }
        self.is_ndjson = field("content-type") == Some("application/x-ndjson");
        assert!(self.is_ndjson || field("content-type") == Some("text/event-stream"));
        self.is_chunked = field("transfer-encoding") == Some("chunked");
        if self.is_chunked {
            Phase::ChunkHead
        } else {
            Phase::Rest
        }
    }

    fn decode_body(&mut self, length: usize, items: &mut Vec<Item>) {
        self.body_bytes += length as u64;
        for byte in self.bytes.drain(..length) {
            self.text.push(byte);
            if !self.text.ends_with(b"\n") {
                continue;
            }
            if self.is_ndjson {
                let line = String::from_utf8(std::mem::take(&mut self.text)).unwrap();
                if let Some(item) = decode_line(line.trim_end()) {
                    self.events += u64::from(matches!(item, Item::Event { .. }));
                    items.push(item);
                }
                continue;
            }
            if self.text.ends_with(b"\n\n") {
                let block = String::from_utf8(std::mem::take(&mut self.text)).unwrap();
                let item = decode_block(&block);
                self.events += u64::from(matches!(item, Item::Event { .. }));
                items.push(item);
            } else if self.text == b": hb\n"
                || self.text.starts_with(b"retry: ") && is_line(&self.text)
            {
                // They take effect at once and are not part of an event.
                self.text.clear();
            }
        }
    }

    fn take_through(&mut self, end: &[u8]) -> Option<String> {
        let at = self
            .bytes
            .windows(end.len())
            .position(|window| window == end)?;
        let taken = self.bytes.drain(..at + end.len()).collect();
        Some(String::from_utf8(taken).expect("heads are ASCII"))
    }
}

fn is_line(text: &[u8]) -> bool {
    text.iter().filter(|byte| **byte == b'\n').count() == 1
}

/// Decodes one line of JSON; `None` for a heartbeat and the opening.
fn decode_line(line: &str) -> Option<Item> {
    if line.is_empty() {
        return None;
    }
    let line: serde_json::Value = serde_json::from_str(line).expect("a line is an object");
    let text = |name: &str| line[name].as_str().map(ToOwned::to_owned);
    let Some(control) = text("control") else {
        let id = text("id").expect("an event has an id");
        let name = text("event").map_or(String::new(), |name| format!("event: {name}\n"));
        let data = text("data").unwrap_or_else(|| line["data"].to_string());
        return Some(Item::Event {
            text: format!("{name}data: {data}\nid: {id}\n\n"),
            id,
        });
    };
    (control != "open").then(|| {
        let id = text("id").unwrap_or_else(|| panic!("{line} has an id"));
        decode_control(&control, &line, id)
    })
}

/// Decodes the fields of one event.
fn decode_block(block: &str) -> Item {
    let field = |name: &str| {
        let mut values = block.lines().filter_map(|line| line.strip_prefix(name));
        let value = values.next();
        assert_eq!(values.next(), None, "one {name} in {block:?}");
        value
    };
    let id = field("id: ")
        .unwrap_or_else(|| panic!("{block:?} has an id"))
        .to_owned();
    assert!(
        block.ends_with(&format!("\nid: {id}\n\n")),
        "the id is last in {block:?}"
    );
    let Some(control) = field("event: ").and_then(|name| name.strip_prefix("sidestream.")) else {
        return Item::Event {
            text: block.to_owned(),
            id,
        };
    };
    let data: serde_json::Value = serde_json::from_str(field("data: ").unwrap()).unwrap();
    decode_control(control, &data, id)
}

fn decode_control(control: &str, data: &serde_json::Value, id: String) -> Item {
    let reason = || data["reason"].as_str().unwrap().to_owned();
    match control {
        "gap" => {
            let known = GapReason::ALL
                .into_iter()
                .find(|known| known.as_str() == reason());
            let gap = Gap {
                reason: known.expect("a known reason"),
                missed: data["missed"].as_u64(),
            };
            Item::Gap { gap, id }
        }
        "position" => Item::Position { id },
        "close" => Item::Close {
            reason: reason(),
            id,
        },
        _ => panic!("unknown event {control}"),
    }
}
