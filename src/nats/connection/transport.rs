//! TLS options for NATS, explanations of handshake errors, and the clear-text warning.
//!
//! The library's errors name neither the file nor the setting at fault. [`Transport::explain`]
//! checks the configured files and adds the cause and the remedy. [`Transport::warning`] reports a
//! password or token that is sent unencrypted to another host.

use std::net::IpAddr;
use std::path::Path;

use async_nats::{ConnectOptions, ServerAddr};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::nats::config::{Config, Credentials, Tls};

/// TLS settings that the supervisor reports on.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    tls: Tls,
    /// Secret that is sent in clear text without TLS, and the first server that receives it.
    exposed: Option<ExposedSecret>,
}

#[derive(Clone, Debug)]
struct ExposedSecret {
    secret: &'static str,
    host: String,
}

impl Transport {
    pub(super) fn new(config: &Config, servers: &[ServerAddr]) -> Self {
        let tls = config.tls.clone().unwrap_or_default();
        let secret = match &config.credentials {
            Credentials::Password { .. } => Some("password"),
            Credentials::Token(_) => Some("token"),
            Credentials::None if servers.iter().any(|server| server.password().is_some()) => {
                Some("password")
            }
            Credentials::None if servers.iter().any(ServerAddr::has_user_pass) => Some("token"),
            // The seed is not sent: these sign a nonce of the server.
            Credentials::None | Credentials::File(_) | Credentials::Nkey(_) => None,
        };
        // `required: false` declares that the network is protected otherwise.
        let is_open = !is_required(&tls, servers) && tls.required.is_none();
        let remote = servers
            .iter()
            .find(|server| !server.tls_required() && !is_loopback(server.host()));
        let exposed = secret
            .zip(remote)
            .filter(|_| is_open)
            .map(|(secret, server)| ExposedSecret {
                secret,
                host: server.host().to_owned(),
            });
        Self { tls, exposed }
    }

    /// Warning about an established connection. `is_tls`: the connection is encrypted.
    pub(super) fn warning(&self, is_tls: bool) -> Option<String> {
        let ExposedSecret { secret, host } = self.exposed.as_ref().filter(|_| !is_tls)?;
        Some(format!(
            "the {secret} is sent in clear text to {host}, and anyone on the path can read it: set `nats.tls.required: true` (or `false` if the network is protected otherwise), or use `nats.nkey` or `nats.credentials`, which send no secret"
        ))
    }

    /// Adds cause and remedy to the error of a connection attempt.
    pub(super) fn explain(&self, error: &str) -> String {
        match self.file_errors().or_else(|| self.hint(error)) {
            Some(hint_text) => format!("{error} ({hint_text})"),
            None => error.to_owned(),
        }
    }

    /// Errors of the configured files, each with its path.
    fn file_errors(&self) -> Option<String> {
        let files = [
            ("ca", &self.tls.ca),
            ("certificate", &self.tls.certificate),
            ("key", &self.tls.key),
        ];
        let errors: Vec<String> = files
            .into_iter()
            .filter_map(|(key, path)| {
                let path = path.as_deref()?;
                Some(format!(
                    "`nats.tls.{key}`: {}: {}",
                    path.display(),
                    file_error(key, path)?
                ))
            })
            .collect();
        (!errors.is_empty()).then(|| errors.join("; "))
    }

    /// Cause and remedy of a handshake error.
    fn hint(&self, error: &str) -> Option<String> {
        let authorities = match &self.tls.ca {
            Some(path) => format!("the authorities in {} (`nats.tls.ca`)", path.display()),
            None => "the system's authorities (`nats.tls.ca` replaces them)".to_owned(),
        };
        let hint = if error.contains("CaUsedAsEndEntity") {
            "the server presents a CA certificate (basicConstraints CA:TRUE), as `openssl req -x509` creates it: sign a server certificate with a CA, or create the self-signed one with `-addext basicConstraints=critical,CA:FALSE`".to_owned()
        } else if error.contains("UnknownIssuer") {
            format!(
                "the server's certificate is not signed by a trusted authority; trusted are {authorities}"
            )
        } else if error.contains("NotValidForName") || error.contains("not valid for name") {
            "the server's certificate is for other host names: connect by one of its names, or add this name to its subjectAltName"
                .to_owned()
        } else if error.contains("CertificateRequired") {
            "the server requires a client certificate: set `nats.tls.certificate` and `nats.tls.key`".to_owned()
        } else if error.contains("InvalidContentType") {
            "the server does not speak TLS on this port: with `nats.tls.handshake_first` it needs `handshake_first` in its own `tls` block".to_owned()
        } else if error.contains("expected INFO, got nothing") && !self.tls.handshake_first {
            "if the server has `handshake_first` in its `tls` block, it expects the TLS handshake first: set `nats.tls.handshake_first: true`".to_owned()
        } else {
            return None;
        };
        Some(hint)
    }
}

/// Adds the TLS settings to the connection options.
pub(super) fn apply(
    options: ConnectOptions,
    config: &Config,
    servers: &[ServerAddr],
) -> ConnectOptions {
    let tls = config.tls.clone().unwrap_or_default();
    // Applies also to discovered servers, whose addresses have no scheme.
    let mut options = options.require_tls(is_required(&tls, servers));
    if tls.handshake_first {
        options = options.tls_first();
    }
    if let Some(ca) = tls.ca {
        options = options.add_root_certificates(ca);
    }
    if let (Some(certificate), Some(key)) = (tls.certificate, tls.key) {
        options = options.add_client_certificate(certificate, key);
    }
    options
}

/// Returns true if nothing is sent to any server before the TLS handshake.
fn is_required(tls: &Tls, servers: &[ServerAddr]) -> bool {
    let is_configured = tls.ca.is_some() || tls.certificate.is_some() || tls.handshake_first;
    tls.required == Some(true) || is_configured || servers.iter().all(ServerAddr::tls_required)
}

fn is_loopback(host: &str) -> bool {
    let name = host.trim_end_matches('.');
    name == "localhost"
        || name.ends_with(".localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

fn file_error(key: &str, path: &Path) -> Option<String> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return Some(error.to_string()),
    };
    if key == "key" {
        return PrivateKeyDer::from_pem_slice(&bytes)
            .is_err()
            .then(|| "no PEM private key found".to_owned());
    }
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Some("no PEM certificate found".to_owned()),
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::config::Secret;

    fn transport(servers: &[&str], credentials: Credentials, tls: Option<Tls>) -> Transport {
        let servers: Vec<ServerAddr> = servers
            .iter()
            .map(|server| server.parse().unwrap())
            .collect();
        Transport::new(
            &Config {
                credentials,
                tls,
                ..Config::default()
            },
            &servers,
        )
    }

    fn token() -> Credentials {
        Credentials::Token(Secret("t".to_owned()))
    }

    #[test]
    fn secret_in_clear_text_to_another_host_is_a_warning() {
        let warns = |servers: &[&str], credentials, tls| {
            transport(servers, credentials, tls)
                .warning(false)
                .is_some()
        };
        assert!(warns(&["nats://nats:4222"], token(), None));
        assert!(warns(
            &["nats://me:secret@10.0.0.1:4222"],
            Credentials::None,
            None
        ));
        assert!(warns(&["nats://127.0.0.1", "nats://nats"], token(), None));
        assert!(warns(
            &["tls://nats", "nats://nats"],
            token(),
            Some(Tls::default())
        ));
        for host in [
            "127.0.0.1",
            "127.8.0.1",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "localhost",
            "nats.localhost",
        ] {
            assert!(
                !warns(&[&format!("nats://{host}:4222")], token(), None),
                "{host}"
            );
        }
        assert!(!warns(&["nats://nats"], Credentials::None, None));
        assert!(!warns(
            &["nats://nats"],
            Credentials::Nkey(Secret("s".to_owned())),
            None
        ));
        assert!(!warns(
            &["nats://nats"],
            Credentials::File("f".into()),
            None
        ));
        assert!(!warns(&["tls://nats"], token(), None));
        for required in [true, false] {
            assert!(!warns(
                &["nats://nats"],
                token(),
                Some(Tls {
                    required: Some(required),
                    ..Tls::default()
                })
            ));
        }
        assert!(!warns(
            &["nats://nats"],
            token(),
            Some(Tls {
                ca: Some("f".into()),
                ..Tls::default()
            })
        ));
        assert_eq!(
            transport(&["nats://nats"], token(), None).warning(true),
            None
        );
    }

    #[test]
    fn warning_names_the_host_and_the_remedy_but_not_the_secret() {
        let text = transport(&["nats://me:hidden@nats:4222"], Credentials::None, None)
            .warning(false)
            .unwrap();
        assert!(
            text.contains("password") && text.contains("nats.tls.required: true"),
            "{text}"
        );
        assert!(!text.contains("hidden"), "{text}");
    }

    #[test]
    fn handshake_error_is_explained_with_file_paths() {
        let missing = Tls {
            ca: Some("/no/such/ca.pem".into()),
            ..Tls::default()
        };
        let text = transport(&["tls://nats"], token(), Some(missing)).explain("IO error");
        assert!(
            text.contains("`nats.tls.ca`: /no/such/ca.pem: No such file"),
            "{text}"
        );
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "nothing").unwrap();
        let tls = Tls {
            certificate: Some(empty.clone()),
            key: Some(empty),
            ..Tls::default()
        };
        let text = transport(&["tls://nats"], token(), Some(tls)).explain("IO error");
        assert!(
            text.contains("no PEM certificate") && text.contains("no PEM private key"),
            "{text}"
        );
        let plain = transport(&["nats://nats"], token(), None);
        assert!(
            plain
                .explain("invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))")
                .contains("CA:FALSE")
        );
        assert_eq!(plain.explain("connection refused"), "connection refused");
    }
}
