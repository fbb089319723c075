//! What the process may use, and how much of it is in use.

pub mod clients;
pub mod config;
pub mod connections;
pub mod descriptors;
pub mod load_level;
pub mod loop_lag;
pub mod token_bucket;

pub use clients::{ClientLimiter, ClientPermit, Throttled};
pub use config::{PerClient, Rate, Thresholds};
pub use connections::{ConnectionLimiter, ConnectionPermit, FdHeadroom};
pub use load_level::LoadLevel;
pub use loop_lag::LoopLagProbes;
