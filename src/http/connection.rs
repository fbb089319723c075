//! One connection: TLS or not, HTTP/1 or HTTP/2, its deadlines, and its end.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use super::answer::{Answer, answer};
use super::body::Body;
use super::context::{Context, Counted};
use super::family::{Clock, Family};
use super::h1::Driver;
use super::h2::{H2Body, Tasks};
use super::idle::Idle;
use super::member::Peer;
use super::server::Drain;
use super::take_back::{Held, TakeBack, Watched};
use super::transport::Transport;
use super::wire::{Framing, Wire};
use crate::lifecycle::drain::Watch;
use crate::limit::Entered;
use crate::net::tls;
use crate::registry::Protocol;

/// 5 s: a client that connects speaks at once.
const FIRST_BYTE_MAX: Duration = Duration::from_secs(5);
/// 5 s: a handshake takes two round trips.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// 10 s: a head of a few hundred bytes, over the slowest network.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// 1 s: what a connection without a request gets for one when the pod drains.
const LAST_REQUEST: Duration = Duration::from_secs(1);
/// 16 KiB: the largest head of a request, in bytes; more is answered with 431.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// What an HTTP/2 connection begins with (RFC 9113, 3.4).
const PREFACE_BYTES: usize = 24;
/// What an HTTP/2 connection may hold that its stream's window does not let out, per stream.
const SEND_BYTES_MAX: usize = 32 * 1024;
/// What HTTP/2 pings after, and how long it waits for the answer: dead peers are gone within 30 s.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// 30 s: what a client that was told to go has for its last bytes, when no event stream is left that it could wait for.
/// A window that stays shut over a refusal would keep the connection for ever, and with it a descriptor.
const LAST_TAKEN_MAX: Duration = Duration::from_secs(30);
/// Streams of one connection: browsers use about a hundred, gateways many.
const STREAMS_MAX: u32 = 256;

/// Serves a connection from its first byte to its last, or until the time of a drain is over.
pub(super) async fn serve(
    context: Arc<Context>,
    socket: TcpStream,
    remote: SocketAddr,
    entered: Entered,
    acceptor: Option<TlsAcceptor>,
    drain: Drain,
) {
    let mut release = drain.release.clone();
    tokio::select! {
        biased;
        () = release.cut() => tracing::debug!(client.addr = %remote, "a connection was cut"),
        () = converse(context, socket, remote, entered, acceptor, drain) => {}
    }
}

async fn converse(
    context: Arc<Context>,
    socket: TcpStream,
    remote: SocketAddr,
    entered: Entered,
    acceptor: Option<TlsAcceptor>,
    drain: Drain,
) {
    let counted = Counted::new(&context, entered);
    let refused = |code: &str| context.metrics.refusals_total.with_label_values(&[code]).inc();
    let Drain { leaving, release } = drain;
    let connection = Connection { context: context.clone(), remote, tls: acceptor.is_some(), counted, release };
    let mut unheard = Box::pin(last_request(leaving.clone()));
    let Some(acceptor) = acceptor else {
        let hello = tokio::select! {
            hello = first_bytes(&socket) => hello,
            () = &mut unheard => None,
        };
        drop(unheard);
        match hello {
            Some(Hello::Http2) => connection.http2(socket, leaving).await,
            Some(Hello::Http1) => connection.http1(socket, leaving).await,
            Some(Hello::Tls) => refused("tls_on_clear_port"),
            None => refused("no_request"),
        }
        return;
    };
    let handshake = tokio::select! {
        handshake = timeout(HANDSHAKE_MAX, acceptor.accept(socket)) => handshake,
        () = &mut unheard => return refused("tls_handshake_timeout"),
    };
    drop(unheard);
    match handshake {
        Err(_) => refused("tls_handshake_timeout"),
        Ok(Err(error)) => {
            tracing::debug!(client.addr = %remote, %error, "no TLS handshake");
            refused("tls_handshake");
        }
        Ok(Ok(mut stream)) => {
            tls::bound_buffers(&mut stream);
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                connection.http2(stream, leaving).await;
            } else {
                connection.http1(stream, leaving).await;
            }
        }
    }
}

/// What a connection in clear text begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hello {
    Http1,
    Http2,
    Tls,
}

/// Looks at the first bytes without taking them: HTTP/2 by prior knowledge begins with `PRI` (RFC 9113, 3.4).
async fn first_bytes(socket: &TcpStream) -> Option<Hello> {
    let deadline = Instant::now() + FIRST_BYTE_MAX;
    let mut bytes = [0; 3];
    loop {
        let seen = timeout(deadline - Instant::now(), socket.peek(&mut bytes)).await.ok()?.ok()?;
        match &bytes[..seen] {
            [] => return None,
            b"PRI" => return Some(Hello::Http2),
            // 0x16: a TLS record of the type handshake.
            [0x16, ..] => return Some(Hello::Tls),
            // The rest is on its way: a peek returns at once as long as anything is there.
            b"P" | b"PR" if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(5)).await,
            _ => return Some(Hello::Http1),
        }
    }
}

/// Why an HTTP/2 connection is told to go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// The pod drains, and bounds it.
    Drain,
    /// Its event streams have come of age.
    Age,
    /// It has carried nothing for a while.
    Idle,
}

struct Connection {
    context: Arc<Context>,
    remote: SocketAddr,
    tls: bool,
    counted: Counted,
    release: Watch,
}

/// Over when the pod has been draining for as long as a connection without a request may stay.
async fn last_request(leaving: Watch) {
    told(leaving).await;
    tokio::time::sleep(LAST_REQUEST).await;
}

/// Over when the pod drains; the connection is counted as told from then on.
async fn told(mut leaving: Watch) {
    leaving.signaled().await;
}

impl Connection {
    /// hyper parses, checks and answers; an event stream then goes on without it, in a small task of its own.
    async fn http1<T: Transport>(mut self, io: T, leaving: Watch) {
        self.counted.speaks(Protocol::Http11, self.tls);
        // In a box of its own: the task that stays for hours is not as large as the head of its answer was.
        let handed = Box::pin(self.http1_head(io, leaving)).await;
        let Some((io, early, held)) = handed else { return };
        let wire = Wire::new(io.for_task(&held.stream), held.framing, early, held.head);
        tokio::spawn(Driver::new(wire, held.stream, self.counted, self.release));
    }

    async fn http1_head<T: Transport>(&mut self, io: T, leaving: Watch) -> Option<Handed<T>> {
        let place = Arc::new(TakeBack::default());
        let io = TokioIo::new(Watched::http1(io, place.clone()));
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(64)
            .serve_connection(io, self.http1_service(&place));
        let mut leaving = pin!(told(leaving));
        let mut last_request = None;
        let ended = poll_fn(|task| {
            let polled = connection.poll_without_shutdown(task);
            if place.is_reached() && !place.is_blocked() {
                return Poll::Ready(Ok(()));
            }
            if last_request.is_none() && leaving.as_mut().poll(task).is_ready() {
                // hyper would close a connection that has not spoken yet, unanswered.
                let wait = if place.is_heard() { Duration::ZERO } else { LAST_REQUEST };
                last_request = Some(Box::pin(tokio::time::sleep(wait)));
            }
            if last_request.as_mut().is_some_and(|wait| !wait.is_elapsed() && wait.as_mut().poll(task).is_ready()) {
                Pin::new(&mut connection).graceful_shutdown();
                return connection.poll_without_shutdown(task);
            }
            polled
        });
        let ended = ended.await;
        if let Err(error) = ended {
            self.count_failure(&error);
        }
        let parts = connection.into_parts();
        let mut io = parts.io.into_inner().inner;
        match place.take().filter(|_| place.is_reached() && !place.is_blocked()) {
            Some(held) => Some((io, parts.read_buf.len(), held)),
            None => {
                // A last flush, and the close of TLS; nobody waits for it longer than a moment.
                drop(timeout(LAST_REQUEST, io.shutdown()).await);
                None
            }
        }
    }

    fn http1_service(
        &self,
        place: &Arc<TakeBack>,
    ) -> impl Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future = Answering> + use<>
    {
        let (context, remote, tls, surplus) = (self.context.clone(), self.remote, self.tls, self.counted.is_surplus());
        let place = place.clone();
        service_fn(move |request: Request<Incoming>| -> Answering {
            let (context, place) = (context.clone(), place.clone());
            Box::pin(async move {
                let (protocol, framing) = match request.version() {
                    Version::HTTP_10 | Version::HTTP_09 => (Protocol::Http10, Framing::Close),
                    _ => (Protocol::Http11, Framing::Chunked),
                };
                let answer = answer(&context, Peer::new(remote, protocol, tls), surplus, request).await;
                Ok(answer.into_response(|stream| {
                    place.put(stream, framing);
                    Body::TakeBack(place)
                }))
            })
        })
    }

    /// hyper serves every stream of the connection; each has a task that can be ended alone.
    fn http2<T: Transport>(mut self, io: T, leaving: Watch) -> impl Future<Output = ()> + Send {
        self.counted.speaks(Protocol::H2, self.tls);
        let (place, family) = (Arc::new(TakeBack::default()), Arc::new(Family::default()));
        let mut clock = Clock::new(family.clone());
        // In a box of its own: the tasks of all other connections would be as large.
        let mut served = Box::pin(self.http2_in_turns(io, leaving, place.clone(), family));
        poll_fn(move |task| {
            clock.poll(task);
            place.begin_turn();
            served.as_mut().poll(task)
        })
    }

    async fn http2_in_turns<T: Transport>(self, io: T, leaving: Watch, place: Arc<TakeBack>, family: Arc<Family>) {
        let idle = Arc::new(Idle::default());
        let (context, remote, tls, surplus) = (self.context.clone(), self.remote, self.tls, self.counted.is_surplus());
        let (siblings, uses) = (family.clone(), idle.clone());
        let service = service_fn(move |request: Request<Incoming>| -> Answering {
            let (context, siblings, uses) = (context.clone(), siblings.clone(), uses.clone());
            let in_use = uses.begin();
            Box::pin(async move {
                let peer = Peer::new(remote, Protocol::H2, tls);
                let answer = answer(&context, peer, surplus, request).await;
                if matches!(answer, Answer::Last(_)) {
                    uses.dismiss();
                }
                Ok::<_, Infallible>(answer.into_response(|mut stream| {
                    stream.join(siblings);
                    Body::H2(Box::new(H2Body::new(stream, in_use)))
                }))
            })
        });
        let connection = http2::Builder::new(Tasks)
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_send_buf_size(SEND_BYTES_MAX)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            .serve_connection(TokioIo::new(Watched::http2(io, place.clone())), service);
        let mut connection = pin!(connection);
        let mut leaving = leaving;
        let why = tokio::select! {
            biased; // or what a drain ends could be written before it is said that the connection ends
            () = leaving.signaled() => Leaving::Drain,
            () = family.aged() => Leaving::Age,
            ended = connection.as_mut() => return self.count_end(ended),
            () = no_preface(&place) => {
                self.context.metrics.refusals_total.with_label_values(&["request_timeout"]).inc();
                return;
            }
            // What is being answered is answered, and the client knows.
            () = idle.over() => Leaving::Idle,
        };
        // hyper would close a connection that has not spoken yet, unanswered: it has a moment to.
        let spoken = poll_fn(|task| match connection.as_mut().poll(task) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending if place.heard_bytes() >= PREFACE_BYTES => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        if let Ok(Some(ended)) = timeout(LAST_REQUEST, spoken).await {
            return self.count_end(ended);
        }
        connection.as_mut().graceful_shutdown();
        // This writes the GOAWAY; only then the connection counts as told, and only then its event streams end.
        if let Poll::Ready(ended) = poll_fn(|task| Poll::Ready(connection.as_mut().poll(task))).await {
            return self.count_end(ended);
        }
        drop(leaving);
        let ended = tokio::select! {
            ended = connection.as_mut() => Ok(ended),
            () = family.hand_over(), if why == Leaving::Age => timeout(LAST_TAKEN_MAX, connection).await,
            () = idle.unused_after(LAST_TAKEN_MAX), if why == Leaving::Idle => return,
        };
        match ended {
            Ok(ended) => self.count_end(ended),
            Err(_) => tracing::debug!(client.addr = %self.remote, "a connection that does not take its end was closed"),
        }
    }

    fn count_end(&self, ended: hyper::Result<()>) {
        if let Err(error) = ended {
            self.count_failure(&error);
        }
    }

    /// What hyper refused by itself.
    fn count_failure(&self, error: &hyper::Error) {
        tracing::debug!(client.addr = %self.remote, %error, "connection failed");
        let code = match error {
            error if error.is_timeout() => "request_timeout",
            error if error.is_parse() => "malformed",
            _ => return,
        };
        self.context.metrics.refusals_total.with_label_values(&[code]).inc();
    }
}

/// Over when the client has not said the preface of HTTP/2 in time, which hyper would wait for without end.
async fn no_preface(place: &TakeBack) {
    tokio::time::sleep(HEAD_MAX).await;
    if place.heard_bytes() >= PREFACE_BYTES {
        // From here on pings find out.
        std::future::pending().await
    }
}

/// A socket taken back: with how many bytes that came too early, and what it carries now.
type Handed<T> = (T, usize, Held);

/// The future of an answer; in a box, since hyper's connection is polled without being pinned, and since the task of an
/// HTTP/2 stream, where hyper puts the body in its place, would stay as large as it was.
type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;
