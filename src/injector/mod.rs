//! The sidecar beside any pod: one pure function, for manifests on the command line and for pods at the API server.
//!
//! `pod::inject` turns a pod template into one with the sidecar, `pod::uninject` turns it back. [`manifest`] applies
//! them to texts, [`review`] to what the API server asks, [`server`] answers it over HTTPS. [`authority`] makes the
//! certificate for that, [`cluster`] tells the API server whom to trust.

pub mod authority;
pub mod cluster;
pub mod manifest;
mod notice;
pub mod options;
mod pod;
pub mod review;
pub mod selector;
pub mod server;
mod sidecar;
mod workload;
mod yaml;

pub use notice::Notice;
pub use options::Defaults;
