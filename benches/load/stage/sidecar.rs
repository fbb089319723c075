//! Configuration and certificate of the sidecar under test.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::nats::STREAM;
use super::recipe::{From, Recipe, Replay, Traces};
use crate::Fallible;
use crate::wire::body::Framing;

/// Source of the events, which determines the route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    /// A JetStream stream.
    Jetstream,
    /// Core NATS.
    Core,
}

impl Source {
    /// Returns the path of the route and the subject to publish to.
    ///
    /// Both contain `{n}` if every group of clients has a subject of its own.
    pub(crate) fn route(self, groups: usize) -> (&'static str, &'static str) {
        match (self, groups) {
            (Self::Jetstream, 1) => ("/broadcast", "load.all"),
            (Self::Jetstream, _) => ("/one/{n}", "load.n.{n}"),
            (Self::Core, 1) => ("/core/0", "core.0"),
            (Self::Core, _) => ("/core/{n}", "core.{n}"),
        }
    }
}

/// Returns the subject of a path, according to the routes in [`configuration`].
pub(crate) fn subject(path: &str) -> Option<String> {
    match path.trim_start_matches('/').split_once('/') {
        None if path == "/broadcast" => Some("load.all".to_owned()),
        Some(("one", n)) => Some(format!("load.n.{n}")),
        Some(("core", n)) => Some(format!("core.{n}")),
        _ => None,
    }
}

/// Writes `sidecar.yaml` into `folder`: one listener, with TLS if requested, and three routes.
///
/// [`crate::guard`] starts older builds with it too, so for Server-Sent Events without tokens,
/// application and session tickets it uses only keys that never changed.
pub(crate) fn configuration(
    folder: &Path,
    nats: &str,
    recipe: &Recipe,
    address: SocketAddr,
    admin: SocketAddr,
) -> Fallible<PathBuf> {
    let mut text = format!("listen:\n  - address: {address}\n");
    if let Some(tls) = &recipe.tls {
        writeln!(
            text,
            "    tls:\n      certificate: {}\n      key: {}",
            tls.certificate().display(),
            tls.key().display()
        )?;
        if let Some(keys) = tls.ticket_keys() {
            writeln!(text, "      session_ticket_keys: {}", keys.display())?;
        }
    }
    if let Some(application) = recipe.application {
        writeln!(text, "application: {{ address: http://{application} }}")?;
    }
    if let Some(Traces { sample, collector }) = recipe.traces {
        writeln!(
            text,
            "tracing: {{ otlp: 'http://{collector}', sample: {sample} }}"
        )?;
    }
    let mut authenticate = "";
    if let Some(tokens) = &recipe.tokens {
        tokens.configure(folder, &mut text)?;
        authenticate = "\n    authenticate: [load]";
    }
    let mut framings = match recipe.framing {
        Framing::Sse | Framing::Ndjson => "",
        Framing::WebSocket => "\n    framings: [sse, websocket]",
        Framing::Grpc => "\n    framings: [sse, grpc_web]",
    }
    .to_owned();
    if let Some(coding) = recipe.compression {
        let name = coding.as_str();
        write!(framings, "\n    compression: {{ algorithms: [{name}] }}")?;
    }
    write!(
        text,
        "admin:
  address: {admin}
  control: {control}
nats:
  servers: [\"{nats}\"]
routes:
  - path: /broadcast{authenticate}{framings}
    sources:
      - {{ stream: {STREAM}, subjects: [\"load.all\"] }}{window}
  - path: /one/{{n}}{framings}
    sources:
      - {{ stream: {STREAM}, subjects: [\"load.n.{{n}}\"] }}{window}
  - path: /core/{{n}}{framings}
    sources:
      - {{ subjects: [\"core.{{n}}\"] }}
limits: {{ window_bytes: {window_bytes}B }}
log: {{ format: json, filter: {log} }}
",
        log = recipe.log,
        window = recipe.replay.map_or_else(String::new, window),
        window_bytes = recipe.replay.map_or(256 << 20, |replay| 2 * bytes(replay)),
        control = folder.join("control.sock").display(),
    )?;
    let path = folder.join("sidecar.yaml");
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Returns the window of a route, larger or, for a replay from JetStream, smaller than the replay.
fn window(replay: Replay) -> String {
    let events = match replay.from {
        From::Window => 2 * replay.events,
        From::Archive => (replay.events / 20).clamp(1, 10_000),
    };
    format!(
        "\n    window: {{ events: {events}, bytes: {}B, age: 1h }}",
        bytes(replay)
    )
}

/// Returns more bytes than the encoded missed events need.
fn bytes(replay: Replay) -> u64 {
    2 * replay.events * (replay.size as u64 + 256) + (1 << 20)
}
