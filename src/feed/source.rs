//! Source: one configured origin of events, of one of three kinds.
//!
//! [`Source`] is what routes hold and open readers on. `Origin` is the reverse direction: a cursor
//! keeps the source that created its feed, asks it for the head and for a replay, and notifies it
//! when the last reader leaves.

use std::sync::Arc;

use crate::sse::Position;
use crate::subject::FilterSet;

use super::feed::Feed;
use super::replay::ReplayMember;
use super::{CoreSource, Cursor, FeedOptions, Outcome, RepublishSource, Start, StreamBuffer};

/// One configured origin of events.
#[derive(Clone, Debug)]
pub enum Source {
    /// JetStream stream, read by one consumer for the whole pod.
    JetStream(Arc<StreamBuffer>),
    /// JetStream stream with `republish`, subscribed to on demand.
    Republish(Arc<RepublishSource>),
    /// Core subjects, subscribed to on demand.
    Core(Arc<CoreSource>),
}

/// A reader that has been opened.
#[derive(Debug)]
pub struct Opened {
    /// Its cursor.
    pub cursor: Cursor,
    /// Outcome of its start.
    pub outcome: Outcome,
}

/// Reason why a reader cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The source has not started, or NATS does not answer.
    NotReady,
    /// NATS rejects what the reader needs until an operator changes something.
    Rejected,
    /// The limit `limits.feeds` is reached.
    TooManyFeeds,
    /// The limit `limits.replays.queued` is reached.
    TooManyReplays,
}

impl Source {
    /// Address of the source in memory, unique among the live sources.
    #[must_use]
    pub fn address(&self) -> usize {
        match self {
            Self::JetStream(buffer) => Arc::as_ptr(buffer).addr(),
            Self::Republish(stream) => Arc::as_ptr(stream).addr(),
            Self::Core(core) => Arc::as_ptr(core).addr(),
        }
    }

    /// Opens a reader of all events that match.
    ///
    /// # Errors
    /// [`OpenError`] if NATS is not available or a limit is reached.
    pub async fn open(
        &self,
        filters: FilterSet,
        options: &Arc<FeedOptions>,
        start: Start,
    ) -> Result<Opened, OpenError> {
        match self {
            Self::JetStream(buffer) => buffer.open(filters, options, start).await,
            Self::Republish(stream) => stream.open(filters, options, start).await,
            Self::Core(core) => core.open(filters, options, start).await,
        }
    }
}

/// Source of a feed, as its cursors use it.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    JetStream(Arc<StreamBuffer>),
    Republish(Arc<RepublishSource>),
    Core(Arc<CoreSource>),
}

impl Origin {
    /// Position of the source's head, if a reader at this index of the feed has everything up to
    /// it.
    pub(super) fn head_at_end(&self, feed: &Feed, index: u64) -> Option<Position> {
        match self {
            Self::JetStream(buffer) => buffer.head_at_end(feed, index),
            Self::Republish(_) => RepublishSource::head_at_end(feed, index),
            Self::Core(core) => core.head_at_end(feed, index),
        }
    }

    /// Joins a replay with everything up to `after` read; `None` without an archive, or at the
    /// limit.
    pub(super) fn join_replay(&self, feed: &Arc<Feed>, after: u64) -> Option<Box<ReplayMember>> {
        match self {
            Self::JetStream(buffer) => buffer.join_replay(feed, after),
            Self::Republish(stream) => stream.join_replay(feed, after),
            Self::Core(_) => None,
        }
    }

    /// Notifies the source that the last reader of this feed has left.
    pub(super) fn reader_left(&self, feed: &Arc<Feed>) {
        match self {
            Self::JetStream(buffer) => buffer.reader_left(feed),
            Self::Republish(stream) => stream.reader_left(feed),
            Self::Core(core) => core.reader_left(feed),
        }
    }
}
