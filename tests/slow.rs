//! Slow, stuck and dead clients of the real sidecar: what they are given, what they are told, and that nobody else notices.

#![allow(clippy::unwrap_used)] // here a failure is the result
#![allow(unreachable_pub)] // `pub` says what other modules may use; a test crate exports nothing

#[path = "slow/crowds.rs"]
mod crowds;
#[path = "slow/peers.rs"]
mod peers;
#[path = "slow/policies.rs"]
mod policies;
#[path = "slow/stage.rs"]
mod stage;
mod support;
#[path = "slow/tls.rs"]
mod tls;
#[path = "slow/windows.rs"]
mod windows;
