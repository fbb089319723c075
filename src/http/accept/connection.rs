//! One connection: HTTP/1 until its event stream begins, or the way to HTTP/2.
//!
//! ```text
//! clear_text  reads the first bytes inside hyper (detect)
//!               silent  -> Silent: the task waits for the socket without hyper's buffers
//!               HTTP/1  -> serve_http1
//!               HTTP/2  -> http2 (in h2::connection)
//!               TLS     -> rejected
//! http1       the same for TLS, where ALPN has selected HTTP/1
//! ```
//!
//! hyper parses requests and writes responses. When a response is an event stream, `h1::reclaim`
//! takes the socket back and [`H1Stream`] continues on it without hyper; other responses leave
//! hyper in charge of the next request. Deadlines: [`HEAD_MAX`] for a head, [`LAST_REQUEST`] for a
//! connection without a request when the pod drains.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncWriteExt as _, copy, sink};
use tokio::time::{Sleep, sleep, timeout};

use super::detect::Preface;
use crate::encoding::Framing;
use crate::http::application::STALL_MAX;
use crate::http::application::pass::{application_of, pass};
use crate::http::application::request_body::{RequestBody, RequestBytes};
use crate::http::context::{ConnectionGuard, Context};
use crate::http::h1::chunk::BodyDelimiter;
use crate::http::h1::chunk_writer::ChunkWriter;
use crate::http::h1::reclaim::{AfterHead, Parked, ReclaimIo, SocketReclaim};
use crate::http::h1::sink::TaskSocket;
use crate::http::h1::stream::H1Stream;
use crate::http::request::answer::{Answer, Waiting, reject, unparsed_response};
use crate::http::request::body::Body;
use crate::http::request::call::is_call;
use crate::http::request::rejection_code::RejectionCode;
use crate::http::request::request::Caller;
use crate::http::request::respond::{answer, answer_call};
use crate::http::stream::client_messages::ClientMessages;
use crate::http::stream::state::Peer;
use crate::http::transport::{LINGER, Socket, Transport};
use crate::lifecycle::shutdown::{Guard, Token};
use crate::limit::ConnectionPermit;
use crate::presence::Protocol;

/// 10 s: time for the head of a request, a few hundred bytes over the slowest network.
pub(in crate::http) const HEAD_MAX: Duration = Duration::from_secs(10);
/// 1 s: time for a last request on a connection without one when the pod drains.
pub(in crate::http) const LAST_REQUEST: Duration = Duration::from_secs(1);
/// 16 KiB: maximum size of a request head; larger ones get 431.
pub(in crate::http) const HEAD_BYTES_MAX: usize = 16 * 1024;
/// 64: maximum number of header fields; more get 431.
const HEAD_FIELDS_MAX: usize = 64;

/// A connection, before its protocol is known and while it has no event stream.
pub(in crate::http) struct Connection {
    pub(in crate::http) context: Arc<Context>,
    pub(in crate::http) remote: SocketAddr,
    pub(in crate::http) tls: bool,
    /// Verified certificate (DER) of the client.
    pub(in crate::http) certificate: Option<Arc<[u8]>>,
    pub(in crate::http) guard: ConnectionGuard,
    /// Keeps the pod's drain waiting until the connection has ended.
    pub(in crate::http) shutdown: Guard,
}

/// Connection that has not sent a byte yet.
pub(in crate::http) struct Silent<S> {
    pub(in crate::http) connection: Connection,
    pub(in crate::http) socket: S,
    pub(in crate::http) goaway: Token,
}

/// Socket of a connection that hyper has left.
struct AfterHyper<T> {
    io: T,
    /// Bytes that were read and not passed to hyper.
    read_ahead: Vec<u8>,
    /// Bytes after the head that hyper has read.
    early: Bytes,
    /// Event stream that continues on the socket.
    parked: Option<Parked>,
    /// Rest of a WebSocket that is not an event stream.
    after: Option<AfterHead>,
    /// The client may still be sending a request that was answered.
    is_unread: bool,
}

/// Future of a response, boxed because hyper's connection is polled without being pinned.
type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// Ready when a client has not read its response for [`STALL_MAX`]. `stall` is the number of bytes
/// that were written when the wait began, and its end.
fn poll_stall(
    stall: &mut Option<(u64, Pin<Box<Sleep>>)>,
    reclaim: &SocketReclaim,
    task: &mut TaskContext<'_>,
) -> Poll<()> {
    if !reclaim.is_blocked() {
        *stall = None;
        return Poll::Pending;
    }
    let written = reclaim.written();
    let (_, end) = match stall {
        Some(known) if known.0 == written => known,
        _ => stall.insert((written, Box::pin(sleep(STALL_MAX)))),
    };
    end.as_mut().poll(task)
}

/// Sends the last bytes of a WebSocket, and reads until its client has closed.
async fn send_last<T: Transport>(mut io: T, bytes: &[u8]) -> std::io::Result<()> {
    io.write_all(bytes).await?;
    io.shutdown().await?;
    copy(&mut io, &mut sink()).await?;
    Ok(())
}

/// Answers a request, by the application if no route has its path. A gRPC call has a body, too.
async fn http1_answer(
    context: &Arc<Context>,
    caller: &Caller,
    request: Request<Incoming>,
    reclaim: &SocketReclaim,
) -> Answer {
    let routes = context.routes();
    let application = application_of(&routes, &request);
    if application.is_some() || is_call(&routes, request.uri().path()) {
        let request = request.map(|body| RequestBody::new(RequestBytes::Http1(body)));
        let progress = request.body().progress();
        let mut answer = match application {
            Some(application) => pass(context, &routes, &application, caller, request).await,
            None => Box::pin(answer_call(context, &routes, caller, request)).await,
        };
        // A client that is answered early may omit the rest of its body. The next bytes are then
        // another request, which would be read as content.
        let is_unread = !progress.is_complete();
        if is_unread {
            reclaim.set_unread();
        }
        if (is_unread || reclaim.is_blind()) && !matches!(answer, Answer::Tunnel(..)) {
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(CONNECTION, close);
        }
        return answer;
    }
    let has_body = !request.body().is_end_stream();
    // In a box of its own: it is several times as large as the future of a passed request.
    Box::pin(answer(context, caller, &request, has_body)).await
}

impl Connection {
    pub(in crate::http) fn new(
        context: &Arc<Context>,
        remote: SocketAddr,
        tls: bool,
        permit: ConnectionPermit,
        shutdown: Guard,
    ) -> Self {
        Self {
            context: context.clone(),
            remote,
            tls,
            certificate: None,
            guard: ConnectionGuard::new(permit),
            shutdown,
        }
    }

    /// Returns the connection as its requests see it.
    pub(in crate::http) fn caller(&self, protocol: Protocol) -> Caller {
        Caller {
            peer: Peer::new(self.remote, protocol, self.tls),
            over_limit: self.guard.over_limit(),
            certificate: self.certificate.clone(),
        }
    }

    /// Counts and logs the end of a connection without a request to answer.
    pub(in crate::http) fn reject<T>(&self, code: RejectionCode) -> Option<T> {
        self.context.count_rejection(code);
        tracing::debug!(client.addr = %self.remote, code = code.row().code, "connection rejected");
        None
    }

    /// Serves a connection on a clear-text port until its event stream begins or it ends. Returns
    /// it as [`Silent`] if no byte has arrived yet.
    pub(in crate::http) async fn clear_text<S: Socket>(
        mut self,
        socket: S,
        mut goaway: Token,
    ) -> Result<Option<H1Stream<TaskSocket<S>>>, Silent<S>> {
        let reclaim = Arc::new(SocketReclaim::default());
        let io = ReclaimIo::detecting(socket, reclaim.clone());
        let after = self.serve_http1(io, &reclaim, &mut goaway).await;
        match reclaim.preface.get() {
            Preface::Silence => Err(Silent {
                connection: self,
                socket: after.io,
                goaway,
            }),
            Preface::Http1 => Ok(self.into_stream(after).await),
            Preface::Http2 => {
                self.http2(after.io, after.read_ahead, goaway).await;
                Ok(None)
            }
            Preface::Tls => Ok(self.reject(RejectionCode::TlsOnClearPort)),
            Preface::Unknown => Ok(self.reject(RejectionCode::NoRequest)),
        }
    }

    /// Serves an HTTP/1 connection until its event stream begins or it ends.
    pub(in crate::http) async fn http1<T: Transport>(
        mut self,
        io: T,
        mut goaway: Token,
    ) -> Option<H1Stream<T::Task>> {
        let reclaim = Arc::new(SocketReclaim::default());
        let io = ReclaimIo::http1(io, reclaim.clone());
        let after = self.serve_http1(io, &reclaim, &mut goaway).await;
        self.into_stream(after).await
    }

    /// Returns the task that continues the parked event stream, or closes the socket.
    async fn into_stream<T: Transport>(self, after: AfterHyper<T>) -> Option<H1Stream<T::Task>> {
        let AfterHyper {
            mut io,
            read_ahead,
            early,
            parked,
            after,
            is_unread,
        } = after;
        match after {
            Some(AfterHead::Tunnel(tunnel)) => {
                tunnel.run(io, &early).await;
                return None;
            }
            Some(AfterHead::Last(bytes)) => {
                drop(timeout(LINGER, send_last(io, &bytes)).await);
                return None;
            }
            None => {}
        }
        let Some(parked) = parked else {
            // The last flush, and the close of TLS. The client may not take it.
            let closed = timeout(LAST_REQUEST, io.shutdown()).await;
            if is_unread && matches!(closed, Ok(Ok(()))) {
                drop(timeout(LINGER, copy(&mut io, &mut sink())).await);
            }
            return None;
        };
        let messages = (parked.delimiter == BodyDelimiter::Messages)
            .then(|| ClientMessages::new([&read_ahead[..], &early[..]].concat().into()));
        let discarded = match messages {
            Some(_) => 0,
            None => read_ahead.len() + early.len(),
        };
        let writer = ChunkWriter::new(
            io.for_task(&parked.stream),
            parked.delimiter,
            discarded,
            parked.head,
        );
        Some(H1Stream::new(
            writer,
            parked.stream,
            self.guard,
            self.shutdown,
            messages,
        ))
    }

    /// Runs hyper until the connection ends or hyper is not needed: an event stream is parked, or
    /// the protocol is not HTTP/1.
    async fn serve_http1<T: Transport>(
        &mut self,
        io: ReclaimIo<T>,
        reclaim: &Arc<SocketReclaim>,
        goaway: &mut Token,
    ) -> AfterHyper<T> {
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEAD_FIELDS_MAX)
            .serve_connection(TokioIo::new(io), self.http1_service(reclaim));
        let mut drained = pin!(goaway.requested());
        let mut last_request = None;
        let mut is_last = false;
        let mut stall = None;
        let mut is_counted = false;
        let ended = poll_fn(|task| {
            let polled = connection.poll_without_shutdown(task);
            match reclaim.preface.get() {
                Preface::Http1 if !is_counted => {
                    is_counted = true;
                    self.guard
                        .set_protocol(&self.context, Protocol::Http11, self.tls);
                }
                Preface::Http1 | Preface::Unknown => {}
                Preface::Silence | Preface::Http2 | Preface::Tls => return Poll::Ready(Ok(())),
            }
            if reclaim.is_reached() && !reclaim.is_blocked() {
                return Poll::Ready(Ok(()));
            }
            if poll_stall(&mut stall, reclaim, task).is_ready() {
                tracing::debug!(client.addr = %self.remote, "connection cut; its client does not read");
                return Poll::Ready(Ok(()));
            }
            if last_request.is_none() && drained.as_mut().poll(task).is_ready() {
                // hyper's graceful shutdown closes a connection without a request at once; the
                // client may have sent one that is still on its way.
                let wait = if reclaim.has_received() {
                    Duration::ZERO
                } else {
                    LAST_REQUEST
                };
                last_request = Some(Box::pin(sleep(wait)));
            }
            let is_over = |wait: &mut Pin<Box<Sleep>>| wait.as_mut().poll(task).is_ready();
            if !is_last && last_request.as_mut().is_some_and(is_over) {
                is_last = true;
                Pin::new(&mut connection).graceful_shutdown();
                return connection.poll_without_shutdown(task);
            }
            polled
        });
        let failed = ended.await.err();
        let is_failed = failed.is_some();
        let parts = connection.into_parts();
        let (mut io, read_ahead) = parts.io.into_inner().into_inner();
        if let Some(code) = reclaim.rejected() {
            tracing::debug!(client.addr = %self.remote, code = code.row().code, "request rejected");
            let response = unparsed_response(&self.context, code);
            drop(timeout(LAST_REQUEST, io.write_all(&response)).await);
        } else if let Some(error) = failed {
            self.count_failure(&error);
        }
        AfterHyper {
            io,
            read_ahead,
            early: parts.read_buf,
            after: reclaim.take_after(),
            is_unread: reclaim.is_unread(),
            parked: reclaim.take().filter(|parked| {
                // hyper leaves a connection by itself after the head of an upgrade.
                let is_upgraded = parked.delimiter == BodyDelimiter::Messages
                    && !parked.head.is_empty()
                    && !is_failed;
                (reclaim.is_reached() || is_upgraded) && !reclaim.is_blocked()
            }),
        }
    }

    /// Returns the service with which hyper answers requests.
    fn http1_service(
        &self,
        reclaim: &Arc<SocketReclaim>,
    ) -> impl Service<
        Request<Incoming>,
        Response = Response<Body>,
        Error = Infallible,
        Future = ResponseFuture,
    > + use<> {
        let (context, reclaim) = (self.context.clone(), reclaim.clone());
        let caller = self.caller(Protocol::Http11);
        service_fn(move |request: Request<Incoming>| -> ResponseFuture {
            reclaim.set_new_request();
            let (context, reclaim) = (context.clone(), reclaim.clone());
            let mut caller = caller.clone();
            Box::pin(async move {
                let (protocol, delimiter) = match request.version() {
                    Version::HTTP_10 | Version::HTTP_09 => {
                        (Protocol::Http10, BodyDelimiter::UntilClose)
                    }
                    _ => (Protocol::Http11, BodyDelimiter::Chunked),
                };
                caller.peer.protocol = protocol;
                let answer = match reclaim.begin_head() {
                    Ok(()) => http1_answer(&context, &caller, request, &reclaim).await,
                    Err(code) => reject(&context, &code.into(), &request),
                };
                Ok(answer.into_response(|waiting| match waiting {
                    Waiting::Passed(body) => Body::Passed(body, reclaim.begin_passed()),
                    Waiting::Events(stream) if stream.state().framing == Framing::WebSocket => {
                        reclaim.park(stream, BodyDelimiter::Messages);
                        Body::Text(Bytes::new())
                    }
                    Waiting::Events(stream) => {
                        reclaim.park(stream, delimiter);
                        Body::Reclaim(reclaim)
                    }
                    Waiting::Tunnel(tunnel) => {
                        reclaim.set_after(AfterHead::Tunnel(tunnel));
                        Body::Text(Bytes::new())
                    }
                    Waiting::Last(bytes) => {
                        reclaim.set_after(AfterHead::Last(bytes));
                        Body::Text(Bytes::new())
                    }
                }))
            })
        })
    }

    /// Logs an error of hyper and counts it if the client is at fault.
    fn count_failure(&self, error: &hyper::Error) {
        tracing::debug!(client.addr = %self.remote, %error, "connection failed");
        if error.is_timeout() {
            self.context.count_rejection(RejectionCode::RequestTimeout);
        } else if error.is_parse() {
            self.context.count_rejection(RejectionCode::Malformed);
        }
    }
}
