//! One GET request for a small document, with bounds of time and size.
//!
//! Redirects are not followed: they could lead to an address that only this pod reaches. A
//! connection is used once, because a fetch happens every few minutes. The caller bounds the time.

use std::io;
use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::auth::client_tls::{NoRoots, client_config};

/// 256 KiB: a hundred keys with certificate chains fit.
const BODY_BYTES_MAX: usize = 256 << 10;

/// Reason why a document was not fetched. No secret is part of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum GetError {
    /// DNS, connect, TLS.
    #[error("{host}: {error}")]
    Connect {
        /// Host and port of the URL.
        host: String,
        /// Error of the system or of TLS.
        error: io::Error,
    },
    /// The connection ended, or the bytes are not HTTP.
    #[error("{host}: {error}")]
    Http {
        /// Host and port of the URL.
        host: String,
        /// Error of the HTTP client.
        error: hyper::Error,
    },
    /// The server has no such document at the moment.
    #[error("{url} answers {status}")]
    Status {
        /// URL of the document.
        url: Uri,
        /// Any status but 200.
        status: StatusCode,
    },
    /// The body is longer than the maximum, or was cut off.
    #[error("the answer of {url} is incomplete, or larger than 256 KiB")]
    Body {
        /// URL of the document.
        url: Uri,
    },
    /// The certificate authorities cannot be read.
    #[error(transparent)]
    Roots(#[from] NoRoots),
    /// The host is no DNS name and no address.
    #[error("{0} has an invalid host")]
    Host(Uri),
}

/// Fetches the document at an `http` or `https` URL.
///
/// # Errors
/// [`GetError`].
pub(super) async fn get(url: &Uri, ca: Option<&Path>) -> Result<Bytes, GetError> {
    let is_tls = url.scheme_str() == Some("https");
    let name = url.host().unwrap_or_default();
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let host = format!("{name}:{port}");
    let failed = |error| GetError::Connect {
        host: host.clone(),
        error,
    };
    let socket = TcpStream::connect((name, port)).await.map_err(failed)?;
    if !is_tls {
        return exchange(socket, url, host).await;
    }
    let server = ServerName::try_from(name.to_owned()).map_err(|_| GetError::Host(url.clone()))?;
    // For each fetch, so that a changed file is used.
    let connector = TlsConnector::from(client_config(ca).await?);
    let socket = connector.connect(server, socket).await.map_err(failed)?;
    exchange(socket, url, host).await
}

async fn exchange<S>(socket: S, url: &Uri, host: String) -> Result<Bytes, GetError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let failed = |error| GetError::Http {
        host: host.clone(),
        error,
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket))
        .await
        .map_err(failed)?;
    // Ends with this function. The request or the body reports why the connection ended.
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(HOST, authority)
        .header(ACCEPT, "application/json")
        .header(
            USER_AGENT,
            concat!("sidestream/", env!("CARGO_PKG_VERSION")),
        )
        .body(Empty::<Bytes>::new())
        .map_err(|_| GetError::Host(url.clone()))?;
    let response = sender.send_request(request).await.map_err(failed)?;
    if response.status() != StatusCode::OK {
        return Err(GetError::Status {
            url: url.clone(),
            status: response.status(),
        });
    }
    let body = Limited::new(response.into_body(), BODY_BYTES_MAX)
        .collect()
        .await;
    let body = body.map_err(|_| GetError::Body { url: url.clone() })?;
    Ok(body.to_bytes())
}
