//! Sockets of the clients: clear text or TLS, with a receive buffer of any size, closed or reset.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// TCP connection, with TLS or without.
pub enum Transport {
    /// Clear text.
    Plain(TcpStream),
    /// TLS; boxed, because its state is large.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Options of a connection.
#[derive(Clone, Default)]
pub struct Connector {
    tls: Option<Arc<ClientConfig>>,
    receive_buffer: Option<u32>,
}

// === impl Connector ===

impl Connector {
    /// Uses TLS with this configuration for `https` URLs.
    pub fn tls(mut self, config: Arc<ClientConfig>) -> Self {
        self.tls = Some(config);
        self
    }

    /// Sets SO_RCVBUF; with a small one, a stalled client is detected early.
    pub fn receive_buffer(mut self, bytes: u32) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// Connects to the host and port of `url`; TLS if its scheme is `https`.
    pub async fn connect(&self, url: &Uri) -> io::Result<Transport> {
        let address = address(url);
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let tcp = socket.connect(address).await?;
        tcp.set_nodelay(true)?;
        if url.scheme_str() != Some("https") {
            return Ok(Transport::Plain(tcp));
        }
        let config = self
            .tls
            .clone()
            .expect("an https address needs `.tls(config)`");
        let name = ServerName::try_from(url.host().unwrap().to_owned()).unwrap();
        Ok(Transport::Tls(Box::new(
            TlsConnector::from(config).connect(name, tcp).await?,
        )))
    }
}

// === impl Transport ===

impl Transport {
    /// TCP socket of the connection.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    /// Protocol chosen by ALPN.
    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => tls.get_ref().1.alpn_protocol(),
        }
    }

    /// Pending error of the socket, such as a reset, which a read after the peer's FIN does not
    /// return.
    pub fn error(&self) -> Option<io::Error> {
        socket2::SockRef::from(self.tcp()).take_error().unwrap()
    }

    /// Closes the connection with a reset.
    pub fn reset(self) {
        socket2::SockRef::from(self.tcp())
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

/// Socket address of a URL with a numeric host.
pub fn address(url: &Uri) -> SocketAddr {
    let host = url
        .host()
        .expect("the URL has a host")
        .replace("localhost", "127.0.0.1");
    let port = url.port_u16().expect("the URL has a port");
    SocketAddr::new(
        host.trim_matches(['[', ']'])
            .parse()
            .expect("the host is an address"),
        port,
    )
}
