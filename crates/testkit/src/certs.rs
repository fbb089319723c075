//! Certificate authority of one test: certificates as PEM files, and TLS configurations that trust it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;

/// Certificate authority. Dropping it deletes its files.
pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// Certificate and private key as PEM files.
#[derive(Clone, Debug)]
pub struct Identity {
    /// File of the certificate.
    pub certificate: PathBuf,
    /// File of the private key.
    pub key: PathBuf,
}

/// Names and lifetime of the certificate of a workload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Workload<'a> {
    /// Common name of the subject.
    pub common_name: &'a str,
    /// DNS names.
    pub dns: &'a [&'a str],
    /// URIs.
    pub uri: &'a [&'a str],
    /// Time until it expires, in whole seconds. `None`: far in the future.
    pub expires_in: Option<Duration>,
}

// === impl Authority ===

impl Authority {
    /// Creates an authority with a new key.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.crt"), certificate.pem()).unwrap();
        let der = certificate.der().clone();
        Self {
            folder,
            issuer: Issuer::new(params, key),
            certificate: der,
        }
    }

    /// File of the authority's own certificate: the trust anchor.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// Folder of all files of the authority.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Issues a server certificate for loopback. `name` is the subject and the file name; a second
    /// call with it replaces the files.
    pub fn server(&self, name: &str) -> Identity {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        self.issue(name, names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// Issues a client certificate for `name`.
    pub fn client(&self, name: &str) -> Identity {
        self.issue(
            name,
            vec![name.to_owned()],
            ExtendedKeyUsagePurpose::ClientAuth,
        )
    }

    /// Issues a client certificate with these names. `file` is the name of its files.
    pub fn workload(&self, file: &str, workload: Workload<'_>) -> Identity {
        let ia5 = |text: &&str| Ia5String::try_from(*text).unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, workload.common_name);
        let dns = workload.dns.iter().map(ia5).map(SanType::DnsName);
        let uri = workload.uri.iter().map(ia5).map(SanType::URI);
        params.subject_alt_names = dns.chain(uri).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if let Some(left) = workload.expires_in {
            params.not_after = (SystemTime::now() + left).into();
        }
        let pair = KeyPair::generate().unwrap();
        self.write(file, &params.signed_by(&pair, &self.issuer).unwrap(), &pair)
    }

    /// Creates a self-signed server certificate for loopback; with `is_authority` it may sign other
    /// certificates.
    pub fn self_signed(&self, name: &str, is_authority: bool) -> Identity {
        let mut params =
            CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = if is_authority {
            IsCa::Ca(BasicConstraints::Unconstrained)
        } else {
            IsCa::ExplicitNoCa
        };
        let pair = KeyPair::generate().unwrap();
        self.write(name, &params.self_signed(&pair).unwrap(), &pair)
    }

    /// TLS client configuration that trusts only this authority and offers `protocols` by ALPN.
    pub fn trusting(&self, protocols: &[&str]) -> Arc<ClientConfig> {
        self.configure(protocols, None)
    }

    /// Same as [`Authority::trusting`], with a client certificate.
    pub fn trusting_as(&self, protocols: &[&str], identity: &Identity) -> Arc<ClientConfig> {
        self.configure(protocols, Some(identity))
    }

    fn issue(&self, name: &str, names: Vec<String>, usage: ExtendedKeyUsagePurpose) -> Identity {
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let pair = KeyPair::generate().unwrap();
        self.write(name, &params.signed_by(&pair, &self.issuer).unwrap(), &pair)
    }

    fn write(&self, name: &str, signed: &Certificate, pair: &KeyPair) -> Identity {
        let certificate = self.folder.path().join(format!("{name}.crt"));
        let key = self.folder.path().join(format!("{name}.key"));
        std::fs::write(&certificate, signed.pem()).unwrap();
        std::fs::write(&key, pair.serialize_pem()).unwrap();
        Identity { certificate, key }
    }

    fn configure(&self, protocols: &[&str], identity: Option<&Identity>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let certificate = CertificateDer::from_pem_file(&identity.certificate).unwrap();
                let key = PrivateKeyDer::from_pem_file(&identity.key).unwrap();
                builder
                    .with_client_auth_cert(vec![certificate], key)
                    .unwrap()
            }
        };
        config.alpn_protocols = protocols
            .iter()
            .map(|protocol| protocol.as_bytes().to_vec())
            .collect();
        Arc::new(config)
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// TLS server configuration with this certificate that offers `protocols` by ALPN, for servers in
/// the tests.
pub fn server_config(identity: &Identity, protocols: &[&str]) -> Arc<ServerConfig> {
    let certificate = CertificateDer::from_pem_file(&identity.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&identity.key).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = protocols
        .iter()
        .map(|protocol| protocol.as_bytes().to_vec())
        .collect();
    Arc::new(config)
}
