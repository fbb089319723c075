//! What only the source itself still has: the events behind the window.

use std::fmt;
use std::pin::Pin;

use super::{Gap, GapReason};
use crate::sse::{Event, SourceTag};
use crate::subject::FilterSet;

/// A source that can be asked for its past. JetStream is behind it; a test may be.
pub trait Archive: fmt::Debug + Send + Sync {
    /// Where the source is; read once for all who ask meanwhile. An answer that ends before `seq` is newer than the
    /// question; any other may be about a second old.
    fn state(&self, seq: u64) -> BoxFuture<'_, State>;

    /// The check of the message at this sequence number; none when no message stands there.
    fn check(&self, seq: u64) -> BoxFuture<'_, Option<u16>>;

    /// Whether the source is known to reject readings until an operator changes something: readers that need one are
    /// turned away instead of waiting for ever.
    fn is_rejecting(&self) -> bool {
        false
    }

    /// Begins to read what these filters select, after a sequence number.
    fn read(&self, filters: &FilterSet, after: u64) -> Box<dyn Pages>;
}

/// One reading of the past. Dropping it ends it, at the source too.
pub trait Pages: Send {
    /// The next page: at most some hundred events. Waits at the end of the source until there is more.
    fn next(&mut self) -> BoxFuture<'_, Page>;
}

/// A stretch of a source, complete.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The stretch begins behind this sequence number: later than what was asked for when that is retained no more.
    pub after: u64,
    /// Only the message at `after` is left out before the page: it is stored, and cannot become an event.
    pub is_unreadable: bool,
    /// In ascending order of sequence.
    pub events: Vec<Event>,
    /// The stretch ends with this one: what is selected up to here is in `events`.
    pub through: u64,
}

impl Page {
    /// The gap for readers that expected something before the page.
    #[must_use]
    pub fn gap(&self) -> Gap {
        if self.is_unreadable {
            // As a live reader of the same message.
            return Gap {
                reason: GapReason::Upstream,
                missed: Some(1),
            };
        }
        Gap {
            reason: GapReason::Expired,
            missed: None,
        }
    }
}

/// Where a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Which sequence its numbers are of.
    pub tag: SourceTag,
    /// The oldest number that is retained; above `last_seq` when nothing is.
    pub first_seq: u64,
    /// The newest number that was ever given.
    pub last_seq: u64,
}

/// The answer of a source that is far away.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Unavailable>> + Send + 'a>>;

/// Why a source does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// Not now: asked again later it may.
    Now(String),
    /// Not until an operator changes something: limits, permissions, the stream itself.
    Rejected(String),
    /// It is another one than was asked: recreated, or restored from an older snapshot.
    Changed,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now(why) | Self::Rejected(why) => f.write_str(why),
            Self::Changed => f.write_str("the stream is another one now"),
        }
    }
}

impl std::error::Error for Unavailable {}
