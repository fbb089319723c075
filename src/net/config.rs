//! Listeners for clients (`listen:` in the configuration).

use std::net::SocketAddr;

use sidestream_common::tls::TlsConfig;

/// Listener for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenConfig {
    /// Address; port 0 binds a free port, which is logged.
    pub address: SocketAddr,
    /// TLS with HTTP/1.1 and HTTP/2 by ALPN; without it clear text, with HTTP/2 by prior knowledge.
    pub tls: Option<TlsConfig>,
}

impl ListenConfig {
    /// Returns whether every client must present a certificate.
    #[must_use]
    pub fn has_client_ca(&self) -> bool {
        let tls = self.tls.as_ref();
        tls.is_some_and(|tls| tls.client_ca.is_some())
    }
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([0, 0, 0, 0], 8080)),
            tls: None,
        }
    }
}
