//! The upstream side: connections to NATS, and messages that become events.

mod client;
pub mod config;

pub use client::{Identity, InvalidServer};
pub use config::Config;
