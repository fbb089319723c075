//! YAML as kubectl reads it (1.1), with every value that is not changed written back as it was.

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
