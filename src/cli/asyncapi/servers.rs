//! Servers: the listeners of the configuration, or the addresses at which clients reach it.

use hyper::Uri;
use serde_json::{Map, Value, json};

use super::names::{CLIENT_CERTIFICATE, reference, unused};
use crate::config::Config;
use crate::net::ListenConfig;

/// Server, by its name.
pub(super) struct Server {
    pub(super) name: String,
    pub(super) is_websocket: bool,
    pub(super) object: Value,
}

/// Returns the servers, each for requests and, if a route has them, for WebSockets.
pub(super) fn servers(config: &Config, addresses: &[Uri], has_websocket: bool) -> Vec<Server> {
    let mut servers: Vec<Server> = Vec::new();
    let mut used = Map::new();
    let hosts: Vec<Host> = if addresses.is_empty() {
        config.listen.iter().map(Host::of_listener).collect()
    } else {
        addresses.iter().map(Host::of_address).collect()
    };
    let transports: &[bool] = if has_websocket {
        &[false, true]
    } else {
        &[false]
    };
    for host in hosts {
        for is_websocket in transports.iter().copied() {
            let protocol = host.protocol(is_websocket);
            let name = unused(&used, protocol);
            used.insert(name.clone(), Value::Null);
            servers.push(Server {
                name,
                is_websocket,
                object: host.object(protocol),
            });
        }
    }
    servers
}

/// Address of a server.
struct Host {
    is_tls: bool,
    has_client_ca: bool,
    /// Host and port; the host may be `{host}`.
    authority: String,
    path: Option<String>,
}

impl Host {
    fn of_listener(listener: &ListenConfig) -> Self {
        let address = listener.address;
        let authority = if address.ip().is_unspecified() {
            format!("{{host}}:{}", address.port())
        } else {
            address.to_string()
        };
        Self {
            is_tls: listener.tls.is_some(),
            has_client_ca: listener.has_client_ca(),
            authority,
            path: None,
        }
    }

    fn of_address(url: &Uri) -> Self {
        let authority = url.authority().map(ToString::to_string);
        let path = url.path().trim_end_matches('/');
        Self {
            is_tls: url.scheme_str() == Some("https"),
            has_client_ca: false,
            authority: authority.unwrap_or_default(),
            path: (!path.is_empty()).then(|| path.to_owned()),
        }
    }

    fn protocol(&self, is_websocket: bool) -> &'static str {
        match (is_websocket, self.is_tls) {
            (false, false) => "http",
            (false, true) => "https",
            (true, false) => "ws",
            (true, true) => "wss",
        }
    }

    fn object(&self, protocol: &str) -> Value {
        let mut server = json!({
            "host": self.authority,
            "protocol": protocol,
            "description": "HTTP/1.1 and HTTP/2",
        });
        if self.authority.starts_with("{host}") {
            server["variables"] = json!({
                "host": {
                    "default": "127.0.0.1",
                    "description": "Host of the pod or of the proxy in front of it",
                }
            });
        }
        if let Some(path) = &self.path {
            server["pathname"] = json!(path);
        }
        if self.has_client_ca {
            server["security"] = json!([reference(&[
                "components",
                "securitySchemes",
                CLIENT_CERTIFICATE
            ])]);
        }
        server
    }
}
