//! Slow, stuck and dead clients of the real sidecar: what they are given, what they are told, and that nobody else notices.

mod crowds;
mod peers;
mod policies;
mod stage;
mod tls;
mod windows;
