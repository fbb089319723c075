//! The processes of a run: NATS, the server that is measured, what the system says about them.

pub(crate) mod child;
pub(crate) mod machine;
pub(crate) mod nats;
mod peer;
pub(crate) mod process;
pub(crate) mod server;
pub(crate) mod sidecar;
