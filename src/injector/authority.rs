//! A certificate authority for one service, made where no other is at hand: it signs one certificate and is forgotten.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use sha2::{Digest as _, Sha256};
use time::{Duration, OffsetDateTime};

/// Ten years: nobody but this webhook believes in it, and nobody would remember to renew it.
const VALID_FOR: Duration = Duration::days(3650);

/// An hour back: clocks of nodes differ.
const VALID_SINCE: Duration = Duration::hours(1);

/// 2: the authority of the certificate in the Secret, and the one before it, which replicas that have not restarted yet
/// still serve a certificate of.
const TRUSTED_MAX: usize = 2;

/// Lines around each certificate of a PEM text.
const PEM: (&str, &str) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");

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
        f.debug_struct("Pair")
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

/// Authorities that a webhook is to trust.
#[derive(Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Their certificates as PEM, the newest first.
    pub text: String,
    /// Number of authorities besides the one that was to be added.
    pub others: usize,
    /// Whether it was missing.
    pub added: bool,
}

/// Adds an authority to those that a webhook trusts already. Only the newest of those is kept beside it; a bundle that
/// has the authority stays as it is.
#[must_use]
pub fn add_to_bundle(authority: &str, trusted: &str) -> Bundle {
    let mut certificates = certificates(trusted);
    let added = !certificates
        .iter()
        .any(|certificate| is_same(certificate, authority));
    if added {
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
        added,
    }
}

/// The certificates of a PEM text. What is between them (comments, or a placeholder of a chart) is left out.
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

/// Whether two PEM texts hold the same certificate, whatever their line ends are.
fn is_same(one: &str, other: &str) -> bool {
    let letters = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<String>()
    };
    letters(one) == letters(other)
}

/// Makes an authority and lets it sign a certificate for a service of a cluster.
///
/// # Errors
/// When the names are none that a certificate can bear.
pub fn sign_for(service: &str, namespace: &str) -> Result<Pair, rcgen::Error> {
    let now = OffsetDateTime::now_utc();
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(
        DnType::CommonName,
        format!("{service}.{namespace} authority"),
    );
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (authority.not_before, authority.not_after) = (now - VALID_SINCE, now + VALID_FOR);
    // Verifiers look an issuer up by its name: of two authorities in one bundle they would try the wrong one.
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

    // What the API server asks for is `service.namespace.svc`.
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
    Ok(Pair {
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
    fn a_new_authority_is_added_before_the_newest_of_those_that_are_trusted() {
        let (first, second, third) = (pem("MIIA"), pem("MIIB"), pem("MIIC"));
        let bundle = add_to_bundle(&first, "");
        assert_eq!(
            bundle,
            Bundle {
                text: first.clone(),
                others: 0,
                added: true
            }
        );
        let bundle = add_to_bundle(&second, &bundle.text);
        assert_eq!(
            bundle,
            Bundle {
                text: format!("{second}{first}"),
                others: 1,
                added: true
            }
        );
        let bundle = add_to_bundle(&third, &bundle.text);
        assert_eq!(
            bundle,
            Bundle {
                text: format!("{third}{second}"),
                others: 1,
                added: true
            }
        );
        let again = add_to_bundle(&second, &bundle.text);
        assert_eq!(
            again,
            Bundle {
                added: false,
                ..bundle
            },
            "one that is trusted already"
        );
    }

    #[test]
    fn line_ends_placeholders_and_half_a_certificate_do_no_harm() {
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
