//! Messages of a channel: the event in each framing and version, and the control messages.

use serde_json::{Map, Value, json};

use super::names::reference;
use super::schemas::{CONTROL, EVENT, SSE_CONTROL, SSE_EVENT, answer};
use crate::encoding::Framing;
use crate::event::Version;
use crate::http::RouteConfig;
use crate::payload::{Deprecation, Versions};

/// Returns the messages of a route, by name.
pub(super) fn messages(route: &RouteConfig) -> Map<String, Value> {
    let mut messages = Map::new();
    for framing in route.framings.iter().copied() {
        match &route.versions {
            None => {
                messages.insert(framing.as_str().to_owned(), event(framing, None));
            }
            Some(versions) => messages.extend(versions.supported.iter().map(|version| {
                let name = format!("{}_v{version}", framing.as_str());
                (name, event(framing, Some((versions, *version))))
            })),
        }
        if has_controls(framing) {
            let name = format!("{}_control", framing.as_str());
            messages.insert(name, control(framing));
        }
    }
    messages
}

/// True if control messages are messages of their own. Those of the other framings are within the
/// answer, or variants of the message of gRPC.
fn has_controls(framing: Framing) -> bool {
    matches!(framing, Framing::Sse | Framing::Ndjson | Framing::WebSocket)
}

fn event(framing: Framing, of_version: Option<(&Versions, Version)>) -> Value {
    let deprecation = of_version.and_then(|(versions, version)| versions.deprecated.get(&version));
    let what = match framing {
        Framing::LongPoll => "Events",
        _ => "Event",
    };
    let in_version =
        of_version.map_or_else(String::new, |(_, version)| format!(" in version {version}"));
    let mut message = json!({
        "name": "event",
        "title": format!("{what}{in_version} as {}", words(framing)),
        "contentType": content_type(framing),
    });
    if let Some(payload) = payload(framing, deprecation.is_some()) {
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
fn payload(framing: Framing, is_deprecated: bool) -> Option<Value> {
    let schema = match framing {
        Framing::Sse => SSE_EVENT,
        Framing::Ndjson | Framing::WebSocket | Framing::LongPoll => EVENT,
        Framing::GrpcWeb | Framing::Grpc => return None,
    };
    let mut payload = reference(&["components", "schemas", schema]);
    if is_deprecated {
        payload = json!({ "allOf": [payload], "deprecated": true });
    }
    Some(match framing {
        Framing::LongPoll => answer(&payload),
        _ => payload,
    })
}

fn control(framing: Framing) -> Value {
    let schema = match framing {
        Framing::Sse => SSE_CONTROL,
        _ => CONTROL,
    };
    json!({
        "name": "control",
        "title": format!("Control message as {}", words(framing)),
        "contentType": content_type(framing),
        "payload": reference(&["components", "schemas", schema]),
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
