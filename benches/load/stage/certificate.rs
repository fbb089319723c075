//! Certificate of the servers under test, and the keys of their session tickets.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair};
use ring::rand::{SecureRandom as _, SystemRandom};
use tempfile::TempDir;

use crate::Fallible;

/// Kinds of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Key {
    /// ECDSA on P-256
    Ecdsa,
    /// RSA with 2,048 bits, made by `openssl`
    Rsa,
}

/// Files of one certificate for loopback. Dropping it removes them.
pub(crate) struct Certificate {
    folder: TempDir,
    has_ticket_keys: bool,
}

impl Certificate {
    /// Makes a certificate that is its own authority. With `ticket_keys`, servers accept the
    /// session tickets of each other.
    pub(crate) fn new(key: Key, ticket_keys: bool) -> Fallible<Self> {
        let made = Self {
            folder: TempDir::with_prefix("load-certificate-")?,
            has_ticket_keys: ticket_keys,
        };
        let key = match key {
            Key::Ecdsa => KeyPair::generate()?,
            Key::Rsa => rsa(&made.key())?,
        };
        let names = ["127.0.0.1", "localhost"].map(str::to_owned);
        let certificate = CertificateParams::new(names)?.self_signed(&key)?;
        std::fs::write(made.certificate(), certificate.pem())?;
        std::fs::write(made.key(), key.serialize_pem())?;
        if let Some(file) = made.ticket_keys() {
            let mut key = [0; 32];
            let made = SystemRandom::new().fill(&mut key);
            made.map_err(|_| "no random numbers")?;
            std::fs::write(file, STANDARD.encode(key))?;
        }
        Ok(made)
    }

    /// Returns the file with the certificate (PEM).
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    /// Returns the file with its key (PEM).
    pub(crate) fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// Returns the file with the keys of session tickets.
    pub(crate) fn ticket_keys(&self) -> Option<PathBuf> {
        let file = self.folder.path().join("ticket-keys");
        self.has_ticket_keys.then_some(file)
    }
}

/// Makes an RSA key. ring, which the rest of this tool uses, makes none.
fn rsa(file: &Path) -> Fallible<KeyPair> {
    let mut command = Command::new("openssl");
    command
        .args(["genpkey", "-algorithm", "RSA", "-out"])
        .arg(file);
    command.args(["-pkeyopt", "rsa_keygen_bits:2048"]);
    let made = command.output();
    let made = made.map_err(|error| format!("RSA keys are made by openssl: {error}"))?;
    if !made.status.success() {
        return Err(String::from_utf8_lossy(&made.stderr).into_owned().into());
    }
    Ok(KeyPair::from_pem(&std::fs::read_to_string(file)?)?)
}
