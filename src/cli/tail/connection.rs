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

use super::target::Target;

/// Settings for new connections.
pub(super) struct Connector {
    tls: Option<Arc<ClientConfig>>,
    http2: bool,
}

/// An open connection with its driver: dropping it closes the socket.
pub(super) struct Connection {
    sender: Sender,
    _driver: JoinSet<()>,
}

enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

/// Failure to connect.
#[derive(Debug)]
pub(super) enum Failed {
    /// A later attempt may succeed.
    ForNow(String),
    /// The server's certificate is not trusted; waiting does not change it.
    ForGood(String),
}

impl Connector {
    /// Returns the settings. `http2` means prior knowledge in clear text, and only `h2` in TLS.
    /// Trusted roots are the platform's and those in the file `authority`; nothing is read unless
    /// the target wants TLS.
    ///
    /// # Errors
    /// A message for the user.
    pub(super) fn new(
        target: &Target,
        http2: bool,
        authority: Option<&Path>,
    ) -> Result<Self, String> {
        let prepared = || tls_config(http2, authority).map(Arc::new);
        let tls = match target.tls || authority.is_some() {
            true => Some(prepared()?),
            // On the usual ports a redirect may lead to TLS; only then are trusted roots required.
            false if target.port == 80 => prepared().ok(),
            false => None,
        };
        Ok(Self { tls, http2 })
    }

    /// Connects to the target's host.
    ///
    /// # Errors
    /// Temporary or permanent, with a message for the user.
    pub(super) async fn connect(&self, target: &Target) -> Result<Connection, Failed> {
        let attempt = tokio::time::timeout(CONNECT_PATIENCE, self.connect_unhurried(target));
        let late = |_| Failed::ForNow(format!("{} does not answer", target.authority()));
        attempt.await.map_err(late)?
    }

    async fn connect_unhurried(&self, target: &Target) -> Result<Connection, Failed> {
        let failed = |error: io::Error| failure(target, &error);
        let socket = TcpStream::connect((target.host.as_str(), target.port))
            .await
            .map_err(failed)?;
        // TCP keepalive finds a dead server: an event stream may be silent for a long time.
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(3);
        SockRef::from(&socket)
            .set_tcp_keepalive(&keepalive)
            .map_err(failed)?;
        if !target.tls {
            return self
                .converse(socket, self.http2)
                .await
                .map_err(|error| Failed::ForNow(with_causes(target, &error)));
        }
        let Some(config) = &self.tls else {
            return Err(Failed::ForGood(
                "there are no TLS root certificates: name a file with --cacert".into(),
            ));
        };
        let name = ServerName::try_from(target.host.clone())
            .map_err(|error| Failed::ForGood(with_causes(target, &error)))?;
        let socket = TlsConnector::from(Arc::clone(config))
            .connect(name, socket)
            .await
            .map_err(failed)?;
        let h2 = socket.get_ref().1.alpn_protocol() == Some(b"h2");
        self.converse(socket, h2)
            .await
            .map_err(|error| Failed::ForNow(with_causes(target, &error)))
    }

    async fn converse<S>(&self, socket: S, h2: bool) -> hyper::Result<Connection>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let io = TokioIo::new(socket);
        let mut driver = JoinSet::new();
        // The request or the body reports why the connection ended.
        let sender = if h2 {
            let (sender, connection) = http2_builder().handshake(io).await?;
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
    pub(super) async fn send(
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

    /// For people.
    pub(super) fn version(&self) -> &'static str {
        match self.sender {
            Sender::Http1(_) => "HTTP/1.1",
            Sender::Http2(_) => "HTTP/2",
        }
    }
}

fn http2_builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_IDLE)
        .keep_alive_timeout(KEEPALIVE_INTERVAL)
        // h2 closes a connection with many small unread frames; a larger window allows more of
        // them.
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    builder
}

fn tls_config(http2: bool, authority: Option<&Path>) -> Result<ClientConfig, String> {
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
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols.push(b"h2".to_vec());
    if !http2 {
        config.alpn_protocols.push(b"http/1.1".to_vec());
    }
    Ok(config)
}

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
