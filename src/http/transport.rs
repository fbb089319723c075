//! The socket of a client, in clear text or with TLS, as event streams are written to it.
//!
//! [`Transport`] is a byte stream that can be reset. A socket in clear text (its implementation is
//! in `h1::sink`) can also be written to without the task of its event stream; the methods for that
//! do nothing by default.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::feed::DirectSink;
use crate::http::stream::direct_path::DirectWrites;
use crate::http::stream::event_stream::EventStream;

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

impl Transport for TlsStream<TcpStream> {
    type Task = Self;

    fn for_task(self, _stream: &EventStream) -> Self {
        self
    }

    fn abort(&self) {
        self.get_ref().0.abort();
    }
}
