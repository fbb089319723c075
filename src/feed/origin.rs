//! Origin: the source of a feed, as the feed's cursors use it.
//!
//! A cursor asks the source for its head at a checkpoint, joins a replay when it is overtaken by
//! eviction, asks for the state of its subjects, and notifies the source when the last reader leaves.
//! None of this is per event. The
//! trait keeps the cursor independent of the kinds of sources. A cursor holds its origin weakly: it
//! does not keep a source in memory.

use std::fmt::Debug;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::event::Position;
use crate::subject::FilterSet;

use super::feed::Feed;
use super::open_error::OpenError;
use super::replay::member::ReplayMember;
use super::snapshot::Snapshot;

/// Source of a feed, as its cursors use it.
pub(super) trait Origin: Debug + Send + Sync {
    /// Position of the source's head, if a reader at this index of the feed has everything up to
    /// it.
    fn head_at_end(&self, feed: &Feed, index: u64) -> Option<Position>;

    /// Joins a replay with everything up to `after` read; `None` without an archive, or at the
    /// limit.
    fn join_replay(&self, feed: &Arc<Feed>, after: u64) -> Option<Box<ReplayMember>>;

    /// Returns the last event of each subject that these filters select: a snapshot that is not
    /// older than `floor`, if it is shared, or `reader`.
    fn snapshot<'a>(
        &'a self,
        _filters: &'a FilterSet,
        _floor: Position,
        _reader: Position,
    ) -> BoxFuture<'a, Result<Arc<Snapshot>, OpenError>> {
        Box::pin(std::future::ready(Err(OpenError::NotReady)))
    }

    /// Notifies the source that the last reader of this feed has left.
    fn reader_left(&self, feed: &Arc<Feed>);
}
