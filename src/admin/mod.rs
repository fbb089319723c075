//! Admin port and control socket: probes, metrics, connections, configuration, commands.
//!
//! Both run on one thread with a runtime of its own, which starts first and stops last, so probes
//! are answered while the other threads are busy. The admin knows the rest of the process only
//! through [`Parts`]: shared tables, a watch channel and a closure.
//!
//! ```text
//! admin port     -> server -> answer -> health, connections, list, telemetry
//!                                    -> page: viewers -> snapshot;  tap -> app
//! control socket -> socket -> control -> Command -> app
//! ```
//!
//! The page, `/connections` and `/config` can require a token, a session of a browser or a client
//! certificate (`access`); probes and metrics are open.
//!
//! Every connection has a slot (`net::slots`): idle connections are evicted by new ones, one peer
//! address gets a share, and health checks need no further permit.

mod access;
mod answer;
pub mod config;
mod connections;
mod control;
mod health;
mod list;
mod page;
mod parts;
mod response;
mod sample;
mod server;
mod session;
mod snapshot;
mod socket;
mod stream;
mod tap;
mod viewers;

pub use access::Token;
pub use config::Config;
pub use parts::{Command, Outcome, Parts};
pub use server::{Admin, start};
pub use socket::candidates;
pub use tap::{TapError, TapRequest, TapRoute, Taps};
