//! A client that arrives: its first bytes or its handshake, and the one task that its connection has from there on.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::connection::{Connection, LAST_REQUEST};
use crate::http::context::{Context, Counted};
use crate::http::h1::sink::TaskSocket;
use crate::http::h1::stream::H1Stream;
use crate::http::request::rejection::RejectionCode;
use crate::http::transport::Transport;
use crate::lifecycle::shutdown::Token;
use crate::limit::ConnectionPermit;
use crate::net::tls;

/// 5 s: a client that connects speaks at once.
const FIRST_BYTE_MAX: Duration = Duration::from_secs(5);
/// 5 s: a handshake takes two round trips.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// What a connection hears of the drain.
#[derive(Clone, Debug)]
pub struct Drain {
    /// Signaled: not to be used again. Released by a connection that has told its client so.
    pub leaving: Token,
    /// Held to the connection's end; cut when the time is over.
    pub release: Token,
}

/// Serves a connection in a task of its own, from its first byte to its last, or until the time of a drain is over.
pub(in crate::http) fn serve(
    context: &Arc<Context>,
    socket: TcpStream,
    remote: SocketAddr,
    entered: ConnectionPermit,
    acceptor: Option<tls::Acceptor>,
    drain: Drain,
) {
    let (context, counted) = (context.clone(), Counted::new(entered));
    let Drain { leaving, release } = drain;
    let connection = Connection {
        context,
        remote,
        tls: acceptor.is_some(),
        counted,
        release: release.clone().into_guard(),
    };
    match acceptor {
        None => drop(tokio::spawn(ConnectionPhase::new(clear(
            connection, socket, leaving, release,
        )))),
        Some(acceptor) => {
            drop(tokio::spawn(ConnectionPhase::new(encrypted(
                connection, socket, acceptor, leaving, release,
            ))));
        }
    }
}

/// The task of a connection. No larger for what is only at its beginning: a client that waits for events has the same
/// memory for all its life, and a storm of them takes little that is given back.
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is what is there for hours"
)]
enum ConnectionPhase<T> {
    Begins(Pin<Box<dyn Future<Output = Option<H1Stream<T>>> + Send>>),
    Carries(H1Stream<T>),
}

impl<T: Transport> ConnectionPhase<T> {
    fn new(begins: impl Future<Output = Option<H1Stream<T>>> + Send + 'static) -> Self {
        Self::Begins(Box::pin(begins))
    }
}

impl<T: Transport> Future for ConnectionPhase<T> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<()> {
        if let Self::Begins(begins) = &mut *self {
            let Some(driver) = ready!(begins.as_mut().poll(task)) else {
                return Poll::Ready(());
            };
            driver.begin(task);
            *self = Self::Carries(driver);
            // The first bytes in a turn of their own: in a storm the sends of many follow on each other then, and whoever
            // is behind them on this machine, a proxy for one, is woken once and not for each.
            task.waker().wake_by_ref();
            return Poll::Pending;
        }
        match &mut *self {
            Self::Carries(driver) => Pin::new(driver).poll(task),
            Self::Begins(_) => Poll::Ready(()),
        }
    }
}

/// Until it is an event stream on HTTP/1, or has ended otherwise.
async fn clear(
    connection: Connection,
    socket: TcpStream,
    leaving: Token,
    mut release: Token,
) -> Option<H1Stream<TaskSocket>> {
    let remote = connection.remote;
    tokio::select! {
        biased;
        driver = async {
            let (begun, mut silent) = (Instant::now(), (connection, socket, leaving));
            loop {
                // Nearly always a request has come with its connection: it is read at once, before it is asked whether
                // there is anything. In a box of its own: who says nothing yet shall not have what hyper needs.
                match Box::pin(silent.0.any(silent.1, silent.2)).await {
                    Ok(driver) => return driver,
                    Err(back) => silent = back,
                }
                let left = FIRST_BYTE_MAX.saturating_sub(begun.elapsed());
                let speaks = poll_fn(|task| silent.1.poll_read_ready(task));
                if within(left, &mut silent.2, speaks).await.is_none() {
                    return silent.0.reject(RejectionCode::NoRequest);
                }
            }
        } => driver,
        () = release.aborted() => cut(remote),
    }
}

/// The same over TLS.
async fn encrypted(
    connection: Connection,
    socket: TcpStream,
    acceptor: tls::Acceptor,
    mut leaving: Token,
    mut release: Token,
) -> Option<H1Stream<TlsStream<TcpStream>>> {
    let remote = connection.remote;
    let begins = Box::pin(async move {
        match within(HANDSHAKE_MAX, &mut leaving, acceptor.accept(socket)).await {
            None => connection.reject(RejectionCode::TlsHandshakeTimeout),
            Some(Err(error)) => {
                tracing::debug!(client.addr = %remote, %error, "no TLS handshake");
                connection.reject(RejectionCode::TlsHandshake)
            }
            Some(Ok(mut socket)) => {
                tls::bound_buffers(&mut socket);
                if socket.get_ref().1.alpn_protocol() == Some(b"h2") {
                    Box::pin(connection.http2(socket, Vec::new(), leaving)).await;
                    None
                } else {
                    Box::pin(connection.http1(socket, leaving)).await
                }
            }
        }
    });
    tokio::select! {
        biased;
        driver = begins => driver,
        () = release.aborted() => cut(remote),
    }
}

fn cut<T>(remote: SocketAddr) -> Option<T> {
    tracing::debug!(client.addr = %remote, "a connection was cut");
    None
}

/// What comes of it in this time; once the pod drains it has no more than a moment.
pub(in crate::http) async fn within<F: Future>(
    time: Duration,
    leaving: &mut Token,
    future: F,
) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut timer = pin!(tokio::time::sleep(time));
    let mut told = pin!(leaving.requested());
    let mut is_told = false;
    poll_fn(|task| {
        if let Poll::Ready(done) = future.as_mut().poll(task) {
            return Poll::Ready(Some(done));
        }
        if !is_told && told.as_mut().poll(task).is_ready() {
            is_told = true;
            let last = timer.deadline().min(Instant::now() + LAST_REQUEST);
            timer.as_mut().reset(last);
        }
        timer.as_mut().poll(task).map(|()| None)
    })
    .await
}
