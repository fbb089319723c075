//! Configuration of the admin port and the control socket (`admin:`).

use std::net::SocketAddr;
use std::path::PathBuf;

/// Addresses of the admin port and the control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Address of the admin port.
    pub address: SocketAddr,
    /// Allowed names in `Host`, besides addresses and `localhost`.
    pub hosts: Vec<String>,
    /// Path of the control socket. None: the first writable directory of `/run/sidestream`,
    /// `XDG_RUNTIME_DIR` and the temporary directory.
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
