//! A certificate authority for one service, which signs a single certificate.
//!
//! Without cert-manager no authority is available, so `init` creates one for the webhook. Its own
//! key is dropped after the signature: nothing else can be signed with it, and only the webhook
//! configuration trusts it (`caBundle`). A renewal creates another authority. [`add_to_bundle`]
//! keeps the previous one in the bundle, since replicas serve its certificate until they restart.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use sha2::{Digest as _, Sha256};
use time::{Duration, OffsetDateTime};

/// Ten years: only the webhook configuration trusts it, and there is no process that renews it.
const VALID_FOR: Duration = Duration::days(3650);

/// One hour in the past, because the clocks of nodes differ.
const VALID_SINCE: Duration = Duration::hours(1);

/// 2: the authority of the certificate in the Secret, and the previous one, whose certificate
/// replicas serve until they restart.
const TRUSTED_MAX: usize = 2;

/// Lines around each certificate of a PEM text.
const PEM: (&str, &str) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");

/// Certificate with its key and the authority that signed it, as PEM.
#[derive(Clone)]
pub(crate) struct Identity {
    /// Certificate of the authority: the `caBundle` of the webhook.
    pub(crate) authority: String,
    /// Certificate of the server.
    pub(crate) certificate: String,
    /// Private key of the server.
    pub(crate) key: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

/// Authorities that a webhook trusts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bundle {
    /// Certificates as PEM, the newest first.
    pub(crate) text: String,
    /// Number of authorities besides the added one.
    pub(crate) others: usize,
    /// True if the authority was missing.
    pub(crate) is_added: bool,
}

/// Adds an authority to those that a webhook trusts, and keeps the newest of them. A bundle that
/// has the authority stays as it is.
pub(crate) fn add_to_bundle(authority: &str, trusted: &str) -> Bundle {
    let mut certificates = certificates(trusted);
    let is_added = !certificates
        .iter()
        .any(|certificate| is_same(certificate, authority));
    if is_added {
        certificates.insert(0, authority);
        certificates.truncate(TRUSTED_MAX);
    }
    let text = certificates
        .iter()
        .map(|certificate| format!("{}\n", certificate.trim()))
        .collect();
    Bundle {
        text,
        others: certificates.len() - 1,
        is_added,
    }
}

/// Certificates of a PEM text, without the text between them (comments, or a placeholder of a
/// chart).
fn certificates(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find(PEM.0) {
        rest = &rest[begin..];
        let Some(end) = rest.find(PEM.1) else { break };
        let (certificate, after) = rest.split_at(end + PEM.1.len());
        found.push(certificate);
        rest = after;
    }
    found
}

/// Returns whether two PEM texts have the same certificate, apart from line ends.
fn is_same(one: &str, other: &str) -> bool {
    let letters = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<String>()
    };
    letters(one) == letters(other)
}

/// Creates an authority and signs a certificate for a service of the cluster.
///
/// # Errors
/// If a certificate cannot have these names.
pub(crate) fn sign_for(service: &str, namespace: &str) -> Result<Identity, rcgen::Error> {
    let now = OffsetDateTime::now_utc();
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(
        DnType::CommonName,
        format!("{service}.{namespace} authority"),
    );
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (authority.not_before, authority.not_after) = (now - VALID_SINCE, now + VALID_FOR);
    // Verifiers find an issuer by its name: two authorities of one bundle must have different
    // names.
    let authority_key = KeyPair::generate()?;
    let digest = Sha256::digest(authority_key.public_key_raw());
    let identity: String = digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    authority
        .distinguished_name
        .push(DnType::OrganizationalUnitName, identity);
    let authority_certificate = authority.self_signed(&authority_key)?;
    let issuer = Issuer::new(authority, authority_key);

    // The API server expects `service.namespace.svc`.
    let names = vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
    ];
    let mut server = CertificateParams::new(names)?;
    server
        .distinguished_name
        .push(DnType::CommonName, format!("{service}.{namespace}.svc"));
    server.use_authority_key_identifier_extension = true;
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    (server.not_before, server.not_after) = (now - VALID_SINCE, now + VALID_FOR);
    let key = KeyPair::generate()?;
    let certificate = server.signed_by(&key, &issuer)?;
    Ok(Identity {
        authority: authority_certificate.pem(),
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(letters: &str) -> String {
        format!("{}\n{letters}\n{}\n", PEM.0, PEM.1)
    }

    #[test]
    fn new_authority_precedes_the_newest_trusted_one_and_older_ones_are_dropped() {
        let (first, second, third) = (pem("MIIA"), pem("MIIB"), pem("MIIC"));
        let bundle = add_to_bundle(&first, "");
        assert_eq!(
            bundle,
            Bundle {
                text: first.clone(),
                others: 0,
                is_added: true
            }
        );
        let bundle = add_to_bundle(&second, &bundle.text);
        assert_eq!(
            bundle,
            Bundle {
                text: format!("{second}{first}"),
                others: 1,
                is_added: true
            }
        );
        let bundle = add_to_bundle(&third, &bundle.text);
        assert_eq!(
            bundle,
            Bundle {
                text: format!("{third}{second}"),
                others: 1,
                is_added: true
            }
        );
        let again = add_to_bundle(&second, &bundle.text);
        assert_eq!(
            again,
            Bundle {
                is_added: false,
                ..bundle
            },
            "an authority that is trusted already"
        );
    }

    #[test]
    fn line_ends_placeholders_and_a_truncated_certificate_are_ignored() {
        let own = pem("MIIA");
        let windows = own.replace('\n', "\r\n");
        assert_eq!(add_to_bundle(&own, &windows).others, 0);
        assert_eq!(add_to_bundle(&own, "\n").text, own);
        assert_eq!(
            add_to_bundle(&own, &format!("# mine\n{}\nMIIB", PEM.0)).text,
            own
        );
    }
}
