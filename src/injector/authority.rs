//! A certificate authority for one service, made where no other is at hand: it signs one certificate and is forgotten.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// Ten years: nobody but this webhook believes in it, and nobody would remember to renew it.
const VALID_FOR: Duration = Duration::days(3650);

/// An hour back: clocks of nodes differ.
const VALID_SINCE: Duration = Duration::hours(1);

/// A certificate, its key and the authority that signed it, as PEM. The authority's own key is not kept.
#[derive(Clone)]
pub struct Pair {
    /// The authority's certificate: the webhook's `caBundle`.
    pub authority: String,
    /// The server's certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// Makes an authority and lets it sign a certificate for a service of a cluster.
///
/// # Errors
/// When the names are none that a certificate can bear.
pub fn sign_for(service: &str, namespace: &str) -> Result<Pair, rcgen::Error> {
    let now = OffsetDateTime::now_utc();
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, format!("{service}.{namespace} authority"));
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (authority.not_before, authority.not_after) = (now - VALID_SINCE, now + VALID_FOR);
    let authority_key = KeyPair::generate()?;
    let authority_certificate = authority.self_signed(&authority_key)?;
    let issuer = Issuer::new(authority, authority_key);

    // What the API server asks for is `service.namespace.svc`.
    let names = vec![format!("{service}.{namespace}.svc"), format!("{service}.{namespace}.svc.cluster.local")];
    let mut server = CertificateParams::new(names)?;
    server.distinguished_name.push(DnType::CommonName, format!("{service}.{namespace}.svc"));
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    (server.not_before, server.not_after) = (now - VALID_SINCE, now + VALID_FOR);
    let key = KeyPair::generate()?;
    let certificate = server.signed_by(&key, &issuer)?;
    Ok(Pair { authority: authority_certificate.pem(), certificate: certificate.pem(), key: key.serialize_pem() })
}
