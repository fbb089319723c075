//! One connection to the server of an event stream: TCP, TLS, and the HTTP version.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::insecure::AnyCertificate;
use super::target::Target;

/// Options of new connections.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::cli) struct Options<'a> {
    /// HTTP/2 with prior knowledge in clear text, and only `h2` in TLS.
    pub(in crate::cli) http2: bool,
    /// PEM file with certificates that are trusted in addition to those of the platform.
    pub(in crate::cli) authority: Option<&'a Path>,
    /// Every certificate is trusted.
    pub(in crate::cli) insecure: bool,
    /// No TCP keepalive and no HTTP/2 PING: a silent connection stays silent.
    pub(in crate::cli) silent: bool,
}

/// Settings for new connections.
pub(in crate::cli) struct Connector {
    tls: Option<Arc<ClientConfig>>,
    http2: bool,
    silent: bool,
}

/// Socket of a connection, in clear text or TLS.
pub(in crate::cli) type Socket = Box<dyn Stream>;

/// Bytes in both directions.
pub(in crate::cli) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// An open connection with its driver: dropping it closes the socket.
pub(in crate::cli) struct Connection {
    sender: Sender,
    _driver: JoinSet<()>,
}

enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

/// Failure to connect.
#[derive(Debug)]
pub(in crate::cli) enum Failed {
    /// A later attempt may succeed.
    ForNow(String),
    /// The server's certificate is not trusted; waiting does not change it.
    ForGood(String),
}

impl Connector {
    /// Returns the settings. No certificates are read unless the target wants TLS.
    ///
    /// # Errors
    /// A message for the user.
    pub(in crate::cli) fn new(target: &Target, options: Options<'_>) -> Result<Self, String> {
        let prepared = || tls_config(options).map(Arc::new);
        let tls = match target.tls || options.authority.is_some() {
            true => Some(prepared()?),
            // On the usual ports a redirect may lead to TLS; only then are trusted roots required.
            false if target.port == 80 => prepared().ok(),
            false => None,
        };
        Ok(Self {
            tls,
            http2: options.http2,
            silent: options.silent,
        })
    }

    /// Connects to the target's host.
    ///
    /// # Errors
    /// Temporary or permanent, with a message for the user.
    pub(in crate::cli) async fn connect(&self, target: &Target) -> Result<Connection, Failed> {
        let attempt = tokio::time::timeout(CONNECT_PATIENCE, self.connect_unhurried(target));
        let late = |_| Failed::ForNow(format!("{} does not answer", target.authority()));
        attempt.await.map_err(late)?
    }

    async fn connect_unhurried(&self, target: &Target) -> Result<Connection, Failed> {
        let (socket, h2) = match &self.tls {
            Some(config) if target.tls => self.secured(target, config.clone()).await?,
            None if target.tls => return Err(Failed::ForGood(NO_ROOTS.into())),
            _ => (self.dial(target).await?, self.http2),
        };
        self.converse(socket, h2)
            .await
            .map_err(|error| Failed::ForNow(with_causes(target, &error)))
    }

    /// Connects to the target's host for bytes of HTTP/1.1.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub(in crate::cli) async fn connect_raw(&self, target: &Target) -> Result<Socket, Failed> {
        let attempt = async {
            match &self.tls {
                Some(config) if target.tls => {
                    let mut config = ClientConfig::clone(config);
                    config.alpn_protocols = vec![b"http/1.1".to_vec()];
                    Ok(self.secured(target, Arc::new(config)).await?.0)
                }
                _ => self.dial(target).await,
            }
        };
        let attempt = tokio::time::timeout(CONNECT_PATIENCE, attempt);
        let late = |_| Failed::ForNow(format!("{} does not answer", target.authority()));
        attempt.await.map_err(late)?
    }

    async fn dial(&self, target: &Target) -> Result<Socket, Failed> {
        let failed = |error: io::Error| failure(target, &error);
        let socket = TcpStream::connect((target.host.as_str(), target.port))
            .await
            .map_err(failed)?;
        if !self.silent {
            // TCP keepalive finds a dead server: an event stream may be silent for a long time.
            let keepalive = TcpKeepalive::new()
                .with_time(KEEPALIVE_IDLE)
                .with_interval(KEEPALIVE_INTERVAL)
                .with_retries(3);
            SockRef::from(&socket)
                .set_tcp_keepalive(&keepalive)
                .map_err(failed)?;
        }
        Ok(Box::new(socket))
    }

    /// Connects with TLS. Returns whether HTTP/2 was negotiated, too.
    async fn secured(
        &self,
        target: &Target,
        config: Arc<ClientConfig>,
    ) -> Result<(Socket, bool), Failed> {
        let socket = self.dial(target).await?;
        let name = ServerName::try_from(target.host.clone())
            .map_err(|error| Failed::ForGood(with_causes(target, &error)))?;
        let socket = TlsConnector::from(config)
            .connect(name, socket)
            .await
            .map_err(|error| failure(target, &error))?;
        let h2 = socket.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok((Box::new(socket), h2))
    }

    async fn converse(&self, socket: Socket, h2: bool) -> hyper::Result<Connection> {
        let io = TokioIo::new(socket);
        let mut driver = JoinSet::new();
        // The request or the body reports why the connection ended.
        let sender = if h2 {
            let (sender, connection) = http2_builder(self.silent).handshake(io).await?;
            driver.spawn(async move { drop(connection.await) });
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await?;
            driver.spawn(async move { drop(connection.await) });
            Sender::Http1(sender)
        };
        Ok(Connection {
            sender,
            _driver: driver,
        })
    }
}

impl Connection {
    /// Sends a request for `target`; everything but its place in the message is done by the caller.
    pub(in crate::cli) async fn send(
        &mut self,
        target: &Target,
        mut request: Request<Empty<Bytes>>,
    ) -> Result<Response<Incoming>, String> {
        let sent = match &mut self.sender {
            Sender::Http1(sender) => {
                let path = target
                    .path_and_query()
                    .parse()
                    .map_err(|error| with_causes(target, &error))?;
                *request.uri_mut() = path;
                sender.send_request(request).await
            }
            Sender::Http2(sender) => {
                *request.uri_mut() = target.uri().clone();
                sender.send_request(request).await
            }
        };
        sent.map_err(|error| with_causes(target, &error))
    }

    /// Waits until the connection can send another request. Returns false if it has ended, or has
    /// received a GOAWAY.
    pub(in crate::cli) async fn ready(&mut self) -> bool {
        match &mut self.sender {
            Sender::Http1(sender) => sender.ready().await.is_ok(),
            Sender::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    /// For people.
    pub(in crate::cli) fn version(&self) -> &'static str {
        match self.sender {
            Sender::Http1(_) => "HTTP/1.1",
            Sender::Http2(_) => "HTTP/2",
        }
    }
}

fn http2_builder(is_silent: bool) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval((!is_silent).then_some(KEEPALIVE_IDLE))
        .keep_alive_timeout(KEEPALIVE_INTERVAL)
        // h2 closes a connection with many small unread frames; a larger window allows more of
        // them.
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    builder
}

fn tls_config(options: Options<'_>) -> Result<ClientConfig, String> {
    let mut config = match options.insecure {
        true => insecure_config()?,
        false => trusting_config(options.authority)?,
    };
    config.alpn_protocols.push(b"h2".to_vec());
    if !options.http2 {
        config.alpn_protocols.push(b"http/1.1".to_vec());
    }
    Ok(config)
}

/// Returns a configuration that trusts every certificate.
fn insecure_config() -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = AnyCertificate(provider.signature_verification_algorithms);
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(config)
}

fn trusting_config(authority: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    // Unreadable roots are skipped; if no root is readable, the error follows below.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = authority {
        let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        for certificate in CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))? {
            let certificate = certificate.map_err(|error| wrong(&error))?;
            roots.add(certificate).map_err(|error| wrong(&error))?;
        }
    }
    if roots.is_empty() {
        return Err("this machine has no TLS root certificates: name a file with --cacert".into());
    }
    Ok(ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth())
}

const NO_ROOTS: &str = "there are no TLS root certificates: name a file with --cacert";

fn failure(target: &Target, error: &io::Error) -> Failed {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            Failed::ForGood(format!(
                "{} (another root can be named with --cacert)",
                with_causes(target, error)
            ))
        }
        _ => Failed::ForNow(with_causes(target, error)),
    }
}

/// Text of an error with its causes: the text of hyper alone often names only the place.
fn with_causes(target: &Target, error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let causes: String = causes.map(|cause| format!(": {cause}")).collect();
    format!("{}: {error}{causes}", target.authority())
}

/// Name resolution, TCP and TLS together.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Below the minute after which load balancers forget a silent connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(20);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// 4 MiB: a person's terminal may be slow for a moment.
const WINDOW_BYTES: u32 = 4 << 20;
