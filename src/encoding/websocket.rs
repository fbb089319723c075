//! Encoder of WebSocket (RFC 6455, subprotocol `sidestream.v1`): the objects of newline-delimited
//! JSON, each a text message.
//!
//! ```text
//! | frame head | {"id":"tag-seq-print" | ,"subject":"orders.42","data":...} |     one event
//!                id of one source      | shared by all clients
//! ```
//!
//! A frame of a server is not masked, so that its bytes are the same for all clients of one source.
//! The heartbeat is a ping, and the last message is followed by a close frame.

use std::fmt::Display;
use std::ops::Range;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};

use super::encoder::{Encoder, EventParts, GapNotice, put_formatted};
use super::envelope::{Encoding, EncodingBuilder, Envelope};
use super::ndjson::Ndjson;

/// Encoder of WebSocket messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct WebSocket;

/// Status codes of close frames (RFC 6455, 7.4.1).
pub mod close_code {
    /// A finite event stream is complete.
    pub const END: u16 = 1000;
    /// The server ends the connection: a drain, or the age of the event stream.
    pub const GOING_AWAY: u16 = 1001;
    /// The credentials are missing, invalid, expired or revoked.
    pub const POLICY: u16 = 1008;
    /// The pod or the client is overloaded.
    pub const TRY_AGAIN_LATER: u16 = 1013;
}

/// A final text frame, without a mask.
const TEXT: u8 = 0x81;
/// A close frame.
const CLOSE: u8 = 0x88;
/// A ping without content.
const PING: &[u8] = b"\x89\x00";

/// Longest head of a frame without a mask.
const HEAD_MAX: usize = 10;

impl Encoder for WebSocket {
    /// The envelope is that of a body: a message has none.
    fn event(&self, parts: EventParts<'_>, _envelope: Envelope) -> Encoding {
        let line = Ndjson.event(parts, Envelope::NONE);
        let object = line.shared();
        let object = object.strip_suffix(b"\n").unwrap_or(&object);
        let mut builder = EncodingBuilder::new(Envelope::NONE, HEAD_MAX + line.len());
        builder.put_id(|out| self.put_id(out, &parts.position, object.len()));
        builder.out().put_slice(object);
        builder.finish()
    }

    fn payload_range(&self, _encoding: &Encoding, _data: &[u8]) -> Option<Range<usize>> {
        None
    }

    fn is_id_first(&self) -> bool {
        true
    }

    /// Appends the head of the frame and the beginning of the object.
    fn put_id(&self, out: &mut BytesMut, id: &dyn Display, shared: usize) {
        let mut beginning = BytesMut::new();
        Ndjson.put_id(&mut beginning, id, shared);
        put_head(out, TEXT, beginning.len() + shared);
        out.put_slice(&beginning);
    }

    fn put_opening(&self, out: &mut BytesMut, retry: Duration) {
        put_message(out, |line| Ndjson.put_opening(line, retry));
    }

    fn put_gap(&self, out: &mut BytesMut, gap: GapNotice, id: Option<&dyn Display>) {
        put_message(out, |line| Ndjson.put_gap(line, gap, id));
    }

    fn put_position(&self, out: &mut BytesMut, id: &dyn Display) {
        put_message(out, |line| Ndjson.put_position(line, id));
    }

    fn put_renew(&self, out: &mut BytesMut, expires: u64) {
        put_message(out, |line| Ndjson.put_renew(line, expires));
    }

    /// Appends the last message, and the close frame.
    fn put_close(
        &self,
        out: &mut BytesMut,
        reason: &str,
        retry: Duration,
        id: Option<&dyn Display>,
    ) {
        put_message(out, |line| Ndjson.put_close(line, reason, retry, id));
        put_close_frame(out, code_of(reason), reason);
    }

    fn put_snapshot(&self, out: &mut BytesMut) {
        put_message(out, |line| Ndjson.put_snapshot(line));
    }

    fn put_state(&self, out: &mut BytesMut, shared: &[u8]) {
        put_message(out, |line| Ndjson.put_state(line, shared));
    }

    fn put_synced(&self, out: &mut BytesMut, id: &dyn Display) {
        put_message(out, |line| Ndjson.put_synced(line, id));
    }

    /// Appends the last message, and the close frame of a regular end.
    fn put_end(&self, out: &mut BytesMut, id: &dyn Display) {
        put_message(out, |line| Ndjson.put_end(line, id));
        put_close_frame(out, close_code::END, "end");
    }

    fn heartbeat(&self) -> &'static [u8] {
        PING
    }
}

/// Appends a close frame. `reason`: at most 123 bytes, a label.
pub fn put_close_frame(out: &mut BytesMut, code: u16, reason: &str) {
    put_head(out, CLOSE, 2 + reason.len());
    out.put_u16(code);
    out.put_slice(reason.as_bytes());
}

/// Appends the answer to a message that has changed the subjects of the client: all that it has named,
/// and the position at which added ones begin.
pub fn put_subjects(out: &mut BytesMut, control: &str, subjects: &[&str], id: &dyn Display) {
    let subjects = serde_json::json!(subjects);
    put_message(out, |line| {
        let fields = format_args!(r#"{{"control":"{control}","subjects":{subjects},"id":"{id}"}}"#);
        put_formatted(line, fields);
    });
}

/// Appends the answer to a message that is not applied. `retry`: the time until it can be.
pub fn put_error(out: &mut BytesMut, reason: &str, message: &str, retry: Option<Duration>) {
    let message = serde_json::json!(message);
    // Rounded up: not before the time.
    let retry = retry.map_or(String::new(), |retry| {
        format!(r#","retry":{}"#, retry.as_millis() + 1)
    });
    put_message(out, |line| {
        let fields =
            format_args!(r#"{{"control":"error","reason":"{reason}","message":{message}{retry}}}"#);
        put_formatted(line, fields);
    });
}

/// Returns the status code for a reason of `close`.
fn code_of(reason: &str) -> u16 {
    match reason {
        "unauthenticated" | "expired" | "revoked" => close_code::POLICY,
        "overload" | "slow" | "upstream" => close_code::TRY_AGAIN_LATER,
        _ => close_code::GOING_AWAY,
    }
}

/// Appends one text message with the line that a closure writes.
fn put_message(out: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    let mut line = BytesMut::new();
    write(&mut line);
    let object = line.strip_suffix(b"\n").unwrap_or(&line);
    put_head(out, TEXT, object.len());
    out.put_slice(object);
}

/// Appends the head of a frame without a mask (RFC 6455, 5.2).
fn put_head(out: &mut BytesMut, first: u8, length: usize) {
    out.put_u8(first);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length @ ..126), _) => out.put_u8(length),
        (_, Ok(length)) => {
            out.put_u8(126);
            out.put_u16(length);
        }
        _ => {
            out.put_u8(127);
            out.put_u64(length as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use tungstenite::protocol::frame::FrameHeader;
    use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

    use super::*;
    use crate::event::{Position, SourceTag};

    /// Returns the frames, parsed by a library: opcode and content.
    fn frames(bytes: &[u8]) -> Vec<(OpCode, Vec<u8>)> {
        let mut cursor = Cursor::new(bytes);
        let mut frames = Vec::new();
        while (cursor.position() as usize) < bytes.len() {
            let (header, length) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
            assert!(header.is_final && header.mask.is_none());
            let start = cursor.position() as usize;
            let end = start + length as usize;
            frames.push((header.opcode, bytes[start..end].to_vec()));
            cursor.set_position(end as u64);
        }
        frames
    }

    #[test]
    fn an_event_of_any_length_is_one_text_message_with_the_object_of_ndjson() {
        for length in [0, 1, 20, 30, 40, 100, 65_400, 65_500, 70_000] {
            let data = vec![b'x'; length];
            let parts = EventParts {
                name: None,
                subject: "a",
                data: &data,
                position: Position {
                    tag: SourceTag::of_identity("t"),
                    seq: 7,
                    fingerprint: None,
                },
            };
            let ndjson = Ndjson.event(parts, Envelope::NONE);
            let line = ndjson.bytes().strip_suffix(b"\n").unwrap().to_vec();
            let encoding = WebSocket.event(parts, Envelope::new(3, 4, |_, _, _| 1));
            let text = (OpCode::Data(Data::Text), line);
            assert_eq!(frames(encoding.bytes()), std::slice::from_ref(&text));
            // A client of several sources gets the same object with its own id.
            let mut own = BytesMut::new();
            let shared = encoding.shared();
            WebSocket.put_id(&mut own, &parts.position, shared.len());
            own.put_slice(&shared);
            assert_eq!(frames(&own), [text]);
        }
    }

    #[test]
    fn last_message_is_followed_by_a_close_frame_with_the_code_of_its_reason() {
        for (reason, code) in [
            ("drain", 1001_u16),
            ("age", 1001),
            ("expired", 1008),
            ("unauthenticated", 1008),
            ("overload", 1013),
        ] {
            let mut out = BytesMut::new();
            WebSocket.put_close(&mut out, reason, Duration::from_secs(1), Some(&"a-1"));
            let frames = frames(&out);
            let [
                (OpCode::Data(Data::Text), text),
                (OpCode::Control(Control::Close), close),
            ] = &frames[..]
            else {
                panic!("a text and a close frame: {frames:?}");
            };
            assert!(text.starts_with(b"{\"control\":\"close\""));
            assert_eq!(close[..2], code.to_be_bytes());
            assert_eq!(close[2..], *reason.as_bytes());
        }
        assert_eq!(
            frames(WebSocket.heartbeat()),
            [(OpCode::Control(Control::Ping), Vec::new())]
        );
    }
}
