//! The server's side of TLS: certificate, key and clients' authorities from PEM files, read again when they change.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::{CipherSuite, ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::TlsConfig;
use crate::lifecycle::health::{Check, Status};

/// 2 s: a mounted secret changes by a swapped symlink, which only asking shows everywhere; three small files cost nothing.
const POLL_EVERY: Duration = Duration::from_secs(2);

/// 16 KiB: as much as one write and one record. By default rustls keeps 64 KiB for a connection that takes nothing.
const BUFFER_BYTES_MAX: usize = 16 * 1024;

/// 1 MiB: far above any chain; something else was mounted.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What connections of one TLS listener are accepted with. Clones share it.
#[derive(Clone)]
pub struct Tls {
    current: Arc<ArcSwap<Choices>>,
    files: Arc<TlsConfig>,
    /// The files that `current` was made of.
    loaded: Contents,
}

/// What one connection is accepted with.
#[derive(Clone)]
pub struct Acceptor(Arc<Choices>);

/// The same certificate, with two ways to choose a cipher. Both know the same sessions.
struct Choices {
    /// The server's order: AES-128 first. OpenSSL and rustls ask for AES-256 first, whose handshake hashes with SHA-384,
    /// which no processor has in hardware; SHA-256 many have.
    ours: Arc<ServerConfig>,
    /// The client's order, where that begins with ChaCha20: it has no AES in hardware.
    theirs: Arc<ServerConfig>,
}

impl Choices {
    fn new(config: ServerConfig) -> Arc<Self> {
        let mut ours = config.clone();
        ours.ignore_client_order = true;
        Arc::new(Self {
            ours: Arc::new(ours),
            theirs: Arc::new(config),
        })
    }
}

impl Acceptor {
    /// Shakes hands.
    ///
    /// # Errors
    /// When the client breaks off, or there is nothing that both sides speak.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        socket: S,
    ) -> io::Result<TlsStream<S>> {
        let begun = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket).await?;
        let hello = begun.client_hello();
        let known = |asked: &CipherSuite| {
            ring::ALL_CIPHER_SUITES
                .iter()
                .any(|suite| suite.suite() == *asked)
        };
        let first = hello.cipher_suites().iter().copied().find(known);
        let config = if first.is_some_and(is_chacha20) {
            &self.0.theirs
        } else {
            &self.0.ours
        };
        begun.into_stream(Arc::clone(config)).await
    }
}

fn is_chacha20(suite: CipherSuite) -> bool {
    use CipherSuite as Suite;
    matches!(
        suite,
        Suite::TLS13_CHACHA20_POLY1305_SHA256
            | Suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | Suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
    )
}

fn is_aes_256(suite: CipherSuite) -> bool {
    use CipherSuite as Suite;
    matches!(
        suite,
        Suite::TLS13_AES_256_GCM_SHA384
            | Suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
            | Suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
    )
}

/// Why files do not make a configuration.
#[derive(Debug)]
pub struct TlsError {
    /// The file at fault.
    pub file: PathBuf,
    /// What is wrong with it, as the rest of a sentence.
    pub reason: String,
}

impl Tls {
    /// Reads the files and checks that they belong together.
    ///
    /// # Errors
    /// When a file cannot be read, holds nothing that it should hold, or the key is not the certificate's.
    pub fn load(files: TlsConfig) -> Result<Self, TlsError> {
        let read = Files::read(&files)?;
        let loaded = read.contents();
        let config = read.server_config(&files)?;
        Ok(Self {
            current: Arc::new(ArcSwap::new(Choices::new(config))),
            files: Arc::new(files),
            loaded,
        })
    }

    /// What the next connection is accepted with.
    #[must_use]
    pub fn acceptor(&self) -> Acceptor {
        Acceptor(self.current.load_full())
    }

    /// Follows the files for ever. A bad pair changes nothing; it is told once and stays a warning until it is mended.
    pub async fn follow(self, check: Check) {
        self.poll(check, POLL_EVERY).await;
    }

    async fn poll(mut self, check: Check, every: Duration) {
        check.set(Status::Ok);
        let mut seen = self.loaded;
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let files = Arc::clone(&self.files);
            // A mounted file can be slow to read; the connections of this runtime must not wait for it.
            let read = tokio::task::spawn_blocking(move || Files::read(&files));
            let Ok(read) = read.await else { return };
            let now = read
                .as_ref()
                .map_or_else(Contents::of_error, Files::contents);
            if now != seen {
                seen = now;
                check.set(self.replace(read, now));
            }
        }
    }

    fn replace(&mut self, read: Result<Files, TlsError>, now: Contents) -> Status {
        // Changed and changed back.
        if now == self.loaded {
            return Status::Ok;
        }
        match read.and_then(|files| files.server_config(&self.files)) {
            Ok(mut config) => {
                let before = self.current.load();
                // What proves who a client is must not outlive the authority that vouched for it.
                if now.client_ca == self.loaded.client_ca {
                    config.session_storage = Arc::clone(&before.ours.session_storage);
                }
                drop(before);
                self.current.store(Choices::new(config));
                self.loaded = now;
                tracing::info!(certificate = %self.files.certificate.display(), "certificate replaced");
                Status::Ok
            }
            Err(error) => Status::Degraded(format!("the certificate in use is kept: {error}")),
        }
    }
}

/// Bounds what is kept for a connection that takes nothing; to be called on each accepted one.
pub fn bound_buffers<S>(connection: &mut TlsStream<S>) {
    connection
        .get_mut()
        .1
        .set_buffer_limit(Some(BUFFER_BYTES_MAX));
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl TlsError {
    fn new(file: &Path, reason: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            reason: reason.into(),
        }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.file.display(), self.reason)
    }
}

impl std::error::Error for TlsError {}

// === impl Files ===

/// The bytes of the files.
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// What stands for the bytes, so that no second copy of a key is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Contents {
    pair: [u8; 32],
    client_ca: Option<[u8; 32]>,
}

impl Contents {
    /// An error stands for itself, or one that lasts would be told again and again.
    fn of_error(error: &TlsError) -> Self {
        Self {
            pair: Sha256::digest(error.to_string()).into(),
            client_ca: None,
        }
    }
}

impl Files {
    fn read(files: &TlsConfig) -> Result<Self, TlsError> {
        Ok(Self {
            certificate: read(&files.certificate)?,
            key: read(&files.key)?,
            client_ca: files.client_ca.as_deref().map(read).transpose()?,
        })
    }

    fn contents(&self) -> Contents {
        let mut pair = Sha256::new();
        // The length first: a byte that moves from one file to the other is a change.
        pair.update((self.certificate.len() as u64).to_be_bytes());
        pair.update(&self.certificate);
        pair.update(&self.key);
        Contents {
            pair: pair.finalize().into(),
            client_ca: self.client_ca.as_ref().map(|ca| Sha256::digest(ca).into()),
        }
    }

    fn server_config(&self, files: &TlsConfig) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::new(&files.certificate, error.to_string()))?;
        let chain = certificates(&self.certificate, &files.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| match error {
            pem::Error::NoItemsFound => TlsError::new(&files.key, "holds no private key"),
            error => TlsError::new(&files.key, format!("is no PEM: {error}")),
        })?;
        let builder = match (&self.client_ca, &files.client_ca) {
            (Some(ca), Some(file)) => with_client_ca(builder, &provider, ca, file)?,
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => TlsError::new(
                    &files.key,
                    format!("is not the key of {}", files.certificate.display()),
                ),
                error => TlsError::new(
                    &files.certificate,
                    format!("cannot be used with its key: {error}"),
                ),
            })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // 1: a client opens one connection at a time; each ticket is a write of its own and a place in the cache.
        config.send_tls13_tickets = 1;
        Ok(config)
    }
}

/// ring, with AES-256 last.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    // Stable: the others stay in their order.
    provider
        .cipher_suites
        .sort_by_key(|suite| is_aes_256(suite.suite()));
    provider
}

fn with_client_ca(
    builder: ConfigBuilder<ServerConfig, WantsVerifier>,
    provider: &Arc<CryptoProvider>,
    ca: &[u8],
    file: &Path,
) -> Result<ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(ca, file)? {
        roots
            .add(authority)
            .map_err(|error| TlsError::new(file, format!("holds a bad certificate: {error}")))?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(|error| TlsError::new(file, error.to_string()))?;
    Ok(builder.with_client_cert_verifier(verifier))
}

fn certificates(bytes: &[u8], file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::new(file, format!("is no PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(TlsError::new(file, "holds no certificate"));
    }
    Ok(certificates)
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    let open = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        io::Read::read_to_end(
            &mut io::Read::take(std::fs::File::open(file)?, FILE_BYTES_MAX + 1),
            &mut bytes,
        )?;
        Ok(bytes)
    };
    let bytes = open().map_err(|error| TlsError::new(file, format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(TlsError::new(file, "is larger than 1 MiB"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
