//! One connection that speaks: what it speaks, and HTTP/1 until its event stream begins.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::reclaim::{Parked, Preface, SniffingIo, SocketReclaim};
use crate::http::context::{Context, Counted};
use crate::http::h1::chunk_writer::ChunkWriter;
use crate::http::h1::sink::TaskSocket;
use crate::http::h1::stream::H1Stream;
use crate::http::request::body::Body;
use crate::http::request::rejection::RejectionCode;
use crate::http::request::respond::{answer, reject, unparsed_response};
use crate::http::stream::state::Peer;
use crate::http::stream::write_batch::Framing;
use crate::http::transport::Transport;
use crate::lifecycle::shutdown::{Guard, Token};
use crate::presence::Protocol;

/// 10 s: a head of a few hundred bytes, over the slowest network.
pub(in crate::http) const HEAD_MAX: Duration = Duration::from_secs(10);
/// 1 s: what a connection without a request gets for one when the pod drains.
pub(in crate::http) const LAST_REQUEST: Duration = Duration::from_secs(1);
/// 16 KiB: the largest head of a request, in bytes; more is answered with 431.
pub(in crate::http) const HEAD_BYTES_MAX: usize = 16 * 1024;

/// A connection, whatever it speaks.
pub(in crate::http) struct Connection {
    pub(in crate::http) context: Arc<Context>,
    pub(in crate::http) remote: SocketAddr,
    pub(in crate::http) tls: bool,
    pub(in crate::http) counted: Counted,
    pub(in crate::http) release: Guard,
}

impl Connection {
    /// Counts and logs the end of a connection without a request to answer.
    pub(in crate::http) fn reject<T>(&self, code: RejectionCode) -> Option<T> {
        self.context.count_rejection(code);
        tracing::debug!(client.addr = %self.remote, code = code.row().code, "connection rejected");
        None
    }

    /// In clear text: what it speaks, its first bytes tell. Given back as long as there are none.
    pub(in crate::http) async fn any(
        mut self,
        socket: TcpStream,
        mut leaving: Token,
    ) -> Result<Option<H1Stream<TaskSocket>>, (Self, TcpStream, Token)> {
        let place = Arc::new(SocketReclaim::default());
        let io = SniffingIo::any(socket, place.clone());
        let (io, before, handed) = self.http1_head(io, &place, &mut leaving).await;
        match place.hello() {
            Preface::Silence => Err((self, io, leaving)),
            Preface::Http1 => Ok(self.driver(io, before.len(), handed).await),
            Preface::Http2 => {
                self.http2(io, before, leaving).await;
                Ok(None)
            }
            Preface::Tls => Ok(self.reject(RejectionCode::TlsOnClearPort)),
            Preface::Unknown => Ok(self.reject(RejectionCode::NoRequest)),
        }
    }

    /// hyper parses, checks and answers; an event stream then goes on without it.
    pub(in crate::http) async fn http1<T: Transport>(
        mut self,
        io: T,
        mut leaving: Token,
    ) -> Option<H1Stream<T::Task>> {
        let place = Arc::new(SocketReclaim::default());
        let io = SniffingIo::http1(io, place.clone());
        let (io, before, handed) = self.http1_head(io, &place, &mut leaving).await;
        self.driver(io, before.len(), handed).await
    }

    /// What carries the event stream from here on, if there is one.
    async fn driver<T: Transport>(
        self,
        mut io: T,
        before: usize,
        handed: Option<Handed>,
    ) -> Option<H1Stream<T::Task>> {
        let Some(Handed { held, early }) = handed else {
            // A last flush, and the close of TLS; nobody waits for it longer than a moment.
            drop(timeout(LAST_REQUEST, io.shutdown()).await);
            return None;
        };
        let wire = ChunkWriter::new(
            io.for_task(&held.stream),
            held.framing,
            before + early,
            held.head,
        );
        Some(H1Stream::new(wire, held.stream, self.counted, self.release))
    }

    /// Until the connection has ended, or is not hyper's any more: its socket, what was read and given to nobody, and the
    /// event stream that goes on.
    async fn http1_head<T: Transport>(
        &mut self,
        io: SniffingIo<T>,
        place: &Arc<SocketReclaim>,
        leaving: &mut Token,
    ) -> (T, Vec<u8>, Option<Handed>) {
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(64)
            .serve_connection(TokioIo::new(io), self.http1_service(place));
        let mut told = pin!(leaving.requested());
        let mut last_request = None;
        let mut is_counted = false;
        let ended = poll_fn(|task| {
            let polled = connection.poll_without_shutdown(task);
            match place.hello() {
                Preface::Http1 if !is_counted => {
                    is_counted = true;
                    self.counted
                        .speaks(&self.context, Protocol::Http11, self.tls);
                }
                Preface::Http1 | Preface::Unknown => {}
                Preface::Silence | Preface::Http2 | Preface::Tls => return Poll::Ready(Ok(())),
            }
            if place.is_reached() && !place.is_blocked() {
                return Poll::Ready(Ok(()));
            }
            if last_request.is_none() && told.as_mut().poll(task).is_ready() {
                // hyper would close a connection that has not spoken yet, unanswered.
                let wait = if place.is_heard() {
                    Duration::ZERO
                } else {
                    LAST_REQUEST
                };
                last_request = Some(Box::pin(tokio::time::sleep(wait)));
            }
            if last_request
                .as_mut()
                .is_some_and(|wait| !wait.is_elapsed() && wait.as_mut().poll(task).is_ready())
            {
                Pin::new(&mut connection).graceful_shutdown();
                return connection.poll_without_shutdown(task);
            }
            polled
        });
        let failed = ended.await.err();
        let parts = connection.into_parts();
        let (mut io, before) = parts.io.into_inner().into_inner();
        if let Some(code) = place.refused() {
            tracing::debug!(client.addr = %self.remote, code = code.row().code, "request rejected");
            let response = unparsed_response(&self.context, code);
            drop(timeout(LAST_REQUEST, io.write_all(&response)).await);
        } else if let Some(error) = failed {
            self.count_failure(&error);
        }
        let held = place
            .take()
            .filter(|_| place.is_reached() && !place.is_blocked());
        (
            io,
            before,
            held.map(|held| Handed {
                held,
                early: parts.read_buf.len(),
            }),
        )
    }

    fn http1_service(
        &self,
        place: &Arc<SocketReclaim>,
    ) -> impl Service<
        Request<Incoming>,
        Response = Response<Body>,
        Error = Infallible,
        Future = Answering,
    > + use<> {
        let (context, remote, tls, over_limit) = (
            self.context.clone(),
            self.remote,
            self.tls,
            self.counted.over_limit(),
        );
        let place = place.clone();
        service_fn(move |request: Request<Incoming>| -> Answering {
            let (context, place) = (context.clone(), place.clone());
            Box::pin(async move {
                let (protocol, framing) = match request.version() {
                    Version::HTTP_10 | Version::HTTP_09 => (Protocol::Http10, Framing::UntilClose),
                    _ => (Protocol::Http11, Framing::Chunked),
                };
                let has_body = !request.body().is_end_stream();
                let answer = if place.begin_head() {
                    answer(
                        &context,
                        Peer::new(remote, protocol, tls),
                        over_limit,
                        &request,
                        has_body,
                    )
                    .await
                } else {
                    reject(&context, &RejectionCode::BareLineFeed.into(), &request)
                };
                Ok(answer.into_response(|stream| {
                    place.put(stream, framing);
                    Body::SocketReclaim(place)
                }))
            })
        })
    }

    /// What hyper refused by itself.
    fn count_failure(&self, error: &hyper::Error) {
        tracing::debug!(client.addr = %self.remote, %error, "connection failed");
        if error.is_timeout() {
            self.context.count_rejection(RejectionCode::RequestTimeout);
        } else if error.is_parse() {
            self.context.count_rejection(RejectionCode::Malformed);
        }
    }
}

/// What a socket that was taken back carries now.
struct Handed {
    held: Parked,
    /// How many bytes came too early.
    early: usize,
}

/// The future of an answer; in a box, since hyper's connection is polled without being pinned.
type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;
