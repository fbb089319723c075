//! The state of a reader's subjects again: it has missed events, or falls out of memory.
//!
//! ```text
//! read_state -> StateRead, polled by the task of the client -> State -> begin_state -> SnapshotReader
//! ```
//!
//! Until then the record of the reader stays where it is, and its cursor is not read.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;

use crate::event::Position;
use crate::feed::OpenError;
use crate::feed::feed::Feed;
use crate::feed::origin::Origin;
use crate::feed::snapshot::Snapshot;

/// State that was read for a cursor.
#[derive(Debug)]
pub struct State(Arc<Snapshot>);

/// State that is being read. Dropping it ends the read, unless other readers share it.
pub struct StateRead(Mutex<BoxFuture<'static, Result<State, OpenError>>>); // Never locked: `Sync`.

impl State {
    /// Returns the snapshot.
    pub(super) fn into_snapshot(self) -> Arc<Snapshot> {
        self.0
    }
}

impl StateRead {
    /// Reads the snapshot of a feed from its source, not older than the position `reader`.
    pub(super) fn new(origin: Weak<dyn Origin>, feed: Arc<Feed>, reader: Position) -> Self {
        Self(Mutex::new(Box::pin(async move {
            let floor = feed.lock().floor();
            let origin = origin.upgrade().ok_or(OpenError::NotReady)?;
            let snapshot = origin.snapshot(&feed.filters, floor, reader).await;
            snapshot.map(State)
        })))
    }
}

impl Future for StateRead {
    type Output = Result<State, OpenError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let read = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        read.as_mut().poll(context)
    }
}

impl fmt::Debug for StateRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StateRead")
    }
}
