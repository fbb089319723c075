//! CloudEvents: payloads as structured events in the JSON format (CloudEvents 1.0).
//!
//! A message in binary content mode has the attributes in its headers `ce-*`, and the data as its
//! payload. A message in structured mode has everything in its payload, and is left as it is. All
//! others become CloudEvents too, with attributes from the event.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use prometheus::IntCounter;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::event::Event;
use crate::event::headers::CONTENT_TYPE;

/// The version of the specification.
const SPECVERSION: &str = "1.0";

/// Characters of a subject that a URI reference cannot have.
const ENCODED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b':')
    .add(b'<')
    .add(b'>')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}')
    .add(b'?');

/// Format of the payloads that clients of a route receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadFormat {
    /// CloudEvents in structured mode, as JSON.
    CloudEvents,
}

impl PayloadFormat {
    /// Word in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CloudEvents => "cloudevents",
        }
    }
}

/// Counters of events of one route, by what their messages were.
#[derive(Clone, Debug)]
pub struct CloudEventCounters {
    /// Structured mode: unchanged.
    pub structured: IntCounter,
    /// Binary mode with all required attributes.
    pub binary: IntCounter,
    /// At least one required attribute was missing.
    pub completed: IntCounter,
}

/// A payload as a CloudEvent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Structured {
    /// It is one already.
    Unchanged,
    /// The structured event.
    Event(Vec<u8>),
}

/// Makes the structured event of an event with this payload, and counts it.
pub(super) fn structured(event: &Event, data: &[u8], counters: &CloudEventCounters) -> Structured {
    let is_binary = event.headers.cloud_event().next().is_some();
    if !is_binary && is_structured(data) {
        counters.structured.inc();
        return Structured::Unchanged;
    }
    let mut members = Map::new();
    for (name, value) in event.headers.cloud_event() {
        members.insert(name.to_owned(), Value::String(decoded(value)));
    }
    let is_complete = complete(&mut members, event);
    if is_complete {
        counters.binary.inc();
    } else {
        counters.completed.inc();
    }
    Structured::Event(with_data(members, data))
}

/// Adds the required attributes that are missing; returns true if nothing was missing.
fn complete(members: &mut Map<String, Value>, event: &Event) -> bool {
    let subject = &*event.subject;
    let has = |members: &Map<String, Value>, name: &str| {
        let value = members.get(name).and_then(Value::as_str);
        value.is_some_and(|value| !value.is_empty())
    };
    // A value that is not this one would be another format of the event.
    let is_known = members.get("specversion").and_then(Value::as_str) == Some(SPECVERSION);
    members.insert("specversion".into(), SPECVERSION.into());
    let mut is_complete = is_known;
    if !has(members, "id") {
        members.insert("id".into(), event.position.to_string().into());
        is_complete = false;
    }
    if !has(members, "source") {
        let source = utf8_percent_encode(subject, ENCODED).to_string();
        members.insert("source".into(), source.into());
        is_complete = false;
    }
    if !has(members, "type") {
        let name = event.name.as_ref().map_or(subject, |name| name.as_str());
        members.insert("type".into(), name.into());
        is_complete = false;
    }
    // Optional attributes are absent instead of empty.
    members.retain(|_, value| value.as_str().is_some_and(|text| !text.is_empty()));
    is_complete
}

/// Adds the data in the form that suits its media type, and serialises the event.
fn with_data(mut members: Map<String, Value>, data: &[u8]) -> Vec<u8> {
    let declared = members.get(CONTENT_TYPE).and_then(Value::as_str);
    // Without a type, data of the JSON format is JSON.
    let may_be_json = declared.is_none_or(is_json_type);
    // Text under a type of JSON would be a JSON string.
    let may_be_text = !declared.is_some_and(is_json_type);
    let has_type = declared.is_some();
    let (name, value, media_type) = match std::str::from_utf8(data) {
        Ok(text) if may_be_json && is_json(text) => ("data", text.to_owned(), None),
        Ok(text) if may_be_text => ("data", Value::from(text).to_string(), Some("text/plain")),
        _ => (
            "data_base64",
            Value::from(STANDARD.encode(data)).to_string(),
            Some("application/octet-stream"),
        ),
    };
    let is_empty = data.is_empty();
    if let Some(media_type) = media_type.filter(|_| !has_type && !is_empty) {
        members.insert(CONTENT_TYPE.into(), media_type.into());
    }
    let mut event = Value::Object(members).to_string().into_bytes();
    if !is_empty {
        // Before the brace at the end: the data is not parsed into values, which would change it.
        event.pop();
        for part in [",\"", name, "\":", &value, "}"] {
            event.extend_from_slice(part.as_bytes());
        }
    }
    event
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// True for `application/json`, `text/json` and types with the suffix `+json`.
fn is_json_type(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    let subtype = essence.split_once('/').map_or("", |(_, subtype)| subtype);
    let suffix = subtype.rsplit('+').next().unwrap_or_default();
    suffix.eq_ignore_ascii_case("json")
}

/// True if a payload is a CloudEvent in the JSON format with all required attributes.
fn is_structured(data: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Required<'t> {
        #[serde(borrow)]
        specversion: Cow<'t, str>,
        #[serde(borrow)]
        id: Cow<'t, str>,
        #[serde(borrow)]
        source: Cow<'t, str>,
        #[serde(borrow, rename = "type")]
        kind: Cow<'t, str>,
    }
    serde_json::from_slice::<Required<'_>>(data).is_ok_and(|required| {
        let texts = [&required.id, &required.source, &required.kind];
        required.specversion == SPECVERSION && texts.iter().all(|text| !text.is_empty())
    })
}

/// Value of a header, which is percent-encoded.
fn decoded(value: &str) -> String {
    let decoded = percent_decode_str(value).decode_utf8();
    decoded.map_or_else(|_| value.to_owned(), Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::event::headers::attributes;
    use crate::event::{EventHeaders, EventName, Position, SourceTag};

    fn event(name: Option<&str>, headers: &[(&str, &str)]) -> Event {
        Event {
            position: Position {
                tag: SourceTag::of_identity("x"),
                seq: 7,
                fingerprint: None,
            },
            received: Instant::now(),
            tier: None,
            is_end: false,
            sample: None,
            version: None,
            subject: Arc::from("orders.42 é"),
            name: name.and_then(EventName::parse),
            headers: EventHeaders::new(None, attributes(headers.iter().copied()).as_deref()),
            data: Vec::new().into(),
        }
    }

    fn counters() -> CloudEventCounters {
        let counter = |name| IntCounter::new(name, "test").unwrap();
        CloudEventCounters {
            structured: counter("structured"),
            binary: counter("binary"),
            completed: counter("completed"),
        }
    }

    fn convert(event: &Event, data: &[u8]) -> Value {
        match structured(event, data, &counters()) {
            Structured::Event(bytes) => serde_json::from_slice(&bytes).unwrap(),
            Structured::Unchanged => panic!("it is not structured"),
        }
    }

    const REQUIRED: [(&str, &str); 4] = [
        ("ce-specversion", "1.0"),
        ("ce-id", "a%20b"),
        ("ce-source", "/shop"),
        ("ce-type", "com.example.created"),
    ];

    #[test]
    fn headers_become_attributes_and_the_payload_becomes_data() {
        let headers = [&REQUIRED[..], &[("ce-subject", "42"), ("ce-empty", "")]].concat();
        let expected = json!({
            "specversion": "1.0", "id": "a b", "source": "/shop", "type": "com.example.created",
            "subject": "42", "data": { "a": [1, 2.50] }
        });
        let binary = event(Some("created"), &headers);
        assert_eq!(convert(&binary, br#"{"a": [1, 2.50]}"#), expected);
    }

    #[test]
    fn missing_required_attributes_come_from_the_event() {
        let id = event(None, &[]).position.to_string();
        let of_name = json!({
            "specversion": "1.0", "id": id, "source": "orders.42%20%C3%A9", "type": "created",
            "data": 7
        });
        assert_eq!(convert(&event(Some("created"), &[]), b"7"), of_name);
        let partial = event(
            None,
            &[("ce-specversion", "0.3"), ("ce-id", ""), ("ce-source", "s")],
        );
        let of_subject = json!({
            "specversion": "1.0", "id": id, "source": "s", "type": "orders.42 é"
        });
        assert_eq!(convert(&partial, b""), of_subject);
    }

    #[test]
    fn data_has_the_form_of_its_media_type() {
        let data = |media_type: &str, payload: &[u8]| {
            let headers = [&REQUIRED[..], &[("Content-Type", media_type)]].concat();
            let mut event = convert(&event(None, &headers), payload);
            let map = event.as_object_mut().unwrap();
            let media_type = map.remove("datacontenttype").unwrap_or_default();
            let text = map.remove("data").map(|data| ("data", data));
            let binary = map.remove("data_base64").map(|data| ("data_base64", data));
            (media_type, text.or(binary))
        };
        let json = || Some(("data", json!({ "a": 1 })));
        assert_eq!(data("", br#"{"a":1}"#), (Value::Null, json()));
        for media_type in ["application/json; charset=utf-8", "application/x+JSON"] {
            assert_eq!(data(media_type, br#"{"a":1}"#), (media_type.into(), json()));
            let broken = Some(("data_base64", json!("eyI=")));
            assert_eq!(data(media_type, br#"{""#), (media_type.into(), broken));
        }
        let text = |text: &str| Some(("data", Value::from(text)));
        assert_eq!(data("text/xml", b"<a/>"), ("text/xml".into(), text("<a/>")));
        assert_eq!(data("text/xml", b"7"), ("text/xml".into(), text("7")));
        assert_eq!(data("", b"plain"), ("text/plain".into(), text("plain")));
        let binary = Some(("data_base64", json!("/w==")));
        assert_eq!(
            data("", b"\xff"),
            ("application/octet-stream".into(), binary.clone())
        );
        assert_eq!(data("image/png", b"\xff"), ("image/png".into(), binary));
        assert_eq!(data("image/png", b""), ("image/png".into(), None));
    }

    #[test]
    fn structured_event_is_unchanged_and_each_kind_is_counted() {
        let counters = counters();
        let whole = br#" {"specversion":"1.0","id":"1","source":"s","type":"t","data":{}} "#;
        let plain = event(None, &[]);
        assert_eq!(structured(&plain, whole, &counters), Structured::Unchanged);
        let partial = br#"{"specversion":"1.0","id":"1","source":"s"}"#;
        assert_ne!(
            structured(&plain, partial, &counters),
            Structured::Unchanged
        );
        let binary = event(None, &REQUIRED);
        assert_ne!(structured(&binary, b"1", &counters), Structured::Unchanged);
        let counts = [&counters.structured, &counters.completed, &counters.binary];
        assert_eq!(counts.map(IntCounter::get), [1, 1, 1]);
    }
}
