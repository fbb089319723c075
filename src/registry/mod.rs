//! Who is connected: the event streams that are open on this pod, and the seam to the registry over all pods.

pub mod changes;
mod close;
pub mod cluster;
pub mod config;
pub mod entry;
mod local;
mod member;

pub use changes::{Changes, Delivered};
pub use close::Close;
pub use cluster::{Claim, Cluster, Found, Handover, Later, Unavailable};
pub use config::{Bucket, Config};
pub use entry::{Entry, Key, Wanted};
pub use local::{Registration, Registry, RouteLag, SHARDS};
pub use member::{Description, Lag, Member, Protocol, Sent, State};
