//! TLS of requests to issuers and endpoints: certificate authorities of a file or of the system.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::task::spawn_blocking;

/// The certificate authorities cannot be used, for this reason.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoRoots(String);

/// Reads the certificate authorities and returns the settings of a TLS client.
///
/// # Errors
/// The file cannot be read, or the system has none.
pub(super) async fn client_config(ca: Option<&Path>) -> Result<Arc<ClientConfig>, NoRoots> {
    let ca = ca.map(Path::to_owned);
    let roots = spawn_blocking(move || match ca {
        Some(file) => authorities(&file),
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Ok(roots)
        }
    });
    let roots = roots.await.map_err(|error| NoRoots(error.to_string()))??;
    if roots.is_empty() {
        let message = "there are no TLS root certificates: name a file as `ca`";
        return Err(NoRoots(message.into()));
    }
    Ok(without_client_certificate(roots))
}

/// Returns the settings of a TLS client that trusts these authorities.
pub(super) fn without_client_certificate(roots: RootCertStore) -> Arc<ClientConfig> {
    let config = ClientConfig::builder().with_root_certificates(roots);
    Arc::new(config.with_no_client_auth())
}

fn authorities(file: &Path) -> Result<RootCertStore, NoRoots> {
    let wrong = |error: &dyn Display| NoRoots(format!("{}: {error}", file.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))? {
        let certificate = certificate.map_err(|error| wrong(&error))?;
        roots.add(certificate).map_err(|error| wrong(&error))?;
    }
    Ok(roots)
}
