//! A collector of OTLP over HTTP, made of the official protobufs.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use testkit::certs::{Identity, server_config};
use testkit::wait::{DEADLINE, eventually};

/// Running collector. Dropping it stops it.
pub struct Collector {
    address: SocketAddr,
    scheme: &'static str,
    state: Arc<State>,
    server: JoinHandle<()>,
}

struct State {
    behaviour: Mutex<Behaviour>,
    requests: Mutex<Vec<ExportTraceServiceRequest>>,
    /// Header fields of the last request.
    headers: Mutex<Vec<(String, String)>>,
}

/// Answers of a collector.
#[derive(Clone, Copy)]
pub enum Behaviour {
    /// Accepts every request.
    Accepts,
    /// Answers with this status.
    Rejects(u16),
    /// Never answers.
    Hangs,
}

impl Collector {
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Starts a collector with TLS.
    pub async fn start_with(identity: Option<&Identity>) -> Self {
        let tls =
            identity.map(|identity| TlsAcceptor::from(server_config(identity, &["http/1.1"])));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            behaviour: Mutex::new(Behaviour::Accepts),
            requests: Mutex::default(),
            headers: Mutex::default(),
        });
        let server = tokio::spawn(serve(listener, tls, state.clone()));
        Self {
            address,
            scheme,
            state,
            server,
        }
    }

    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    pub fn set(&self, behaviour: Behaviour) {
        *self.state.behaviour.lock().unwrap() = behaviour;
    }

    /// Every accepted span.
    pub fn spans(&self) -> Vec<Span> {
        let requests = self.state.requests.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| &scope.spans).cloned().collect()
    }

    /// Accepted spans of one name.
    pub fn named(&self, name: &str) -> Vec<Span> {
        let mut spans = self.spans();
        spans.retain(|span| span.name == name);
        spans
    }

    /// Waits for this number of spans of one name.
    pub async fn until(&self, name: &str, count: usize) -> Vec<Span> {
        let fact = format!("the collector has {count} spans `{name}`");
        eventually(DEADLINE, &fact, || async {
            let spans = self.named(name);
            (spans.len() >= count).then_some(spans)
        })
        .await
    }

    /// Attribute of the resource of the first request.
    pub fn resource(&self, key: &str) -> Option<String> {
        let requests = self.state.requests.lock().unwrap();
        let resource = requests
            .first()?
            .resource_spans
            .first()?
            .resource
            .as_ref()?;
        Some(text(find(&resource.attributes, key)?))
    }

    /// Value of a header field of the last request.
    pub fn header(&self, name: &str) -> Option<String> {
        let headers = self.state.headers.lock().unwrap();
        let found = headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Attribute of a span as text.
pub fn attribute(span: &Span, key: &str) -> Option<String> {
    find(&span.attributes, key).map(text)
}

fn find<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a AnyValue> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.as_ref()
}

fn text(value: &AnyValue) -> String {
    match value.value.as_ref().unwrap() {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        Value::BoolValue(is_true) => is_true.to_string(),
        other => panic!("{other:?}"),
    }
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<State>) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let (tls, state) = (tls.clone(), state.clone());
        tokio::spawn(async move { connection(socket, tls, state).await });
    }
}

async fn connection(socket: TcpStream, tls: Option<TlsAcceptor>, state: Arc<State>) {
    let service = service_fn(|request| answer(request, state.clone()));
    let http = http1::Builder::new();
    // A peer that leaves is no failure of the collector.
    match tls {
        None => drop(http.serve_connection(TokioIo::new(socket), service).await),
        Some(tls) => {
            if let Ok(socket) = tls.accept(socket).await {
                drop(http.serve_connection(TokioIo::new(socket), service).await);
            }
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<State>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.method(), "POST");
    assert_eq!(request.uri().path(), "/v1/traces");
    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
    let field = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
        (name.to_string(), value.to_str().unwrap().to_owned())
    };
    *state.headers.lock().unwrap() = request.headers().iter().map(field).collect();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let export = ExportTraceServiceRequest::decode(body).unwrap();
    let behaviour = *state.behaviour.lock().unwrap();
    let status = match behaviour {
        Behaviour::Accepts => {
            state.requests.lock().unwrap().push(export);
            200
        }
        Behaviour::Rejects(status) => status,
        Behaviour::Hangs => {
            tokio::time::sleep(Duration::from_secs(600)).await;
            503
        }
    };
    let body = ExportTraceServiceResponse::default().encode_to_vec();
    Ok(Response::builder()
        .status(status)
        .header("content-type", "application/x-protobuf")
        .body(Full::new(body.into()))
        .unwrap())
}
