//! The API server as the injector's first step needs it: a Secret for the certificate, the webhook that is to trust it.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::authority::{self, Pair};

/// Name under which the API server keeps what we write (`metadata.managedFields`).
const FIELD_MANAGER: &str = "sidestream-injector";

/// 10 s for one request: the API server's own patience with a webhook.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// 4 MiB: above every object that an API server stores.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Where the API server is, and who we are to it.
#[derive(Clone, Debug)]
pub struct Access {
    /// Such as `10.96.0.1` or `kubernetes.default.svc`.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The folder with `token` and `ca.crt`, as the kubelet mounts it.
    pub account: PathBuf,
}

/// The objects of one injector.
#[derive(Clone, Debug)]
pub struct Objects {
    /// The namespace of the Service and the Secret.
    pub namespace: String,
    /// The Service that the API server calls.
    pub service: String,
    /// The Secret that keeps the pair for all replicas.
    pub secret: String,
    /// The MutatingWebhookConfiguration.
    pub webhook: String,
}

/// Why the API server did not do what it was asked for.
#[derive(Debug)]
pub enum ClusterError {
    /// It could not be reached, or its answer not be read.
    Unreachable(String),
    /// It answered with this status; the sentence is its own.
    Refused(u16, String),
    /// What it has is not what it should be.
    Unusable(String),
}

impl fmt::Display for ClusterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "the API server cannot be reached: {why}"),
            Self::Refused(status, why) => write!(f, "the API server answered {status}: {why}"),
            Self::Unusable(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ClusterError {}

/// Gets the certificate from the Secret, or makes both, and lets the webhook trust it. Replicas that do so at the same
/// time end with the same certificate: the Secret is written once.
///
/// A certificate that API servers do not trust yet makes pods start without a sidecar. So its authority is added to the
/// one that is trusted, and this returns `settle` later: API servers have loaded both by then, and replicas that still
/// serve the certificate before it are trusted as well.
///
/// # Errors
/// When the API server is away or refuses, or the Secret is something else.
pub async fn prepare(
    access: &Access,
    objects: &Objects,
    settle: Duration,
) -> Result<Pair, ClusterError> {
    let client = Client::new(access)?;
    let pair = client.pair(objects).await?;
    let trust = client.trust(objects, &pair).await?;
    // With two authorities another replica may have added ours a moment ago.
    if trust.written || trust.others > 0 {
        tracing::info!(
            seconds = settle.as_secs(),
            authorities = trust.others + 1,
            "waiting for API servers to load caBundle"
        );
        tokio::time::sleep(settle).await;
    }
    Ok(pair)
}

/// State of the webhook configuration after our authority is in it.
struct Trust {
    /// Whether it was changed.
    written: bool,
    /// The most authorities that one of its webhooks trusts besides ours.
    others: usize,
}

struct Client {
    access: Access,
    tls: TlsConnector,
    token: String,
}

impl Client {
    fn new(access: &Access) -> Result<Self, ClusterError> {
        let unusable = |file: &str, why: &dyn fmt::Display| {
            ClusterError::Unusable(format!("{}: {why}", access.account.join(file).display()))
        };
        let token = std::fs::read_to_string(access.account.join("token"))
            .map_err(|why| unusable("token", &why))?;
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(access.account.join("ca.crt"));
        for certificate in certificates.map_err(|why| unusable("ca.crt", &why))? {
            let certificate = certificate.map_err(|why| unusable("ca.crt", &why))?;
            roots
                .add(certificate)
                .map_err(|why| unusable("ca.crt", &why))?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|why| ClusterError::Unusable(why.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            access: access.clone(),
            tls: TlsConnector::from(Arc::new(config)),
            token: token.trim().to_owned(),
        })
    }

    /// The pair in the Secret; if it holds none, a new one, unless another replica was faster.
    async fn pair(&self, objects: &Objects) -> Result<Pair, ClusterError> {
        let Objects {
            namespace,
            service,
            secret,
            ..
        } = objects;
        let all = format!("/api/v1/namespaces/{namespace}/secrets");
        let own = format!("{all}/{secret}");
        let found = match self.call(Method::GET, &own, None).await {
            Err(ClusterError::Refused(404, _)) => None,
            found => Some(found?),
        };
        if let Some(found) = &found
            && !is_empty(found)
        {
            return of_secret(found, secret);
        }
        let pair = authority::sign_for(service, namespace)
            .map_err(|why| ClusterError::Unusable(why.to_string()))?;
        let data = json!({
            "ca.crt": STANDARD.encode(&pair.authority),
            "tls.crt": STANDARD.encode(&pair.certificate),
            "tls.key": STANDARD.encode(&pair.key),
        });
        let written = if let Some(mut found) = found {
            // As it was read, `resourceVersion` included: if another replica has written it since, the answer is 409.
            found["data"] = data;
            self.call(Method::PUT, &own, Some(("application/json", found)))
                .await
        } else {
            let metadata = json!({ "name": secret, "namespace": namespace });
            let made =
                json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data });
            self.call(Method::POST, &all, Some(("application/json", made)))
                .await
        };
        match written {
            Err(ClusterError::Refused(409, _)) => {
                of_secret(&self.call(Method::GET, &own, None).await?, secret)
            }
            Err(ClusterError::Refused(403, why)) => Err(ClusterError::Refused(
                403,
                format!(
                    "{why} (the Secret {secret} belongs to the injector's manifests: apply them again)"
                ),
            )),
            written => written.map(|_| pair),
        }
    }

    /// Adds the authority to every webhook of the configuration that does not trust it.
    async fn trust(&self, objects: &Objects, pair: &Pair) -> Result<Trust, ClusterError> {
        let path = format!(
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{}",
            objects.webhook
        );
        let configuration = self.call(Method::GET, &path, None).await?;
        let webhooks = configuration["webhooks"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        if webhooks.is_empty() {
            return Err(ClusterError::Unusable(format!(
                "{} has no webhooks",
                objects.webhook
            )));
        }
        let mut patch = Vec::new();
        let mut others = 0;
        for (index, webhook) in webhooks.iter().enumerate() {
            let trusted = webhook["clientConfig"]["caBundle"]
                .as_str()
                .unwrap_or_default();
            let trusted = STANDARD.decode(trusted).unwrap_or_default();
            let bundle =
                authority::add_to_bundle(&pair.authority, &String::from_utf8_lossy(&trusted));
            others = others.max(bundle.others);
            if bundle.added {
                let place = format!("/webhooks/{index}/clientConfig/caBundle");
                patch.push(
                    json!({ "op": "add", "path": place, "value": STANDARD.encode(bundle.text) }),
                );
            }
        }
        let written = !patch.is_empty();
        if written {
            self.call(
                Method::PATCH,
                &path,
                Some(("application/json-patch+json", patch.into())),
            )
            .await?;
        }
        Ok(Trust { written, others })
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Value)>,
    ) -> Result<Value, ClusterError> {
        match tokio::time::timeout(REQUEST_DEADLINE, self.converse(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClusterError::Unreachable(format!(
                "no answer within {} s",
                REQUEST_DEADLINE.as_secs()
            ))),
        }
    }

    async fn converse(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Value)>,
    ) -> Result<Value, ClusterError> {
        let away = |why: &dyn fmt::Display| ClusterError::Unreachable(why.to_string());
        let Access { host, port, .. } = &self.access;
        let name = ServerName::try_from(host.clone()).map_err(|why| away(&why))?;
        let socket = TcpStream::connect((&**host, *port))
            .await
            .map_err(|why| away(&why))?;
        let connection = self
            .tls
            .connect(name, socket)
            .await
            .map_err(|why| away(&why))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(connection))
            .await
            .map_err(|why| away(&why))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the API server ended early");
            }
        });
        let host = match host.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
            _ => format!("{host}:{port}"),
        };
        let uri = match body {
            Some(_) => format!("{path}?fieldManager={FIELD_MANAGER}"),
            None => path.to_owned(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(HOST, host);
        request = request.header(AUTHORIZATION, format!("Bearer {}", self.token));
        let mut bytes = Bytes::new();
        if let Some((kind, body)) = body {
            request = request.header(CONTENT_TYPE, kind);
            bytes = body.to_string().into();
        }
        let request = request.body(Full::new(bytes)).map_err(|why| away(&why))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|why| away(&why))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|why| away(&why))?;
        let answer: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        if status.is_success() {
            return Ok(answer);
        }
        let why: String = answer["message"]
            .as_str()
            .unwrap_or("nothing more")
            .chars()
            .take(500)
            .collect();
        Err(ClusterError::Refused(status.as_u16(), why))
    }
}

/// Whether a Secret holds nothing: as the manifests make it.
fn is_empty(secret: &Value) -> bool {
    secret["data"]
        .as_object()
        .is_none_or(serde_json::Map::is_empty)
}

fn of_secret(found: &Value, name: &str) -> Result<Pair, ClusterError> {
    let part = |key: &str| {
        let text = found["data"][key]
            .as_str()
            .and_then(|text| STANDARD.decode(text).ok());
        text.and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| {
                ClusterError::Unusable(format!(
                    "the Secret {name} has no `{key}`: delete it, or name another"
                ))
            })
    };
    Ok(Pair {
        authority: part("ca.crt")?,
        certificate: part("tls.crt")?,
        key: part("tls.key")?,
    })
}
