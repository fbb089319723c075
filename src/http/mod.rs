//! Client side: connections, requests, and event streams over HTTP/1 and HTTP/2.
//!
//! ```text
//! accept    listener -> task per connection -> protocol detection -> hyper (HTTP/1) or h2
//! request   route, variables, limits -> event stream or rejection
//! stream    event stream without a protocol: cursors, gaps, heartbeats, throttling, close
//! application  requests for paths without a route pass to the application beside
//! h1, h2    write it: a socket reclaimed from hyper; a stream of an HTTP/2 connection
//! ```
//!
//! Every connection stays on the shard that accepted it. [`Context`] is the state that all of them
//! share; [`Routes`] is replaced by a reload. The folder does not know NATS: it reads events
//! through `feed::Source`.

mod accept;
pub mod application;
pub mod config;
mod context;
mod h1;
mod h2;
mod request;
mod route;
mod stream;
mod stream_options;
mod tap;
mod ticket_endpoint;
mod transport;

pub use accept::connection_task::{Drain, clear_text};
pub use accept::listen::serve;
pub use config::{Config, RouteConfig};
pub use context::Context;
pub use h1::chunk::ENVELOPE;
pub use route::{FindProvider, FindSource, Routes};
pub use stream::ages::{PeerEnds, StreamAges};
pub use stream::compact_time::tick_origin;
pub use stream::state::memory_bytes;
pub use tap::{TapError, TapRoute};
pub use transport::Socket;
