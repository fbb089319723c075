//! Archive: the interface to the history of a source, the stored events older than the window.
//!
//! JetStream implements it (`nats::history`), and so do the tests. The feed asks for four things:
//! the range of sequence numbers that is stored, the fingerprint of one message (to detect that a
//! stream was recreated or restored), the position where a reader begins, and pages of events after
//! a position. Every answer is
//! asynchronous and can fail: see [`Unavailable`] for the three ways.
//!
//! Only [`replay`](super::replay) reads pages. A reading waits at the end of the source, so that a
//! replay continues until its last reader has reached the window.

use std::fmt;
use std::pin::Pin;

use super::begin::Begin;
use super::encoded::EncodedEvent;
use super::gap::{Gap, GapReason};
use crate::event::{Event, Fingerprint, Position, SourceTag};
use crate::subject::FilterSet;

/// Stored events of one source.
pub trait Archive: fmt::Debug + Send + Sync {
    /// Range of the stored sequence numbers. Concurrent calls share one request. If `last_seq` of
    /// the answer is below `seq`, the answer is newer than the call; any other may be about a
    /// second old.
    fn state(&self, seq: u64) -> BoxFuture<'_, State>;

    /// Fingerprint of the message at this sequence number; `None` if there is no message.
    fn fingerprint(&self, seq: u64) -> BoxFuture<'_, Option<Fingerprint>>;

    /// Position directly before the first event that a reader with these filters receives. The
    /// answer is newer than the call.
    fn locate<'a>(&'a self, begin: Begin, filters: &'a FilterSet) -> BoxFuture<'a, Position>;

    /// Sequence number of the newest message that these filters select, if it is stored now and ends
    /// finite event streams.
    fn end<'a>(&'a self, filters: &'a FilterSet) -> BoxFuture<'a, Option<u64>>;

    /// Last event of each subject that these filters select, at a position that is newer than the
    /// call. Events that use more than `bytes_max` together ([`state_bytes`]) are not read to the
    /// end.
    fn latest<'a>(&'a self, filters: &'a FilterSet, bytes_max: usize) -> BoxFuture<'a, Latest>;

    /// True if the source is known to reject reads until an operator changes something. A reader
    /// that needs the archive is then rejected instead of waiting indefinitely.
    fn is_rejecting(&self) -> bool {
        false
    }

    /// Starts to read the events that match these filters, after a sequence number.
    fn read(&self, filters: &FilterSet, after: u64) -> Box<dyn Pages>;
}

/// Bytes that an event of a state uses in memory.
#[must_use]
pub fn state_bytes(event: &Event) -> usize {
    size_of::<EncodedEvent>() + event.subject.len() + event.data.len()
}

/// State of the subjects of some filters.
#[derive(Clone, Debug)]
pub struct Latest {
    /// Every event up to here is in the state, or was replaced by a later one.
    pub position: Position,
    /// Last event of each subject, in ascending order of sequence. Removed ones are not included.
    /// `None` if they are too large together.
    pub events: Option<Vec<Event>>,
}

/// One reading of the archive. Dropping it also ends it at the source.
pub trait Pages: Send {
    /// Returns the next page of at most some hundred events. At the end of the source it waits
    /// until there are more.
    fn next(&mut self) -> BoxFuture<'_, Page>;
}

/// All selected events in one range of sequence numbers.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The range starts after this sequence number. It is above the requested one if the events
    /// between are no longer retained.
    pub after: u64,
    /// Only the message at `after` is missing before the page: it is stored, but cannot be decoded
    /// into an event.
    pub is_unreadable: bool,
    /// Selected events, in ascending order of sequence.
    pub events: Vec<Event>,
    /// Last sequence number of the range.
    pub through: u64,
}

impl Page {
    /// Gap for readers that expected events before the page.
    #[must_use]
    pub fn gap(&self) -> Gap {
        if self.is_unreadable {
            // The same gap that a live reader of this message receives.
            return Gap {
                reason: GapReason::Upstream,
                missed: Some(1),
            };
        }
        Gap::uncounted(GapReason::Expired)
    }
}

/// Range of the sequence numbers that a source stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Tag of the source's event ids.
    pub tag: SourceTag,
    /// Oldest retained sequence number; above `last_seq` if nothing is retained.
    pub first_seq: u64,
    /// Newest sequence number that was ever assigned.
    pub last_seq: u64,
}

/// Boxed answer of a remote source.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Unavailable>> + Send + 'a>>;

/// Reason why a source does not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Transient error; a retry may succeed.
    #[error("{0}")]
    Temporary(String),
    /// Permanent until an operator changes something: limits, permissions, the stream itself.
    #[error("{0}")]
    Rejected(String),
    /// The source is a different one: recreated, or restored from an older snapshot.
    #[error("the stream was recreated or restored")]
    Changed,
}
