//! The `sidestream` program.

fn main() {}
