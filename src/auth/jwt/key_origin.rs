//! Loads the keys of a provider once: from its issuer, from a URL, from a file.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Uri;
use serde::Deserialize;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::https_get::{GetError, get};
use super::key_set::{InvalidKeys, KeySet};
use crate::auth::config::{KeysConfig, parse_url};

/// 5 s for the discovery document and the keys together.
pub(super) const LOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// 15 minutes: issuers publish a new key for longer before they sign with it.
const FETCH_EVERY: Duration = Duration::from_secs(15 * 60);

/// 2 s: a mounted Secret or ConfigMap changes by a swapped symlink, which only polling detects.
const POLL_EVERY: Duration = Duration::from_secs(2);

/// 256 KiB, as for fetched keys.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// Origin of keys that can change.
#[derive(Clone, Debug)]
pub(super) enum KeyOrigin {
    Discovery { issuer: String, ca: Option<PathBuf> },
    Jwks { url: Uri, ca: Option<PathBuf> },
    File(PathBuf),
}

/// Reason why keys were not loaded. No secret is part of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// The request failed.
    #[error(transparent)]
    Get(#[from] GetError),
    /// The content is unusable.
    #[error("{from}: {invalid}")]
    Keys {
        /// URL or file.
        from: String,
        /// Reason.
        invalid: InvalidKeys,
    },
    /// The discovery document is unusable.
    #[error("the discovery document of {issuer} {fault}")]
    Document {
        /// Configured issuer.
        issuer: String,
        /// Rest of the sentence.
        fault: &'static str,
    },
    /// The file cannot be read.
    #[error("{}: {error}", file.display())]
    File {
        /// Configured file.
        file: PathBuf,
        /// Error of the system.
        error: io::Error,
    },
    /// The server or the disk is too slow.
    #[error("no answer within {} s", LOAD_TIMEOUT.as_secs())]
    Timeout,
}

/// Members of a discovery document (OpenID Connect Discovery 1.0, section 3) that are used.
#[derive(Deserialize)]
struct Document {
    issuer: String,
    jwks_uri: String,
}

impl KeyOrigin {
    /// Returns the origin of these settings, or nothing for a secret, which never changes.
    pub(super) fn new(config: &KeysConfig) -> Option<Self> {
        match config.clone() {
            KeysConfig::Discovery { issuer, ca } => Some(Self::Discovery { issuer, ca }),
            KeysConfig::Jwks { url, ca } => Some(Self::Jwks { url, ca }),
            KeysConfig::File(file) => Some(Self::File(file)),
            KeysConfig::Secret(_) => None,
        }
    }

    /// Returns the interval after which keys that were loaded are loaded again.
    pub(super) fn interval(&self) -> Duration {
        match self {
            Self::Discovery { .. } | Self::Jwks { .. } => FETCH_EVERY,
            Self::File(_) => POLL_EVERY,
        }
    }

    /// Loads the keys, within [`LOAD_TIMEOUT`].
    ///
    /// # Errors
    /// [`LoadError`].
    pub(super) async fn load(&self) -> Result<KeySet, LoadError> {
        timeout(LOAD_TIMEOUT, self.load_unbounded())
            .await
            .unwrap_or(Err(LoadError::Timeout))
    }

    async fn load_unbounded(&self) -> Result<KeySet, LoadError> {
        match self {
            Self::Discovery { issuer, ca } => {
                let url = discovered(issuer, ca.as_deref()).await?;
                fetched(&url, ca.as_deref()).await
            }
            Self::Jwks { url, ca } => fetched(url, ca.as_deref()).await,
            Self::File(file) => {
                let file = file.clone();
                let read = spawn_blocking(move || read(&file)).await;
                read.unwrap_or(Err(LoadError::Timeout))
            }
        }
    }
}

/// Returns the URL of the keys from the discovery document of an issuer.
async fn discovered(issuer: &str, ca: Option<&Path>) -> Result<Uri, LoadError> {
    let wrong = |fault| LoadError::Document {
        issuer: issuer.to_owned(),
        fault,
    };
    // Section 4.1: without the slash at its end.
    let base = issuer.strip_suffix('/').unwrap_or(issuer);
    let url = parse_url(&format!("{base}/.well-known/openid-configuration"));
    let url = url.map_err(|_| wrong("has an invalid URL"))?;
    let bytes = get(&url, ca).await?;
    let document: Document = serde_json::from_slice(&bytes)
        .map_err(|_| wrong("is not JSON with the texts `issuer` and `jwks_uri`"))?;
    // Section 4.3.
    if document.issuer != issuer {
        return Err(wrong("names another issuer"));
    }
    let keys = parse_url(&document.jwks_uri).map_err(|_| wrong("has an invalid `jwks_uri`"))?;
    if url.scheme() != keys.scheme() && keys.scheme_str() != Some("https") {
        return Err(wrong("names a `jwks_uri` without TLS"));
    }
    Ok(keys)
}

async fn fetched(url: &Uri, ca: Option<&Path>) -> Result<KeySet, LoadError> {
    let bytes = get(url, ca).await?;
    KeySet::from_jwks(&bytes).map_err(|invalid| LoadError::Keys {
        from: url.to_string(),
        invalid,
    })
}

fn read(file: &Path) -> Result<KeySet, LoadError> {
    let failed = |error| LoadError::File {
        file: file.to_owned(),
        error,
    };
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(failed)?;
    opened
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(io::Error::other("the file is larger than 256 KiB")));
    }
    KeySet::from_file(&bytes).map_err(|invalid| LoadError::Keys {
        from: file.display().to_string(),
        invalid,
    })
}
