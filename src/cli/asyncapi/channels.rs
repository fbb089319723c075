//! Channel of a route: its path with parameters, its messages, and the operation that reads it.

use serde_json::{Map, Value, json};

use super::messages::{client_messages, messages};
use super::names::reference;
use super::payloads::PayloadSchemas;
use super::security;
use super::servers::Server;
use crate::config::Config;
use crate::encoding::Framing;
use crate::http::RouteConfig;
use crate::http::config::{BEGIN_QUERIES, SINCE_QUERY, SourceConfig};
use crate::subject::Variable;

/// Text about the framing `grpc_web`.
const GRPC: &str = " Calls of gRPC name the path and the query in the message of \
    `/sidestream.v1.Events/Subscribe`.";

/// Route, and the name of its channel and operation.
pub(super) struct Channel<'c> {
    pub(super) id: String,
    pub(super) route: &'c RouteConfig,
    /// False for the event streams that the application asks for: every path can become one.
    pub(super) has_path: bool,
    pub(super) config: &'c Config,
    pub(super) payloads: &'c PayloadSchemas<'c>,
}

impl Channel<'_> {
    /// Returns the channel.
    pub(super) fn object(&self, servers: &[Server]) -> Value {
        let has_websocket = self.route.framings.contains(&Framing::WebSocket);
        let mut framings = self.route.framings.iter();
        let has_responses = framings.any(|framing| framing.media_type().is_some());
        let servers = servers.iter().filter(|server| match server.is_websocket {
            true => has_websocket,
            false => has_responses,
        });
        let servers = servers.map(|server| reference(&["servers", &server.name]));
        let address = self.has_path.then(|| self.route.path.as_str());
        let mut channel = json!({
            "address": address,
            "description": self.description(),
            "servers": servers.collect::<Vec<_>>(),
            "messages": self.messages(),
        });
        let parameters = self.parameters();
        if !parameters.is_empty() {
            channel["parameters"] = Value::Object(parameters);
        }
        if has_websocket {
            channel["bindings"] = json!({
                "ws": { "method": "GET", "query": self.query(), "bindingVersion": "0.1.0" }
            });
        }
        channel
    }

    /// Messages in both directions, by name.
    fn messages(&self) -> Map<String, Value> {
        let mut messages = messages(self.route, self.payloads);
        messages.extend(client_messages(self.route));
        messages
    }

    /// References to messages of the channel.
    fn references(&self, messages: &Map<String, Value>) -> Vec<Value> {
        let names = messages.keys();
        names
            .map(|name| reference(&["channels", &self.id, "messages", name]))
            .collect()
    }

    /// Returns the operation with which a client changes its subjects; `None` if it cannot.
    pub(super) fn change_operation(&self) -> Option<Value> {
        let messages = client_messages(self.route);
        (!messages.is_empty()).then(|| {
            json!({
                "action": "receive",
                "summary": "Add and remove subjects of an open WebSocket",
                "channel": reference(&["channels", &self.id]),
                "messages": self.references(&messages),
            })
        })
    }

    /// Returns the operation: the sidecar sends the messages of the channel.
    pub(super) fn operation(&self) -> Value {
        let messages = messages(self.route, self.payloads);
        let mut operation = json!({
            "action": "send",
            "summary": "Read the event stream",
            "channel": reference(&["channels", &self.id]),
            "messages": self.references(&messages),
        });
        if self.is_read_by_get() {
            operation["bindings"] = json!({
                "http": { "method": "GET", "query": self.query(), "bindingVersion": "0.3.0" }
            });
        }
        let security = security::of_route(self.config, self.route);
        if !security.is_empty() {
            operation["security"] = json!(security);
        }
        operation
    }

    /// True if a framing of the route is the body of a response to GET.
    fn is_read_by_get(&self) -> bool {
        let is_body = |framing: &Framing| framing.media_type().is_some() && !framing.is_grpc();
        self.route.framings.iter().any(is_body)
    }

    fn description(&self) -> String {
        let sources = self.route.sources.iter().map(source);
        let sources: Vec<String> = sources.collect();
        let mut text = format!("Events of {}.", sources.join(" and "));
        if !self.has_path {
            text += " The application names the subjects in its response to any path.";
        }
        if self.route.framings.iter().any(|framing| framing.is_grpc()) {
            text += GRPC;
        }
        for variable in self.route.variables() {
            match variable {
                Variable::Header(name) => text += &format!(" Needs the header `{name}`."),
                Variable::Cookie(name) => text += &format!(" Needs the cookie `{name}`."),
                _ => {}
            }
        }
        text
    }

    fn parameters(&self) -> Map<String, Value> {
        let names = self.route.path.variables().filter(|_| self.has_path);
        let parameters = names.map(|name| {
            let description =
                format!("Segment of the path. It fills `{{{name}}}` in the subjects.");
            (name.to_owned(), json!({ "description": description }))
        });
        parameters.collect()
    }

    /// Returns the schema of the query.
    fn query(&self) -> Value {
        let route = self.route;
        let mut properties = Map::new();
        let mut required = Vec::new();
        let text = |description: &str| json!({ "type": "string", "description": description });
        for variable in route.variables() {
            if let Variable::Query(name) = variable {
                let description = "Fills a variable of the subjects.";
                properties.insert(name.to_string(), text(description));
                required.push(name.to_string());
            }
        }
        required.sort_unstable();
        required.dedup();
        let position = "Position after which the event stream continues, as `Last-Event-ID`.";
        properties.insert("last_event_id".to_owned(), text(position));
        if let Some(name) = &route.last_event_id_query {
            properties.insert(name.to_string(), text(position));
        }
        if let Some(versions) = &route.versions {
            let supported = versions.supported.iter().map(|version| version.get());
            let schema = json!({
                "enum": supported.collect::<Vec<_>>(),
                "default": versions.current.get(),
                "description": "Version of the payloads.",
            });
            properties.insert("version".to_owned(), schema);
        }
        for name in BEGIN_QUERIES {
            let is_time = name == SINCE_QUERY;
            let schema = match (&route.begin_by_client, is_time) {
                (None, _) => continue,
                (Some(_), true) => text("Time, or duration before now, at which it begins."),
                (Some(bounds), false) => json!({
                    "type": "integer",
                    "minimum": 1,
                    "maximum": bounds.max_events,
                    "description": "Number of last events with which it begins.",
                }),
            };
            properties.insert(name.to_owned(), schema);
        }
        if route.framings.contains(&Framing::LongPoll) {
            let description = "Longest wait of a long poll for events, such as `30s`.";
            properties.insert("wait".to_owned(), text(description));
        }
        let mut query = json!({ "type": "object", "properties": properties });
        if !required.is_empty() {
            query["required"] = json!(required);
        }
        query
    }
}

fn source(source: &SourceConfig) -> String {
    let subjects: Vec<String> = if source.subjects.is_empty() {
        let filters = source.allow.filters.iter();
        filters.map(|filter| format!("`{filter}`")).collect()
    } else {
        let subjects = source.subjects.iter();
        subjects
            .map(|subject| format!("`{}`", subject.as_str()))
            .collect()
    };
    let origin = match (&source.bucket, &source.stream) {
        (Some(bucket), _) => format!("the bucket {}", bucket.as_str()),
        (None, Some(stream)) => format!("the stream {stream}"),
        (None, None) => "core NATS".to_owned(),
    };
    format!("{} in {origin}", subjects.join(", "))
}
