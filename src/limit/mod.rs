//! What the process may use, and how much of it is in use.

pub mod clients;
pub mod config;
pub mod connections;
pub mod descriptors;
pub mod load_level;
pub mod loop_lag;
pub mod token_bucket;

pub use clients::{Clients, Throttled, Visit};
pub use config::{PerClient, Rate, Thresholds};
pub use connections::{Door, Entered, Supply};
pub use load_level::Level;
pub use loop_lag::Pulses;
