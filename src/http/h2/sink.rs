//! An HTTP/2 stream that its task shares with the rounds of its feed: what comes while the task waits goes to it directly.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;

use bytes::{Buf, Bytes};
use h2::{Reason, SendStream};

use crate::feed::{self, DirectSink, SendOutcome};
use crate::http::h2::group::H2StreamGroup;
use crate::http::stream::direct_path::DirectPath;
use crate::http::stream::write_batch::BATCH_BYTES;

/// The stream, on one thread with its connection. Its task has it to itself while it runs.
///
/// h2 is not asked how much the client's window lets out: to be told wakes the task, with every event. It is given no more
/// than a turn, and what is not out when the connection has had its own turn is refused ([`H2StreamGroup::tell_refused`]).
pub(super) struct SharedStream {
    send: Mutex<SendStream<EncodedRun>>,
    group: Arc<H2StreamGroup>,
    pub(super) direct_path: DirectPath,
}

/// The HTTP/2 stream has ended.
pub(super) struct Ended;

impl SharedStream {
    pub(super) fn new(
        send: SendStream<EncodedRun>,
        group: Arc<H2StreamGroup>,
        direct_path: DirectPath,
    ) -> Self {
        Self {
            send: Mutex::new(send),
            group,
            direct_path,
        }
    }

    fn lock(&self) -> MutexGuard<'_, SendStream<EncodedRun>> {
        self.send.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the client has reset the stream, or its connection has ended; otherwise the task is woken when that is so.
    pub(super) fn has_ended(&self, task: &mut Context<'_>) -> bool {
        self.lock().poll_reset(task).is_ready()
    }

    /// Hands bytes over. With `is_last` they end the stream.
    pub(super) fn send(self: &Arc<Self>, bytes: Bytes, is_last: bool) -> Result<(), Ended> {
        self.direct_path.state.add_in_flight(bytes.len());
        self.group.add_in_flight();
        self.lock()
            .send_data(EncodedRun::of(self.clone(), bytes), is_last)
            .map_err(|_| Ended)
    }

    /// So many bytes are with the connection's own, in their order.
    fn is_out(&self, bytes: usize) {
        self.group.uses_window(bytes);
        self.direct_path.state.remove_in_flight(bytes);
    }

    /// h2 has let go of a piece; so many bytes of it were thrown away with a stream that has ended.
    fn lets_go(&self, unsent: usize) {
        self.group.remove_in_flight();
        if unsent > 0 {
            self.direct_path.state.remove_in_flight(unsent);
        }
    }

    /// Whether other event streams of the connection wait because this one is not read.
    pub(super) fn blocks_others(&self) -> bool {
        self.group.probe();
        self.group.is_held_by(&self.direct_path.state)
    }

    /// Ends the stream, and nothing else of its connection: what it has not sent is thrown away.
    pub(super) fn reset(&self) {
        self.lock().send_reset(Reason::CANCEL);
    }
}

impl DirectSink for SharedStream {
    fn prefetch(&self) -> bool {
        self.direct_path.is_ready()
    }

    fn try_send(self: Arc<Self>, piece: &feed::EncodedRun) -> SendOutcome {
        let content = piece.chunk.to_content();
        let bytes = content.len();
        let is_full = self.direct_path.state.in_flight() + bytes > BATCH_BYTES;
        // The task finds out what is the matter with a stream that has ended.
        if is_full || !self.direct_path.admits(piece) || self.send(content, false).is_err() {
            return SendOutcome::Rejected;
        }
        self.direct_path
            .count((self.direct_path.record(piece), bytes));
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

/// Bytes on their way out of an HTTP/2 connection: of one DATA frame, or of several. Those of an event stream are under way
/// until they are among the connection's own.
pub(super) struct EncodedRun {
    bytes: Bytes,
    /// Whose they are.
    of: Option<Arc<SharedStream>>,
}

impl EncodedRun {
    /// Bytes of an event stream, counted as under way.
    pub(super) fn of(shared: Arc<SharedStream>, bytes: Bytes) -> Self {
        Self {
            of: Some(shared),
            bytes,
        }
    }
}

impl From<Bytes> for EncodedRun {
    /// Bytes that nobody waits for.
    fn from(bytes: Bytes) -> Self {
        Self { of: None, bytes }
    }
}

impl Buf for EncodedRun {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        // h2 has written or copied them, and the windows are smaller by them: of a large piece a part at a time.
        if let Some(shared) = self.of.as_ref().filter(|_| count > 0) {
            shared.is_out(count);
        }
    }
}

impl Drop for EncodedRun {
    fn drop(&mut self) {
        if let Some(shared) = &self.of {
            shared.lets_go(self.bytes.len());
        }
    }
}
