//! Configuration of the admin port and the control socket (`admin:`).

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::auth::Secret;
use crate::net::TlsConfig;

/// Addresses of the admin port and the control socket, and access to the protected pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Address of the admin port.
    pub address: SocketAddr,
    /// Allowed names in `Host`, besides addresses and `localhost`.
    pub hosts: Vec<String>,
    /// Path of the control socket. None: the first writable directory of `/run/sidestream`,
    /// `XDG_RUNTIME_DIR` and the temporary directory.
    pub control: Option<PathBuf>,
    /// Token of the protected pages.
    pub token: Option<Secret>,
    /// File with that token, read again when it changes.
    pub token_file: Option<PathBuf>,
    /// TLS. None: clear text. With `client_ca` a client certificate opens the protected pages.
    pub tls: Option<TlsConfig>,
    /// The page can show the events of a route.
    pub tap: bool,
}

impl Config {
    /// Returns whether the protected pages need a token or a client certificate.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        let client_ca = self.tls.as_ref().and_then(|tls| tls.client_ca.as_ref());
        self.token.is_some() || self.token_file.is_some() || client_ca.is_some()
    }
}

/// Problem of a text that is not a token.
pub(crate) const NOT_A_TOKEN: &str = "a token has letters, digits and `-._~+/=` only";

/// Returns whether a text can be sent as a token (`b64token`, RFC 6750, section 2.1).
#[must_use]
pub(crate) fn is_token(text: &str) -> bool {
    let is_of_a_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    !text.is_empty() && text.bytes().all(is_of_a_token)
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([0, 0, 0, 0], 9090)),
            hosts: Vec::new(),
            control: None,
            token: None,
            token_file: None,
            tls: None,
            tap: false,
        }
    }
}
