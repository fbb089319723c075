//! HTTP proxy with one fault of its own, for faults that the proxies of `docs/proxies` cannot be
//! configured to have.
//!
//! HTTP/1.1 to clients. To the pod it speaks HTTP/1.1 with a connection for each request, or HTTP/2
//! on one connection for all of them.

mod gzip;
mod http2;
mod nat;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use self::gzip::Gzip;
use self::http2::Upstream;
pub use self::nat::Nat;

/// Fault of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// The head is sent, and the body when it is complete.
    HoldBody,
    /// Responses are compressed if the client accepts gzip, and not flushed.
    GzipWithoutFlush,
    /// Responses end at this age.
    CutAt(Duration),
    /// HTTP/2 to the pod, with a window of this number of bytes.
    Window(u32),
    /// HTTP/2 to the pod. Its GOAWAY is discarded.
    SwallowGoaway,
}

/// Running proxy. Dropping it ends it.
pub struct Faulty {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

/// Body that a task writes; an error breaks the connection of the client.
struct Written(Receiver<io::Result<Bytes>>);

impl Faulty {
    /// Starts a proxy to a port of loopback.
    pub async fn start(pod: u16, plant: Plant) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let upstream = Arc::new(Upstream::new(pod, plant));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let upstream = upstream.clone();
                tokio::spawn(async move {
                    client.set_nodelay(true).unwrap();
                    let service = service_fn(move |request| {
                        let upstream = upstream.clone();
                        async move { Ok::<_, Infallible>(pass(&upstream, pod, plant, request).await) }
                    });
                    let served = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(client), service);
                    drop(served.await);
                });
            }
        });
        Self { address, accepting }
    }

    /// URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(
    upstream: &Upstream,
    pod: u16,
    plant: Plant,
    request: Request<Incoming>,
) -> Response<Written> {
    let (head, _) = request.into_parts();
    let takes_gzip = head
        .headers
        .get("accept-encoding")
        .is_some_and(|value| value.as_bytes() == b"gzip");
    let mut request = Request::from_parts(head, Empty::new());
    request.headers_mut().remove(CONNECTION);
    let (send, receive) = channel(16);
    let response = match plant {
        Plant::Window(_) | Plant::SwallowGoaway => upstream.pass(request, send.clone()).await,
        _ => over_http1(pod, request, plant, takes_gzip, send.clone()).await,
    };
    let Some(mut head) = response else {
        let mut response = Response::new(Written(receive));
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        return response;
    };
    for name in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
        head.headers_mut().remove(name);
    }
    head.map(|()| Written(receive))
}

async fn over_http1(
    pod: u16,
    request: Request<Empty<Bytes>>,
    plant: Plant,
    takes_gzip: bool,
    send: Sender<io::Result<Bytes>>,
) -> Option<Response<()>> {
    let socket = TcpStream::connect(("127.0.0.1", pod)).await.ok()?;
    socket.set_nodelay(true).ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
        .await
        .ok()?;
    let driver = tokio::spawn(async move { drop(connection.await) });
    let response = sender.send_request(request).await.ok()?;
    let (mut head, body) = response.into_parts();
    let is_stream = head
        .headers
        .get("content-type")
        .is_some_and(|value| value.as_bytes() == b"text/event-stream");
    let plant = (is_stream && (plant != Plant::GzipWithoutFlush || takes_gzip)).then_some(plant);
    if plant == Some(Plant::GzipWithoutFlush) {
        let gzip = HeaderValue::from_static("gzip");
        head.headers.insert(CONTENT_ENCODING, gzip);
    }
    tokio::spawn(async move {
        copy(body, plant, &send).await;
        drop(sender);
        driver.abort();
    });
    Some(Response::from_parts(head, ()))
}

/// Copies a body with the fault.
async fn copy(mut body: Incoming, plant: Option<Plant>, send: &Sender<io::Result<Bytes>>) {
    let end = match plant {
        Some(Plant::CutAt(age)) => Instant::now() + age,
        _ => Instant::now() + Duration::from_secs(3600),
    };
    let mut held = Vec::new();
    let mut gzip = (plant == Some(Plant::GzipWithoutFlush)).then(Gzip::default);
    if gzip.is_some() && send.send(Ok(Bytes::from_static(gzip::HEAD))).await.is_err() {
        return;
    }
    loop {
        let frame = tokio::select! {
            () = send.closed() => return,
            frame = timeout_at(end, body.frame()) => frame,
        };
        let Ok(frame) = frame else {
            let cut = io::Error::from(io::ErrorKind::TimedOut);
            drop(send.send(Err(cut)).await);
            return;
        };
        let Some(Ok(frame)) = frame else { break };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        match (&mut gzip, plant) {
            (Some(gzip), _) => gzip.add(&data),
            (None, Some(Plant::HoldBody)) => held.extend_from_slice(&data),
            _ if send.send(Ok(data)).await.is_err() => return,
            _ => {}
        }
    }
    let rest = gzip.map_or(held, Gzip::finish);
    if !rest.is_empty() {
        drop(send.send(Ok(rest.into())).await);
    }
}

impl Body for Written {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let received = self.0.poll_recv(task);
        received.map(|received| received.map(|data| data.map(Frame::data)))
    }
}
