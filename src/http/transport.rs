//! A client's socket, in clear text or under TLS, as event streams are written to it.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::http::h1::sink::TaskSocket;
use crate::http::stream::event_stream::EventStream;
use crate::net::socket;

/// A connection that event streams are written to.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// What it becomes for the task of an event stream that has an HTTP/1 connection for itself.
    type Task: Transport;

    /// Becomes that.
    fn for_task(self, stream: &EventStream) -> Self::Task;

    /// The socket itself, where events can be written to it past the task.
    fn shared(&self) -> Option<&TaskSocket> {
        None
    }

    /// Makes the close a reset: the peer is dead or stuck, and its memory is wanted back.
    fn abort(&self);
}

impl Transport for TcpStream {
    type Task = TaskSocket;

    fn for_task(self, stream: &EventStream) -> TaskSocket {
        TaskSocket::new(self, stream.direct_path())
    }

    fn abort(&self) {
        if let Err(error) = socket::abort(self) {
            tracing::debug!(%error, "a connection could not be reset");
        }
    }
}

impl Transport for TlsStream<TcpStream> {
    type Task = Self;

    fn for_task(self, _stream: &EventStream) -> Self {
        self
    }

    fn abort(&self) {
        self.get_ref().0.abort();
    }
}
