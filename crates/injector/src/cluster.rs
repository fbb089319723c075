//! The objects of the injector in the cluster: the Secret with its certificate, and the webhook
//! that trusts it.
//!
//! [`prepare`] runs in the init container of each replica, so several of them may run at the same
//! time:
//!
//! 1. It reads the Secret. If the Secret is missing or empty, it writes a new certificate. The
//!    write is conditional (create, or replace of the version that was read), so one replica
//!    succeeds; the others read its certificate.
//! 2. It adds the authority to `caBundle` of each webhook that does not have it, before the
//!    authority of the previous certificate, which other replicas may still serve.
//! 3. It waits until API servers have loaded the bundle. A certificate that they do not trust yet
//!    makes pods start without a sidecar, since the failure policy is `Ignore`.
//!
//! Requests are those of the `kube` client with the token and the CA of the service account.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, Config};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;

use crate::authority::{self, Identity};

/// Name under which the API server records our changes (`metadata.managedFields`).
const FIELD_MANAGER: &str = "sidestream-injector";

/// 10 s to connect, and for each read and write of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// 500 characters of a message of the API server in a log line.
const MESSAGE_CHARS_MAX: usize = 500;

/// Address of the API server, and the credentials for it.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// Such as `10.96.0.1` or `kubernetes.default.svc`.
    pub(crate) host: String,
    /// Port of the API server.
    pub(crate) port: u16,
    /// Folder with `token` and `ca.crt`, as the kubelet mounts it.
    pub(crate) account: PathBuf,
}

/// Names of the objects of one injector.
#[derive(Clone, Debug)]
pub(crate) struct Objects {
    /// Namespace of the Service and the Secret.
    pub(crate) namespace: String,
    /// Service that the API server calls.
    pub(crate) service: String,
    /// Secret that stores the certificate for all replicas.
    pub(crate) secret: String,
    /// MutatingWebhookConfiguration.
    pub(crate) webhook: String,
}

/// Error of the preparation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// There is no connection, or the response cannot be read.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    /// The API server responded with an error; the message is its own.
    #[error("the API server answered {status}: {message}")]
    Rejected { status: u16, message: String },
    /// An object or a file is not what it must be.
    #[error("{0}")]
    Unusable(String),
}

/// Returns the certificate of the Secret, or creates it, once the API servers trust it (see the
/// head of this file). `settle` is the time that API servers have to load a changed `caBundle`.
///
/// # Errors
/// If the API server is unreachable or rejects a request, or if the Secret has other content.
pub(crate) async fn prepare(
    access: &Access,
    objects: &Objects,
    settle: Duration,
) -> Result<Identity, ClusterError> {
    let client = connect(access)?;
    let secrets = Api::<Secret>::namespaced(client.clone(), &objects.namespace);
    let identity = identity(&secrets, objects).await?;
    let trust = trust(Api::all(client), &objects.webhook, &identity).await?;
    // With two authorities another replica may have added ours a moment ago.
    if trust.is_changed || trust.others > 0 {
        tracing::info!(
            seconds = settle.as_secs(),
            authorities = trust.others + 1,
            "waiting for API servers to load caBundle"
        );
        tokio::time::sleep(settle).await;
    }
    Ok(identity)
}

/// State of the webhook configuration after our authority is in it.
struct Trust {
    /// True if this process changed it.
    is_changed: bool,
    /// Largest number of authorities besides ours that one of its webhooks trusts.
    others: usize,
}

/// Builds the client. Nothing is sent yet.
fn connect(access: &Access) -> Result<Client, ClusterError> {
    let unusable = |file: &str, error: &dyn Display| {
        let path = access.account.join(file);
        ClusterError::Unusable(format!("{}: {error}", path.display()))
    };
    let token = std::fs::read_to_string(access.account.join("token"))
        .map_err(|error| unusable("token", &error))?;
    let roots: Vec<Vec<u8>> = CertificateDer::pem_file_iter(access.account.join("ca.crt"))
        .and_then(|certificates| certificates.map(|each| Ok(each?.to_vec())).collect())
        .map_err(|error| unusable("ca.crt", &error))?;
    let host = match access.host.parse() {
        Ok(std::net::IpAddr::V6(address)) => format!("[{address}]"),
        _ => access.host.clone(),
    };
    let address = format!("https://{host}:{}", access.port);
    let address = address.parse().map_err(|error| {
        ClusterError::Unusable(format!("invalid API server {address:?}: {error}"))
    })?;
    let mut config = Config::new(address);
    config.root_cert = Some(roots);
    config.auth_info.token = Some(token.trim().into());
    config.connect_timeout = Some(REQUEST_TIMEOUT);
    config.read_timeout = Some(REQUEST_TIMEOUT);
    config.write_timeout = Some(REQUEST_TIMEOUT);
    Client::try_from(config).map_err(cluster_error)
}

/// Returns the certificate in the Secret. If it has none, creates it, unless another replica is
/// faster.
async fn identity(secrets: &Api<Secret>, objects: &Objects) -> Result<Identity, ClusterError> {
    let Objects {
        namespace,
        service,
        secret: name,
        ..
    } = objects;
    let found = secrets.get_opt(name).await.map_err(cluster_error)?;
    if let Some(found) = &found
        && found.data.as_ref().is_some_and(|data| !data.is_empty())
    {
        return identity_of(found, name);
    }
    let identity = authority::sign_for(service, namespace)
        .map_err(|error| ClusterError::Unusable(error.to_string()))?;
    let data = [
        ("ca.crt", &identity.authority),
        ("tls.crt", &identity.certificate),
        ("tls.key", &identity.key),
    ];
    let data = data.map(|(key, text)| (key.to_owned(), ByteString(text.clone().into_bytes())));
    let parameters = PostParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PostParams::default()
    };
    let written = match found {
        // With the `resourceVersion` that was read: after a write of another replica the response
        // is 409.
        Some(mut found) => {
            found.data = Some(data.into());
            secrets.replace(name, &parameters, &found).await
        }
        None => {
            let created = Secret {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some(namespace.clone()),
                    ..ObjectMeta::default()
                },
                data: Some(data.into()),
                ..Secret::default()
            };
            secrets.create(&parameters, &created).await
        }
    };
    match written {
        Ok(_) => Ok(identity),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            identity_of(&secrets.get(name).await.map_err(cluster_error)?, name)
        }
        Err(kube::Error::Api(status)) if status.code == 403 => Err(ClusterError::Rejected {
            status: 403,
            message: format!(
                "{} (the Secret {name} belongs to the manifests of the injector: apply them again)",
                status.message
            ),
        }),
        Err(error) => Err(cluster_error(error)),
    }
}

/// Adds the authority to every webhook of the configuration that does not trust it.
async fn trust(
    configurations: Api<MutatingWebhookConfiguration>,
    name: &str,
    identity: &Identity,
) -> Result<Trust, ClusterError> {
    let configuration = configurations.get(name).await.map_err(cluster_error)?;
    let webhooks = configuration.webhooks.unwrap_or_default();
    if webhooks.is_empty() {
        return Err(ClusterError::Unusable(format!("{name} has no webhooks")));
    }
    let mut operations = Vec::new();
    let mut others = 0;
    for (index, webhook) in webhooks.iter().enumerate() {
        let trusted = webhook.client_config.ca_bundle.as_ref();
        let trusted = trusted.map_or_else(Default::default, |bundle| {
            String::from_utf8_lossy(&bundle.0)
        });
        let bundle = authority::add_to_bundle(&identity.authority, &trusted);
        others = others.max(bundle.others);
        if bundle.is_added {
            let path = format!("/webhooks/{index}/clientConfig/caBundle");
            let value = ByteString(bundle.text.into_bytes());
            operations.push(json!({ "op": "add", "path": path, "value": value }));
        }
    }
    let is_changed = !operations.is_empty();
    if is_changed {
        let patch = serde_json::from_value(operations.into())
            .map_err(|error| ClusterError::Unusable(error.to_string()))?;
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        configurations
            .patch(name, &parameters, &Patch::<()>::Json(patch))
            .await
            .map_err(cluster_error)?;
    }
    Ok(Trust { is_changed, others })
}

/// Reads the certificate from a Secret.
fn identity_of(secret: &Secret, name: &str) -> Result<Identity, ClusterError> {
    let entry = |key: &str| {
        let data = secret.data.as_ref().and_then(|data| data.get(key));
        data.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok())
            .ok_or_else(|| {
                let message =
                    format!("the Secret {name} has no `{key}`: delete it, or name another");
                ClusterError::Unusable(message)
            })
    };
    Ok(Identity {
        authority: entry("ca.crt")?,
        certificate: entry("tls.crt")?,
        key: entry("tls.key")?,
    })
}

/// Error of the client in the words of this file, with its causes.
fn cluster_error(error: kube::Error) -> ClusterError {
    if let kube::Error::Api(status) = error {
        return ClusterError::Rejected {
            status: status.code,
            message: status.message.chars().take(MESSAGE_CHARS_MAX).collect(),
        };
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    ClusterError::Unreachable(text)
}
