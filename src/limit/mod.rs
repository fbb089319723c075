//! What the process may use, and how much of it is in use.

pub mod bucket;
pub mod clients;
pub mod config;
pub mod descriptors;
pub mod door;
pub mod pressure;
pub mod pulse;

pub use clients::{Clients, Throttled, Visit};
pub use config::{PerClient, Rate, Thresholds};
pub use door::{Door, Entered, Supply};
pub use pressure::Level;
pub use pulse::Pulses;
