//! An HTTP/2 stream that an event stream's task shares with the dispatcher of its feed.
//!
//! Bytes are in flight from [`SharedStream::pass`] until h2 has copied or written them
//! ([`DataChunk`]). At most one batch of an event stream is in flight. h2 is not asked how much of
//! the client's window is left: such a request would wake the task with every event. What is still
//! in flight after a turn of the connection counts as blocked (`StreamGroup::wake_blocked`).
//!
//! All of this runs on the connection's thread; the mutex around the h2 stream is never contended.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;

use bytes::{Buf, Bytes};
use h2::{Reason, SendStream};
use hyper::HeaderMap;

use crate::feed::{DirectSink, EncodedRun, SendOutcome};
use crate::http::stream::direct_path::DirectPath;
use crate::http::stream::group::StreamGroup;
use crate::http::stream::write_batch::{BATCH_BYTES, Written};

/// HTTP/2 stream with the state of its direct path.
pub(super) struct SharedStream {
    send: Mutex<SendStream<DataChunk>>,
    group: Arc<StreamGroup>,
    pub(super) direct_path: DirectPath,
}

/// The HTTP/2 stream has ended.
pub(super) struct Ended;

impl SharedStream {
    pub(super) fn new(
        send: SendStream<DataChunk>,
        group: Arc<StreamGroup>,
        direct_path: DirectPath,
    ) -> Self {
        Self {
            send: Mutex::new(send),
            group,
            direct_path,
        }
    }

    fn lock(&self) -> MutexGuard<'_, SendStream<DataChunk>> {
        self.send.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true if the client has reset the stream or its connection has ended; otherwise the
    /// task is woken when that happens.
    pub(super) fn has_ended(&self, task: &mut Context<'_>) -> bool {
        self.lock().poll_reset(task).is_ready()
    }

    /// Passes bytes to h2. `is_last` ends the stream with them.
    pub(super) fn pass(self: &Arc<Self>, bytes: Bytes, is_last: bool) -> Result<(), Ended> {
        self.direct_path.state.add_in_flight(bytes.len());
        self.group.add_in_flight();
        self.lock()
            .send_data(DataChunk::of(self.clone(), bytes), is_last)
            .map_err(|_| Ended)
    }

    /// Ends the stream with trailers, after everything that was passed.
    pub(super) fn finish(&self, trailers: HeaderMap) -> Result<(), Ended> {
        self.lock().send_trailers(trailers).map_err(|_| Ended)
    }

    /// Counts bytes that h2 has written, or copied to the connection's buffer.
    fn record_flushed(&self, bytes: usize) {
        self.group.use_window(bytes);
        self.direct_path.state.remove_in_flight(bytes);
    }

    /// Counts a chunk that h2 has dropped; `discarded` bytes of it were not written.
    fn record_dropped(&self, discarded: usize) {
        self.group.remove_in_flight();
        if discarded > 0 {
            self.direct_path.state.remove_in_flight(discarded);
        }
    }

    /// Returns true if other event streams of the connection wait because this one is not read.
    pub(super) fn blocks_others(&self) -> bool {
        self.group.probe();
        self.group.is_held_by(&self.direct_path.state)
    }

    /// Resets the stream alone; bytes that were not written are discarded.
    pub(super) fn reset(&self) {
        self.lock().send_reset(Reason::CANCEL);
    }
}

impl DirectSink for SharedStream {
    fn admits(&self, run: &EncodedRun) -> bool {
        self.direct_path.admits(run)
            && self.direct_path.state.in_flight() + run.bytes.content().len() <= BATCH_BYTES
    }

    fn send(self: Arc<Self>, run: &EncodedRun) -> SendOutcome {
        let content = run.bytes.to_content();
        let bytes = content.len();
        // The task finds out that a stream has ended.
        if self.pass(content, false).is_err() {
            return SendOutcome::Rejected;
        }
        let stats = self.direct_path.record(run);
        self.direct_path.count(Written { stats, bytes });
        SendOutcome::Queued
    }
}

impl std::fmt::Debug for SharedStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedStream")
            .field("direct_path", &self.direct_path)
            .finish_non_exhaustive()
    }
}

/// Payload of one DATA frame or several. Bytes of an event stream are in flight until h2 has
/// advanced over them.
pub(super) struct DataChunk {
    bytes: Bytes,
    /// Event stream that counts them.
    of: Option<Arc<SharedStream>>,
}

impl DataChunk {
    /// Bytes of an event stream, which it has counted as in flight.
    pub(super) fn of(shared: Arc<SharedStream>, bytes: Bytes) -> Self {
        Self {
            of: Some(shared),
            bytes,
        }
    }
}

impl From<Bytes> for DataChunk {
    /// Bytes that are not counted: the body of a rejection.
    fn from(bytes: Bytes) -> Self {
        Self { of: None, bytes }
    }
}

impl Buf for DataChunk {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        // h2 has written or copied them and reduced the windows; of a large chunk a part at a time.
        if let Some(shared) = self.of.as_ref().filter(|_| count > 0) {
            shared.record_flushed(count);
        }
    }
}

impl Drop for DataChunk {
    fn drop(&mut self) {
        if let Some(shared) = &self.of {
            shared.record_dropped(self.bytes.len());
        }
    }
}
