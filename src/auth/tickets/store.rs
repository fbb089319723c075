//! Interface to the store of tickets, which all pods share; implemented by `nats::kv`.

use std::fmt::Debug;

use futures_util::future::BoxFuture;

use super::ticket::TicketKey;

/// Store of tickets. Every future is bounded in time by the implementation: 2 s.
///
/// An entry disappears by itself when its ticket has expired.
pub trait TicketStore: Debug + Send + Sync {
    /// Stores the entry of a new ticket.
    fn put(&self, key: TicketKey, entry: Vec<u8>) -> BoxFuture<'_, Result<(), PutError>>;

    /// Removes the entry of a ticket and returns it; `None` if it does not exist. Of all callers in
    /// all pods, one receives it.
    fn take(&self, key: TicketKey) -> BoxFuture<'_, Result<Option<Vec<u8>>, Unavailable>>;
}

/// Reason why an entry was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// There is no room for further entries.
    #[error("the ticket store is full")]
    Full,
    /// The store does not respond. The entry may be stored or not.
    #[error("the ticket store is not available")]
    Unavailable,
}

/// The store does not respond. The entry may be removed or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ticket store is not available")]
pub struct Unavailable;
