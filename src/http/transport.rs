//! The socket of a client, in clear text or with TLS, as event streams are written to it.
//!
//! [`Transport`] is a byte stream that can be reset. For its task, an event stream converts it to a
//! form that can also be written to without the task: a [`Socket`] in clear text in `h1::sink`, a
//! TLS connection in `h1::tls_sink`. The methods for that do nothing by default. A socket in clear
//! text is a `TcpStream` in the sidecar; the simulation (`tests/simulation`) runs the same code
//! over a socket in memory.

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::feed::DirectSink;
use crate::http::stream::direct_path::DirectWrites;
use crate::http::stream::event_stream::EventStream;
use crate::net::socket;

/// 2 s: time for the client to close its side of the connection after our end. Closing the socket
/// with unread bytes of the client, such as an HTTP/2 acknowledgement, would reset the connection,
/// and the client could lose the last bytes.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// Connection that event streams are written to.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Form for the task of an event stream with its own HTTP/1 connection.
    type Task: Transport;

    /// Converts to that form.
    fn for_task(self, stream: &EventStream) -> Self::Task;

    /// Returns a sink for direct writes, if they are possible.
    fn direct_sink(&self) -> Option<Arc<dyn DirectSink>> {
        None
    }

    /// Returns the direct writes since the previous call.
    fn take_direct_writes(&self) -> Option<DirectWrites> {
        None
    }

    /// Makes the close a reset: the peer is dead or stalled, and its memory is needed.
    fn abort(&self);
}

/// Socket in clear text: a byte stream that can also be read and written without waiting. Readiness
/// is that of `TcpStream`: it lasts until an attempt would block.
pub trait Socket: AsyncRead + AsyncWrite + fmt::Debug + Unpin + Send + Sync + 'static {
    /// Ready when bytes, or the end, can be read.
    fn poll_read_ready(&self, task: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ready when bytes can be written.
    fn poll_write_ready(&self, task: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Reads what has arrived. Returns 0 at the end.
    ///
    /// # Errors
    /// Fails with `WouldBlock` if nothing has arrived, and if the connection is broken.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes as much as the socket accepts now.
    ///
    /// # Errors
    /// Fails with `WouldBlock` if it accepts nothing, and if the connection is broken.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Writes as much of several slices as the socket accepts now.
    ///
    /// # Errors
    /// As [`Self::try_write`].
    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Ends our side of the connection (FIN).
    ///
    /// # Errors
    /// Fails if the connection has ended already.
    fn shut_down(&self) -> io::Result<()>;

    /// Makes the close a reset.
    fn abort(&self);
}

impl Socket for TcpStream {
    fn poll_read_ready(&self, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(task)
    }

    fn poll_write_ready(&self, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_ready(task)
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.try_read(buffer)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write(bytes)
    }

    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_write_vectored(slices)
    }

    fn shut_down(&self) -> io::Result<()> {
        socket::shut_down(self)
    }

    fn abort(&self) {
        if let Err(error) = socket::abort(self) {
            tracing::debug!(%error, "connection reset failed");
        }
    }
}
