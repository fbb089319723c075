//! Configuration: from the text of the file to a valid [`Config`], or to every problem at once.
//!
//! ```text
//! bytes -> tree -> secrets -> environment -> reader, read -> Config
//!          YAML    hide       fill ${NAME}   keys, types,    effective: what /config shows
//!          parser  excerpts                  defaults, rules
//! ```
//!
//! - `tree` parses YAML into nodes that keep their locations; it bounds depth, keys, values and
//!   what aliases repeat.
//! - `secrets` notes which parts of the text no excerpt may show.
//! - `environment` fills variables into values, never into the structure.
//! - `reader` reads values by name and type; `read` has one function per section with defaults and
//!   checks between keys. `renamed` has the keys of earlier versions.
//! - `problem` collects errors and warnings with location, excerpt and hint.
//! - [`reload`] reads the file again when its bytes change or on request.
//!
//! Parsing is pure: text and environment in, configuration or problems out. It runs on a thread for
//! blocking work, at startup too. Adding a key: `read`, [`effective()`], `sidecar.yaml`,
//! docs/configuration.md; tests fail if one is missing.

mod effective;
mod environment;
mod load;
mod location;
mod mask;
mod model;
mod problem;
mod read;
mod reader;
pub mod reload;
mod renamed;
mod secrets;
mod spelling;
mod tree;
mod units;

pub use effective::effective;
pub use environment::Lookup;
pub use load::{FILE_BYTES_MAX, Loaded, duration, load, load_revocation_access, outline, parse};
pub use model::{Config, RevocationAccess};
pub use problem::{Problem, Problems};
pub use reader::Outline;

#[cfg(test)]
mod tests;
