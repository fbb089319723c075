//! Where the operator's side is found (`admin:` in the configuration).

use std::net::SocketAddr;
use std::path::PathBuf;

/// Addresses of the admin side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Probes, metrics, connections.
    pub address: SocketAddr,
    /// Names under which it is asked, besides addresses and `localhost`.
    pub hosts: Vec<String>,
    /// The control socket; none: the first writable of `/run/sidestream`, `XDG_RUNTIME_DIR`, the temporary directory.
    pub control: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([0, 0, 0, 0], 9090)),
            hosts: Vec::new(),
            control: None,
        }
    }
}
