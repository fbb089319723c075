//! Who is connected: the event streams that are open on this pod, and the seam to the registry over all pods.

mod close_reason;
pub mod config;
pub mod entry;
mod handle;
pub mod queue;
pub mod store;
mod table;

pub use close_reason::CloseReason;
pub use config::{Bucket, Config};
pub use entry::{Entry, Key, Wanted};
pub use handle::{Lag, Protocol, Sent, State, StreamHandle, StreamInfo};
pub use queue::{Delivered, PresenceQueue};
pub use store::{Claim, Found, Handover, Later, PresenceStore, Unavailable};
pub use table::{Registration, RouteLag, SHARDS, StreamTable};
