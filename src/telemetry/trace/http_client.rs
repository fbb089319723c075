//! HTTP client of the exporter: the crates that the sidecar has already, with TLS by rustls.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, Response};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry_http::{HttpClient, HttpError};
use rustls::{ClientConfig, RootCertStore};

/// 64 KiB: a response to an export has at most a count and a message.
const RESPONSE_BYTES_MAX: usize = 64 << 10;

/// Client of one collector, with a connection that is kept.
#[derive(Debug)]
pub(super) struct CollectorClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// Of one attempt.
    timeout: Duration,
}

impl CollectorClient {
    /// Returns a client. It trusts the certificate authorities of the system (`SSL_CERT_FILE`,
    /// `SSL_CERT_DIR`). Reads them; blocks.
    pub(super) fn new(is_tls: bool, timeout: Duration) -> Self {
        let mut roots = RootCertStore::empty();
        if is_tls {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        let tls = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(1)
            .build(HttpsConnector::from((connector, tls)));
        Self { client, timeout }
    }
}

#[async_trait]
impl HttpClient for CollectorClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let send = async {
            let response = self.client.request(request.map(Full::new)).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, RESPONSE_BYTES_MAX).collect().await?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        tokio::time::timeout(self.timeout, send).await?
    }
}
