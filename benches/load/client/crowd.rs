//! Settings of the clients of a run.

use std::sync::Arc;

use super::endpoint::Endpoint;
use super::meter::Meter;
use super::visit::Visit;

/// Settings that all clients of a fleet share.
pub(crate) struct Crowd {
    /// Address of the server.
    pub(crate) endpoint: Endpoint,
    /// Client `k` reads the subject numbered `k % groups`.
    pub(crate) groups: usize,
    /// Maximum number of clients between connect and first byte.
    pub(crate) connecting: usize,
    /// First connection or a return.
    pub(crate) visit: Visit,
    /// Counts what they receive.
    pub(crate) meter: Arc<Meter>,
}
