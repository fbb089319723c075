//! Settings of the providers (`authentication:` in the configuration).

use std::fmt;
use std::time::Duration;

use jsonwebtoken::Algorithm;

/// All providers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Providers in the order of the file; their names differ.
    pub providers: Vec<ProviderConfig>,
}

/// One provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderConfig {
    /// Name, by which routes refer to it.
    pub name: Box<str>,
    /// Settings of the JWT provider, the only kind.
    pub jwt: JwtConfig,
}

/// Settings of a provider of signed tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtConfig {
    /// Required `iss` claim. `None`: not checked.
    pub issuer: Option<String>,
    /// Values of which one must be in the `aud` claim. Empty: not checked.
    pub audience: Vec<String>,
    /// Origin of the keys.
    pub keys: KeysConfig,
    /// Accepted signature algorithms; at least one.
    pub algorithms: Vec<Algorithm>,
    /// Tolerated difference between the clocks of the issuer and of this pod.
    pub leeway: Duration,
    /// Places of the token in a request, in this order; at least one.
    pub from: Vec<TokenSource>,
}

/// Origin of the keys of a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysConfig {
    /// A secret that the issuer and this pod share (HMAC).
    Secret(Secret),
}

/// Place of a token in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// `Authorization: Bearer`.
    Bearer,
    /// A cookie of this name.
    Cookie(String),
    /// A query parameter of this name.
    Query(String),
}

/// A secret that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
