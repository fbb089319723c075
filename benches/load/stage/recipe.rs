//! Settings of a server under test.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::ValueEnum;

use super::certificate::Certificate;
use super::tokens::Tokens;
use crate::wire::body::Framing;
use crate::wire::coding::Coding;

/// Settings for starting a server.
pub(crate) struct Recipe {
    /// Binary of the sidecar.
    pub(crate) sidestream: PathBuf,
    /// Core for the server.
    pub(crate) core: Option<usize>,
    /// Serve TLS with this certificate.
    pub(crate) tls: Option<Certificate>,
    /// Log filter of the sidecar.
    pub(crate) log: String,
    /// Framing of the event streams.
    pub(crate) framing: Framing,
    /// Content coding of the event streams.
    pub(crate) compression: Option<Coding>,
    /// Events that will be replayed.
    pub(crate) replay: Option<Replay>,
    /// Tokens of the clients; the sidecar verifies them.
    pub(crate) tokens: Option<Tokens>,
    /// Traces that the sidecar exports.
    pub(crate) traces: Option<Traces>,
    /// Application that receives requests for other paths.
    pub(crate) application: Option<SocketAddr>,
}

/// Traces of the sidecar.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traces {
    /// Ratio of events and event streams.
    pub(crate) sample: f64,
    /// Collector that accepts them.
    pub(crate) collector: SocketAddr,
}

/// Events that clients return for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Replay {
    /// Their storage.
    pub(crate) from: From,
    /// Events that each client missed.
    pub(crate) missed: u64,
    /// Missed events of all subjects.
    pub(crate) events: u64,
    /// Bytes of each payload.
    pub(crate) size: usize,
}

/// Storage of the events that clients missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum From {
    /// Memory of the server
    Window,
    /// JetStream: the window in memory is smaller than the missed events
    Archive,
}

impl Recipe {
    /// Returns scheme, host and port of a server at this address.
    pub(crate) fn origin(&self, address: SocketAddr) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{address}")
    }

    /// Returns the file with the certificate that clients trust.
    pub(crate) fn ca(&self) -> Option<PathBuf> {
        Some(self.tls.as_ref()?.certificate())
    }
}
