//! Requests for paths without a route pass to the application beside the sidecar.

mod bodies;
mod cache;
mod concurrency;
mod drain;
mod faults;
mod fields;
mod heads;
mod health;
mod long;
mod nginx;
mod rolling;
mod servers;
mod subscribe;
mod tunnel;
mod wire;

use bytes::Bytes;
use http_body_util::{BodyExt as _, combinators::BoxBody};
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use testkit::application::Application;
use testkit::http1::{self, Answer};
use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, config};
use testkit::wait::{RECOVERY, within};

/// Application, and a sidecar in front of it with the route `/events`.
struct Fixture {
    sidestream: Sidestream,
    application: Application,
    nats: Nats,
}

impl Fixture {
    async fn start() -> Self {
        Self::with(Application::start().await, "", "").await
    }

    /// Starts with further keys of `application`, each followed by a comma, and further sections.
    async fn with(application: Application, settings: &str, rest: &str) -> Self {
        let nats = Nats::start().await;
        let text = format!(
            "application: {{ {settings} address: \"{}\" }}
{rest}
routes:
  - path: /events
    sources: [{{ subjects: [events] }}]
",
            application.url()
        );
        let sidestream = Sidestream::start(config(&nats, &text)).await;
        Self {
            sidestream,
            application,
            nats,
        }
    }

    /// Returns the answer to a GET request over HTTP/1.1.
    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        http1::request("GET", &self.sidestream.url(path), headers)
            .await
            .unwrap()
    }

    /// Sends a request with a body over HTTP/1.1 or HTTP/2.
    async fn send(&self, version: Version, request: Request<Body>) -> Response<Bytes> {
        let client = Client::builder(TokioExecutor::new())
            .http2_only(version == Version::Http2)
            .build_http();
        let answered = async {
            let response = client.request(request).await.unwrap();
            let (head, body) = response.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Response::from_parts(head, body)
        };
        within(4 * RECOVERY, "the request is answered", answered).await
    }

    /// Sends bytes as they are, and returns all that is answered.
    async fn raw(&self, bytes: &[u8]) -> String {
        heads::raw(&self.sidestream, bytes).await
    }

    /// Returns the number of rejections with this code.
    async fn count(&self, code: &str) -> f64 {
        let labels = [("code", code)];
        let name = "sidestream_refusals_total";
        self.sidestream.metric(name, &labels).await
    }
}

type Body = BoxBody<Bytes, std::convert::Infallible>;

/// HTTP version of a test's client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

const VERSIONS: [Version; 2] = [Version::Http1, Version::Http2];

fn json(body: &Bytes) -> Value {
    serde_json::from_slice(body).unwrap()
}
