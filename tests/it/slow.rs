//! Slow, stuck and dead clients of the real sidecar: what they are given, what they are told, and that nobody else notices.

mod crowds;
mod fixture;
mod peers;
mod policies;
mod tls;
mod windows;
