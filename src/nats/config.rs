//! How NATS is reached (`nats:` in the configuration).

use std::fmt;
use std::path::PathBuf;

/// Servers and who we are to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Addresses, such as `nats://127.0.0.1:4222`.
    pub servers: Vec<String>,
    /// Who we are.
    pub credentials: Credentials,
    /// TLS towards the servers; none: as the server's address (`tls://`) or the server itself asks.
    pub tls: Option<Tls>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            servers: vec!["nats://127.0.0.1:4222".into()],
            credentials: Credentials::None,
            tls: None,
        }
    }
}

/// How we prove who we are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Not at all.
    #[default]
    None,
    /// A `.creds` file, read again at every connect.
    File(PathBuf),
    /// A name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A token.
    Token(Secret),
    /// The seed of an nkey.
    Nkey(Secret),
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// TLS towards NATS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Whether TLS is spoken with every server, whatever its address and the server say; none: as these ask. `false` also
    /// says that a password in clear text is no fault.
    pub required: Option<bool>,
    /// Whether the handshake comes before anything of NATS; the server is configured so as well.
    pub handshake_first: bool,
    /// Authorities, PEM; none: those of the system.
    pub ca: Option<PathBuf>,
    /// Our certificate, PEM, for mutual TLS.
    pub certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
}
