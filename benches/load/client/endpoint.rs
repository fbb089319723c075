//! Address of the server for all clients: request line, TLS settings, source address.
//!
//! A URL is parsed once. Each client then opens its own connection with [`Endpoint::connect`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, client::Resumption};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::Fallible;

/// A parsed URL, shared by all clients.
#[derive(Clone)]
pub(crate) struct Endpoint {
    address: SocketAddr,
    /// Host and port as in the URL.
    authority: String,
    /// Path and query; `{n}` is replaced by the number of the client's subject.
    path: String,
    local: Option<IpAddr>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// Client `k` has the token numbered `k % tokens.len()`; empty without authentication.
    tokens: Arc<[String]>,
}

impl Endpoint {
    /// Resolves `url`. For `https`, `ca` is the PEM file with the trusted certificate.
    pub(crate) async fn resolve(url: &str, ca: Option<&Path>) -> Fallible<Self> {
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
            Some((connector(ca)?, ServerName::try_from(name)?))
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

    /// Returns TLS settings and server name if the scheme is `https`.
    pub(crate) fn tls(&self) -> Option<&(TlsConnector, ServerName<'static>)> {
        self.tls.as_ref()
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

fn connector(ca: Option<&Path>) -> Fallible<TlsConnector> {
    let ca = ca.ok_or("an https:// URL needs --ca with the certificate to trust")?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // All clients are new ones: a resumed handshake would cost the server too little.
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}
