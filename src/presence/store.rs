//! Interface to the presence store of all pods, implemented by `nats::kv`.
//!
//! Every future is bounded in time by the implementation. Failures never affect event streams:
//! without a store a client begins live, and an operator sees only this pod's clients.

use std::pin::Pin;

use super::entry::{ClaimRequest, Entry, Key};
use super::queue::PresenceQueue;
use crate::event::EventId;

/// Boxed future with a bounded duration.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Presence store of all pods.
pub trait PresenceStore: Send + Sync {
    /// Queue of this pod's updates. Never waits.
    fn queue(&self) -> &PresenceQueue;

    /// Event streams of one client on all pods, including those that ended within a minute; at most
    /// `limit`.
    fn find<'a>(
        &'a self,
        client: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Found, Unavailable>>;

    /// Claims the position that a drain recorded for this client. Only one caller gets it. Within
    /// 500 ms.
    fn claim_position(&self, request: ClaimRequest) -> BoxFuture<'_, Claim>;

    /// Removes the recorded position of this client, which resumed from its own position `has`.
    /// Within 500 ms.
    fn discard_position(&self, request: ClaimRequest, has: EventId) -> BoxFuture<'_, ()>;

    /// Releases a claimed position: the event stream could not be opened.
    fn release_position(&self, handover: Handover) -> BoxFuture<'_, ()>;
}

/// Event streams of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Sorted by key.
    pub entries: Vec<(Key, Entry)>,
    /// The list has all of them.
    pub is_complete: bool,
}

/// Result for a client that reconnects without a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// No position is recorded, or the store does not respond: the client begins live.
    Nothing,
    /// The client resumes from this position.
    Granted(Box<Handover>),
    /// A position is recorded, but the client cannot resume from it: it begins live, after a gap.
    Lost,
}

/// A claimed position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// Key of the entry.
    pub key: Key,
    /// Entry that the drain recorded; the client resumes from its `last_event_id`.
    pub entry: Entry,
    /// Revision of the key after the claim.
    pub revision: u64,
}

/// Reason why the store does not respond: a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);
