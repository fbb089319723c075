//! Event streams over gRPC and gRPC-Web: HTTP/1.1 and HTTP/2, in clear text and with TLS.

mod calls;
mod clients;
mod proxies;
mod stream;

use std::ops::{Deref, DerefMut};

use crate::orders::Orders;
use testkit::grpc::{Call, Form, Response};
use testkit::sidestream::Sidestream;

/// The stream ORDERS, and calls to its pods.
struct Fixture(Orders);

impl Fixture {
    async fn start() -> Self {
        Self::with_origin("https://pages.example").await
    }

    async fn with_origin(origin: &str) -> Self {
        Self(Orders::start(configuration(origin)).await)
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

fn call_to(pod: &Sidestream, form: Form, path: &str, id: &str) -> Call<'static> {
    Call::new(form, pod.url(""), path, id)
}

fn configuration(origin: &str) -> String {
    format!(
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
    )
}
