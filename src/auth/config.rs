//! Settings of the providers (`authentication:` in the configuration).

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use hyper::header::{AUTHORIZATION, COOKIE, HeaderName};
use jsonwebtoken::{Algorithm, AlgorithmFamily};

use crate::subject::BucketName;

/// All providers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Providers in the order of the file; their names differ.
    pub providers: Vec<ProviderConfig>,
    /// Revocations.
    pub revocations: RevocationsConfig,
}

/// Settings of the revocations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevocationsConfig {
    /// NATS KV bucket with the revocations. `None`: revocation is off.
    pub bucket: Option<BucketName>,
    /// Answer to requests while the revocations are not known.
    pub when_unavailable: WhenUnavailable,
}

/// Answer to requests while the revocations are not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenUnavailable {
    /// They are accepted if no known revocation concerns them.
    #[default]
    Allow,
    /// They are rejected with 503 `authentication_unavailable`.
    Reject,
}

impl WhenUnavailable {
    /// Names in the configuration.
    pub const NAMES: [(&'static str, Self); 2] = [("allow", Self::Allow), ("reject", Self::Reject)];

    /// Returns the name in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Reject => "reject",
        }
    }
}

/// One provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderConfig {
    /// Name, by which routes refer to it.
    pub name: Box<str>,
    /// Kind, with its settings.
    pub kind: ProviderKind,
}

/// Kind of a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one for each provider of the file"
)]
pub enum ProviderKind {
    /// Signed tokens.
    Jwt(JwtConfig),
    /// Client certificates of listeners with `client_ca`.
    Certificate,
    /// An HTTP endpoint that decides.
    Forward(ForwardConfig),
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

/// Settings of a provider that asks an HTTP endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardConfig {
    /// URL of the endpoint.
    pub url: Uri,
    /// PEM file with certificate authorities. `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// Header fields of the client's request that are copied.
    pub send: Vec<HeaderName>,
    /// Time from the begin of a call to the end of its answer.
    pub timeout: Duration,
    /// Time for which an answer is used at most. Zero: for one request.
    pub cache_for: Duration,
    /// Number of answers in the cache.
    pub cache_entries: u32,
}

/// Origin of the keys of a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysConfig {
    /// The issuer's OpenID Connect discovery document, which names the URL of its JWKS.
    Discovery {
        /// URL of the issuer; the document must name the same one.
        issuer: String,
        /// PEM file with certificate authorities. `None`: those of the system.
        ca: Option<PathBuf>,
    },
    /// A JSON Web Key Set at this URL.
    Jwks {
        /// `https`, or `http` without protection.
        url: Uri,
        /// PEM file with certificate authorities. `None`: those of the system.
        ca: Option<PathBuf>,
    },
    /// A file with a JWKS, or with public keys in PEM.
    File(PathBuf),
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

impl fmt::Display for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bearer => f.write_str("bearer"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
        }
    }
}

impl JwtConfig {
    /// 30 s: clocks that are synchronised at all differ by less.
    pub const LEEWAY: Duration = Duration::from_secs(30);

    /// Accepted algorithms and their names. There is no `none`.
    pub const ALGORITHMS: [(&'static str, Algorithm); 12] = [
        ("RS256", Algorithm::RS256),
        ("RS384", Algorithm::RS384),
        ("RS512", Algorithm::RS512),
        ("PS256", Algorithm::PS256),
        ("PS384", Algorithm::PS384),
        ("PS512", Algorithm::PS512),
        ("ES256", Algorithm::ES256),
        ("ES384", Algorithm::ES384),
        ("EdDSA", Algorithm::EdDSA),
        ("HS256", Algorithm::HS256),
        ("HS384", Algorithm::HS384),
        ("HS512", Algorithm::HS512),
    ];
}

impl ForwardConfig {
    /// Headers with credentials.
    pub const SEND: [HeaderName; 2] = [AUTHORIZATION, COOKIE];
    /// 2 s: as long as a browser's user waits.
    pub const TIMEOUT: Duration = Duration::from_secs(2);
    /// 10 s: the reconnects of a client are answered, and a logout has an effect soon.
    pub const CACHE_FOR: Duration = Duration::from_secs(10);
    /// 10,000 clients; about 10 MiB if each answer has 1 KiB.
    pub const CACHE_ENTRIES: u32 = 10_000;
}

impl KeysConfig {
    /// Returns the algorithms of a provider that names none.
    #[must_use]
    pub fn default_algorithms(&self) -> Vec<Algorithm> {
        if self.is_secret() {
            return vec![Algorithm::HS256];
        }
        vec![
            Algorithm::RS256,
            Algorithm::PS256,
            Algorithm::ES256,
            Algorithm::EdDSA,
        ]
    }

    /// Returns whether these keys can be used with an algorithm: a public key is never the secret
    /// of an HMAC.
    #[must_use]
    pub fn allow(&self, algorithm: Algorithm) -> bool {
        self.is_secret() == (algorithm.family() == AlgorithmFamily::Hmac)
    }

    fn is_secret(&self) -> bool {
        matches!(self, Self::Secret(_))
    }
}

/// Parses the URL of an issuer, of its keys or of an endpoint.
///
/// # Errors
/// One sentence about the text.
pub fn parse_url(text: &str) -> Result<Uri, &'static str> {
    let url: Uri = text.parse().map_err(|_| "the text is not a URL")?;
    if !matches!(url.scheme_str(), Some("https" | "http")) || url.host().is_none_or(str::is_empty) {
        return Err("a URL is written as `https://host/path`");
    }
    if text.contains(['@', '#']) {
        return Err("the URL has no user name, no password and no fragment");
    }
    Ok(url)
}

/// Returns whether the host of a URL is this machine: no other one sees the traffic.
#[must_use]
pub fn is_loopback(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// A secret that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
