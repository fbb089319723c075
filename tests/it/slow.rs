//! Slow, stalled and vanished clients: events, gaps, closes, and no effect on other clients.

mod crowds;
mod fixture;
mod peers;
mod policies;
mod tls;
mod windows;
