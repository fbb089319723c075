//! Open event streams of this pod, and the interface to the presence store of all pods.
//!
//! [`StreamTable`] holds every open event stream as a [`StreamHandle`]; the admin port, the drain
//! and the metrics read it. If a presence store is configured, every change of an event stream is
//! queued in the [`PresenceQueue`], and the store's writer (`nats::kv`) writes it to a NATS KV
//! bucket:
//!
//! ```text
//! event stream -> Registration -> StreamTable            this pod: /connections, drain, lag
//!                     '-> PresenceQueue -> PresenceStore  all pods: /connections?scope=cluster
//! reconnecting client -> PresenceStore::claim_position    position that a drain recorded
//! ```
//!
//! `entry` is the format of keys and values in the bucket. Nothing here waits for NATS while it
//! serves an event stream, except a claim, which is limited to 500 ms.

mod close_reason;
pub mod config;
pub mod entry;
mod handle;
pub mod queue;
pub mod store;
mod table;

pub use close_reason::CloseReason;
pub use config::Config;
pub use entry::{ClaimRequest, Entry, Key};
pub use handle::{Lag, Protocol, Sent, State, StreamHandle, StreamInfo};
pub use queue::{Delivered, PresenceQueue};
pub use store::{BoxFuture, Claim, Found, Handover, PresenceStore, Unavailable};
pub use table::{Registration, RouteLag, SHARDS, StreamTable};
