//! The shops of `examples/`: one in Node, one in Python, one in Go, with the same sidecar and page.
//!
//! Chromium and the load are the programs of `tests/examples`.

mod pod;
mod rolling;
mod sessions;
