//! The state of a reader's subjects again: it has missed events, or falls out of memory.
//!
//! ```text
//! read_state -> StateRead, polled by the task of the client -> State -> begin_state -> SnapshotReader
//! ```
//!
//! Until then the record of the reader stays where it is, and its cursor is not read.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;

use super::Cursor;
use crate::feed::OpenError;
use crate::feed::snapshot::{Snapshot, SnapshotReader};

/// State that was read for a cursor.
#[derive(Debug)]
pub struct State(Arc<Snapshot>);

/// State that is being read. Dropping it ends the read, unless other readers share it.
pub struct StateRead(Mutex<BoxFuture<'static, Result<State, OpenError>>>); // Never locked: `Sync`.

impl Cursor {
    /// Reads the last event of each subject of this reader, not older than its position. Nothing is
    /// requested before the first poll.
    #[must_use]
    pub fn read_state(&self) -> StateRead {
        let (origin, feed) = (self.origin.clone(), Arc::clone(&self.feed));
        let reader = self.position();
        StateRead(Mutex::new(Box::pin(async move {
            let floor = feed.lock().floor();
            let origin = origin.upgrade().ok_or(OpenError::NotReady)?;
            let snapshot = origin.snapshot(&feed.filters, floor, reader).await;
            snapshot.map(State)
        })))
    }

    /// Moves to the position of the state, which the reader receives first. If the window has moved
    /// on meanwhile, it reads the archive until it has reached the window.
    ///
    /// # Errors
    /// [`OpenError::NotReady`] if the source was recreated meanwhile, [`OpenError::TooManyReplays`]
    /// without a replay slot.
    pub fn begin_state(&mut self, State(snapshot): State) -> Result<SnapshotReader, OpenError> {
        let position = snapshot.position();
        self.replay = None;
        if position.tag != self.floor().tag {
            return Err(OpenError::NotReady);
        }
        if !self.seek(position) && !self.begin_replay(position) {
            return Err(OpenError::TooManyReplays);
        }
        Ok(snapshot.read(&self.feed.options))
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
