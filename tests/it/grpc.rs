//! Event streams over gRPC and gRPC-Web: HTTP/1.1 and HTTP/2, in clear text and with TLS.

mod calls;
mod clients;
mod proxies;
mod stream;

use async_nats::jetstream::{self, stream as nats_stream};

use testkit::certs::Authority;
use testkit::grpc::{Call, Form, Response};
use testkit::nats::{Nats, store};
use testkit::sidestream::{Sidestream, config_with_tls};

/// A nats-server with the JetStream stream ORDERS, and a sidecar that serves it.
struct Fixture {
    sidestream: Sidestream,
    nats: Nats,
    jetstream: jetstream::Context,
    authority: Authority,
    /// Origin in `cors.origins`.
    origin: String,
}

impl Fixture {
    async fn start() -> Self {
        Self::with_origin("https://pages.example").await
    }

    async fn with_origin(origin: &str) -> Self {
        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        let config = nats_stream::Config {
            name: "ORDERS".into(),
            subjects: vec!["orders.>".into()],
            storage: nats_stream::StorageType::Memory,
            ..Default::default()
        };
        jetstream.create_stream(config).await.unwrap();
        let authority = Authority::new();
        let sidestream = Sidestream::start(config_of(&nats, &authority, origin)).await;
        Self {
            sidestream,
            nats,
            jetstream,
            authority,
            origin: origin.to_owned(),
        }
    }

    /// Starts another pod.
    async fn pod(&self) -> Sidestream {
        Sidestream::start(config_of(&self.nats, &self.authority, &self.origin)).await
    }

    fn call(&self, form: Form, path: &str, id: &str) -> Call<'static> {
        call_to(&self.sidestream, form, path, id)
    }

    fn tls_call(&self, form: Form, path: &str, id: &str) -> Call<'static> {
        let mut call = Call::new(form, self.sidestream.url_tls(""), path, id);
        call.tls = Some(self.authority.trusting(&[form.alpn()]));
        call
    }

    /// Opens an event stream; returns when it has its position.
    async fn open(&self, form: Form, path: &str) -> Response {
        let mut response = self.call(form, path, "").send().await;
        response.until("position").await;
        response
    }

    async fn publish(&self, subject: &str, payload: impl Into<bytes::Bytes>) {
        store(&self.jetstream, subject, payload).await;
    }
}

fn call_to(pod: &Sidestream, form: Form, path: &str, id: &str) -> Call<'static> {
    Call::new(form, pod.url(""), path, id)
}

fn config_of(nats: &Nats, authority: &Authority, origin: &str) -> String {
    let routes = format!(
        r#"
routes:
  - path: /orders
    framings: [sse, ndjson, grpc_web]
    sources: [{{ stream: ORDERS, subjects: ["orders.>"] }}]
    heartbeat: 400ms
    expired: gap
    begin_by_client: {{ max_age: 1h, max_events: 4 }}
    cors: {{ origins: ["{origin}"] }}
  - path: /abort/{{id}}
    framings: [grpc_web]
    sources: [{{ stream: ORDERS, subjects: ["orders.{{id}}.>"] }}]
    close: abort
  - path: /both
    framings: [grpc_web]
    sources: [{{ stream: ORDERS, subjects: ["orders.>"] }}, {{ subjects: ["news.>"] }}]
  - path: /metadata
    framings: [grpc_web]
    sources: [{{ stream: ORDERS, subjects: ["orders.{{header.x-user}}.>"] }}]
    expired: status
  - path: /state
    framings: [grpc_web]
    begin: latest
    sources: [{{ stream: ORDERS, subjects: ["orders.>"] }}]
  - path: /run
    framings: [grpc_web]
    finite: true
    begin: first
    sources: [{{ stream: ORDERS, subjects: ["orders.1"] }}]
  - path: /short
    framings: [grpc_web]
    max_age: 1s
    sources: [{{ stream: ORDERS, subjects: ["orders.>"] }}]
  - path: /default
    sources: [{{ stream: ORDERS, subjects: ["orders.>"] }}]
limits: {{ per_client: {{ connections: 40 }} }}
drain: {{ accept_for: 100ms, spread: 100ms, timeout: 5s, retry: {{ min: 600ms, max: 900ms }} }}
"#
    );
    config_with_tls(nats, authority, &routes)
}
