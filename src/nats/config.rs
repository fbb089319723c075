//! Settings of the connections to NATS (`nats:` in the configuration).

use std::path::PathBuf;

pub use crate::auth::Secret;

/// Servers, credentials and TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Addresses, such as `nats://127.0.0.1:4222`.
    pub servers: Vec<String>,
    /// Credentials for every server.
    pub credentials: Credentials,
    /// TLS settings. `None`: TLS is used if the address (`tls://`) or the server requires it.
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

/// Credentials of the sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credentials {
    /// No credentials, or those in the server addresses.
    #[default]
    None,
    /// A `.creds` file, read at every connect.
    File(PathBuf),
    /// A user name and a password.
    Password {
        /// The user name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A token.
    Token(Secret),
    /// The seed of an nkey.
    Nkey(Secret),
}

/// TLS settings for connections to NATS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// `true`: TLS is required for every server. `None`: the address and the server decide.
    /// `false`: the same, and no warning about a password in clear text.
    pub required: Option<bool>,
    /// The TLS handshake comes before the NATS protocol; the server needs the same setting.
    pub handshake_first: bool,
    /// PEM file with certificate authorities. `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// PEM file with the client certificate, for mutual TLS.
    pub certificate: Option<PathBuf>,
    /// PEM file with its private key.
    pub key: Option<PathBuf>,
}
