//! Messages of a channel: the event in each framing and version, and the control messages.

use serde_json::{Map, Value, json};

use super::names::reference;
use super::payloads::PayloadSchemas;
use super::schemas::{CONTROL, EVENT, SSE_CONTROL, SSE_EVENT, SUBJECTS, answer, client_message};
use crate::encoding::Framing;
use crate::event::Version;
use crate::http::RouteConfig;
use crate::http::config::{RouteBegin, SourceConfig};
use crate::payload::{Deprecation, PayloadFormat, Versions};
use crate::subject::{SubjectTemplate, Variable};

/// Messages with which the client of a WebSocket changes its subjects.
const CLIENT_MESSAGES: [(&str, &str); 2] = [
    ("subscribe", "Add subjects, within the bounds of the route"),
    ("unsubscribe", "Remove subjects"),
];

/// Returns the messages that the client of a WebSocket can send, by name.
pub(super) fn client_messages(route: &RouteConfig) -> Map<String, Value> {
    let is_of_query = |subject: &SubjectTemplate| {
        subject.is_whole_variable()
            && subject
                .variables()
                .all(|variable| matches!(variable, Variable::Query(_)))
    };
    let can_change = |source: &SourceConfig| {
        source.stream.is_some()
            && !source.allow.is_empty()
            && source.subjects.iter().any(is_of_query)
    };
    let has_changes = route.framings.contains(&Framing::WebSocket)
        && !route.finite
        && route.sources.iter().any(can_change);
    let messages = CLIENT_MESSAGES.iter().filter(|_| has_changes);
    messages
        .map(|(name, title)| {
            let message = json!({
                "name": name,
                "title": title,
                "contentType": "application/json",
                "payload": client_message(name),
            });
            (format!("websocket_{name}"), message)
        })
        .collect()
}

/// Returns the messages that the sidecar sends to clients of a route, by name.
pub(super) fn messages(route: &RouteConfig, payloads: &PayloadSchemas<'_>) -> Map<String, Value> {
    let mut messages = Map::new();
    for framing in route.framings.iter().copied() {
        match &route.versions {
            None => {
                let message = event(framing, route, None, payloads);
                messages.insert(framing.as_str().to_owned(), message);
            }
            Some(versions) => messages.extend(versions.supported.iter().map(|version| {
                let name = format!("{}_v{version}", framing.as_str());
                let of_version = Some((versions, *version));
                (name, event(framing, route, of_version, payloads))
            })),
        }
        if has_controls(framing) {
            let name = format!("{}_control", framing.as_str());
            let has_answers = framing == Framing::WebSocket && !client_messages(route).is_empty();
            messages.insert(name, control(framing, has_answers));
        }
    }
    messages
}

/// True if control messages are messages of their own. Those of the other framings are within the
/// answer, or variants of the message of gRPC.
fn has_controls(framing: Framing) -> bool {
    matches!(framing, Framing::Sse | Framing::Ndjson | Framing::WebSocket)
}

fn event(
    framing: Framing,
    route: &RouteConfig,
    of_version: Option<(&Versions, Version)>,
    payloads: &PayloadSchemas<'_>,
) -> Value {
    let deprecation = of_version.and_then(|(versions, version)| versions.deprecated.get(&version));
    let what = match framing {
        Framing::LongPoll => "Events",
        _ => "Event",
    };
    let in_version =
        of_version.map_or_else(String::new, |(_, version)| format!(" in version {version}"));
    let format = match route.format {
        Some(PayloadFormat::CloudEvents) => " with a CloudEvent",
        None => "",
    };
    let mut message = json!({
        "name": "event",
        "title": format!("{what}{in_version} as {}{format}", words(framing)),
        "contentType": content_type(framing),
    });
    let data = payloads.of_route(route, of_version.map(|(_, version)| version));
    let data = data.map(|data| with_data(framing, route, &data));
    if let Some(payload) = payload(framing, data, deprecation.is_some()) {
        message["payload"] = payload;
    }
    if let Some((_, version)) = of_version {
        let fields = response_fields(version, deprecation);
        if framing.media_type().is_some() {
            message["bindings"] = json!({
                "http": { "statusCode": 200, "headers": fields, "bindingVersion": "0.3.0" }
            });
        }
    }
    if let Some(deprecation) = deprecation {
        put_deprecation(deprecation, &mut message);
    }
    message
}

/// Returns the schema of an event. `None`: the `.proto` file has it.
fn payload(framing: Framing, data: Option<Value>, is_deprecated: bool) -> Option<Value> {
    let schema = match framing {
        Framing::Sse => SSE_EVENT,
        Framing::Ndjson | Framing::WebSocket | Framing::LongPoll => EVENT,
        Framing::GrpcWeb | Framing::Grpc => return None,
    };
    let mut payload = reference(&["components", "schemas", schema]);
    if let Some(data) = data {
        payload = json!({ "allOf": [payload, data] });
    }
    if is_deprecated {
        payload = json!({ "allOf": [payload], "deprecated": true });
    }
    Some(match framing {
        Framing::LongPoll => answer(&payload),
        _ => payload,
    })
}

/// Returns the schema of an event whose payload has this one.
fn with_data(framing: Framing, route: &RouteConfig, data: &Value) -> Value {
    let data = match framing {
        Framing::Sse => json!({
            "type": "string", "contentMediaType": "application/json", "contentSchema": data
        }),
        _ => data.clone(),
    };
    let event = json!({ "properties": { "data": data } });
    if route.begin != RouteBegin::Latest {
        return event;
    }
    // The event of a removed subject has no payload of a publisher.
    let removed = json!({
        "properties": { "event": { "const": "sidestream.removed" } }, "required": ["event"]
    });
    json!({ "if": removed, "else": event })
}

fn control(framing: Framing, has_answers: bool) -> Value {
    let schema = match framing {
        Framing::Sse => SSE_CONTROL,
        _ => CONTROL,
    };
    let mut payload = reference(&["components", "schemas", schema]);
    if has_answers {
        let answers = reference(&["components", "schemas", SUBJECTS]);
        payload = json!({ "anyOf": [payload, answers] });
    }
    json!({
        "name": "control",
        "title": format!("Control message as {}", words(framing)),
        "contentType": content_type(framing),
        "payload": payload,
    })
}

/// Returns the schema of the fields of the response that name the version.
fn response_fields(version: Version, deprecation: Option<&Deprecation>) -> Value {
    let mut fields = json!({ "Sidestream-Version": { "const": version.to_string() } });
    if let Some(deprecation) = deprecation {
        fields["Deprecation"] = json!({ "type": "string" });
        if deprecation.sunset.is_some() {
            fields["Sunset"] = json!({ "type": "string" });
        }
        if deprecation.link.is_some() {
            fields["Link"] = json!({ "type": "string" });
        }
    }
    json!({ "type": "object", "properties": fields })
}

fn put_deprecation(deprecation: &Deprecation, message: &mut Value) {
    let since = httpdate::fmt_http_date(deprecation.since);
    let sunset = deprecation.sunset.map(httpdate::fmt_http_date);
    let sunset = sunset.map_or_else(String::new, |sunset| format!(", rejected from {sunset}"));
    message["description"] = json!(format!("Deprecated since {since}{sunset}."));
    message["tags"] = json!([{ "name": "deprecated" }]);
    if let Some(link) = &deprecation.link {
        message["externalDocs"] = json!({ "url": link });
    }
}

fn content_type(framing: Framing) -> &'static str {
    // A WebSocket has no media type: its messages are JSON.
    framing.media_type().unwrap_or("application/json")
}

fn words(framing: Framing) -> &'static str {
    match framing {
        Framing::Sse => "a Server-Sent Event",
        Framing::Ndjson => "a line of JSON",
        Framing::WebSocket => "a WebSocket message",
        Framing::LongPoll => "the answer to a long poll",
        Framing::GrpcWeb | Framing::Grpc => {
            "a `sidestream.v1.SubscribeResponse` of gRPC or gRPC-Web"
        }
    }
}
