//! Schemas of the payloads: events and control messages in each framing.
//!
//! One table has the control messages; the schemas of Server-Sent Events and of JSON objects are made
//! of it.

use serde_json::{Map, Value, json};

use super::names::reference;
use crate::feed::GapReason;
use crate::presence::CloseReason;

/// Event as a Server-Sent Event.
pub(super) const SSE_EVENT: &str = "ServerSentEvent";
/// Control message as a Server-Sent Event.
pub(super) const SSE_CONTROL: &str = "ServerSentControl";
/// Event as a JSON object: a line, or a WebSocket message.
pub(super) const EVENT: &str = "Event";
/// Control message as a JSON object.
pub(super) const CONTROL: &str = "Control";
/// Answer to a message of the client of a WebSocket.
pub(super) const SUBJECTS: &str = "SubjectsControl";
/// CloudEvent.
pub(super) const CLOUD_EVENT: &str = "CloudEvent";

/// Id of a control message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Id {
    Never,
    Sometimes,
    Always,
}

/// Control message: its name, its meaning, its fields and its id.
struct Control {
    name: &'static str,
    meaning: &'static str,
    fields: Value,
    id: Id,
}

/// Returns the schemas by name.
pub(super) fn schemas() -> Map<String, Value> {
    let controls = controls();
    let mut objects: Vec<Value> = controls.iter().map(object).collect();
    let opening = Control {
        name: "open",
        meaning: "The first message: the time to wait before a reconnect, in milliseconds.",
        fields: json!({ "retry": { "type": "integer", "minimum": 0 } }),
        id: Id::Never,
    };
    objects.insert(0, object(&opening));
    let events: Vec<Value> = controls.iter().map(server_sent_event).collect();
    let schemas = json!({
        SSE_EVENT: {
            "type": "object",
            "description": "Fields of a Server-Sent Event. An event of the state has no id.",
            "required": ["data"],
            "properties": {
                "id": id_schema(),
                "event": { "type": "string", "description": "Name of the event; `;base64` at its end: the data is base64." },
                "data": { "type": "string", "description": "The payload as published." },
            },
        },
        EVENT: {
            "type": "object",
            "description": "Event with its subject. An event of the state has no id.",
            "required": ["subject"],
            "properties": {
                "id": id_schema(),
                "event": { "type": "string", "description": "Name of the event." },
                "subject": { "type": "string", "description": "Subject in NATS." },
                "data": { "description": "The payload: JSON as it is, other text as a string." },
                "base64": { "type": "string", "contentEncoding": "base64", "description": "The payload, if it is not UTF-8." },
            },
            "oneOf": [{ "required": ["data"] }, { "required": ["base64"] }],
        },
        SSE_CONTROL: { "oneOf": events },
        CONTROL: { "oneOf": objects },
        SUBJECTS: { "oneOf": answers().iter().map(object).collect::<Vec<_>>() },
        CLOUD_EVENT: {
            "type": "object",
            "description": "Event in the JSON format of CloudEvents 1.0, with the payload as `data`.",
            "required": ["specversion", "id", "source", "type"],
            "properties": {
                "specversion": { "const": "1.0" },
                "id": { "type": "string", "minLength": 1 },
                "source": { "type": "string", "minLength": 1 },
                "type": { "type": "string", "minLength": 1 },
                "datacontenttype": { "type": "string" },
                "data_base64": { "type": "string", "contentEncoding": "base64" },
            },
        },
    });
    match schemas {
        Value::Object(schemas) => schemas,
        _ => Map::new(),
    }
}

/// Returns the schema of a message of the client of a WebSocket, which names subjects.
pub(super) fn client_message(name: &str) -> Value {
    let subjects = json!({ "type": "array", "minItems": 1, "items": { "type": "string" } });
    json!({
        "type": "object",
        "required": [name],
        "properties": { name: subjects },
        "additionalProperties": false,
    })
}

/// Answers to the messages of the client of a WebSocket.
fn answers() -> [Control; 3] {
    let subjects = || json!({ "subjects": { "type": "array", "items": { "type": "string" } } });
    let error = json!({ "reason": { "type": "string" }, "message": { "type": "string" } });
    [
        Control {
            name: "subscribed",
            meaning: "Subjects were added: all subjects now. Their events begin after the id.",
            fields: subjects(),
            id: Id::Always,
        },
        Control {
            name: "unsubscribed",
            meaning: "Subjects were removed: all subjects now.",
            fields: subjects(),
            id: Id::Always,
        },
        Control {
            name: "error",
            meaning: "A message of the client changed nothing.",
            fields: error,
            id: Id::Never,
        },
    ]
}

/// Returns the schema of the answer to a long poll, with these events.
pub(super) fn answer(event: &Value) -> Value {
    json!({
        "type": "object",
        "required": ["events", "id"],
        "properties": {
            "events": {
                "type": "array",
                "items": { "anyOf": [event, reference(&["components", "schemas", CONTROL])] },
            },
            "id": id_schema(),
        },
    })
}

fn id_schema() -> Value {
    json!({ "type": "string", "description": "Position, for `Last-Event-ID`." })
}

fn object(control: &Control) -> Value {
    let mut properties = Map::new();
    properties.insert("control".to_owned(), json!({ "const": control.name }));
    let mut required = vec!["control"];
    if let Value::Object(fields) = &control.fields {
        required.extend(fields.keys().map(String::as_str));
        properties.extend(fields.clone());
    }
    put_id(control.id, &mut properties, &mut required);
    json!({
        "type": "object",
        "description": control.meaning,
        "required": required,
        "properties": properties,
    })
}

fn server_sent_event(control: &Control) -> Value {
    let mut properties = Map::new();
    let name = format!("sidestream.{}", control.name);
    properties.insert("event".to_owned(), json!({ "const": name }));
    let fields: Vec<&str> = match &control.fields {
        Value::Object(fields) => fields.keys().map(String::as_str).collect(),
        _ => Vec::new(),
    };
    let content = match fields[..] {
        [] => "An empty JSON object.".to_owned(),
        _ => format!("A JSON object with {}.", fields.join(", ")),
    };
    let data = json!({
        "type": "string",
        "contentMediaType": "application/json",
        "description": content,
    });
    properties.insert("data".to_owned(), data);
    let mut required = vec!["event", "data"];
    put_id(control.id, &mut properties, &mut required);
    json!({
        "type": "object",
        "description": control.meaning,
        "required": required,
        "properties": properties,
    })
}

fn put_id(id: Id, properties: &mut Map<String, Value>, required: &mut Vec<&str>) {
    if id != Id::Never {
        properties.insert("id".to_owned(), id_schema());
    }
    if id == Id::Always {
        required.push("id");
    }
}

/// Control messages that every framing has.
fn controls() -> Vec<Control> {
    let reasons = CloseReason::ALL.into_iter();
    let close_reasons: Vec<&str> = reasons.filter_map(CloseReason::client_reason).collect();
    let gap_reasons = GapReason::ALL.map(GapReason::as_str);
    let none = || json!({});
    let control = |name, meaning, fields, id| Control {
        name,
        meaning,
        fields,
        id,
    };
    vec![
        control(
            "position",
            "A position without an event.",
            none(),
            Id::Always,
        ),
        control(
            "gap",
            "Events are missing.",
            json!({
                "reason": { "enum": gap_reasons },
                "missed": { "type": ["integer", "null"], "minimum": 0 },
                "resume": { "enum": ["oldest", "live"] },
            }),
            Id::Sometimes,
        ),
        control(
            "renew",
            "The credentials expire at this time, in seconds since 1970.",
            json!({ "expires": { "type": "integer" } }),
            Id::Never,
        ),
        control(
            "snapshot",
            "The state begins: discard the one that you hold. Its id is empty.",
            none(),
            Id::Always,
        ),
        control("synced", "The state is complete.", none(), Id::Always),
        control(
            "end",
            "A finite event stream is complete.",
            none(),
            Id::Always,
        ),
        control(
            "close",
            "The event stream ends: reconnect after `retry` milliseconds.",
            json!({
                "reason": { "type": "string", "examples": close_reasons },
                "retry": { "type": "integer", "minimum": 0 },
            }),
            Id::Sometimes,
        ),
    ]
}
