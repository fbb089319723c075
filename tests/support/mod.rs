//! The rig: real processes, independent clients and faults, shared by every integration test.
//!
//! Nothing here imitates NATS, HTTP or TLS: servers are the real ones, clients are written from the specifications.

#![allow(dead_code)] // each test file compiles its own copy and uses a part of it
#![allow(unreachable_pub)] // `pub` says what a test may use; a test crate exports nothing
#![allow(clippy::unwrap_used)] // here a failure is the result

pub mod browser;
pub mod certs;
pub mod front;
pub mod h2;
pub mod h2_tap;
pub mod http1;
pub mod kubernetes;
pub mod nats;
pub mod node;
pub mod process;
pub mod proxy;
pub mod sidestream;
pub mod sse;
pub mod sse_parser;
pub mod transport;
pub mod upstream;
pub mod wait;
