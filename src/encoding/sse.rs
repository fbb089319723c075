//! Encoder of `text/event-stream` (WHATWG HTML, section 9.2).
//!
//! ```text
//! event: name\n
//! data: payload\n          shared by all clients
//! id: tag-seq-print\n\n   id of a single source, or of the client
//! ```
//!
//! `id` is the last field: a truncated event is not dispatched and does not advance the client's
//! position.

pub mod decode;

use std::fmt::Display;
use std::ops::Range;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut as _, BytesMut};

use super::encoder::{Encoder, EventParts, GapNotice, close_json, put_formatted};
use super::envelope::{Encoding, EncodingBuilder, Envelope};
use crate::event::EventName;

/// Encoder of Server-Sent Events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sse;

/// Comment that keeps an idle connection alive.
///
/// One newline, not two: a blank line would make `@microsoft/fetch-event-source` report an empty
/// message.
const HEARTBEAT: &[u8] = b": hb\n";

/// Bytes of an event beside payload and name: fields, line ends and the id.
const OVERHEAD: usize = 68;

impl Encoder for Sse {
    /// Encodes an event. A payload that is not UTF-8 is sent as base64, and the suffix `;base64` of
    /// the event name says so.
    fn event(&self, parts: EventParts<'_>, envelope: Envelope) -> Encoding {
        let EventParts {
            name,
            data,
            position,
            ..
        } = parts;
        let name = name.map(EventName::as_str);
        let capacity = OVERHEAD + data.len() + name.map_or(0, str::len);
        let mut builder = EncodingBuilder::new(envelope, capacity);
        let out = builder.out();
        match std::str::from_utf8(data) {
            Ok(_) => {
                if let Some(name) = name {
                    put_field(out, "event", name.as_bytes());
                }
                put_data(out, data);
            }
            Err(_) => {
                let mut encoded = BytesMut::with_capacity(8);
                encoded.put_slice(name.unwrap_or("message").as_bytes());
                encoded.put_slice(EventName::ENCODED.as_bytes());
                put_field(out, "event", &encoded);
                put_field(out, "data", BASE64.encode(data).as_bytes());
            }
        }
        builder.put_id(|out| self.put_id(out, &position, 0));
        builder.finish()
    }

    /// A payload of one line of UTF-8 is in one piece, before the last line end.
    fn payload_range(&self, encoding: &Encoding, data: &[u8]) -> Option<Range<usize>> {
        let end = encoding.shared_range().end.checked_sub(1)?;
        let start = end.checked_sub(data.len())?;
        let is_found = encoding.slice(start..end) == data
            && encoding.slice(start.checked_sub(6)?..start) == b"data: ";
        is_found.then_some(start..end)
    }

    fn is_id_first(&self) -> bool {
        false
    }

    /// Appends the `id:` line and the blank line that ends the event.
    fn put_id(&self, out: &mut BytesMut, id: &dyn Display, _shared: usize) {
        put_formatted(out, format_args!("id: {id}\n\n"));
    }

    /// It is a field without a blank line: it takes effect at once.
    fn put_opening(&self, out: &mut BytesMut, retry: Duration) {
        put_formatted(out, format_args!("retry: {}\n", retry.as_millis()));
    }

    fn put_gap(&self, out: &mut BytesMut, gap: GapNotice, id: Option<&dyn Display>) {
        self.put_control(out, "sidestream.gap", &format!("{{{}}}", gap.json()), id);
    }

    /// It is a named event with data, because many client libraries keep an id only from a
    /// dispatched event, and report a block with only an id as an empty message.
    fn put_position(&self, out: &mut BytesMut, id: &dyn Display) {
        self.put_control(out, "sidestream.position", "{}", Some(id));
    }

    /// It has no id: the client's position does not change.
    fn put_renew(&self, out: &mut BytesMut, expires: u64) {
        let json = format!(r#"{{"expires":{expires}}}"#);
        self.put_control(out, "sidestream.renew", &json, None);
    }

    /// The reconnection time is both a `retry:` field, which EventSource obeys, and data.
    fn put_close(
        &self,
        out: &mut BytesMut,
        reason: &str,
        retry: Duration,
        id: Option<&dyn Display>,
    ) {
        self.put_opening(out, retry);
        let json = format!("{{{}}}", close_json(reason, retry));
        self.put_control(out, "sidestream.close", &json, id);
    }

    /// The empty id resets the position of a client: if it breaks off, it asks for the state again.
    fn put_snapshot(&self, out: &mut BytesMut) {
        self.put_control(out, "sidestream.snapshot", "{}", Some(&""));
    }

    fn put_state(&self, out: &mut BytesMut, shared: &[u8]) {
        out.reserve(shared.len() + 1);
        out.put_slice(shared);
        out.put_u8(b'\n');
    }

    fn put_synced(&self, out: &mut BytesMut, id: &dyn Display) {
        self.put_control(out, "sidestream.synced", "{}", Some(id));
    }

    fn put_end(&self, out: &mut BytesMut, id: &dyn Display) {
        self.put_control(out, "sidestream.end", "{}", Some(id));
    }

    fn heartbeat(&self) -> &'static [u8] {
        HEARTBEAT
    }
}

impl Sse {
    /// Appends a control event: name, JSON body, and an id if it sets the client's position.
    fn put_control(self, out: &mut BytesMut, name: &str, json: &str, id: Option<&dyn Display>) {
        debug_assert!(
            name.starts_with("sidestream."),
            "control events have the reserved prefix"
        );
        put_field(out, "event", name.as_bytes());
        put_field(out, "data", json.as_bytes());
        match id {
            Some(id) => self.put_id(out, id, 0),
            None => out.put_u8(b'\n'),
        }
    }
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
    use crate::event::{Position, SourceTag};

    fn position() -> Position {
        Position {
            tag: SourceTag::of_identity("t"),
            seq: 7,
            fingerprint: Some(crate::event::Fingerprint::of_publish_time(0xab)),
        }
    }

    fn encode(name: Option<&str>, data: &[u8]) -> Encoding {
        let name = name.map(|name| EventName::parse(name).unwrap());
        let parts = EventParts {
            name: name.as_ref(),
            subject: "orders.42",
            data,
            position: position(),
        };
        Sse.event(parts, Envelope::NONE)
    }

    /// Returns an event without its id.
    fn shared(name: Option<&str>, data: &[u8]) -> String {
        let encoding = encode(name, data);
        let shared = String::from_utf8(encoding.shared().to_vec()).unwrap();
        let id = format!("id: {}\n\n", position());
        assert_eq!(encoding.bytes(), format!("{shared}{id}").as_bytes());
        shared
    }

    /// Returns what a closure appends.
    fn written(write: impl FnOnce(&mut BytesMut)) -> String {
        let mut out = BytesMut::new();
        write(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn name_is_the_first_field_and_id_the_last() {
        assert_eq!(shared(Some("created"), b"x"), "event: created\ndata: x\n");
        assert_eq!(shared(None, b"x"), "data: x\n");
    }

    #[test]
    fn payload_is_found_in_the_encoding_if_it_is_one_line() {
        for data in ["", "x", "{\"a\":1}", "data: "] {
            let encoding = encode(Some("created"), data.as_bytes());
            let range = Sse.payload_range(&encoding, data.as_bytes()).unwrap();
            assert_eq!(encoding.slice(range), data.as_bytes());
        }
        for data in [&b"a\nb"[..], b"\n", b"\xff"] {
            assert_eq!(
                Sse.payload_range(&encode(None, data), data),
                None,
                "{data:?}"
            );
        }
    }

    #[test]
    fn every_kind_of_line_end_splits() {
        assert_eq!(
            shared(None, b"a\nb\rc\r\nd"),
            "data: a\ndata: b\ndata: c\ndata: d\n"
        );
        assert_eq!(shared(None, b"\n\r"), "data: \ndata: \ndata: \n");
        assert_eq!(shared(None, b""), "data: \n");
        assert_eq!(shared(None, b"a\n"), "data: a\ndata: \n");
    }

    #[test]
    fn binary_payload_is_sent_as_base64_with_a_name_suffix() {
        assert_eq!(
            shared(None, b"\xff\xfe"),
            "event: message;base64\ndata: //4=\n"
        );
        assert_eq!(
            shared(Some("blob"), b"\xff\n"),
            "event: blob;base64\ndata: /wo=\n"
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
    fn close_is_one_event_with_the_position() {
        let retry = Duration::from_millis(5);
        assert_eq!(
            written(|out| Sse.put_close(out, "drain", retry, Some(&"3fa9c1-7"))),
            "retry: 5\nevent: sidestream.close\ndata: {\"reason\":\"drain\",\"retry\":5}\nid: 3fa9c1-7\n\n"
        );
    }

    #[test]
    fn end_is_one_event_with_the_position_and_without_a_reconnection_time() {
        assert_eq!(
            written(|out| Sse.put_end(out, &"3fa9c1-7")),
            "event: sidestream.end\ndata: {}\nid: 3fa9c1-7\n\n"
        );
    }

    #[test]
    fn renewal_has_no_id() {
        assert_eq!(
            written(|out| Sse.put_renew(out, 1_795_961_031)),
            "event: sidestream.renew\ndata: {\"expires\":1795961031}\n\n"
        );
    }

    #[test]
    fn position_without_an_event_is_a_named_event_with_data() {
        assert_eq!(
            written(|out| Sse.put_position(out, &"3fa9c1-7")),
            "event: sidestream.position\ndata: {}\nid: 3fa9c1-7\n\n"
        );
    }

    #[test]
    fn retry_and_gaps_are_complete_lines() {
        let gap = GapNotice {
            reason: "slow",
            missed: None,
            resume: "live",
        };
        assert_eq!(
            written(|out| {
                Sse.put_opening(out, Duration::from_secs(3));
                Sse.put_gap(out, gap, None);
            }),
            "retry: 3000\nevent: sidestream.gap\ndata: {\"reason\":\"slow\",\"missed\":null,\"resume\":\"live\"}\n\n"
        );
    }
}
