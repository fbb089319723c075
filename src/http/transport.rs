//! Transport: what event streams need of a client's socket.
//!
//! The two implementations are a TCP socket and TLS on one. On HTTP/1 in clear text the socket
//! becomes a [`TaskSocket`], which the event stream's task shares with the dispatcher (direct
//! path). Under TLS only the task writes.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::http::h1::sink::TaskSocket;
use crate::http::stream::event_stream::EventStream;
use crate::net::socket;

/// 2 s: time for the client to close its side of the connection after our end. Closing the socket
/// with unread bytes of the client, such as an HTTP/2 acknowledgement, would reset the connection,
/// and the client could lose the last bytes.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// Socket of a client, in clear text or under TLS.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Socket for the task of an event stream on HTTP/1.
    type Task: Transport;

    /// Converts the socket for the task of this event stream.
    fn for_task(self, stream: &EventStream) -> Self::Task;

    /// Returns the socket that the dispatcher can write to directly. `None` under TLS.
    fn shared(&self) -> Option<&TaskSocket> {
        None
    }

    /// Makes the close a reset, which frees the memory of a dead or stuck peer at once.
    fn abort(&self);
}

impl Transport for TcpStream {
    type Task = TaskSocket;

    fn for_task(self, stream: &EventStream) -> TaskSocket {
        TaskSocket::new(self, stream.direct_path())
    }

    fn abort(&self) {
        if let Err(error) = socket::abort(self) {
            tracing::debug!(%error, "connection could not be reset");
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
