//! Where clients connect to, and how: address, request line, TLS, source address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, client::Resumption};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::Fallible;

/// A URL, taken apart once for all clients.
#[derive(Clone)]
pub(crate) struct Endpoint {
    address: SocketAddr,
    /// Host and port as the URL names them.
    authority: String,
    /// Path and query; `{n}` stands for the number of the client's subject.
    path: String,
    local: Option<IpAddr>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Endpoint {
    /// Resolves `url`. For `https`, `ca` is the PEM file that is trusted.
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
        })
    }

    /// Connects from a loopback address that no other run of the last minute had, where the server is on loopback:
    /// the ports that earlier runs left in TIME_WAIT would run out otherwise (28,000 per address).
    pub(crate) fn with_own_source(mut self, run: usize) -> Self {
        let [.., middle, low] = std::process::id().to_be_bytes();
        // 127.0.x.y is left to others.
        let host = u8::try_from(1 + run % 250).unwrap_or(1);
        let source = Ipv4Addr::new(127, middle | 1, low, host);
        self.local = (self.address.ip() == Ipv4Addr::LOCALHOST).then(|| source.into());
        self
    }

    /// The same with the subject of all clients fixed.
    pub(crate) fn at(mut self, n: usize) -> Self {
        self.path = self.path(n);
        self
    }

    /// The name of the server, and its TLS settings if the URL says `https`.
    pub(crate) fn tls(&self) -> Option<&(TlsConnector, ServerName<'static>)> {
        self.tls.as_ref()
    }

    /// One connection, before TLS.
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

    /// Path and query for the subject `n`.
    pub(crate) fn path(&self, n: usize) -> String {
        self.path.replace("{n}", &n.to_string())
    }

    /// Host and port.
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
    // Every client is a new one: a resumed handshake would cost the server less than it does in life.
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}
