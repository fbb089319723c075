//! The document: its parts.

use hyper::Uri;
use serde_json::{Map, Value, json};

use super::channels::Channel;
use super::names::{id, unused};
use super::payloads::PayloadSchemas;
use super::{schemas, security, servers};
use crate::config::Config;
use crate::encoding::Framing;

/// Version of the AsyncAPI specification.
const ASYNCAPI: &str = "3.0.0";

/// Text about all event streams.
const DESCRIPTION: &str = "Event streams of NATS subjects, served by Sidestream. A client that \
    disconnects continues after the last `id` that it has received, in any framing and at any pod.";

/// Returns the document. `addresses`: those of the servers, in place of the listeners.
pub(super) fn document(
    config: &Config,
    payloads: &PayloadSchemas<'_>,
    addresses: &[Uri],
    title: &str,
    version: &str,
) -> Value {
    let routes = &config.http.routes;
    let has_websocket = config
        .http
        .all_routes()
        .any(|route| route.framings.contains(&Framing::WebSocket));
    let servers = servers::servers(config, addresses, has_websocket);
    let (mut channels, mut operations) = (Map::new(), Map::new());
    let of_application = config.http.subscribe.as_ref().map(|one| &one.route);
    let of_routes = routes.iter().map(|route| (route, true));
    let all = of_routes.chain(of_application.map(|route| (route, false)));
    for (route, has_path) in all {
        let channel = Channel {
            id: unused(&channels, &id(route.path.as_str())),
            route,
            has_path,
            config,
            payloads,
        };
        channels.insert(channel.id.clone(), channel.object(&servers));
        operations.insert(channel.id.clone(), channel.operation());
        if let Some(operation) = channel.change_operation() {
            let name = unused(&operations, &format!("{}.subjects", channel.id));
            operations.insert(name, operation);
        }
    }
    let servers = servers
        .into_iter()
        .map(|server| (server.name, server.object));
    let mut components = Map::new();
    let mut schemas = schemas::schemas();
    schemas.extend(payloads.components.clone());
    components.insert("schemas".to_owned(), Value::Object(schemas));
    let schemes = security::schemes(config);
    if !schemes.is_empty() {
        components.insert("securitySchemes".to_owned(), Value::Object(schemes));
    }
    json!({
        "asyncapi": ASYNCAPI,
        "info": { "title": title, "version": version, "description": DESCRIPTION },
        "defaultContentType": "application/json",
        "servers": servers.collect::<Map<_, _>>(),
        "channels": channels,
        "operations": operations,
        "components": components,
    })
}
