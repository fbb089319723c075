//! An HTTP/2 connection: its streams, each with a task of its own, its pings, and its end.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use h2::Reason;
use h2::server::{Builder, Handshake};
use tokio::time::timeout;

use super::group::{GroupTimer, H2StreamGroup};
use super::idle::IdleTracker;
use crate::http::accept::connection::{Connection, HEAD_BYTES_MAX, HEAD_MAX};
use crate::http::accept::connection_task::within;
use crate::http::h2::frames::Observed;
use crate::http::h2::keepalive::Keepalive;
use crate::http::h2::read_budget::{H2Io, ReadBudget};
use crate::http::h2::request::{H2Request, H2Shared};
use crate::http::h2::sink::EncodedRun;
use crate::http::request::rejection::RejectionCode;
use crate::http::stream::state::Peer;
use crate::http::transport::Transport;
use crate::lifecycle::shutdown::Token;
use crate::presence::Protocol;

/// 30 s: what a client that was told to go has for its last bytes, when no event stream is left that it could wait for.
/// A window that stays shut over a refusal would keep the connection for ever, and with it a descriptor.
const LAST_TAKEN_MAX: Duration = Duration::from_secs(30);
/// 24 KiB: the largest head that is heard on HTTP/2. One above [`HEAD_BYTES_MAX`] is answered with the reason; above this
/// h2 answers by itself, with 431 alone, and keeps nothing.
const HEAD_BYTES_HEARD: usize = HEAD_BYTES_MAX + 8 * 1024;
/// Streams of one connection: browsers use about a hundred, gateways many.
const STREAMS_MAX: u32 = 256;

/// Why an HTTP/2 connection is told to go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// The pod drains, and bounds it.
    Drain,
    /// Its event streams have come of age.
    Age,
    /// It has carried nothing for a while.
    IdleTracker,
}

/// The streams of a connection.
struct Streams<T> {
    h2: h2::server::Connection<Observed<H2Io<T>>, EncodedRun>,
    keepalive: Keepalive,
    shared: H2Shared,
}

impl Connection {
    /// Serves every stream of the connection; each has a task that can be ended alone. `read_ahead`: bytes that protocol detection has read.
    pub(in crate::http) fn http2<T: Transport>(
        mut self,
        io: T,
        read_ahead: Vec<u8>,
        leaving: Token,
    ) -> impl Future<Output = ()> + Send {
        self.guard
            .set_protocol(&self.context, Protocol::H2, self.tls);
        let (budget, group) = (
            Arc::new(ReadBudget::default()),
            Arc::new(H2StreamGroup::default()),
        );
        let (mut clock, member) = (GroupTimer::new(group.clone()), group.clone());
        let io = Observed::new(H2Io::new(io, read_ahead, budget.clone()), group.clone());
        // In a box of its own until the preface has come: what follows would be larger for it.
        let begins = Builder::new()
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_BYTES_HEARD as u32)
            .handshake(io);
        // And that in another: the tasks of all other connections would be as large.
        let mut served = Box::pin(self.serve(Box::pin(begins), leaving, group));
        poll_fn(move |task| {
            clock.poll(task);
            budget.refill();
            let polled = served.as_mut().poll(task);
            member.wake_blocked();
            polled
        })
    }

    async fn serve<T: Transport>(
        self,
        begins: Pin<Box<Handshake<Observed<H2Io<T>>, EncodedRun>>>,
        mut leaving: Token,
        group: Arc<H2StreamGroup>,
    ) {
        // A client that has not said the preface when the pod drains has a moment to.
        let h2 = match within(HEAD_MAX, &mut leaving, begins).await {
            Some(Ok(h2)) => h2,
            Some(Err(error)) => return self.note_end(Err(error)),
            None => {
                self.reject::<()>(RejectionCode::RequestTimeout);
                return;
            }
        };
        let idle = Arc::new(IdleTracker::default());
        let shared = H2Shared {
            context: self.context.clone(),
            peer: Peer::new(self.remote, Protocol::H2, self.tls),
            over_limit: self.guard.over_limit(),
            group: group.clone(),
            idle: idle.clone(),
        };
        let mut streams = Streams::new(h2, shared);
        let why = tokio::select! {
            biased; // or what a drain ends could be written before it is said that the connection ends
            () = leaving.requested() => Leaving::Drain,
            () = group.aged() => Leaving::Age,
            ended = poll_fn(|task| streams.poll(task)) => return self.note_end(ended),
            // What is being answered is answered, and the client knows.
            () = idle.over() => Leaving::IdleTracker,
        };
        streams.h2.graceful_shutdown();
        // This writes the GOAWAY; only then the connection counts as told, and only then its event streams end.
        if let Poll::Ready(ended) = poll_fn(|task| Poll::Ready(streams.poll(task))).await {
            return self.note_end(ended);
        }
        drop(leaving);
        let ended = tokio::select! {
            ended = poll_fn(|task| streams.poll(task)) => Ok(ended),
            () = group.hand_over(), if why == Leaving::Age => {
                timeout(LAST_TAKEN_MAX, poll_fn(|task| streams.poll(task))).await
            }
            () = idle.unused_after(LAST_TAKEN_MAX), if why == Leaving::IdleTracker => return,
        };
        match ended {
            Ok(ended) => self.note_end(ended),
            Err(_) => {
                tracing::debug!(client.addr = %self.remote, "a connection that does not take its end was closed")
            }
        }
    }

    fn note_end(&self, ended: Result<(), h2::Error>) {
        if let Err(error) = ended {
            tracing::debug!(client.addr = %self.remote, %error, "connection failed");
        }
    }
}

impl<T: Transport> Streams<T> {
    fn new(
        mut h2: h2::server::Connection<Observed<H2Io<T>>, EncodedRun>,
        shared: H2Shared,
    ) -> Self {
        Self {
            keepalive: Keepalive::new(h2.ping_pong()),
            h2,
            shared,
        }
    }

    /// Begins each stream that the client opens; ready at the end of the connection.
    fn poll(&mut self, task: &mut TaskContext<'_>) -> Poll<Result<(), h2::Error>> {
        if self.shared.group.is_window_too_large() {
            // h2 would name another error. Its GOAWAY is all that is left to do.
            self.h2.abrupt_shutdown(Reason::FLOW_CONTROL_ERROR);
            return self.h2.poll_closed(task);
        }
        if self.shared.group.take_probe() {
            self.keepalive.ask();
        }
        if self.keepalive.poll(task).is_ready() {
            // Whoever does not answer will hardly hear why.
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
