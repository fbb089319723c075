//! Server side of TLS: certificate, key, client authorities and keys of session tickets from files,
//! reloaded when they change.
//!
//! [`Tls::load`] reads the files at the start; an error there is fatal. [`Tls::follow`] polls them,
//! in a task of its own. A valid change replaces the configuration for new connections; an invalid
//! one keeps the current certificate and is reported once, until the files change again. Open
//! connections are not affected.
//!
//! A client that returns resumes its session, with a ticket of TLS 1.3 or a session id of TLS 1.2.
//! The keys of tickets are random and in memory, or those of a file that pods share (`tickets`).
//! Sessions survive a renewal of the certificate, but not a change of the client authorities. With
//! TLS 1.2 there are no tickets: their keys would decrypt recorded connections.
//!
//! [`Tls::acceptor`] returns the current configuration, with which a connection task does its
//! handshake. It prefers AES-128, and ChaCha20 for clients that ask for it first. ring is the only
//! cryptography provider.
//!
//! [`Purpose`] has what differs between a listener for clients and an admin port.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::{CipherSuite, ConfigBuilder, HandshakeKind, RootCertStore};
use rustls::{ServerConfig, WantsVerifier};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use tickets::SharedTickets;

/// 2 s: a mounted Secret changes by a swapped symlink, which only polling detects on every file
/// system. Three small files cost nothing.
const POLL_EVERY: Duration = Duration::from_secs(2);

/// 16 KiB: one write and one record. By default rustls buffers 64 KiB for a connection that reads
/// nothing.
const BUFFER_BYTES_MAX: usize = 16 * 1024;

/// 1 MiB: much larger than any certificate chain.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reloadable configuration of one TLS listener. Clones share it.
#[derive(Clone)]
pub struct Tls {
    current: Arc<ArcSwap<Choices>>,
    files: Arc<TlsConfig>,
    purpose: Purpose,
    /// Digest of the files of `current`.
    loaded: Contents,
}

/// Configuration for the handshake of one connection.
#[derive(Clone)]
pub struct Acceptor(Arc<Choices>);

/// One certificate with two orders of cipher suites, which share their sessions.
struct Choices {
    /// The order of the server: AES-128 first. OpenSSL and rustls ask for AES-256 first, whose
    /// handshake hashes with SHA-384, which no processor has in hardware; many have SHA-256.
    ours: Versions,
    /// The order of the client, if it begins with ChaCha20: the client has no AES in hardware.
    theirs: Versions,
}

/// Configurations by the highest version of a client.
struct Versions {
    /// Issues and accepts session tickets.
    tls13: Arc<ServerConfig>,
    /// Keeps sessions in memory.
    tls12: Arc<ServerConfig>,
}

impl Choices {
    /// Returns the choices for a configuration with tickets.
    fn new(config: ServerConfig) -> Arc<Self> {
        let mut ours = config.clone();
        ours.ignore_client_order = true;
        Arc::new(Self {
            ours: Versions::new(ours),
            theirs: Versions::new(config),
        })
    }
}

impl Versions {
    fn new(tls13: ServerConfig) -> Self {
        let mut tls12 = tls13.clone();
        tls12.ticketer = Arc::new(NoTickets);
        Self {
            tls13: Arc::new(tls13),
            tls12: Arc::new(tls12),
        }
    }
}

impl Acceptor {
    /// Performs the handshake.
    ///
    /// # Errors
    /// If the client aborts, or both sides have no version or cipher suite in common.
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
        let order = if first.is_some_and(is_chacha20) {
            &self.0.theirs
        } else {
            &self.0.ours
        };
        let config = if hello.cipher_suites().iter().any(|suite| is_tls13(*suite)) {
            &order.tls13
        } else {
            &order.tls12
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

fn is_tls13(suite: CipherSuite) -> bool {
    use CipherSuite as Suite;
    matches!(
        suite,
        Suite::TLS13_AES_128_GCM_SHA256
            | Suite::TLS13_AES_256_GCM_SHA384
            | Suite::TLS13_CHACHA20_POLY1305_SHA256
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

/// The files of a TLS listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Certificate authorities of clients, PEM: every client must then present a certificate of
    /// theirs, or may present one ([`Purpose`]).
    pub client_ca: Option<PathBuf>,
    /// Keys of session tickets that pods share, base64. Without, each process has its own.
    pub session_ticket_keys: Option<PathBuf>,
}

/// Use of a TLS listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// HTTP/1.1 and HTTP/2. With `client_ca` every client must present a certificate.
    Clients,
    /// HTTP/1.1. With `client_ca` a client may present a certificate, and probes do without one.
    /// Sessions are not resumed: the certificate is verified for each connection.
    Admin,
}

impl Purpose {
    fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Self::Clients => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Self::Admin => vec![b"http/1.1".to_vec()],
        }
    }
}

/// Error of a reload; the listener keeps the certificate that it has.
#[derive(Debug, thiserror::Error)]
#[error("the certificate in use is kept: {0}")]
pub struct ReloadError(TlsError);

/// Error of one file of a TLS listener.
#[derive(Debug, thiserror::Error)]
#[error("{} {reason}", file.display())]
pub struct TlsError {
    /// File with the problem.
    pub file: PathBuf,
    /// Problem, as the rest of a sentence.
    pub reason: String,
}

impl Tls {
    /// Reads the files and checks that the key belongs to the certificate.
    ///
    /// # Errors
    /// If a file cannot be read, has other content, or the key belongs to another certificate.
    pub fn load(files: TlsConfig, purpose: Purpose) -> Result<Self, TlsError> {
        let read = Files::read(&files)?;
        let loaded = read.contents();
        let config = read.server_config(&files, purpose)?;
        Ok(Self {
            current: Arc::new(ArcSwap::new(Choices::new(config))),
            files: Arc::new(files),
            purpose,
            loaded,
        })
    }

    /// Configuration for the next connection.
    #[must_use]
    pub fn acceptor(&self) -> Acceptor {
        Acceptor(self.current.load_full())
    }

    /// Polls the files, and reports every change: the start, a reload, or an error after which the
    /// current certificate stays in use. Does not return.
    pub async fn follow(self, report: impl FnMut(Result<(), ReloadError>)) {
        self.poll(report, POLL_EVERY).await;
    }

    async fn poll(mut self, mut report: impl FnMut(Result<(), ReloadError>), every: Duration) {
        report(Ok(()));
        let mut seen = self.loaded;
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let files = Arc::clone(&self.files);
            // A mounted file can be slow to read, and must not delay the connections of this
            // runtime.
            let read = tokio::task::spawn_blocking(move || Files::read(&files));
            let Ok(read) = read.await else { return };
            let now = read
                .as_ref()
                .map_or_else(Contents::of_error, Files::contents);
            if now != seen {
                seen = now;
                report(self.replace(read, now));
            }
        }
    }

    fn replace(&mut self, read: Result<Files, TlsError>, now: Contents) -> Result<(), ReloadError> {
        // The files have changed and changed back.
        if now == self.loaded {
            return Ok(());
        }
        match read.and_then(|files| files.server_config(&self.files, self.purpose)) {
            Ok(mut config) => {
                let before = self.current.load();
                // A session proves the identity of a client, and must not outlive the authority
                // that signed it.
                if now.client_ca == self.loaded.client_ca {
                    let before = &before.ours.tls13;
                    config.session_storage = Arc::clone(&before.session_storage);
                    if now.ticket_keys.is_none() {
                        config.ticketer = Arc::clone(&before.ticketer);
                    }
                }
                drop(before);
                self.current.store(Choices::new(config));
                self.loaded = now;
                tracing::info!(certificate = %self.files.certificate.display(), "TLS files reloaded");
                Ok(())
            }
            Err(error) => Err(ReloadError(error)),
        }
    }
}

/// Bounds the send buffer of an accepted connection, for a peer that reads nothing.
pub fn bound_buffers<S>(connection: &mut TlsStream<S>) {
    connection
        .get_mut()
        .1
        .set_buffer_limit(Some(BUFFER_BYTES_MAX));
}

/// Returns whether the client has resumed a session.
pub fn is_resumed<S>(connection: &TlsStream<S>) -> bool {
    connection.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
}

/// Returns the certificate (DER) with which the client has authenticated itself. `None` without
/// [`TlsConfig::client_ca`].
pub fn client_certificate<S>(connection: &TlsStream<S>) -> Option<&[u8]> {
    // The client's own certificate is the first one of its chain.
    let chain = connection.get_ref().1.peer_certificates()?;
    chain.first().map(|certificate| &**certificate)
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

// === impl Files ===

/// Content of the files.
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
    ticket_keys: Option<Vec<u8>>,
}

/// Digest of the files, so that no second copy of a key is in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Contents {
    pair: [u8; 32],
    client_ca: Option<[u8; 32]>,
    ticket_keys: Option<[u8; 32]>,
}

impl Contents {
    /// Digest of an error, so that a lasting one is reported once.
    fn of_error(error: &TlsError) -> Self {
        Self {
            pair: Sha256::digest(error.to_string()).into(),
            client_ca: None,
            ticket_keys: None,
        }
    }
}

impl Files {
    fn read(files: &TlsConfig) -> Result<Self, TlsError> {
        Ok(Self {
            certificate: read(&files.certificate)?,
            key: read(&files.key)?,
            client_ca: files.client_ca.as_deref().map(read).transpose()?,
            ticket_keys: files.session_ticket_keys.as_deref().map(read).transpose()?,
        })
    }

    fn contents(&self) -> Contents {
        let mut pair = Sha256::new();
        // With the length, so that a byte that moves from one file to the other is a change.
        pair.update((self.certificate.len() as u64).to_be_bytes());
        pair.update(&self.certificate);
        pair.update(&self.key);
        Contents {
            pair: pair.finalize().into(),
            client_ca: self.client_ca.as_ref().map(|ca| Sha256::digest(ca).into()),
            ticket_keys: self
                .ticket_keys
                .as_ref()
                .map(|keys| Sha256::digest(keys).into()),
        }
    }

    fn server_config(&self, files: &TlsConfig, purpose: Purpose) -> Result<ServerConfig, TlsError> {
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
            (Some(ca), Some(file)) => with_client_ca(builder, &provider, ca, file, purpose)?,
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
        config.alpn_protocols = purpose.protocols();
        match purpose {
            // 1: a client opens one connection at a time, and each ticket costs a write.
            Purpose::Clients => {
                config.send_tls13_tickets = 1;
                config.ticketer = self.ticketer(files)?;
            }
            Purpose::Admin => {
                config.session_storage = Arc::new(NoServerSessionStorage {});
                config.send_tls13_tickets = 0;
            }
        }
        Ok(config)
    }

    /// Returns the keys of session tickets: those of the file, or random ones that change every six
    /// hours.
    fn ticketer(&self, files: &TlsConfig) -> Result<Arc<dyn ProducesTickets>, TlsError> {
        let (Some(keys), Some(file)) = (&self.ticket_keys, &files.session_ticket_keys) else {
            return ring::Ticketer::new()
                .map_err(|error| TlsError::new(&files.certificate, error.to_string()));
        };
        let authorities = self.contents().client_ca;
        let tickets = SharedTickets::parse(keys, file, authorities.as_ref())?;
        Ok(Arc::new(tickets))
    }
}

/// Issues no tickets.
#[derive(Debug)]
struct NoTickets;

impl ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _plain: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _cipher: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// The ring provider, with AES-256 last.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    // The sort is stable, so the others stay in their order.
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
    purpose: Purpose,
) -> Result<ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(ca, file)? {
        roots
            .add(authority)
            .map_err(|error| TlsError::new(file, format!("holds a bad certificate: {error}")))?;
    }
    let mut verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    if purpose == Purpose::Admin {
        verifier = verifier.allow_unauthenticated();
    }
    let verifier = verifier
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

mod tickets;

#[cfg(test)]
mod tests;
