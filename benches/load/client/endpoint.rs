//! Address of the server for all clients: request line, TLS settings, source address.
//!
//! A URL is parsed once. Each client then opens its own connection with [`Endpoint::connect`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tickets::TicketStore;
use crate::Fallible;

/// TLS settings of the clients.
pub(crate) struct Tls {
    http1: TlsConnector,
    http2: TlsConnector,
    name: ServerName<'static>,
    /// Tickets of clients that will return.
    tickets: Option<Arc<TicketStore>>,
}

/// A parsed URL, shared by all clients.
#[derive(Clone)]
pub(crate) struct Endpoint {
    address: SocketAddr,
    /// Host and port as in the URL.
    authority: String,
    /// Path and query; `{n}` is replaced by the number of the client's subject.
    path: String,
    local: Option<IpAddr>,
    tls: Option<Arc<Tls>>,
    /// Client `k` has the token numbered `k % tokens.len()`; empty without authentication.
    tokens: Arc<[String]>,
}

impl Endpoint {
    /// Resolves `url`. For `https`, `ca` is the PEM file with the trusted certificate.
    ///
    /// Clients that are `returning` later keep their session tickets, as [`Self::with_tickets_of`] needs them.
    /// Without, all clients are new ones: a resumed handshake would cost the server too little.
    pub(crate) async fn resolve(url: &str, ca: Option<&Path>, returning: bool) -> Fallible<Self> {
        let (tls, rest) = match url.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return Err(format!("{url}: only http:// and https:// can be measured").into()),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse()?),
            None => (authority, if tls { 443 } else { 80 }),
        };
        let name = host.trim_matches(['[', ']']).to_owned();
        let address = tokio::net::lookup_host((name.as_str(), port)).await?.next();
        let tls = if tls {
            let name = ServerName::try_from(name)?;
            Some(Arc::new(Tls::new(ca, name, returning)?))
        } else {
            None
        };
        Ok(Self {
            address: address.ok_or_else(|| format!("{host} has no address"))?,
            authority: authority.to_owned(),
            path: if path.is_empty() {
                "/".to_owned()
            } else {
                path.to_owned()
            },
            local: None,
            tls,
            tokens: Arc::default(),
        })
    }

    /// If the server is on loopback, makes clients connect from a loopback address of their own.
    ///
    /// No other run of the last minute uses the address. Otherwise ports would run out: an address
    /// has 28,000, and those of earlier runs are in TIME_WAIT.
    pub(crate) fn with_own_source(mut self, run: usize) -> Self {
        let [.., middle, low] = std::process::id().to_be_bytes();
        // 127.0.x.y stays free for other programs.
        let host = u8::try_from(1 + run % 250).unwrap_or(1);
        let source = Ipv4Addr::new(127, middle | 1, low, host);
        self.local = (self.address.ip() == Ipv4Addr::LOCALHOST).then(|| source.into());
        self
    }

    /// Adds the tokens with which the clients authenticate.
    pub(crate) fn with_tokens(mut self, tokens: Arc<[String]>) -> Self {
        self.tokens = tokens;
        self
    }

    /// Returns the token of a client.
    pub(crate) fn token(&self, client: usize) -> Option<&str> {
        let number = client.checked_rem(self.tokens.len())?;
        self.tokens.get(number).map(String::as_str)
    }

    /// Returns the endpoint with one subject for all clients.
    pub(crate) fn at(mut self, n: usize) -> Self {
        self.path = self.path(n);
        self
    }

    /// Uses the TLS settings of another endpoint. Its clients return with their session tickets.
    pub(crate) fn with_tickets_of(mut self, other: &Self) -> Self {
        self.tls.clone_from(&other.tls);
        if let Some(tickets) = self.tls.as_ref().and_then(|tls| tls.tickets.as_ref()) {
            tickets.begin_return();
        }
        self
    }

    /// Returns the TLS settings if the scheme is `https`.
    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_deref()
    }

    /// Opens a TCP connection. The TLS handshake is up to the caller.
    pub(crate) async fn connect(&self) -> std::io::Result<TcpStream> {
        let socket = if self.address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        if let Some(local) = self.local {
            socket.bind(SocketAddr::new(local, 0))?;
        }
        let stream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Returns path and query for subject `n`.
    pub(crate) fn path(&self, n: usize) -> String {
        self.path.replace("{n}", &n.to_string())
    }

    /// Returns host and port.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }
}

impl Tls {
    fn new(ca: Option<&Path>, name: ServerName<'static>, returning: bool) -> Fallible<Self> {
        let ca = ca.ok_or("an https:// URL needs --ca with the certificate to trust")?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca)? {
            roots.add(certificate?)?;
        }
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tickets = returning.then(|| Arc::new(TicketStore::default()));
        config.resumption = match &tickets {
            Some(store) => Resumption::store(Arc::<TicketStore>::clone(store)),
            None => Resumption::disabled(),
        };
        let connector = |protocol: &[u8]| {
            let mut config = config.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            TlsConnector::from(Arc::new(config))
        };
        Ok(Self {
            http1: connector(b"http/1.1"),
            http2: connector(b"h2"),
            name,
            tickets,
        })
    }

    /// Performs the handshake of an HTTP/1.1 connection.
    pub(crate) async fn http1(&self, socket: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        self.http1.connect(self.name.clone(), socket).await
    }

    /// Performs the handshake of an HTTP/2 connection.
    pub(crate) async fn http2(&self, socket: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        self.http2.connect(self.name.clone(), socket).await
    }
}
