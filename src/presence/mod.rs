//! Who is connected: the event streams that are open on this pod, and the seam to the registry over all pods.

mod close_reason;
pub mod config;
pub mod entry;
mod handle;
pub mod queue;
pub mod store;
mod table;

pub use close_reason::Close;
pub use config::{Bucket, Config};
pub use entry::{Entry, Key, Wanted};
pub use handle::{Description, Lag, Member, Protocol, Sent, State};
pub use queue::{Changes, Delivered};
pub use store::{Claim, Cluster, Found, Handover, Later, Unavailable};
pub use table::{Registration, Registry, RouteLag, SHARDS};
