//! Task of a connection: accept, then stream.
//!
//! ```text
//! serve -> spawn ConnectionTask
//!            Handshake   first bytes (5 s) or TLS handshake (5 s), HTTP/1 requests, all of HTTP/2
//!            Streaming   one event stream on HTTP/1, for hours
//! ```
//!
//! Each connection has exactly one task (HTTP/2 adds one per stream), on the shard that accepted
//! it. The handshake is a boxed future that is dropped when the event stream begins, so an idle
//! client costs its [`H1Stream`] only.
//!
//! Two tokens connect the task with the pod's drain ([`Drain`]). `end` aborts it in any phase when
//! the time of the drain is over.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::connection::{Connection, LAST_REQUEST, Silent};
use crate::http::context::Context;
use crate::http::h1::sink::TaskSocket;
use crate::http::h1::stream::H1Stream;
use crate::http::h1::tls_sink::TaskTls;
use crate::http::request::rejection_code::RejectionCode;
use crate::http::transport::{Socket, Transport};
use crate::lifecycle::shutdown::Token;
use crate::limit::ConnectionPermit;
use crate::net::tls;

/// 5 s: time for the first byte of a connection.
const FIRST_BYTE_MAX: Duration = Duration::from_secs(5);
/// 5 s: time for a TLS handshake, which takes two round trips.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// Tokens of a connection for the pod's drain.
#[derive(Clone, Debug)]
pub struct Drain {
    /// Requested when clients must use another connection (GOAWAY). A connection drops its token
    /// once it has sent that to the client.
    pub goaway: Token,
    /// Held until the connection ends; aborted when the time of the drain is over.
    pub end: Token,
}

/// Spawns the task of an accepted connection.
pub(in crate::http) fn serve(
    context: &Arc<Context>,
    socket: TcpStream,
    remote: SocketAddr,
    permit: ConnectionPermit,
    acceptor: Option<tls::Acceptor>,
    drain: Drain,
) {
    match acceptor {
        None => drop(tokio::spawn(clear_text(
            context, socket, remote, permit, drain,
        ))),
        Some(acceptor) => {
            let shutdown = drain.end.clone().into_guard();
            let connection = Connection::new(context, remote, true, permit, shutdown);
            let handshake = encrypted(connection, socket, acceptor, drain);
            drop(tokio::spawn(ConnectionTask::new(handshake)));
        }
    }
}

/// Returns the task of a connection in clear text. It ends when the connection ends.
pub fn clear_text<S: Socket>(
    context: &Arc<Context>,
    socket: S,
    remote: SocketAddr,
    permit: ConnectionPermit,
    drain: Drain,
) -> impl Future<Output = ()> + Send + use<S> {
    let Drain { goaway, end } = drain;
    let shutdown = end.clone().into_guard();
    let connection = Connection::new(context, remote, false, permit, shutdown);
    let silent = Silent {
        connection,
        socket,
        goaway,
    };
    ConnectionTask::new(clear(silent, end))
}

/// Task of a connection.
///
/// It is as large as its streaming phase: the handshake is in a box of its own, so that a storm of
/// connections frees little memory of other sizes when their event streams begin.
enum ConnectionTask<T> {
    /// Resolves to the event stream, if the connection gets to one.
    Handshake(Pin<Box<dyn Future<Output = Option<H1Stream<T>>> + Send>>),
    Streaming(H1Stream<T>),
}

impl<T: Transport> ConnectionTask<T> {
    fn new(handshake: impl Future<Output = Option<H1Stream<T>>> + Send + 'static) -> Self {
        Self::Handshake(Box::pin(handshake))
    }
}

impl<T: Transport> Future for ConnectionTask<T> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<()> {
        if let Self::Handshake(handshake) = &mut *self {
            let Some(stream) = ready!(handshake.as_mut().poll(task)) else {
                return Poll::Ready(());
            };
            stream.begin(task);
            *self = Self::Streaming(stream);
            // The first write is left to the next run of the task. In a storm the writes of many
            // connections then follow each other, and a proxy on this machine is woken once for all
            // of them.
            task.waker().wake_by_ref();
            return Poll::Pending;
        }
        match &mut *self {
            Self::Streaming(stream) => Pin::new(stream).poll(task),
            Self::Handshake(_) => Poll::Ready(()),
        }
    }
}

/// Runs a clear-text connection until its event stream begins or it ends.
async fn clear<S: Socket>(silent: Silent<S>, mut end: Token) -> Option<H1Stream<TaskSocket<S>>> {
    let remote = silent.connection.remote;
    tokio::select! {
        biased;
        stream = first_request(silent) => stream,
        () = end.aborted() => aborted(remote),
    }
}

/// Waits for the first byte and serves the connection.
async fn first_request<S: Socket>(mut silent: Silent<S>) -> Option<H1Stream<TaskSocket<S>>> {
    let accepted = Instant::now();
    loop {
        // The request has nearly always arrived with the connection, so the socket is read before
        // it is asked for readiness. The boxed future has hyper's buffers: a silent connection
        // waits without them.
        let served = Box::pin(silent.connection.clear_text(silent.socket, silent.goaway)).await;
        silent = match served {
            Ok(stream) => return stream,
            Err(silent) => silent,
        };
        let left = FIRST_BYTE_MAX.saturating_sub(accepted.elapsed());
        let readable = poll_fn(|task| silent.socket.poll_read_ready(task));
        if within(left, &mut silent.goaway, readable).await.is_none() {
            return silent.connection.reject(RejectionCode::NoRequest);
        }
    }
}

/// Runs a TLS connection until its event stream begins or it ends.
async fn encrypted(
    mut connection: Connection,
    socket: TcpStream,
    acceptor: tls::Acceptor,
    drain: Drain,
) -> Option<H1Stream<TaskTls>> {
    let remote = connection.remote;
    let Drain {
        mut goaway,
        mut end,
    } = drain;
    let handshake = Box::pin(async move {
        match within(HANDSHAKE_MAX, &mut goaway, acceptor.accept(socket)).await {
            None => connection.reject(RejectionCode::TlsHandshakeTimeout),
            Some(Err(error)) => {
                tracing::debug!(client.addr = %remote, %error, "TLS handshake failed");
                connection.reject(RejectionCode::TlsHandshake)
            }
            Some(Ok(mut socket)) => {
                tls::bound_buffers(&mut socket);
                let is_resumed = tls::is_resumed(&socket);
                connection.context.count_tls_handshake(is_resumed);
                connection.certificate = tls::client_certificate(&socket).map(Arc::from);
                if socket.get_ref().1.alpn_protocol() == Some(b"h2") {
                    Box::pin(connection.http2(socket, Vec::new(), goaway)).await;
                    None
                } else {
                    Box::pin(connection.http1(socket, goaway)).await
                }
            }
        }
    });
    tokio::select! {
        biased;
        stream = handshake => stream,
        () = end.aborted() => aborted(remote),
    }
}

fn aborted<T>(remote: SocketAddr) -> Option<T> {
    tracing::debug!(client.addr = %remote, "connection aborted at the end of the drain");
    None
}

/// Returns the result of a future, or `None` after this time. When the pod drains, at most
/// [`LAST_REQUEST`] is left.
pub(in crate::http) async fn within<F: Future>(
    time: Duration,
    goaway: &mut Token,
    future: F,
) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut timer = pin!(tokio::time::sleep(time));
    let mut drained = pin!(goaway.requested());
    let mut is_drained = false;
    poll_fn(|task| {
        if let Poll::Ready(done) = future.as_mut().poll(task) {
            return Poll::Ready(Some(done));
        }
        if !is_drained && drained.as_mut().poll(task).is_ready() {
            is_drained = true;
            let last = timer.deadline().min(Instant::now() + LAST_REQUEST);
            timer.as_mut().reset(last);
        }
        timer.as_mut().poll(task).map(|()| None)
    })
    .await
}
