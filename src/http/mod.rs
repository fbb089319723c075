//! The downstream side: connections of clients, and one SSE response on each.
//!
//! ```text
//! server -> arrival -> connection -> answer (request, route, cors, refusal) -> event_stream -> h1 | h2
//! ```

mod accept;
pub mod config;
mod context;
mod h1;
mod h2;
mod request;
mod stream;
mod transport;

pub use accept::connection_task::Drain;
pub use accept::listen::serve;
pub use config::{Config, RouteConfig};
pub use context::Context;
pub use request::route::{FindSource, Routes};
pub use stream::state::memory_bytes;
