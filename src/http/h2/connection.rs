//! The task of an HTTP/2 connection: accepts its streams, pings its client, and ends it.
//!
//! ```text
//! preface -> poll: group timer, h2, keepalive -> one task per stream (h2::request)
//!         -> GOAWAY: drain | max_age | idle -> streams end -> connection ends
//! ```
//!
//! The GOAWAY is written before any event stream ends, so that clients open new streams on a new
//! connection. Only then is the shutdown token dropped; the drain waits for that before it ends
//! event streams.
//!
//! The futures of the handshake and of the connection are boxed separately: the task of every other
//! kind of connection would otherwise be as large.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use h2::Reason;
use h2::server::{Builder, Handshake};
use tokio::time::timeout;

use super::frames::Observed;
use super::idle::IdleTracker;
use super::io::H2Io;
use super::keepalive::Keepalive;
use super::read_budget::ReadBudget;
use super::request::{H2Request, H2Shared};
use super::sink::DataChunk;
use crate::http::accept::connection::{Connection, HEAD_BYTES_MAX, HEAD_MAX};
use crate::http::accept::connection_task::within;
use crate::http::request::rejection_code::RejectionCode;
use crate::http::stream::group::{GroupTimer, StreamGroup};
use crate::http::transport::Transport;
use crate::lifecycle::shutdown::Token;
use crate::presence::Protocol;

/// 1 MiB: 16 uploads that the application does not read, of 64 KiB each, leave a window for the
/// other uploads of the connection. The requests in progress limit the memory of all connections.
const UPLOAD_WINDOW: u32 = 1 << 20;

/// 30 s for the last bytes after the GOAWAY, when no event stream is open. A closed window with an
/// unread rejection would keep the connection, and its file descriptor, forever.
const LAST_BYTES_MAX: Duration = Duration::from_secs(30);

/// 24 KiB: largest head that is read on HTTP/2. One above [`HEAD_BYTES_MAX`] is rejected with a
/// reason; above this limit h2 responds itself, with status 431 alone, and discards the head.
const HEAD_BYTES_READ_MAX: usize = HEAD_BYTES_MAX + 8 * 1024;

/// Streams of one connection: browsers use about a hundred, gateways many.
const STREAMS_MAX: u32 = 256;

/// Reason for a GOAWAY.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GoAwayReason {
    /// The pod drains; the drain limits the time.
    Drain,
    /// An event stream has reached `max_age`.
    MaxAge,
    /// The connection has no use.
    Idle,
}

/// Streams of a connection.
struct Streams<T> {
    h2: h2::server::Connection<Observed<H2Io<T>>, DataChunk>,
    keepalive: Keepalive,
    shared: H2Shared,
}

impl Connection {
    /// Serves every stream of the connection, each in its own task. `read_ahead` are the
    /// bytes that protocol detection has read.
    pub(in crate::http) fn http2<T: Transport>(
        mut self,
        io: T,
        read_ahead: Vec<u8>,
        shutdown: Token,
    ) -> impl Future<Output = ()> + Send {
        self.guard
            .set_protocol(&self.context, Protocol::H2, self.tls);
        let budget = Arc::new(ReadBudget::default());
        let group = Arc::new(StreamGroup::default());
        let mut timer = GroupTimer::new(group.clone());
        let io = Observed::new(H2Io::new(io, read_ahead, budget.clone()), group.clone());
        let mut builder = Builder::new();
        builder
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_BYTES_READ_MAX as u32)
            .initial_connection_window_size(UPLOAD_WINDOW);
        if self.context.routes().has_websocket_over_http2() {
            builder.enable_connect_protocol();
        }
        let handshake = builder.handshake(io);
        let serving = self.serve(Box::pin(handshake), shutdown, group.clone(), budget.clone());
        let mut connection = Box::pin(serving);
        poll_fn(move |task| {
            timer.poll(task);
            budget.refill();
            let polled = connection.as_mut().poll(task);
            group.wake_blocked();
            polled
        })
    }

    async fn serve<T: Transport>(
        self,
        handshake: Pin<Box<Handshake<Observed<H2Io<T>>, DataChunk>>>,
        mut shutdown: Token,
        group: Arc<StreamGroup>,
        budget: Arc<ReadBudget>,
    ) {
        // If the pod drains before the preface arrives, the client has a moment to send it.
        let h2 = match within(HEAD_MAX, &mut shutdown, handshake).await {
            Some(Ok(h2)) => h2,
            Some(Err(error)) => return self.log_end(Err(error)),
            None => {
                self.reject::<()>(RejectionCode::RequestTimeout);
                return;
            }
        };
        let idle = Arc::new(IdleTracker::default());
        let shared = H2Shared {
            context: self.context.clone(),
            caller: self.caller(Protocol::H2),
            group: group.clone(),
            idle: idle.clone(),
            budget,
        };
        let mut streams = Streams::new(h2, shared);
        let reason = tokio::select! {
            // The shutdown comes first: an event stream that it ends must not be written before the
            // GOAWAY.
            biased;
            () = shutdown.requested() => GoAwayReason::Drain,
            () = group.until_max_age() => GoAwayReason::MaxAge,
            ended = poll_fn(|task| streams.poll(task)) => return self.log_end(ended),
            // After the streams: a request that has arrived is answered.
            () = idle.until_idle() => GoAwayReason::Idle,
        };
        streams.h2.graceful_shutdown();
        // This poll writes the GOAWAY.
        if let Poll::Ready(ended) = poll_fn(|task| Poll::Ready(streams.poll(task))).await {
            return self.log_end(ended);
        }
        drop(shutdown);
        let ended = tokio::select! {
            ended = poll_fn(|task| streams.poll(task)) => Ok(ended),
            () = group.end_all(), if reason == GoAwayReason::MaxAge => {
                timeout(LAST_BYTES_MAX, poll_fn(|task| streams.poll(task))).await
            }
            () = idle.until_unused(LAST_BYTES_MAX), if reason == GoAwayReason::Idle => return,
        };
        match ended {
            Ok(ended) => self.log_end(ended),
            Err(_) => {
                tracing::debug!(
                    client.addr = %self.remote,
                    "connection closed; its client did not read the last bytes"
                );
            }
        }
    }

    fn log_end(&self, ended: Result<(), h2::Error>) {
        if let Err(error) = ended {
            tracing::debug!(client.addr = %self.remote, %error, "connection failed");
        }
    }
}

impl<T: Transport> Streams<T> {
    fn new(mut h2: h2::server::Connection<Observed<H2Io<T>>, DataChunk>, shared: H2Shared) -> Self {
        Self {
            keepalive: Keepalive::new(h2.ping_pong()),
            h2,
            shared,
        }
    }

    /// Spawns a task for each stream that the client opens. Ready at the end of the connection.
    fn poll(&mut self, task: &mut TaskContext<'_>) -> Poll<Result<(), h2::Error>> {
        if self.shared.group.is_window_too_large() {
            // h2 would report another error. Only its GOAWAY is left to write.
            self.h2.abrupt_shutdown(Reason::FLOW_CONTROL_ERROR);
            return self.h2.poll_closed(task);
        }
        if self.shared.group.take_probe() {
            self.keepalive.ping_now();
        }
        if self.keepalive.poll(task).is_ready() {
            // The peer is dead and will not read the GOAWAY: nothing waits for it.
            self.h2.abrupt_shutdown(Reason::NO_ERROR);
            return Poll::Ready(match self.h2.poll_closed(task) {
                Poll::Ready(ended) => ended,
                Poll::Pending => Ok(()),
            });
        }
        while let Some(request) = ready!(self.h2.poll_accept(task)) {
            let (request, respond) = request?;
            drop(tokio::spawn(H2Request::new(&self.shared, request, respond)));
        }
        Poll::Ready(Ok(()))
    }
}
