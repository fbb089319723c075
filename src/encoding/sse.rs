//! Encoder of `text/event-stream` (WHATWG HTML, section 9.2): frames, chunks and control events.
//!
//! ```text
//! {hex length}\r\n        chunk head
//! event: name\n           body, shared by all clients
//! data: payload\n
//! id: tag-seq-print\n\n   id of a single source
//! \r\n                    chunk tail
//! ```
//!
//! An event is encoded once, as a complete chunk of HTTP/1.1, so that a write for a client of a
//! single source needs no copy and no further framing. A client of several sources shares the body
//! and gets an id line of its own. `id` is the last field: a truncated event is not dispatched and
//! does not advance the client's position. [`RunBuilder`] copies small frames into one chunk.

pub mod decode;

use std::fmt::Write as _;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::event::{EventName, Position};

/// Comment that keeps an idle connection alive.
///
/// One newline, not two: a blank line would make `@microsoft/fetch-event-source` report an empty
/// message.
pub const HEARTBEAT: &[u8] = b": hb\n";

/// Complete events as one chunk of HTTP/1.1 (RFC 9112, section 7.1), contiguous in memory.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// `{length in hex}\r\n`, the events, `\r\n`.
    bytes: Bytes,
    head_len: u8,
}

/// Builds chunks in memory of its own, which it reuses once the previous chunks are dropped.
#[derive(Debug, Default)]
pub struct RunBuilder(BytesMut);

/// One encoded event. Clients of one source share all of it; clients of several sources share the
/// body and add their own id.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Layout as in a [`Chunk`].
    bytes: Bytes,
    head_len: u8,
    body_len: u32,
}

/// Space for the length of a chunk in hex and its line end: eight digits are 4 GiB.
const CHUNK_HEAD_MAX: usize = 10;
/// End of a chunk.
const CHUNK_TAIL: &[u8] = b"\r\n";

impl Chunk {
    /// Completes a chunk, whose length is known only now: writes the head into the reserved space.
    fn seal(mut out: BytesMut) -> Self {
        let length = out.len() - CHUNK_HEAD_MAX - CHUNK_TAIL.len();
        debug_assert!(
            u32::try_from(length).is_ok(),
            "no event is larger than 4 GiB"
        );
        // The head ends directly before the events; unused space before it is dropped.
        let mut start = CHUNK_HEAD_MAX - 2;
        out[start..CHUNK_HEAD_MAX].copy_from_slice(b"\r\n");
        let mut rest = length;
        loop {
            start -= 1;
            out[start] = b"0123456789abcdef"[rest % 16];
            rest /= 16;
            if rest == 0 || start == 0 {
                break;
            }
        }
        out.advance(start);
        Self {
            bytes: out.freeze(),
            head_len: (CHUNK_HEAD_MAX - start) as u8,
        }
    }

    /// Head, events and tail.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The events.
    #[must_use]
    pub fn content(&self) -> &[u8] {
        &self.bytes[self.content_range()]
    }

    /// The events, as a shared slice.
    #[must_use]
    pub fn to_content(&self) -> Bytes {
        self.bytes.slice(self.content_range())
    }

    /// All bytes, and the range of the events in them.
    #[must_use]
    pub fn into_parts(self) -> (Bytes, Range<usize>) {
        let range = self.content_range();
        (self.bytes, range)
    }

    fn content_range(&self) -> Range<usize> {
        usize::from(self.head_len)..self.bytes.len() - CHUNK_TAIL.len()
    }
}

impl RunBuilder {
    /// Starts a chunk of at most `most` bytes.
    pub fn begin(&mut self, most: usize) {
        debug_assert!(self.0.is_empty(), "the previous chunk is complete");
        self.0.reserve(CHUNK_HEAD_MAX + most + CHUNK_TAIL.len());
        self.0.put_bytes(b' ', CHUNK_HEAD_MAX);
    }

    /// Copies an event into the current chunk.
    pub fn push(&mut self, frame: &Frame) {
        self.0.put_slice(frame.bytes());
    }

    /// Bytes of the events in the current chunk.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len().saturating_sub(CHUNK_HEAD_MAX)
    }

    /// True if no chunk was started.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Completes the current chunk.
    #[must_use]
    pub fn finish(&mut self) -> Chunk {
        self.0.put_slice(CHUNK_TAIL);
        Chunk::seal(self.0.split())
    }
}

impl Frame {
    /// Encodes an event.
    ///
    /// A payload that is not UTF-8 is sent as base64, and the suffix `;base64` of the event name
    /// says so.
    #[must_use]
    pub fn event(name: Option<&EventName>, data: &[u8], position: Position) -> Self {
        let mut out =
            BytesMut::with_capacity(data.len() + 80 + name.map_or(0, |name| name.as_str().len()));
        out.put_bytes(b' ', CHUNK_HEAD_MAX);
        let name = name.map(EventName::as_str);
        match std::str::from_utf8(data) {
            Ok(_) => {
                if let Some(name) = name {
                    put_field(&mut out, "event", name.as_bytes());
                }
                put_data(&mut out, data);
            }
            Err(_) => {
                let mut encoded = BytesMut::with_capacity(8);
                encoded.put_slice(name.unwrap_or("message").as_bytes());
                encoded.put_slice(EventName::ENCODED.as_bytes());
                put_field(&mut out, "event", &encoded);
                put_field(&mut out, "data", BASE64.encode(data).as_bytes());
            }
        }
        let body_len = u32::try_from(out.len() - CHUNK_HEAD_MAX).unwrap_or(u32::MAX);
        put_id(&mut out, format_args!("{position}"));
        out.put_slice(CHUNK_TAIL);
        let Chunk { bytes, head_len } = Chunk::seal(out);
        Self {
            bytes,
            head_len,
            body_len,
        }
    }

    /// The event with the id of a single source.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.content_range()]
    }

    /// The event as one chunk of HTTP/1.1.
    #[must_use]
    pub fn into_chunk(self) -> Chunk {
        Chunk {
            bytes: self.bytes,
            head_len: self.head_len,
        }
    }

    /// The event without its `id:` line and the blank line.
    #[must_use]
    pub fn body(&self) -> Bytes {
        let start = self.content_range().start;
        self.bytes.slice(start..start + self.body_len as usize)
    }

    /// Bytes of the event for a client of a single source, without protocol framing.
    #[must_use]
    pub fn len(&self) -> usize {
        self.content_range().len()
    }

    /// Always false: an event has at least its id.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Range of the payload in this frame, if it is in one piece: a single line of UTF-8.
    #[must_use]
    pub fn payload_range(&self, data: &[u8]) -> Option<Range<usize>> {
        let end = (self.content_range().start + self.body_len as usize).checked_sub(1)?;
        let start = end.checked_sub(data.len())?;
        let found = self.bytes.get(start..end)? == data
            && self.bytes.get(start.checked_sub(6)?..start)? == b"data: ";
        found.then_some(start..end)
    }

    /// Bytes of a range that was found by [`Self::payload_range`].
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> &[u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    fn content_range(&self) -> Range<usize> {
        usize::from(self.head_len)..self.bytes.len() - CHUNK_TAIL.len()
    }
}

/// Appends the `id:` line and the blank line, for a client of several sources.
pub fn put_id(out: &mut BytesMut, id: impl std::fmt::Display) {
    let written = write!(out, "id: {id}\n\n");
    debug_assert!(
        written.is_ok(),
        "writing to a growable buffer does not fail"
    );
}

/// Appends the reconnection time, in milliseconds.
///
/// It is a field without a blank line: it takes effect at once.
pub fn put_retry(out: &mut BytesMut, wait: std::time::Duration) {
    let written = writeln!(out, "retry: {}", wait.as_millis());
    debug_assert!(
        written.is_ok(),
        "writing to a growable buffer does not fail"
    );
}

/// Appends a position without an event: at the start of an event stream and at checkpoints.
///
/// It is a named event with data, because many client libraries keep an id only from a dispatched
/// event, and report a block with only an id as an empty message.
pub fn put_position(out: &mut BytesMut, id: impl std::fmt::Display) {
    put_control(out, "sidestream.position", "{}", Some(id));
}

/// Appends a control event: name, JSON body, and an id if it sets the client's position.
pub fn put_control(out: &mut BytesMut, name: &str, json: &str, id: Option<impl std::fmt::Display>) {
    debug_assert!(
        name.starts_with("sidestream."),
        "control events have the reserved prefix"
    );
    put_field(out, "event", name.as_bytes());
    put_field(out, "data", json.as_bytes());
    match id {
        Some(id) => put_id(out, id),
        None => out.put_u8(b'\n'),
    }
}

/// Appends the reason for the end of an event stream and the reconnection time, both as a `retry:`
/// field, which EventSource obeys, and as data. With an id if the client has a position.
pub fn put_close(
    out: &mut BytesMut,
    reason: &str,
    wait: std::time::Duration,
    id: Option<impl std::fmt::Display>,
) {
    put_retry(out, wait);
    let json = format!(r#"{{"reason":"{reason}","retry":{}}}"#, wait.as_millis());
    put_control(out, "sidestream.close", &json, id);
}

/// Appends one field on one line; the value must not contain a line end.
fn put_field(out: &mut BytesMut, field: &str, value: &[u8]) {
    debug_assert!(
        !value.iter().any(|byte| matches!(byte, b'\r' | b'\n')),
        "a line end would end the field"
    );
    out.reserve(field.len() + value.len() + 3);
    out.put_slice(field.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_u8(b'\n');
}

/// Appends one `data:` line per line of the payload. CRLF, CR and LF end a line, and a trailing
/// line end leaves an empty line, so the client restores the payload with each line end as LF.
fn put_data(out: &mut BytesMut, data: &[u8]) {
    let mut rest = data;
    while let Some(end) = memchr::memchr2(b'\r', b'\n', rest) {
        put_field(out, "data", &rest[..end]);
        let width = if rest[end..].starts_with(b"\r\n") {
            2
        } else {
            1
        };
        rest = &rest[end + width..];
    }
    put_field(out, "data", rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::SourceTag;

    fn frame(name: Option<&str>, data: &[u8]) -> String {
        let name = name.map(|name| EventName::parse(name).unwrap());
        let position = Position {
            tag: SourceTag::of_identity("t"),
            seq: 7,
            fingerprint: Some(0xab),
        };
        let frame = Frame::event(name.as_ref(), data, position);
        let whole = String::from_utf8(frame.bytes().to_vec()).unwrap();
        let id = format!("id: {position}\n\n");
        assert_eq!(
            [frame.body(), id.clone().into()].concat(),
            whole.as_bytes(),
            "the body is the event without its id"
        );
        let (chunk, event) = frame.into_chunk().into_parts();
        assert_eq!(chunk[event], *whole.as_bytes());
        assert_eq!(
            chunk,
            format!("{:x}\r\n{whole}\r\n", whole.len()).as_bytes()
        );
        whole.strip_suffix(&id).unwrap().to_owned()
    }

    #[test]
    fn name_is_the_first_field_and_id_the_last() {
        assert_eq!(frame(Some("created"), b"x"), "event: created\ndata: x\n");
        assert_eq!(frame(None, b"x"), "data: x\n");
    }

    #[test]
    fn copied_events_are_one_chunk_and_its_memory_is_reused() {
        let position = Position {
            tag: SourceTag::of_identity("t"),
            seq: 7,
            fingerprint: None,
        };
        let frames = [1, 20, 300].map(|length| Frame::event(None, &vec![b'x'; length], position));
        let mut writer = RunBuilder::default();
        let mut memory = None;
        for count in [1, 2, 3, 2] {
            writer.begin(1000);
            frames[..count].iter().for_each(|frame| writer.push(frame));
            let content: Vec<u8> = frames[..count]
                .iter()
                .flat_map(|frame| frame.bytes().to_vec())
                .collect();
            assert_eq!(writer.len(), content.len());
            let (chunk, content_range) = writer.finish().into_parts();
            assert_eq!(chunk[content_range], content);
            let head = format!("{:x}\r\n", content.len());
            assert_eq!(chunk, [head.as_bytes(), &content, b"\r\n"].concat());
            let begins = chunk.as_ptr() as usize + head.len() - CHUNK_HEAD_MAX;
            assert_eq!(*memory.get_or_insert(begins), begins);
        }
    }

    #[test]
    fn every_kind_of_line_end_splits() {
        assert_eq!(
            frame(None, b"a\nb\rc\r\nd"),
            "data: a\ndata: b\ndata: c\ndata: d\n"
        );
        assert_eq!(frame(None, b"\n\r"), "data: \ndata: \ndata: \n");
        assert_eq!(frame(None, b""), "data: \n");
        assert_eq!(frame(None, b"a\n"), "data: a\ndata: \n");
    }

    #[test]
    fn binary_payload_is_sent_as_base64_with_a_name_suffix() {
        assert_eq!(
            frame(None, b"\xff\xfe"),
            "event: message;base64\ndata: //4=\n"
        );
        assert_eq!(
            frame(Some("blob"), b"\xff\n"),
            "event: blob;base64\ndata: /wo=\n"
        );
    }

    #[test]
    fn close_is_one_event_with_the_position() {
        let mut out = BytesMut::new();
        put_close(
            &mut out,
            "drain",
            std::time::Duration::from_millis(5),
            Some("3fa9c1-7"),
        );
        let expected = "retry: 5\nevent: sidestream.close\ndata: {\"reason\":\"drain\",\"retry\":5}\nid: 3fa9c1-7\n\n";
        assert_eq!(out, expected.as_bytes());
    }

    #[test]
    fn position_without_an_event_is_a_named_event_with_data() {
        let mut out = BytesMut::new();
        put_position(&mut out, "3fa9c1-7");
        assert_eq!(
            out,
            "event: sidestream.position\ndata: {}\nid: 3fa9c1-7\n\n".as_bytes()
        );
    }

    #[test]
    fn invalid_and_reserved_event_names_are_rejected() {
        for name in [
            "",
            "a\nb",
            "a\rb",
            "a\0b",
            " a",
            "sidestream.gap",
            "x;base64",
            &"x".repeat(129),
        ] {
            assert_eq!(EventName::parse(name), None, "{name:?}");
        }
    }

    #[test]
    fn retry_and_control_events_are_complete_lines() {
        let mut out = BytesMut::new();
        put_retry(&mut out, std::time::Duration::from_secs(3));
        put_control(&mut out, "sidestream.gap", "{}", None::<&str>);
        assert_eq!(out, "retry: 3000\nevent: sidestream.gap\ndata: {}\n\n");
    }
}
