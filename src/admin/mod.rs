//! The operator's side: probes, metrics, connections, configuration, the control socket; on a thread of its own.
//!
//! It knows what it shows only through what it is given ([`Parts`]): shared tables, a watch and a closure.

mod answer;
pub mod config;
mod connections;
mod control;
mod health;
mod list;
mod sample;
mod server;
mod socket;

pub use config::Config;
pub use control::{Command, Outcome};
pub use server::{Admin, Parts, start};
pub use socket::places;
