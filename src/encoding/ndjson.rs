//! Encoder of newline-delimited JSON (`application/x-ndjson`): one object per line.
//!
//! ```text
//! {"id":"tag-seq-print"                                  id of a single source, or of the client
//! ,"event":"name","subject":"orders.42","data":...}\n    shared by all clients
//!
//! {"control":"open","retry":3000}\n                      "gap", "position", "renew", "close"
//! \n                                                     heartbeat
//! ```
//!
//! The id is a part of the line: a truncated line is not an object and does not advance the client's
//! position. For the same reason every line must be readable for every client: a line that a parser
//! rejects would be received again at each reconnect.
//!
//! - A payload is embedded as JSON only if strict parsers accept it (`strict_json`); other text
//!   is a JSON string, and anything else base64.
//! - A line has no line end inside, in the sense of any library: CR and LF can only be outside of
//!   strings in valid JSON and are removed; U+0085, U+2028 and U+2029, at which some libraries split
//!   lines, can only be inside of strings and are escaped.

use std::fmt::Display;
use std::ops::Range;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut as _, BytesMut};

use super::encoder::{Encoder, EventParts, GapNotice, close_json, put_formatted};
use super::envelope::{Encoding, EncodingBuilder, Envelope};
use super::strict_json;
use crate::event::EventName;

/// Encoder of newline-delimited JSON.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ndjson;

/// Empty line: readers of the format skip it.
const HEARTBEAT: &[u8] = b"\n";

/// Bytes of a line beside payload, name and subject: keys, punctuation and the id.
const OVERHEAD: usize = 90;

impl Encoder for Ndjson {
    fn event(&self, parts: EventParts<'_>, envelope: Envelope) -> Encoding {
        let EventParts {
            name,
            subject,
            data,
            position,
        } = parts;
        let name = name.map(EventName::as_str);
        let capacity = OVERHEAD + name.map_or(0, str::len) + subject.len() + data.len();
        let mut builder = EncodingBuilder::new(envelope, capacity);
        builder.put_id(|out| self.put_id(out, &position, 0));
        let out = builder.out();
        if let Some(name) = name {
            out.put_slice(b",\"event\":");
            put_string(out, name);
        }
        out.put_slice(b",\"subject\":");
        put_string(out, subject);
        match std::str::from_utf8(data) {
            Ok(text) => {
                out.put_slice(b",\"data\":");
                if strict_json::is_valid(text) {
                    put_line(out, text);
                } else {
                    put_string(out, text);
                }
            }
            Err(_) => {
                out.put_slice(b",\"base64\":\"");
                out.put_slice(BASE64.encode(data).as_bytes());
                out.put_u8(b'"');
            }
        }
        out.put_slice(b"}\n");
        builder.finish()
    }

    /// A payload may be in the line unchanged, but only by chance; the stored encoding has it.
    fn payload_range(&self, _encoding: &Encoding, _data: &[u8]) -> Option<Range<usize>> {
        None
    }

    fn is_id_first(&self) -> bool {
        true
    }

    /// Appends the beginning of the line.
    fn put_id(&self, out: &mut BytesMut, id: &dyn Display, _shared: usize) {
        put_formatted(out, format_args!(r#"{{"id":"{id}""#));
    }

    fn put_opening(&self, out: &mut BytesMut, retry: Duration) {
        let fields = format!(r#","retry":{}"#, retry.as_millis());
        put_control(out, "open", &fields, None);
    }

    fn put_gap(&self, out: &mut BytesMut, gap: GapNotice, id: Option<&dyn Display>) {
        put_control(out, "gap", &format!(",{}", gap.json()), id);
    }

    fn put_position(&self, out: &mut BytesMut, id: &dyn Display) {
        put_control(out, "position", "", Some(id));
    }

    fn put_renew(&self, out: &mut BytesMut, expires: u64) {
        put_control(out, "renew", &format!(r#","expires":{expires}"#), None);
    }

    fn put_close(
        &self,
        out: &mut BytesMut,
        reason: &str,
        retry: Duration,
        id: Option<&dyn Display>,
    ) {
        put_control(out, "close", &format!(",{}", close_json(reason, retry)), id);
    }

    fn put_snapshot(&self, out: &mut BytesMut) {
        put_control(out, "snapshot", "", Some(&""));
    }

    /// The shared bytes begin with the comma after the id.
    fn put_state(&self, out: &mut BytesMut, shared: &[u8]) {
        out.reserve(shared.len());
        out.put_u8(b'{');
        out.put_slice(shared.get(1..).unwrap_or_default());
    }

    fn put_synced(&self, out: &mut BytesMut, id: &dyn Display) {
        put_control(out, "synced", "", Some(id));
    }

    fn put_end(&self, out: &mut BytesMut, id: &dyn Display) {
        put_control(out, "end", "", Some(id));
    }

    fn heartbeat(&self) -> &'static [u8] {
        HEARTBEAT
    }
}

/// Appends a control line: its name, further fields, and an id if it sets the client's position.
fn put_control(out: &mut BytesMut, name: &str, fields: &str, id: Option<&dyn Display>) {
    put_formatted(out, format_args!(r#"{{"control":"{name}"{fields}"#));
    if let Some(id) = id {
        put_formatted(out, format_args!(r#","id":"{id}""#));
    }
    out.put_slice(b"}\n");
}

/// Appends a text as a JSON string.
fn put_string(out: &mut BytesMut, text: &str) {
    // Serialising a string does not fail.
    put_line(out, &serde_json::to_string(text).unwrap_or_default());
}

/// Appends valid JSON without anything that a library takes for the end of a line.
fn put_line(out: &mut BytesMut, json: &str) {
    let mut rest = json;
    while let Some(at) = rest.find(['\r', '\n', '\u{85}', '\u{2028}', '\u{2029}']) {
        let (before, found) = rest.split_at(at);
        out.put_slice(before.as_bytes());
        let Some(end) = found.chars().next() else {
            break;
        };
        if !end.is_ascii() {
            put_formatted(out, format_args!("\\u{:04x}", u32::from(end)));
        }
        rest = &found[end.len_utf8()..];
    }
    out.put_slice(rest.as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::event::{Position, SourceTag};

    fn position() -> Position {
        Position {
            tag: SourceTag::of_identity("t"),
            seq: 7,
            fingerprint: None,
        }
    }

    fn encode(name: Option<&EventName>, subject: &str, data: &[u8]) -> Encoding {
        let parts = EventParts {
            name,
            subject,
            data,
            position: position(),
        };
        Ndjson.event(parts, Envelope::NONE)
    }

    /// Returns the line of an event without its id and its line end.
    fn line(name: Option<&str>, data: &[u8]) -> String {
        let name = name.map(|name| EventName::parse(name).unwrap());
        let encoding = encode(name.as_ref(), "orders.42", data);
        let line = std::str::from_utf8(encoding.bytes()).unwrap();
        let shared = encoding.shared();
        assert_eq!(
            line,
            format!("{{\"id\":\"{}\"", position()) + std::str::from_utf8(&shared).unwrap()
        );
        String::from_utf8(shared.to_vec()).unwrap()
    }

    /// Returns what a closure appends.
    fn written(write: impl FnOnce(&mut BytesMut)) -> String {
        let mut out = BytesMut::new();
        write(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn json_is_embedded_without_line_ends() {
        assert_eq!(
            line(Some("created"), b"{\"a\": [1,\r\n \"x\\ny\"]\n}"),
            ",\"event\":\"created\",\"subject\":\"orders.42\",\"data\":{\"a\": [1, \"x\\ny\"]}}\n"
        );
        assert_eq!(
            line(None, b"12"),
            ",\"subject\":\"orders.42\",\"data\":12}\n"
        );
        assert_eq!(
            line(None, b"null"),
            ",\"subject\":\"orders.42\",\"data\":null}\n"
        );
    }

    #[test]
    fn other_text_is_a_string_and_binary_is_base64() {
        for (data, expected) in [
            (&b""[..], "\"data\":\"\""),
            (b"a\nb \"c\"", "\"data\":\"a\\nb \\\"c\\\"\""),
            (b"{\"a\":", "\"data\":\"{\\\"a\\\":\""),
            (b"\"\\ud800\"", "\"data\":\"\\\"\\\\ud800\\\"\""),
            (b"\xff\xfe", "\"base64\":\"//4=\""),
        ] {
            assert_eq!(
                line(None, data),
                format!(",\"subject\":\"orders.42\",{expected}}}\n")
            );
        }
    }

    #[test]
    fn characters_that_some_libraries_take_for_line_ends_are_escaped() {
        for data in ["\"\u{85}\u{2028}\u{2029}\"", "\u{85}\u{2028}\u{2029}"] {
            assert_eq!(
                line(None, data.as_bytes()),
                ",\"subject\":\"orders.42\",\"data\":\"\\u0085\\u2028\\u2029\"}\n"
            );
        }
    }

    #[test]
    fn payload_nested_too_deep_for_some_parsers_is_a_string() {
        let nested = "[".repeat(100_000) + &"]".repeat(100_000);
        let line = line(None, nested.as_bytes());
        assert!(line.contains("\"data\":\"[[["));
    }

    #[test]
    fn control_lines_are_objects() {
        let gap = GapNotice {
            reason: "slow",
            missed: Some(3),
            resume: "oldest",
        };
        let retry = Duration::from_millis(3000);
        for (text, expected) in [
            (
                written(|out| Ndjson.put_opening(out, retry)),
                "{\"control\":\"open\",\"retry\":3000}\n",
            ),
            (
                written(|out| Ndjson.put_gap(out, gap, None)),
                "{\"control\":\"gap\",\"reason\":\"slow\",\"missed\":3,\"resume\":\"oldest\"}\n",
            ),
            (
                written(|out| {
                    Ndjson.put_gap(
                        out,
                        GapNotice {
                            missed: None,
                            ..gap
                        },
                        Some(&"a-1"),
                    )
                }),
                "{\"control\":\"gap\",\"reason\":\"slow\",\"missed\":null,\"resume\":\"oldest\",\"id\":\"a-1\"}\n",
            ),
            (
                written(|out| Ndjson.put_position(out, &"a-1")),
                "{\"control\":\"position\",\"id\":\"a-1\"}\n",
            ),
            (
                written(|out| Ndjson.put_renew(out, 1_795_961_031)),
                "{\"control\":\"renew\",\"expires\":1795961031}\n",
            ),
            (
                written(|out| Ndjson.put_close(out, "drain", retry, Some(&"a-1"))),
                "{\"control\":\"close\",\"reason\":\"drain\",\"retry\":3000,\"id\":\"a-1\"}\n",
            ),
        ] {
            assert_eq!(text, expected);
            let object: Value = serde_json::from_str(&text).unwrap();
            assert!(object["control"].is_string());
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,12}|[\\s\\S]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map("[\\s\\S]{0,6}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// Payloads: JSON in two layouts, texts, bytes, and pieces of JSON.
    fn payload() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            any_json().prop_map(|value| value.to_string().into_bytes()),
            any_json().prop_map(|value| serde_json::to_vec_pretty(&value).unwrap()),
            "[\\s\\S]{0,40}".prop_map(String::into_bytes),
            "[\\[\\]{}\",:0-9\\\\u\r\n\u{2028}ax ]{0,20}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..40),
        ]
    }

    proptest! {
        #[test]
        fn every_event_is_one_line_of_json_and_its_payload_is_unchanged(
            data in payload(),
            name in prop::option::of("\\PC{1,20}"),
            subject in "[^\\s.*>]{1,10}(\\.[^\\s.*>]{1,10}){0,3}",
        ) {
            let name = name.as_deref().and_then(EventName::parse);
            let encoding = encode(name.as_ref(), &subject, &data);
            let text = std::str::from_utf8(encoding.bytes()).unwrap();
            let line = text.strip_suffix('\n').unwrap();
            let ends = ['\r', '\n', '\u{85}', '\u{2028}', '\u{2029}'];
            prop_assert!(!line.contains(ends));
            let object: Value = serde_json::from_str(line).unwrap();
            let mut expected = json!({ "id": position().to_string(), "subject": subject });
            if let Some(name) = &name {
                expected["event"] = name.as_str().into();
            }
            match std::str::from_utf8(&data) {
                Ok(text) => {
                    expected["data"] = serde_json::from_str(text).unwrap_or_else(|_| text.into());
                }
                Err(_) => expected["base64"] = BASE64.encode(&data).into(),
            }
            prop_assert_eq!(object, expected);
        }
    }
}
