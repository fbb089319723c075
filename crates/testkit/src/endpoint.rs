//! Authentication endpoint of an application on loopback, over HTTP or HTTPS, as nginx
//! `auth_request` calls one.
//!
//! The test decides each answer by the call; the endpoint records the calls and how many were in
//! progress at once.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::certs::{Identity, server_config};

/// Call of the endpoint.
#[derive(Clone, Debug)]
pub struct Call {
    /// Method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Header fields in their order, with lower-case names.
    pub headers: Vec<(String, String)>,
    /// Number of bytes of the body.
    pub body_bytes: usize,
}

/// Answer to a call.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
    delay: Duration,
}

/// Running endpoint. Dropping it stops it.
pub struct Endpoint {
    address: SocketAddr,
    url: String,
    state: Arc<State>,
    server: JoinHandle<()>,
}

type Decide = Box<dyn Fn(&Call) -> Reply + Send + Sync>;

struct State {
    decide: Decide,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    is_down: bool,
    calls: Vec<Call>,
    running: usize,
    most: usize,
    connections: usize,
}

impl Call {
    /// All values of a header, in their order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let fields = self.headers.iter().filter(|(known, _)| known == name);
        fields.map(|(_, value)| value.as_str()).collect()
    }

    /// First value of a header; empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.all(name).first().copied().unwrap_or_default()
    }
}

impl Reply {
    /// Answer with a status and no body.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: String::new(),
            delay: Duration::ZERO,
        }
    }

    /// 200 with a JSON body.
    pub fn json(body: impl Into<String>) -> Self {
        let mut reply = Self::status(200).header("content-type", "application/json");
        reply.body = body.into();
        reply
    }

    /// Adds a header field.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Answers after this time.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

impl Endpoint {
    /// Starts an endpoint that answers by this function.
    pub async fn start(decide: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        Self::serving(None, Box::new(decide)).await
    }

    /// Starts an endpoint over HTTPS with this certificate.
    pub async fn start_tls(
        identity: &Identity,
        decide: impl Fn(&Call) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let acceptor = TlsAcceptor::from(server_config(identity, &[]));
        Self::serving(Some(acceptor), Box::new(decide)).await
    }

    async fn serving(tls: Option<TlsAcceptor>, decide: Decide) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            decide,
            seen: Mutex::default(),
        });
        Self {
            address,
            url: format!("{scheme}://{address}/authorize"),
            server: tokio::spawn(serve(listener, tls, Arc::clone(&state))),
            state,
        }
    }

    /// URL of the endpoint.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Address of the endpoint.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes every new connection and breaks each call, or answers again.
    pub fn set_down(&self, is_down: bool) {
        self.state.seen.lock().unwrap().is_down = is_down;
    }

    /// All calls until now.
    pub fn calls(&self) -> Vec<Call> {
        self.state.seen.lock().unwrap().calls.clone()
    }

    /// Largest number of calls that were in progress at once.
    pub fn most_at_once(&self) -> usize {
        self.state.seen.lock().unwrap().most
    }

    /// Number of accepted connections.
    pub fn connections(&self) -> usize {
        self.state.seen.lock().unwrap().connections
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<State>) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        state.seen.lock().unwrap().connections += 1;
        if state.seen.lock().unwrap().is_down {
            continue;
        }
        tokio::spawn(connection(socket, tls.clone(), Arc::clone(&state)));
    }
}

async fn connection(socket: TcpStream, tls: Option<TlsAcceptor>, state: Arc<State>) {
    let service = service_fn(move |request| answer(request, Arc::clone(&state)));
    let http = http1::Builder::new();
    // A client that does not trust the certificate ends the connection.
    let served = match tls {
        None => http.serve_connection(TokioIo::new(socket), service).await,
        Some(tls) => match tls.accept(socket).await {
            Ok(socket) => http.serve_connection(TokioIo::new(socket), service).await,
            Err(_) => Ok(()),
        },
    };
    drop(served);
}

/// Counts a call while it is in progress: a client that gives up ends it.
struct Running(Arc<State>);

impl Running {
    fn new(state: Arc<State>, call: Call) -> Self {
        let mut seen = state.seen.lock().unwrap();
        seen.calls.push(call);
        seen.running += 1;
        seen.most = seen.most.max(seen.running);
        drop(seen);
        Self(state)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.seen.lock().unwrap().running -= 1;
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<State>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    if state.seen.lock().unwrap().is_down {
        return Err(std::io::Error::other("the endpoint is down"));
    }
    let (head, body) = request.into_parts();
    let text =
        |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = head.headers.iter();
    let call = Call {
        method: head.method.to_string(),
        target: head.uri.to_string(),
        headers: headers
            .map(|(name, value)| (name.as_str().to_owned(), text(value)))
            .collect(),
        body_bytes: body.collect().await.map_or(0, |body| body.to_bytes().len()),
    };
    let reply = (state.decide)(&call);
    let _running = Running::new(Arc::clone(&state), call);
    tokio::time::sleep(reply.delay).await;
    let mut response = Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        response = response.header(name, value);
    }
    Ok(response.body(Full::from(reply.body)).unwrap())
}
