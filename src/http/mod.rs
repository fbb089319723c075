//! The downstream side: connections of clients, and one SSE response on each.

pub mod config;

pub use config::{Config, RouteConfig};
