//! The registry over all pods as the rest of the process uses it; NATS is behind it.

use std::fmt;
use std::pin::Pin;

use super::entry::{Entry, Key, Wanted};
use super::queue::PresenceQueue;
use crate::sse::EventId;

/// An answer that comes later. It is bounded in time by who gives it.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where clients are, over all pods.
pub trait PresenceStore: Send + Sync {
    /// Where this pod's own event streams are told; never waits.
    fn changes(&self) -> &PresenceQueue;

    /// The event streams of one client, on all pods, those that ended within a minute too; at most `limit`.
    fn find<'a>(&'a self, client: &'a str, limit: usize) -> Later<'a, Result<Found, Unavailable>>;

    /// Takes what a drain has left for this client, if it left anything: nobody else gets it. Within 500 ms.
    fn take_over(&self, wanted: Wanted) -> Later<'_, Claim>;

    /// Removes what a drain has left for this client, which was served from `has` on and needs it no more. Within 500 ms.
    fn remove(&self, wanted: Wanted, has: EventId) -> Later<'_, ()>;

    /// Leaves again what was taken over in vain.
    fn give_back(&self, handover: Handover) -> Later<'_, ()>;
}

/// What is known of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// By key.
    pub entries: Vec<(Key, Entry)>,
    /// Whether these are all.
    pub is_complete: bool,
}

/// Answer to a client that comes back without a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// No position is recorded for it, or the registry does not answer: it begins live.
    Nothing,
    /// It resumes from this one.
    Granted(Box<Handover>),
    /// A position was recorded, and it cannot resume from there: it begins live, after a gap.
    Lost,
}

/// What was taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// Whose it is.
    pub key: Key,
    /// What the drain has left; its `last_event_id` is where to go on.
    pub entry: Entry,
    /// Which version of the key is ours now.
    pub revision: u64,
}

/// Why nothing can be told now: a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable(pub String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
