//! Shared bytes onto one HTTP/1 socket: chunks, vectored writes, and what the socket has not taken yet.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::ReadBuf;

use super::event_stream::TURN_BYTES;
use super::output::{Output, Part, Tally};
use super::transport::Transport;

/// How the body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// HTTP/1.1: chunks, one per write.
    Chunked,
    /// HTTP/1.0: the close.
    Close,
}

/// A socket that was taken back from hyper.
pub(super) struct Wire<T> {
    io: T,
    framing: Framing,
    /// What the socket has not taken yet: at most one turn of shared bytes.
    pending: VecDeque<Bytes>,
    /// How much of an event larger than a turn the socket has taken since that was last asked.
    taken: usize,
    /// What will be counted when `pending` is empty.
    unsent: (Tally, usize),
    /// TLS may hold bytes that its socket has not taken.
    unflushed: bool,
    /// Bytes that the client sent although it has nothing to say any more.
    discarded: usize,
}

/// 16 KiB: a client that says more than a stray request during an event stream is closed.
const DISCARD_MAX: usize = 16 * 1024;

/// Slices of one vectored write: more than a turn of small events has, few enough to stand on the stack.
const SLICES: usize = 256;

const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

impl<T: Transport> Wire<T> {
    /// `early`: how many bytes the client has sent behind its request already.
    pub(super) fn new(io: T, framing: Framing, early: usize) -> Self {
        let unsent = (Tally::default(), 0);
        Self { io, framing, pending: VecDeque::new(), taken: 0, unsent, unflushed: false, discarded: early }
    }

    /// Resets the connection: what is pending is thrown away.
    pub(super) fn abort(&self) {
        self.io.abort();
    }

    /// Ready when the client is gone, or says more than it may; what it says is thrown away.
    pub(super) fn poll_gone(&mut self, task: &mut Context<'_>) -> Poll<()> {
        let mut space = [MaybeUninit::uninit(); 512];
        while self.discarded <= DISCARD_MAX {
            let mut buffer = ReadBuf::uninit(&mut space);
            let read = ready!(Pin::new(&mut self.io).poll_read(task, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
            self.discarded += buffer.filled().len();
        }
        Poll::Ready(())
    }

    /// Writes one turn as one chunk, as much as the socket takes at once; the rest is kept. Nothing may be pending.
    pub(super) fn write(&mut self, task: &mut Context<'_>, out: &mut Output) -> io::Result<()> {
        debug_assert!(self.pending.is_empty(), "a turn begins when the one before is written");
        if out.is_empty() {
            return Ok(());
        }
        self.unsent = (out.tally, out.bytes);
        self.unflushed = true;
        if let ([part], Framing::Chunked) = (&out.parts[..], self.framing)
            && let Some(chunk) = part.chunk()
        {
            return self.write_chunk(task, part, chunk);
        }
        let head = ChunkHead::new(self.framing, out.bytes);
        let tail: &'static [u8] = if self.framing == Framing::Chunked { b"\r\n" } else { b"" };
        let mut written = 0;
        if out.parts.len() + 2 <= SLICES {
            let mut slices = [IoSlice::new(&[]); SLICES];
            slices[0] = IoSlice::new(head.bytes());
            for (slice, part) in slices[1..].iter_mut().zip(&out.parts) {
                *slice = IoSlice::new(part.as_slice());
            }
            slices[out.parts.len() + 1] = IoSlice::new(tail);
            written = accepted(Pin::new(&mut self.io).poll_write_vectored(task, &slices[..out.parts.len() + 2]))?;
            if written == head.bytes().len() + out.bytes + tail.len() {
                return Ok(());
            }
        }
        self.keep(head.bytes().len(), &mut written, |done| Bytes::copy_from_slice(&head.bytes()[done..]));
        for part in &out.parts {
            self.keep(part.as_slice().len(), &mut written, |done| part.keep(done));
        }
        self.keep(tail.len(), &mut written, |done| Bytes::from_static(&tail[done..]));
        Ok(())
    }

    /// Writes events that stand as a chunk in memory: what most turns are.
    fn write_chunk(&mut self, task: &mut Context<'_>, part: &Part, chunk: &[u8]) -> io::Result<()> {
        let mut written = accepted(Pin::new(&mut self.io).poll_write(task, chunk))?;
        self.keep(chunk.len(), &mut written, |done| part.keep_chunk(done));
        Ok(())
    }

    /// Keeps what of a part of this length is not among the bytes that are written.
    fn keep(&mut self, length: usize, written: &mut usize, rest: impl FnOnce(usize) -> Bytes) {
        let done = length.min(*written);
        *written -= done;
        if done < length {
            self.pending.push_back(rest(done));
        }
    }

    /// Ends the body.
    pub(super) fn finish(&mut self) {
        if self.framing == Framing::Chunked {
            self.pending.push_back(Bytes::from_static(LAST_CHUNK));
        }
    }

    /// Ready when everything is on the socket, with what is to be counted for it.
    pub(super) fn poll_written(&mut self, task: &mut Context<'_>) -> Poll<io::Result<(Tally, usize)>> {
        while !self.pending.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.pending.len().min(SLICES);
            for (slice, part) in slices.iter_mut().zip(&self.pending) {
                *slice = IoSlice::new(part);
            }
            let mut written = ready!(Pin::new(&mut self.io).poll_write_vectored(task, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.taken += written;
            while let Some(first) = self.pending.front_mut().filter(|_| written > 0) {
                let done = first.len().min(written);
                written -= done;
                first.advance(done);
                if first.is_empty() {
                    self.pending.pop_front();
                }
            }
        }
        if self.pending.capacity() > 0 {
            // A client that waits holds nothing.
            self.pending = VecDeque::new();
        }
        if self.unflushed {
            // Under TLS a write is done when its ciphertext is.
            ready!(Pin::new(&mut self.io).poll_flush(task))?;
            self.unflushed = false;
        }
        self.taken = 0;
        Poll::Ready(Ok(std::mem::take(&mut self.unsent)))
    }

    /// Whether the socket has taken as much as a turn since this was last true: a large event is on its way.
    pub(super) fn has_taken_a_turn(&mut self) -> bool {
        let taken = self.taken >= TURN_BYTES;
        if taken {
            self.taken = 0;
        }
        taken
    }

    /// Ends our side of the connection.
    pub(super) fn poll_shutdown(&mut self, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(task)
    }
}

/// How many bytes the socket has taken; none is an error only if it says that it took them.
fn accepted(written: Poll<io::Result<usize>>) -> io::Result<usize> {
    match written {
        Poll::Ready(Ok(0)) => Err(io::ErrorKind::WriteZero.into()),
        Poll::Ready(written) => written,
        Poll::Pending => Ok(0),
    }
}

/// `{length in hex}\r\n`, on the stack.
struct ChunkHead {
    text: [u8; 18],
    len: usize,
}

impl ChunkHead {
    fn new(framing: Framing, bytes: usize) -> Self {
        let mut head = Self { text: [0; 18], len: 0 };
        if framing == Framing::Chunked {
            let mut rest = &mut head.text[..];
            let written = write!(rest, "{bytes:x}\r\n");
            debug_assert!(written.is_ok(), "sixteen digits and a line end fit");
            head.len = 18 - rest.len();
        }
        head
    }

    fn bytes(&self) -> &[u8] {
        &self.text[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpStream;

    use super::*;
    use crate::sse::encode::{ChunkWriter, Frame};
    use crate::sse::{Component, Tag};

    #[test]
    fn the_head_of_a_chunk_is_its_length_in_hex_and_http_1_0_has_none() {
        assert_eq!(ChunkHead::new(Framing::Chunked, 255).bytes(), b"ff\r\n");
        assert_eq!(ChunkHead::new(Framing::Chunked, usize::MAX).bytes(), b"ffffffffffffffff\r\n");
        assert_eq!(ChunkHead::new(Framing::Close, 255).bytes(), b"");
    }
    #[tokio::test]
    async fn what_a_socket_does_not_take_of_copied_events_is_kept_while_their_memory_is_used_again() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let mut wire = Wire::new(server, Framing::Close, 0);
        let mut sent = Vec::new();
        let mut number = 0;
        let mut memory = None;
        let mut copies = ChunkWriter::default();
        let mut turn = |out: &mut Output| {
            copies.begin(TURN_BYTES);
            while copies.len() < TURN_BYTES - 1000 {
                number += 1;
                let position = Component { tag: Tag::of_identity("t"), seq: number, check: None };
                copies.push(&Frame::event(None, number.to_string().as_bytes(), position));
            }
            let chunk = copies.finish();
            let place = chunk.content().as_ptr() as usize;
            assert_eq!(*memory.get_or_insert(place), place, "what is kept is not kept there");
            out.push_events(chunk, true);
        };
        let mut refusals = 0;
        while refusals < 3 {
            poll_fn(|task| {
                Output::with(|out| {
                    turn(out);
                    sent.extend_from_slice(out.parts[0].as_slice());
                    wire.write(task, out).unwrap();
                });
                // The next turn is written into the same memory, while nothing of the one before is read.
                Output::with(|out| turn(out));
                Poll::Ready(())
            })
            .await;
            while !poll_fn(|task| Poll::Ready(wire.poll_written(task).is_ready())).await {
                refusals += 1;
                let mut some = vec![0; 100_000];
                client.read_exact(&mut some).await.unwrap();
                assert!(some == sent[..some.len()], "what was sent came");
                sent.drain(..some.len());
            }
        }
        let mut rest = vec![0; sent.len()];
        client.read_exact(&mut rest).await.unwrap();
        assert!(rest == sent, "what was sent came");
    }
}
