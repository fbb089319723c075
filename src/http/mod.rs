//! The downstream side: connections of clients, and one SSE response on each.
//!
//! ```text
//! server -> arrival -> connection -> answer (request, route, cors, refusal) -> event_stream -> h1 | h2
//! ```

mod answer;
mod arrival;
mod body;
mod client_address;
pub mod config;
mod connection;
mod context;
mod cors;
mod event_stream;
mod family;
mod gate;
mod h1;
mod h2;
mod idle;
mod member;
mod outlet;
mod output;
mod pace;
mod patience;
mod refusal;
mod request;
mod route;
mod server;
mod take_back;
mod takeover;
mod ticks;
mod transport;
mod wire;

pub use arrival::Drain;
pub use config::{Config, RouteConfig};
pub use context::Context;
pub use member::memory_bytes;
pub use route::{FindSource, Routes};
pub use server::serve;
