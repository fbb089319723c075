//! Adds the Sidestream sidecar to pods, and removes it: pure functions on manifests and admission
//! reviews.
//!
//! ```text
//! sidestream inject    manifest::change --> yaml::read --> workload --> pod::inject --> yaml::emit
//! sidestream-injector  review::answer   --> JSON       -------------> pod::inject --> JSON patch
//! ```
//!
//! - [`manifest`] changes the text of a manifest, [`review`] answers an admission review of an API
//!   server.
//! - `workload` finds the pod templates of an object by its kind; [`selector`] selects some of them
//!   by their labels.
//! - `pod` adds the sidecar to one pod template and removes it. Injection is idempotent, and
//!   removal restores the template as it was. `sidecar` builds the container and the volumes.
//! - `application` finds the port of the application that an annotation names.
//! - [`options`] reads the annotations `sidestream.dev/...` of a pod. An invalid one becomes a
//!   [`Notice`] and its default applies, so that a mistake never stops a rollout.
//! - `yaml` reads and writes YAML 1.1 as kubectl does, and keeps unchanged values as they were
//!   written.
//! - [`args`] has the command line options that both programs have.
//!
//! There is no input or output here, and no state: the callers read files and sockets.

mod application;
pub mod args;
pub mod manifest;
mod notice;
pub mod options;
mod pod;
pub mod review;
pub mod selector;
mod sidecar;
mod workload;
mod yaml;

pub use notice::Notice;
pub use options::{Defaults, parse_duration};
