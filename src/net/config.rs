//! Where clients are listened to (`listen:` in the configuration).

use std::net::SocketAddr;
use std::path::PathBuf;

/// One listener for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenConfig {
    /// The address; port 0 takes a free one and says which in the log.
    pub address: SocketAddr,
    /// TLS with HTTP/1.1 and HTTP/2 by ALPN; without it clear text, HTTP/2 by prior knowledge.
    pub tls: Option<TlsConfig>,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([0, 0, 0, 0], 8080)),
            tls: None,
        }
    }
}

/// The files of a TLS listener; they are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Certificate authorities of clients, PEM: every client must then show a certificate of theirs.
    pub client_ca: Option<PathBuf>,
}
