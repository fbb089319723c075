//! YAML 1.1 as kubectl reads it, with unchanged values written as they were.
//!
//! ```text
//! text --> deepen (if needed) --> saphyr-parser events --> tree::Node --> emit --> text
//!                                                            |    ^
//!                                                   to_json  v    |  become_json
//!                                                           serde_json::Value
//! ```
//!
//! - `tree` builds a `Node` from the events of `saphyr-parser`. A plain scalar keeps its text;
//!   aliases and merge keys are expanded within bounds.
//! - `scalar` resolves a plain scalar by the rules of go-yaml 2, the parser of kubectl: `on` is
//!   `true`, `0644` is 420.
//! - `deepen` indents continuation lines for which go-yaml accepts less indentation than the
//!   specification.
//! - `emit` writes block style, with quotes around every string that some YAML would read as
//!   another type.
//!
//! No library that was tried keeps `on` and `0644` as they were written
//! (docs/decisions/0013-sidecar-injection.md).

mod deepen;
mod emit;
mod scalar;
mod tree;

pub(super) use emit::emit;
pub(super) use tree::{Broken, read};

#[cfg(test)]
use tree::Node;

#[cfg(test)]
mod tests;
