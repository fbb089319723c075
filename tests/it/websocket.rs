//! Event streams over WebSocket: HTTP/1.1 and HTTP/2, in clear text and with TLS.

mod changes;
mod clients;
mod conformance;
mod handshake;
mod stream;
mod subjects;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use rustls::ClientConfig;

use crate::orders::Orders;
use testkit::sidestream::Sidestream;
use testkit::websocket::{Request, WebSocket};

/// Transport of a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Via {
    Http11,
    H2,
    Tls11,
    TlsH2,
}

/// The stream ORDERS, and WebSockets to its pods.
struct Fixture(Orders);

impl Via {
    const ALL: [Self; 4] = [Self::Http11, Self::H2, Self::Tls11, Self::TlsH2];

    fn is_h2(self) -> bool {
        matches!(self, Self::H2 | Self::TlsH2)
    }

    fn is_tls(self) -> bool {
        matches!(self, Self::Tls11 | Self::TlsH2)
    }
}

impl Fixture {
    async fn start() -> Self {
        Self::with_origin("https://pages.example").await
    }

    async fn with_origin(origin: &str) -> Self {
        Self(Orders::start(configuration(origin)).await)
    }

    fn request(&self, via: Via, path: &str) -> Request<'static> {
        self.request_to(&self.sidestream, via, path)
    }

    fn request_to(&self, pod: &Sidestream, via: Via, path: &str) -> Request<'static> {
        let url = if via.is_tls() {
            pod.url_tls(path)
        } else {
            pod.url(path)
        };
        Request {
            is_h2: via.is_h2(),
            tls: via.is_tls().then(|| self.tls(via)),
            ..Request::new(url)
        }
    }

    /// Opens a WebSocket; returns when it has its position.
    async fn open(&self, via: Via, path: &str) -> WebSocket {
        let mut socket = self.request(via, path).open().await;
        socket.until_control("position").await;
        socket
    }

    fn tls(&self, via: Via) -> Arc<ClientConfig> {
        let protocol = if via.is_h2() { "h2" } else { "http/1.1" };
        self.authority.trusting(&[protocol])
    }
}

impl Deref for Fixture {
    type Target = Orders;

    fn deref(&self) -> &Orders {
        &self.0
    }
}

impl DerefMut for Fixture {
    fn deref_mut(&mut self) -> &mut Orders {
        &mut self.0
    }
}

fn configuration(origin: &str) -> String {
    format!(
        r#"
routes:
  - path: /orders
    framings: [sse, ndjson, websocket, long_poll, grpc_web]
    sources: [{{ stream: ORDERS, subjects: ["orders.>"] }}]
    heartbeat: 400ms
    expired: gap
    cors: {{ origins: ["{origin}"] }}
  - path: /both
    framings: [websocket]
    sources: [{{ stream: ORDERS, subjects: ["orders.>"] }}, {{ subjects: ["news.>"] }}]
  - path: /default
    sources: [{{ stream: ORDERS, subjects: ["orders.>"] }}]
  - path: /query
    framings: [websocket]
    last_event_id_query: after
    sources: [{{ stream: ORDERS, subjects: ["orders.>"] }}]
  - path: /run
    framings: [websocket, long_poll]
    finite: true
    sources: [{{ stream: ORDERS, subjects: ["orders.>"] }}]
limits: {{ per_client: {{ connections: 40 }} }}
drain: {{ accept_for: 100ms, spread: 100ms, timeout: 5s, retry: {{ min: 600ms, max: 900ms }} }}
"#
    )
}
