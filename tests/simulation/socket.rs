//! A socket in memory between a connection of the sidecar and its client.
//!
//! It has the readiness of a `TcpStream`: the kernel accepts bytes up to its room, an attempt beyond
//! that would block, and the writer is woken when the client makes room. The world chooses the room
//! of each client, so a write is accepted completely, in part at any byte, or not at all.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};

use sidestream::http::Socket;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::coverage::{self, Case};

/// Server side.
#[derive(Debug)]
pub(crate) struct SimulatedSocket(Arc<Mutex<Wire>>);

/// Client side.
#[derive(Debug)]
pub(crate) struct Peer(Arc<Mutex<Wire>>);

#[derive(Debug, Default)]
struct Wire {
    /// Sent by the client, not yet read.
    inbound: VecDeque<u8>,
    /// The client has ended its side, or reset the connection.
    is_closed: bool,
    is_reset: bool,
    /// Accepted by the kernel, not yet taken by the client.
    outbound: Vec<u8>,
    /// The server has ended its side, or dropped the socket.
    is_ended: bool,
    is_dropped: bool,
    /// Bytes that are accepted before an attempt would block.
    room: usize,
    /// The task of the connection runs: other writes are direct ones.
    is_task: bool,
    /// Readiness for writes, until an attempt would block.
    can_write: bool,
    /// The last attempt to write was not accepted completely.
    has_refused: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Returns both sides of a connection that accepts everything.
pub(crate) fn pair() -> (SimulatedSocket, Peer) {
    let wire = Arc::new(Mutex::new(Wire {
        room: usize::MAX,
        can_write: true,
        ..Wire::default()
    }));
    (SimulatedSocket(wire.clone()), Peer(wire))
}

fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap()
}

impl Peer {
    fn wake(&self, change: impl FnOnce(&mut Wire)) {
        let (reader, writer) = {
            let mut wire = lock(&self.0);
            change(&mut wire);
            let can_read = !wire.inbound.is_empty() || wire.is_closed || wire.is_reset;
            let reader = wire.reader.take_if(|_| can_read);
            let can_write = wire.can_write || wire.is_reset;
            (reader, wire.writer.take_if(|_| can_write))
        };
        [reader, writer].into_iter().flatten().for_each(Waker::wake);
    }

    pub(crate) fn send(&self, bytes: &[u8]) {
        self.wake(|wire| wire.inbound.extend(bytes));
    }

    /// Ends the client's side; what the server writes from now on is lost.
    pub(crate) fn close(&self) {
        self.wake(|wire| wire.is_closed = true);
    }

    pub(crate) fn reset(&self) {
        self.wake(|wire| wire.is_reset = true);
    }

    /// Sets the number of bytes that the kernel accepts from now on.
    pub(crate) fn set_room(&self, room: usize) {
        self.wake(|wire| {
            wire.room = room;
            wire.can_write |= room > 0;
        });
    }

    /// Marks the beginning and the end of a poll of the connection's task.
    pub(crate) fn set_task(&self, is_task: bool) {
        lock(&self.0).is_task = is_task;
    }

    /// Takes the bytes that have arrived.
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut lock(&self.0).outbound)
    }

    /// Returns true if bytes may wait in the sidecar until there is room.
    pub(crate) fn has_refused(&self) -> bool {
        lock(&self.0).has_refused
    }

    /// Returns true if the server has ended its side: nothing more arrives.
    pub(crate) fn is_ended(&self) -> bool {
        let wire = lock(&self.0);
        wire.is_ended || wire.is_dropped
    }

    /// Returns true if the client has left.
    pub(crate) fn has_left(&self) -> bool {
        let wire = lock(&self.0);
        wire.is_closed || wire.is_reset
    }
}

impl Drop for SimulatedSocket {
    fn drop(&mut self) {
        lock(&self.0).is_dropped = true;
    }
}

impl SimulatedSocket {
    fn write<'s>(&self, parts: impl Iterator<Item = &'s [u8]>) -> io::Result<usize> {
        let mut wire = lock(&self.0);
        assert!(!wire.is_ended, "nothing is written after the end");
        if wire.is_reset {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let (mut length, mut accepted) = (0, 0);
        for part in parts {
            length += part.len();
            let now = if wire.can_write {
                part.len().min(wire.room)
            } else {
                0
            };
            wire.room -= now;
            accepted += now;
            if !wire.is_closed {
                wire.outbound.extend_from_slice(&part[..now]);
            }
        }
        let is_refused = accepted < length;
        // A direct write without an accepted byte leaves nothing in the sidecar: the task reads
        // the events again, from wherever they are then.
        wire.has_refused = is_refused && (wire.is_task || accepted > 0);
        coverage::reach(match (wire.is_task, accepted, is_refused) {
            (false, _, false) => Case::DirectWrite,
            (false, 0, true) => Case::DirectWriteRefused,
            (false, _, true) => Case::DirectWriteInPart,
            (true, _, false) => Case::TaskWrite,
            (true, 0, true) => Case::TaskWriteRefused,
            (true, _, true) => Case::TaskWriteInPart,
        });
        if accepted == 0 && length > 0 {
            wire.can_write = false;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(accepted)
    }

    fn poll_io<T>(
        &self,
        task: &mut Context<'_>,
        ready: impl Fn(&Self, &mut Context<'_>) -> Poll<io::Result<()>>,
        mut attempt: impl FnMut(&Self) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            ready!(ready(self, task))?;
            match attempt(self) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl Socket for SimulatedSocket {
    fn poll_read_ready(&self, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = lock(&self.0);
        if !wire.inbound.is_empty() || wire.is_closed || wire.is_reset {
            return Poll::Ready(Ok(()));
        }
        wire.reader = Some(task.waker().clone());
        Poll::Pending
    }

    fn poll_write_ready(&self, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = lock(&self.0);
        if wire.can_write || wire.is_reset {
            return Poll::Ready(Ok(()));
        }
        // The task has bytes, and does not try.
        wire.has_refused = true;
        wire.writer = Some(task.waker().clone());
        Poll::Pending
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut wire = lock(&self.0);
        if wire.is_reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if wire.inbound.is_empty() && !wire.is_closed {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let length = buffer.len().min(wire.inbound.len());
        for (to, byte) in buffer.iter_mut().zip(wire.inbound.drain(..length)) {
            *to = byte;
        }
        Ok(length)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.write([bytes].into_iter())
    }

    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.write(slices.iter().map(|slice| &**slice))
    }

    fn shut_down(&self) -> io::Result<()> {
        lock(&self.0).is_ended = true;
        Ok(())
    }

    fn abort(&self) {}
}

impl AsyncRead for SimulatedSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.poll_io(task, Self::poll_read_ready, |socket| {
            socket.try_read(buffer.initialize_unfilled())
        });
        let length = ready!(read)?;
        buffer.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SimulatedSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_io(task, Self::poll_write_ready, |socket| {
            socket.try_write(bytes)
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_io(task, Self::poll_write_ready, |socket| {
            socket.try_write_vectored(slices)
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shut_down())
    }
}
