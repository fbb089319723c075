//! One configured origin of events, as readers see it.

use std::sync::Arc;

use crate::sse::Position;
use crate::subject::FilterSet;

use super::feed::Feed;
use super::replay::ReplayMember;
use super::{CoreSource, Cursor, FeedOptions, Outcome, RepublishSource, Start, StreamBuffer};

/// Where cursors come from: a log that one tailer fills, or subscriptions made on demand.
#[derive(Clone, Debug)]
pub enum Source {
    /// A JetStream stream, followed for the whole pod.
    JetStream(Arc<StreamBuffer>),
    /// A JetStream stream that republishes, subscribed to on demand.
    Republish(Arc<RepublishSource>),
    /// Core subjects.
    Core(Arc<CoreSource>),
}

/// A reader that may begin.
#[derive(Debug)]
pub struct Opened {
    /// Its place.
    pub cursor: Cursor,
    /// What became of its start.
    pub outcome: Outcome,
}

/// Why no reader can begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Nothing has been heard from NATS yet.
    NotReady,
    /// NATS rejects reading what the reader needs until an operator changes something.
    Rejected,
    /// As many feeds as `limits.feeds` allows.
    TooManyFeeds,
    /// As many readers wait for a replay as `limits.replays.queued` allows.
    TooManyReplays,
}

impl Source {
    /// Where it is in memory: a number that no other source has at the time.
    #[must_use]
    pub fn address(&self) -> usize {
        match self {
            Self::JetStream(log) => Arc::as_ptr(log).addr(),
            Self::Republish(stream) => Arc::as_ptr(stream).addr(),
            Self::Core(core) => Arc::as_ptr(core).addr(),
        }
    }

    /// Opens a reader of everything that matches, beginning where it wants to.
    ///
    /// # Errors
    /// [`OpenError`] when NATS is not there yet or a limit is reached.
    pub async fn open(
        &self,
        filters: FilterSet,
        profile: &Arc<FeedOptions>,
        start: Start,
    ) -> Result<Opened, OpenError> {
        match self {
            Self::JetStream(log) => log.open(filters, profile, start).await,
            Self::Republish(stream) => stream.open(filters, profile, start).await,
            Self::Core(core) => core.open(filters, profile, start).await,
        }
    }
}

/// What made a feed: asked for the head, and told when its last reader leaves.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    JetStream(Arc<StreamBuffer>),
    Republish(Arc<RepublishSource>),
    Core(Arc<CoreSource>),
}

impl Origin {
    /// Where the source is known to be, if a reader at this index of the feed has everything up to there.
    pub(super) fn head_at_end(&self, feed: &Feed, index: u64) -> Option<Position> {
        match self {
            Self::JetStream(log) => log.head_at_end(feed, index),
            Self::Republish(_) => RepublishSource::head_at_end(feed, index),
            Self::Core(core) => core.head_at_end(feed, index),
        }
    }

    /// A place in the replays of the source, for a reader that has everything up to `after`; none where there is no
    /// archive, or too many wait.
    pub(super) fn enter(&self, feed: &Arc<Feed>, after: u64) -> Option<Box<ReplayMember>> {
        match self {
            Self::JetStream(log) => log.enter(feed, after),
            Self::Republish(stream) => stream.enter(feed, after),
            Self::Core(_) => None,
        }
    }

    /// The last reader of this feed has left.
    pub(super) fn left(&self, feed: &Arc<Feed>) {
        match self {
            Self::JetStream(log) => log.left(feed),
            Self::Republish(stream) => stream.left(feed),
            Self::Core(core) => core.left(feed),
        }
    }
}
