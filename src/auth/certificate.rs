//! Provider of client certificates (X.509, RFC 5280).
//!
//! ```text
//! TLS handshake -> rustls verifies the certificate (`client_ca`) -> DER of it, once per connection
//! request       -> names and end of the certificate              -> Identity
//! ```
//!
//! The certificate is trusted already; it is read for every request that a route authenticates,
//! and its end is checked again: a connection, or a TLS session that a client resumes, can be
//! older.
//!
//! | claim | value |
//! | --- | --- |
//! | `subject` | distinguished name as text (RFC 4514), the last component first: `CN=a,O=b` |
//! | `san.dns` | list of the DNS names among the subject alternative names |
//! | `san.uri` | list of the URIs among them, such as a SPIFFE ID |

#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::future::ready;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::{Certificate, TbsCertificate};

use super::clock::Now;
use super::{AuthFailure, Credentials, Identity, Principal, Provider};

/// Provider of client certificates.
#[derive(Debug)]
pub(super) struct CertificateProvider {
    name: Box<str>,
}

impl CertificateProvider {
    /// Returns a provider of this name.
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.into() }
    }
}

impl Provider for CertificateProvider {
    fn name(&self) -> &str {
        &self.name
    }

    fn authenticate<'r>(
        &'r self,
        credentials: &'r dyn Credentials,
        _is_last: bool,
    ) -> BoxFuture<'r, Result<Option<Principal>, AuthFailure>> {
        let principal = credentials.certificate().map(|der| {
            identity(&self.name, der, Now::read())
                .map(|identity| Principal::Identified(Box::new(identity)))
                .map_err(|description| AuthFailure::Invalid { description })
        });
        Box::pin(ready(principal.transpose()))
    }
}

/// Subject alternative names that are claims.
#[derive(Debug, Default)]
struct AlternativeNames {
    dns: Vec<String>,
    uri: Vec<String>,
}

/// Returns the identity of a verified certificate.
///
/// Its subject is the first URI, which is the SPIFFE ID in a service mesh, else the first DNS name,
/// else the distinguished name.
///
/// # Errors
/// One sentence for the client.
fn identity(provider: &str, der: &[u8], now: Now) -> Result<Identity, &'static str> {
    const UNREADABLE: &str = "the client certificate cannot be read";
    let certificate = Certificate::from_der(der)
        .map_err(|_| UNREADABLE)?
        .tbs_certificate;
    let expires = certificate.validity.not_after.to_unix_duration();
    if expires <= now.wall {
        return Err("the client certificate has expired");
    }
    let names = AlternativeNames::of(&certificate).ok_or(UNREADABLE)?;
    let mut distinguished_name = String::new();
    write!(distinguished_name, "{}", certificate.subject).map_err(|_| UNREADABLE)?;
    let first = names.uri.first().or(names.dns.first());
    let subject = first.unwrap_or(&distinguished_name).as_str().into();
    if distinguished_name.is_empty() && first.is_none() {
        return Err("the client certificate has no name");
    }
    let mut claims = Map::new();
    claims.insert("subject".into(), Value::String(distinguished_name));
    claims.insert("san".into(), json!({ "dns": names.dns, "uri": names.uri }));
    Ok(Identity {
        provider: provider.into(),
        subject,
        claims,
        expires: now.expiry(expires, Duration::ZERO),
    })
}

impl AlternativeNames {
    /// Returns the names; `None` if one of them is invalid.
    fn of(certificate: &TbsCertificate) -> Option<Self> {
        let mut all = Self::default();
        let Some((_, SubjectAltName(names))) = certificate.get().ok()? else {
            return Some(all);
        };
        for name in &names {
            match name {
                GeneralName::DnsName(name) => all.dns.push(printable(name.as_str())?),
                GeneralName::UniformResourceIdentifier(uri) => {
                    all.uri.push(printable(uri.as_str())?);
                }
                _ => {}
            }
        }
        Some(all)
    }
}

/// Returns a name that is visible text. RFC 5280, 4.2.1.6, has no others, but its type allows
/// spaces and control characters, with which a name could look like another one.
fn printable(name: &str) -> Option<String> {
    let is_printable = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    is_printable.then(|| name.to_owned())
}
