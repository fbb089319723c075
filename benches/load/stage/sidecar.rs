//! The configuration that the sidecar is measured with, and a certificate for it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::nats::STREAM;
use crate::Fallible;

/// Where events come from, and with it the route that clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    /// A JetStream stream.
    Jetstream,
    /// Core NATS.
    Core,
}

impl Source {
    /// Path of the route and subject to publish to; `{n}` in both when every group has its own subject.
    pub(crate) fn route(self, groups: usize) -> (&'static str, &'static str) {
        match (self, groups) {
            (Self::Jetstream, 1) => ("/broadcast", "load.all"),
            (Self::Jetstream, _) => ("/one/{n}", "load.n.{n}"),
            (Self::Core, 1) => ("/core/0", "core.0"),
            (Self::Core, _) => ("/core/{n}", "core.{n}"),
        }
    }
}

/// The subject behind a path, as the routes in [`configuration`] say.
pub(crate) fn subject(path: &str) -> Option<String> {
    match path.trim_start_matches('/').split_once('/') {
        None if path == "/broadcast" => Some("load.all".to_owned()),
        Some(("one", n)) => Some(format!("load.n.{n}")),
        Some(("core", n)) => Some(format!("core.{n}")),
        _ => None,
    }
}

/// Writes `sidecar.yaml` into `folder`: one listener on a free port, under TLS if asked, and the three routes.
pub(crate) fn configuration(folder: &Path, nats: &str, tls: bool, log: &str) -> Fallible<PathBuf> {
    let mut text = String::from("listen:\n  - address: 127.0.0.1:0\n");
    if tls {
        let (certificate, key) = certificate(folder)?;
        writeln!(text, "    tls: {{ certificate: {}, key: {} }}", certificate.display(), key.display())?;
    }
    write!(
        text,
        "admin:
  address: 127.0.0.1:0
  control: {control}
nats:
  servers: [\"{nats}\"]
routes:
  - path: /broadcast
    sources:
      - {{ stream: {STREAM}, subjects: [\"load.all\"] }}
  - path: /one/{{n}}
    sources:
      - {{ stream: {STREAM}, subjects: [\"load.n.{{n}}\"] }}
  - path: /core/{{n}}
    sources:
      - {{ subjects: [\"core.{{n}}\"] }}
log: {{ format: json, filter: {log} }}
",
        control = folder.join("control.sock").display(),
    )?;
    let path = folder.join("sidecar.yaml");
    std::fs::write(&path, text)?;
    Ok(path)
}

/// The certificate that [`configuration`] wrote, for clients to trust.
pub(crate) fn certificate_file(folder: &Path) -> PathBuf {
    folder.join("certificate.pem")
}

fn certificate(folder: &Path) -> Fallible<(PathBuf, PathBuf)> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()])?;
    let (certificate, key) = (certificate_file(folder), folder.join("key.pem"));
    std::fs::write(&certificate, made.cert.pem())?;
    std::fs::write(&key, made.signing_key.serialize_pem())?;
    Ok((certificate, key))
}
