//! A socket in clear text that an event stream's task shares with the dispatcher of its feed.
//!
//! ```text
//! task runs:   it writes through ChunkWriter
//! task idle:   the dispatcher writes through SharedSocket::send
//! ```
//!
//! The rest of a direct write that the socket accepts only in part is kept; the task is woken,
//! takes it ([`Transport::take_direct_writes`]) and writes it first. Both run on one thread; the
//! mutex around the rest is never contended. [`super::tls_sink`] does the same for TLS.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::feed::{DirectSink, EncodedRun, SendOutcome};
use crate::http::stream::direct_path::{DirectPath, DirectWrites};
use crate::http::stream::event_stream::EventStream;
use crate::http::stream::write_batch::{Unsent, Written};
use crate::http::transport::{Socket, Transport};

/// Socket with the state of its direct path.
#[derive(Debug)]
pub(in crate::http) struct SharedSocket<S> {
    socket: S,
    direct_path: DirectPath,
    unsent: Mutex<Option<Box<Unsent>>>,
}

/// The task's handle of a shared socket.
#[derive(Debug)]
pub(in crate::http) struct TaskSocket<S>(Arc<SharedSocket<S>>);

impl<S: Socket> SharedSocket<S> {
    fn unsent(&self) -> MutexGuard<'_, Option<Box<Unsent>>> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_write(
        &self,
        task: &mut Context<'_>,
        write: impl Fn(&S) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(task))?;
            match write(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl<S: Socket> DirectSink for SharedSocket<S> {
    fn admits(&self, run: &EncodedRun) -> bool {
        self.direct_path.admits(run)
    }

    fn send(self: Arc<Self>, run: &EncodedRun) -> SendOutcome {
        let (chunk, content) = (run.bytes.bytes(), run.bytes.content().len());
        let accepted = match self.socket.try_write(chunk) {
            Ok(accepted) if accepted > 0 => accepted,
            // The task finds the error.
            Ok(_) | Err(_) => return SendOutcome::Rejected,
        };
        let written = Written {
            stats: self.direct_path.record(run),
            bytes: content,
        };
        if accepted == chunk.len() {
            self.direct_path.count(written);
            return SendOutcome::Sent;
        }
        *self.unsent() = Some(Box::new(Unsent {
            bytes: chunk.slice(accepted..),
            written: written.delayed(),
        }));
        SendOutcome::Partial
    }
}

impl<S: Socket> TaskSocket<S> {
    pub(in crate::http) fn new(socket: S, direct_path: DirectPath) -> Self {
        Self(Arc::new(SharedSocket {
            socket,
            direct_path,
            unsent: Mutex::default(),
        }))
    }
}

impl<S: Socket> Transport for TaskSocket<S> {
    type Task = Self;

    fn for_task(self, _stream: &EventStream) -> Self {
        self
    }

    fn direct_sink(&self) -> Option<Arc<dyn DirectSink>> {
        Some(self.0.clone())
    }

    fn take_direct_writes(&self) -> Option<DirectWrites> {
        Some(DirectWrites {
            last_write: self.0.direct_path.take_last_write()?,
            unsent: self.0.unsent().take(),
        })
    }

    fn abort(&self) {
        self.0.socket.abort();
    }
}

impl<S: Socket> Transport for S {
    type Task = TaskSocket<S>;

    fn for_task(self, stream: &EventStream) -> TaskSocket<S> {
        TaskSocket::new(self, stream.direct_path())
    }

    fn abort(&self) {
        Socket::abort(self);
    }
}

impl<S: Socket> AsyncRead for TaskSocket<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.socket.poll_read_ready(task))?;
            match self.0.socket.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    buffer.advance(read?);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl<S: Socket> AsyncWrite for TaskSocket<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(task, |socket| socket.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0
            .poll_write(task, |socket| socket.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.socket.shut_down())
    }
}
