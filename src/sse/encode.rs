//! Events to bytes: the frames of `text/event-stream`, by the rules of the HTML specification (9.2).

use std::fmt::Write as _;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::{EventName, Position};

/// The comment that keeps a silent connection alive.
///
/// One newline, not two: a blank line would make `@microsoft/fetch-event-source` report an empty message.
pub const HEARTBEAT: &[u8] = b": hb\n";

/// Whole events that stand in memory as one chunk of HTTP/1.1 (RFC 9112, 7.1): alone they are one write of these bytes.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// `{length in hex}\r\n`, the events, `\r\n`.
    bytes: Bytes,
    head_len: u8,
}

/// Makes chunks one after the other in memory of its own, which it uses again when nobody holds them any more.
#[derive(Debug, Default)]
pub struct RunBuilder(BytesMut);

/// One encoded event. Clients of one source share all of it; clients of several share the body and add their own id.
#[derive(Clone, Debug)]
pub struct Frame {
    /// As in a [`Chunk`].
    bytes: Bytes,
    head_len: u8,
    body_len: u32,
}

/// Room for the length of a chunk in hex and its line end: eight digits are 4 GiB.
const CHUNK_HEAD_MAX: usize = 10;
/// What ends a chunk.
const CHUNK_TAIL: &[u8] = b"\r\n";

impl Chunk {
    /// Makes a chunk of what stands between the room for its head and its tail: its length is known only now.
    fn seal(mut out: BytesMut) -> Self {
        let length = out.len() - CHUNK_HEAD_MAX - CHUNK_TAIL.len();
        debug_assert!(
            u32::try_from(length).is_ok(),
            "no event is larger than 4 GiB"
        );
        // Right before the events, and what is left of its room is dropped.
        let mut place = CHUNK_HEAD_MAX - 2;
        out[place..CHUNK_HEAD_MAX].copy_from_slice(b"\r\n");
        let mut rest = length;
        loop {
            place -= 1;
            out[place] = b"0123456789abcdef"[rest % 16];
            rest /= 16;
            if rest == 0 || place == 0 {
                break;
            }
        }
        out.advance(place);
        Self {
            bytes: out.freeze(),
            head_len: (CHUNK_HEAD_MAX - place) as u8,
        }
    }

    /// All of it.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The events.
    #[must_use]
    pub fn content(&self) -> &[u8] {
        &self.bytes[self.place()]
    }

    /// The events, shared.
    #[must_use]
    pub fn to_content(&self) -> Bytes {
        self.bytes.slice(self.place())
    }

    /// All of it, and where in it the events stand.
    #[must_use]
    pub fn into_parts(self) -> (Bytes, Range<usize>) {
        let place = self.place();
        (self.bytes, place)
    }

    fn place(&self) -> Range<usize> {
        usize::from(self.head_len)..self.bytes.len() - CHUNK_TAIL.len()
    }
}

impl RunBuilder {
    /// Begins a chunk of at most so many bytes.
    pub fn begin(&mut self, most: usize) {
        debug_assert!(self.0.is_empty(), "the chunk before is finished");
        self.0.reserve(CHUNK_HEAD_MAX + most + CHUNK_TAIL.len());
        self.0.put_bytes(b' ', CHUNK_HEAD_MAX);
    }

    /// Copies an event into the chunk that was begun.
    pub fn push(&mut self, frame: &Frame) {
        self.0.put_slice(frame.bytes());
    }

    /// Bytes of the events in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len().saturating_sub(CHUNK_HEAD_MAX)
    }

    /// Whether nothing was begun.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Ends the chunk that was begun.
    #[must_use]
    pub fn finish(&mut self) -> Chunk {
        self.0.put_slice(CHUNK_TAIL);
        Chunk::seal(self.0.split())
    }
}

impl Frame {
    /// Encodes an event once for all its readers.
    ///
    /// Payloads that are not UTF-8 go as base64, and the name says so.
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

    /// The whole event with the id of a single source.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.place()]
    }

    /// The whole event as one chunk of HTTP/1.1.
    #[must_use]
    pub fn into_chunk(self) -> Chunk {
        Chunk {
            bytes: self.bytes,
            head_len: self.head_len,
        }
    }

    /// The event without its `id:` line and the blank line that ends it.
    #[must_use]
    pub fn body(&self) -> Bytes {
        let start = self.place().start;
        self.bytes.slice(start..start + self.body_len as usize)
    }

    /// Bytes on the wire for a client of a single source, without what a protocol puts around them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.place().len()
    }

    /// Never: an event has at least its id.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the payload stands within this frame's own bytes, if it stands there in one piece: one line of UTF-8.
    #[must_use]
    pub fn find(&self, data: &[u8]) -> Option<Range<usize>> {
        let end = (self.place().start + self.body_len as usize).checked_sub(1)?;
        let start = end.checked_sub(data.len())?;
        let found = self.bytes.get(start..end)? == data
            && self.bytes.get(start.checked_sub(6)?..start)? == b"data: ";
        found.then_some(start..end)
    }

    /// What stands where something was found.
    #[must_use]
    pub fn found(&self, range: Range<usize>) -> &[u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    fn place(&self) -> Range<usize> {
        usize::from(self.head_len)..self.bytes.len() - CHUNK_TAIL.len()
    }
}

/// The end of a frame for a client of several sources: its `id:` line and the blank line.
pub fn put_id(out: &mut BytesMut, id: impl std::fmt::Display) {
    let written = write!(out, "id: {id}\n\n");
    debug_assert!(written.is_ok(), "a growing buffer takes every id");
}

/// How long the client shall wait before it connects again, in milliseconds.
///
/// A field alone: it takes effect at once, without the blank line that would end an event.
pub fn put_retry(out: &mut BytesMut, wait: std::time::Duration) {
    let written = writeln!(out, "retry: {}", wait.as_millis());
    debug_assert!(written.is_ok(), "a growing buffer takes every number");
}

/// A position without an event of a publisher: at the beginning of an event stream and at checkpoints.
///
/// A named event with data, because many client libraries keep an id only from an event that they dispatch, and show a
/// block that has nothing but an id as an empty message.
pub fn put_position(out: &mut BytesMut, id: impl std::fmt::Display) {
    put_control(out, "sidestream.position", "{}", Some(id));
}

/// A control event: its name, a JSON body, and the id if it moves the client.
pub fn put_control(out: &mut BytesMut, name: &str, json: &str, id: Option<impl std::fmt::Display>) {
    debug_assert!(
        name.starts_with("sidestream."),
        "only control events bear the reserved prefix"
    );
    put_field(out, "event", name.as_bytes());
    put_field(out, "data", json.as_bytes());
    match id {
        Some(id) => put_id(out, id),
        None => out.put_u8(b'\n'),
    }
}

/// Why the event stream ends, and when the client shall come back: both as a field that EventSource obeys and as data.
/// With an id if the client has a position.
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

/// One field on one line; the value holds no line end.
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

/// One `data:` line per line of the payload; CRLF, CR and LF all end a line, and a trailing one leaves an empty line,
/// so that the client puts together what was published (with every line end as LF).
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
    use crate::sse::SourceTag;

    fn frame(name: Option<&str>, data: &[u8]) -> String {
        let name = name.map(|name| EventName::parse(name).unwrap());
        let position = Position {
            tag: SourceTag::of_identity("t"),
            seq: 7,
            check: Some(0xab),
        };
        let frame = Frame::event(name.as_ref(), data, position);
        let whole = String::from_utf8(frame.bytes().to_vec()).unwrap();
        let id = format!("id: {position}\n\n");
        assert_eq!(
            [frame.body(), id.clone().into()].concat(),
            whole.as_bytes(),
            "the body lacks the id alone"
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
    fn a_name_stands_first_and_the_id_last() {
        assert_eq!(frame(Some("created"), b"x"), "event: created\ndata: x\n");
        assert_eq!(frame(None, b"x"), "data: x\n");
    }

    #[test]
    fn events_that_are_copied_together_are_one_chunk_and_the_memory_is_used_again() {
        let position = Position {
            tag: SourceTag::of_identity("t"),
            seq: 7,
            check: None,
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
            let (chunk, place) = writer.finish().into_parts();
            assert_eq!(chunk[place], content);
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
    fn what_is_not_utf8_goes_as_base64_under_a_name_that_says_so() {
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
    fn a_close_is_one_event_that_bears_the_position() {
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
    fn a_position_without_an_event_is_a_named_event_with_data() {
        let mut out = BytesMut::new();
        put_position(&mut out, "3fa9c1-7");
        assert_eq!(
            out,
            "event: sidestream.position\ndata: {}\nid: 3fa9c1-7\n\n".as_bytes()
        );
    }

    #[test]
    fn a_name_holds_no_control_character_and_passes_for_nothing_else() {
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
    fn retry_and_control_events_are_whole_lines() {
        let mut out = BytesMut::new();
        put_retry(&mut out, std::time::Duration::from_secs(3));
        put_control(&mut out, "sidestream.gap", "{}", None::<&str>);
        assert_eq!(out, "retry: 3000\nevent: sidestream.gap\ndata: {}\n\n");
    }
}
