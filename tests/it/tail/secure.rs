//! Server with HTTP/2 in clear text, or TLS with a certificate of its own authority.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Protocol of the server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    ClearHttp2,
    TlsHttp1,
    TlsBoth,
}

/// Certificate authority with its root in a file. Dropping it removes the file.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        let file = std::env::temp_dir().join(format!(
            "sidestream-tail-{}-{:x}.pem",
            std::process::id(),
            fastrand::u64(..)
        ));
        std::fs::write(&file, root.pem()).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            file,
        }
    }

    pub(crate) fn file(&self) -> &str {
        self.file.to_str().unwrap()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        std::fs::remove_file(&self.file).unwrap();
    }
}

/// Serves in clear text.
pub(crate) async fn serve(mode: Mode) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(converse(socket, mode == Mode::ClearHttp2));
        }
    });
    address
}

/// Serves `localhost` over TLS.
pub(crate) async fn serve_tls(mode: Mode, authority: &Authority) -> SocketAddr {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".into()]).unwrap();
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let mut config = config
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    if mode == Mode::TlsBoth {
        config.alpn_protocols.push(b"h2".to_vec());
    }
    config.alpn_protocols.push(b"http/1.1".to_vec());
    let acceptor = TlsAcceptor::from(Arc::new(config));
    // `localhost` may have an address of either family.
    let listener = TcpListener::bind("localhost:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            // A client that does not trust the authority ends the handshake.
            let Ok(socket) = acceptor.accept(socket).await else {
                continue;
            };
            let h2 = socket.get_ref().1.alpn_protocol() == Some(b"h2");
            tokio::spawn(converse(socket, h2));
        }
    });
    address
}

async fn converse(socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, h2: bool) {
    let io = TokioIo::new(socket);
    let service = service_fn(answer);
    if h2 {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(io, service)
            .await
            .ok();
    } else {
        hyper::server::conn::http1::Builder::new()
            .serve_connection(io, service)
            .await
            .ok();
    }
}

/// Response with one event that describes the request, and the end.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    assert!(request.version() == Version::HTTP_2 || request.headers().contains_key("host"));
    let body = format!(
        "retry: 10\n\ndata: {:?} {}\nid: a-1-ff\n\n",
        request.version(),
        request.uri().path()
    );
    let mut response = Response::new(Full::new(body.into()));
    response
        .headers_mut()
        .insert("content-type", "text/event-stream".parse().unwrap());
    Ok(response)
}
