//! Limits: what clients and the process may use, and how much of it is in use.
//!
//! ```text
//! accept a connection    connections   permits per connection; headroom of file descriptors
//! check credentials      addresses     failed authentications and calls per address and in total
//! issue a ticket         tickets     tickets per principal
//! open an event stream   clients       limits per client: event streams, filter sets, connects
//!                        claims        limits that a client has from the claims of its principal
//! deliver an event       token_bucket  rate of events per client
//! a few times a second   load_level    one level from descriptors, memory, event-loop lag, NATS
//! ```
//!
//! Nothing here waits: a limiter returns a permit, or the reason and the time until a retry makes
//! sense. Permits are guards: dropping one returns what it holds. `http::request::respond` turns a
//! failed acquisition into a rejection. The admin thread (`app::load`) refreshes the number of open
//! descriptors and the load level, so that both work while the shards are busy.

pub mod addresses;
mod claims;
pub mod clients;
pub mod config;
pub mod connections;
pub mod descriptors;
mod leaky_bucket;
pub mod load_level;
pub mod loop_lag;
pub mod tickets;
pub mod token_bucket;

pub use addresses::{AddressLimiter, AddressLimits};
pub use clients::{ClientLimiter, ClientPermit, Throttled};
pub use config::{PerClient, PerClientClaims, PerClientConfig, Rate, Thresholds};
pub use connections::{ConnectionLimiter, ConnectionPermit, FdHeadroom};
pub use leaky_bucket::LeakLimit;
pub use load_level::LoadLevel;
pub use loop_lag::LoopLagProbes;
pub use tickets::TicketLimiter;
