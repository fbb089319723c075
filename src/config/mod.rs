//! From the file to a configuration that cannot be wrong, or to every problem in it at once.

use crate::{admin, http, lifecycle, nats, net, telemetry};

/// The whole configuration, parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Where clients connect; at least one.
    pub listen: Vec<net::ListenConfig>,
    /// The operator's side.
    pub admin: admin::Config,
    /// The upstream side.
    pub nats: nats::Config,
    /// The downstream side: routes and limits.
    pub http: http::Config,
    /// All windows together, in bytes.
    pub window_bytes_max: usize,
    /// The most feeds at one time.
    pub feeds_max: usize,
    /// How a drain proceeds.
    pub drain: lifecycle::drain::Config,
    /// How the log is written.
    pub log: telemetry::logs::Config,
}
