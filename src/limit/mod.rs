//! What the process may use, and how much of it is in use.

pub mod descriptors;
