//! The processes of a run: nats-server, the server under test, and their costs.
//!
//! Every process is a [`child::Child`] with its log in a temporary folder. [`server`] starts the
//! server under test by a [`recipe::Recipe`], [`sidecar`] writes the sidecar's configuration,
//! [`certificate`] makes what it needs for TLS, [`tokens`] signs what its clients authenticate with,
//! [`collector`] accepts its traces,
//! [`process`] reads processor time and memory from `/proc`, [`machine`] pins processes to cores.

pub(crate) mod certificate;
pub(crate) mod child;
pub(crate) mod collector;
pub(crate) mod machine;
pub(crate) mod nats;
mod peer;
pub(crate) mod process;
pub(crate) mod recipe;
pub(crate) mod server;
pub(crate) mod sidecar;
pub(crate) mod tokens;
