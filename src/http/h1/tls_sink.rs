//! A TLS connection that an event stream's task shares with the dispatcher of its feed.
//!
//! As [`super::sink`] for clear text: the task reads and writes through [`TaskTls`], and the
//! dispatcher writes with [`SharedTls::send`] while the task is idle. One direct write is one
//! record. What the socket does not accept of it stays in rustls' buffer; the task is woken and
//! flushes it. Both run on one thread; the lock is never contended, and never held across an await.

use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::feed::{DirectSink, EncodedRun, SendOutcome};
use crate::http::stream::direct_path::{DirectPath, DirectWrites};
use crate::http::stream::event_stream::EventStream;
use crate::http::stream::write_batch::{Unsent, Written};
use crate::http::transport::{Socket, Transport};

/// Connection with the state of its direct path.
#[derive(Debug)]
pub(in crate::http) struct SharedTls {
    /// In a box, so that the connection fits a size class of the allocator.
    direct_path: Box<DirectPath>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    stream: TlsStream<TcpStream>,
    unsent: Option<Box<Unsent>>,
}

/// The task's handle of a shared connection.
#[derive(Debug)]
pub(in crate::http) struct TaskTls(Arc<SharedTls>);

/// Writes to the socket what it accepts at once.
struct TryWriter<'a>(&'a TcpStream);

impl Write for TryWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match slices {
            // One record: `send` costs less than `writev`.
            [record] => self.0.try_write(record),
            records => self.0.try_write_vectored(records),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SharedTls {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn stream(&mut self) -> Pin<&mut TlsStream<TcpStream>> {
        Pin::new(&mut self.stream)
    }
}

impl DirectSink for SharedTls {
    fn admits(&self, run: &EncodedRun) -> bool {
        self.direct_path.admits(run)
    }

    fn send(self: Arc<Self>, run: &EncodedRun) -> SendOutcome {
        let (chunk, content) = (run.bytes.bytes(), run.bytes.content().len());
        let mut inner = self.inner();
        let (socket, session) = inner.stream.get_mut();
        // Such as the answer to a key update: the task writes it.
        if session.wants_write() {
            return SendOutcome::Rejected;
        }
        // At most as much as rustls buffers for a connection.
        let accepted = match session.writer().write(chunk) {
            Ok(accepted) if accepted > 0 => accepted,
            // The task finds the error.
            Ok(_) | Err(_) => return SendOutcome::Rejected,
        };
        while session.wants_write() {
            match session.write_tls(&mut TryWriter(socket)) {
                Ok(written) if written > 0 => {}
                // The task writes the rest, and finds the error.
                Ok(_) | Err(_) => break,
            }
        }
        let is_waiting = session.wants_write();
        let written = Written {
            stats: self.direct_path.record(run),
            bytes: content,
        };
        if accepted == chunk.len() && !is_waiting {
            self.direct_path.count(written);
            return SendOutcome::Sent;
        }
        inner.unsent = Some(Box::new(Unsent {
            bytes: chunk.slice(accepted..),
            written: written.delayed(),
        }));
        SendOutcome::Partial
    }
}

impl Transport for TlsStream<TcpStream> {
    type Task = TaskTls;

    fn for_task(self, stream: &EventStream) -> TaskTls {
        TaskTls(Arc::new(SharedTls {
            direct_path: Box::new(stream.direct_path()),
            inner: Mutex::new(Inner {
                stream: self,
                unsent: None,
            }),
        }))
    }

    fn abort(&self) {
        Socket::abort(self.get_ref().0);
    }
}

impl Transport for TaskTls {
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
            unsent: self.0.inner().unsent.take(),
        })
    }

    fn abort(&self) {
        Socket::abort(self.0.inner().stream.get_ref().0);
    }
}

impl AsyncRead for TaskTls {
    fn poll_read(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.inner().stream().poll_read(task, buffer)
    }
}

impl AsyncWrite for TaskTls {
    fn poll_write(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.inner().stream().poll_write(task, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.inner().stream().poll_write_vectored(task, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.inner().stream().poll_flush(task)
    }

    fn poll_shutdown(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.inner().stream().poll_shutdown(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_fits_a_size_class_of_the_allocator() {
        // The counters of the `Arc`.
        let connection = 16 + size_of::<SharedTls>();
        assert!(connection <= 1280, "{connection}: the next size is 1536");
    }
}
