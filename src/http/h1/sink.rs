//! A client's socket that its task shares with the rounds of its feed: what comes while the task waits goes to it directly.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::feed::{DirectSink, EncodedRun, SendOutcome};
use crate::http::stream::compact_time::CompactInstant;
use crate::http::stream::direct_path::DirectPath;
use crate::http::stream::event_stream::EventStream;
use crate::http::stream::write_batch::{WriteStats, Written};
use crate::http::transport::Transport;
use crate::net::socket;

/// A socket in clear text. Its task has it to itself while it runs; when it waits, with nothing under way to the client, it
/// opens it to the rounds of its feed.
#[derive(Debug)]
pub(in crate::http) struct SharedSocket {
    socket: TcpStream,
    direct_path: DirectPath,
    rest: Mutex<Option<Box<Rest>>>,
}

/// The task's hold on it.
#[derive(Debug)]
pub(in crate::http) struct TaskSocket(Arc<SharedSocket>);

/// What the socket has not taken of a piece.
#[derive(Debug)]
pub(in crate::http) struct Rest {
    pub(in crate::http) bytes: Bytes,
    /// What will be counted when all of it is on the socket.
    pub(in crate::http) unsent: Written,
}

impl SharedSocket {
    fn rest(&self) -> MutexGuard<'_, Option<Box<Rest>>> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_write(
        &self,
        task: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
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

impl DirectSink for SharedSocket {
    fn prefetch(&self) -> bool {
        self.direct_path.is_ready()
    }

    fn try_send(self: Arc<Self>, piece: &EncodedRun) -> SendOutcome {
        if !self.direct_path.admits(piece) {
            return SendOutcome::Rejected;
        }
        let (chunk, content) = (piece.chunk.bytes(), piece.chunk.content().len());
        let written = match self.socket.try_write(chunk) {
            Ok(written) if written > 0 => written,
            // The task finds out what is the matter.
            Ok(_) | Err(_) => return SendOutcome::Rejected,
        };
        let stats = self.direct_path.record(piece);
        if written == chunk.len() {
            self.direct_path.count((stats, content));
            return SendOutcome::Sent;
        }
        // The rest comes first.
        self.direct_path.disable();
        let unsent = (
            WriteStats {
                handed: None,
                ..stats
            },
            content,
        );
        *self.rest() = Some(Box::new(Rest {
            bytes: chunk.slice(written..),
            unsent,
        }));
        SendOutcome::Partial
    }
}

impl TaskSocket {
    pub(in crate::http) fn new(socket: TcpStream, direct_path: DirectPath) -> Self {
        Self(Arc::new(SharedSocket {
            socket,
            direct_path,
            rest: Mutex::default(),
        }))
    }

    pub(in crate::http) fn direct_sink(&self) -> Arc<dyn DirectSink> {
        self.0.clone()
    }

    /// The task waits, and nothing is under way: what comes next may be written past it.
    pub(in crate::http) fn open(&self) {
        self.0.direct_path.enable();
    }

    /// The task runs. With when something was handed out past it last, and what of that is still to be written.
    pub(in crate::http) fn close(&self) -> Option<(CompactInstant, Option<Box<Rest>>)> {
        Some((self.0.direct_path.take_over()?, self.0.rest().take()))
    }
}

impl Transport for TaskSocket {
    type Task = Self;

    fn for_task(self, _stream: &EventStream) -> Self {
        self
    }

    fn shared(&self) -> Option<&TaskSocket> {
        Some(self)
    }

    fn abort(&self) {
        self.0.socket.abort();
    }
}

impl AsyncRead for TaskSocket {
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

impl AsyncWrite for TaskSocket {
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
        Poll::Ready(socket::shut_down(&self.0.socket))
    }
}
