//! A client's socket, in clear text or under TLS, as event streams are written to it.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::net::socket;

/// A connection that event streams are written to.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes the close a reset: the peer is dead or stuck, and its memory is wanted back.
    fn abort(&self);
}

impl Transport for TcpStream {
    fn abort(&self) {
        if let Err(error) = socket::abort(self) {
            tracing::debug!(%error, "a connection could not be reset");
        }
    }
}

impl Transport for TlsStream<TcpStream> {
    fn abort(&self) {
        self.get_ref().0.abort();
    }
}
