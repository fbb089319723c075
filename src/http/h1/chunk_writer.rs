//! Shared bytes onto one HTTP/1 socket: chunks, vectored writes, and what the socket has not taken yet.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::ReadBuf;

use super::sink::{Rest, TaskSocket};
use crate::http::stream::write_batch::{BATCH_BYTES, Framing, WriteBatch, WriteStats, Written};
use crate::http::transport::Transport;

/// A socket that was taken back from hyper.
pub(in crate::http) struct ChunkWriter<T> {
    io: T,
    framing: Framing,
    /// Bytes that the client sent although it has nothing to say any more.
    discarded: u32,
    /// A client that waits has none.
    pending: Option<Box<Pending>>,
}

/// A turn that the socket has not taken yet.
#[derive(Default)]
struct Pending {
    /// Shared bytes, at most one turn of them.
    segments: VecDeque<Bytes>,
    /// How much of an event larger than a turn the socket has taken since that was last asked.
    taken: usize,
    /// What will be counted when all of it is on the socket.
    unsent: Written,
    /// The head of the answer, as long as it waits for the first turn: there are no parts then.
    head: Option<Vec<u8>>,
}

/// 16 KiB: a client that says more than a stray request during an event stream is closed.
const DISCARD_MAX: u32 = 16 * 1024;

/// Slices of one vectored write: more than a turn of small events has, few enough to stand on the stack.
const SLICES: usize = 256;

/// 1 KiB: what a client begins with that continues nothing is a tenth of it.
const FIRST_TURN_COPIED_BYTES_MAX: usize = 1024;

const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

impl<T: Transport> ChunkWriter<T> {
    /// `early`: how many bytes the client has sent behind its request already. `head`: of the answer, not written yet.
    pub(in crate::http) fn new(io: T, framing: Framing, early: usize, head: Vec<u8>) -> Self {
        let pending = Pending {
            head: Some(head),
            ..Pending::default()
        };
        let discarded = u32::try_from(early).unwrap_or(u32::MAX);
        Self {
            io,
            framing,
            discarded,
            pending: Some(Box::new(pending)),
        }
    }

    /// The socket itself, where events can be written to it past the task.
    pub(in crate::http) fn shared(&self) -> Option<&TaskSocket> {
        self.io.shared()
    }

    /// Whether events stand on the wire as they stand in a chunk.
    pub(in crate::http) fn is_chunked(&self) -> bool {
        self.framing == Framing::Chunked
    }

    /// Whether everything that was handed out is on the socket.
    pub(in crate::http) fn is_clear(&self) -> bool {
        self.pending.is_none()
    }

    /// Keeps what is still to be written of what was handed out past the task.
    pub(in crate::http) fn keep(&mut self, rest: Rest) {
        debug_assert!(
            self.is_clear(),
            "nothing is handed out past a task with something under way"
        );
        let segments = VecDeque::from([rest.bytes]);
        self.pending = Some(Box::new(Pending {
            segments,
            unsent: rest.unsent,
            ..Pending::default()
        }));
    }

    /// Resets the connection: what is pending is thrown away.
    pub(in crate::http) fn abort(&self) {
        self.io.abort();
    }

    /// Ready when the client is gone, or says more than it may; what it says is thrown away.
    pub(in crate::http) fn poll_disconnected(&mut self, task: &mut Context<'_>) -> Poll<()> {
        let mut space = [MaybeUninit::uninit(); 512];
        while self.discarded <= DISCARD_MAX {
            let mut buffer = ReadBuf::uninit(&mut space);
            let read = ready!(Pin::new(&mut self.io).poll_read(task, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
            self.discarded += buffer.filled().len() as u32;
        }
        Poll::Ready(())
    }

    /// Writes one turn as one chunk, as much as the socket takes at once; the rest is kept. Nothing may be pending but
    /// the head. With what is to be counted, if all of it is on the socket already.
    pub(in crate::http) fn write(
        &mut self,
        task: &mut Context<'_>,
        out: &WriteBatch,
    ) -> io::Result<Option<Written>> {
        let sent = (out.stats, out.bytes);
        if let Some(pending) = &mut self.pending {
            debug_assert!(
                pending.head.is_some(),
                "a turn begins when the one before is written"
            );
            pending.unsent = sent;
            pending.keep_head(self.framing, out);
            return Ok(None);
        }
        if out.is_empty() {
            return Ok(Some(sent));
        }
        let (written, whole) = self.accept(task, out)?;
        if written == whole && Pin::new(&mut self.io).poll_flush(task)?.is_ready() {
            return Ok(Some(sent));
        }
        let pending = self.pending.insert(Box::default());
        pending.unsent = (
            WriteStats {
                handed: None,
                ..sent.0
            },
            sent.1,
        );
        if written < whole {
            pending.keep_turn(self.framing, out, written);
        }
        Ok(None)
    }

    /// Hands a turn to the socket: how many bytes it has taken, of how many.
    fn accept(&mut self, task: &mut Context<'_>, out: &WriteBatch) -> io::Result<(usize, usize)> {
        let io = Pin::new(&mut self.io);
        // What most turns are: events that stand as a chunk in memory.
        if let Some((_, chunk)) = out.chunk(self.framing) {
            return Ok((accepted(io.poll_write(task, chunk))?, chunk.len()));
        }
        let (head, tail) = (ChunkHead::new(self.framing, out.bytes), self.framing.tail());
        let whole = head.bytes().len() + out.bytes + tail.len();
        if out.segments.len() + 2 > SLICES {
            return Ok((0, whole));
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        slices[0] = IoSlice::new(head.bytes());
        for (slice, part) in slices[1..].iter_mut().zip(&out.segments) {
            *slice = IoSlice::new(part.as_slice());
        }
        slices[out.segments.len() + 1] = IoSlice::new(tail);
        Ok((
            accepted(io.poll_write_vectored(task, &slices[..out.segments.len() + 2]))?,
            whole,
        ))
    }

    /// Ends the body.
    pub(in crate::http) fn finish(&mut self) {
        if self.framing == Framing::Chunked {
            self.pending
                .get_or_insert_default()
                .segments
                .push_back(Bytes::from_static(LAST_CHUNK));
        }
    }

    /// Ready when everything is on the socket, with what is to be counted for it, if it was not at once.
    pub(in crate::http) fn poll_written(
        &mut self,
        task: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Written>>> {
        let Some(pending) = self
            .pending
            .as_mut()
            .filter(|pending| pending.head.is_none())
        else {
            return Poll::Ready(Ok(None));
        };
        while !pending.segments.is_empty() {
            let io = Pin::new(&mut self.io);
            let written = match pending.segments.as_slices() {
                // What a client begins with, and what is left of an event alone.
                ([part], []) => ready!(io.poll_write(task, part))?,
                _ => {
                    let mut slices = [IoSlice::new(&[]); SLICES];
                    let count = pending.segments.len().min(SLICES);
                    for (slice, part) in slices.iter_mut().zip(&pending.segments) {
                        *slice = IoSlice::new(part);
                    }
                    ready!(io.poll_write_vectored(task, &slices[..count]))?
                }
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            pending.pass(written);
        }
        // Under TLS a write is done when its ciphertext is.
        ready!(Pin::new(&mut self.io).poll_flush(task))?;
        let sent = pending.unsent;
        self.pending = None;
        Poll::Ready(Ok(Some(sent)))
    }

    /// Whether the socket has taken as much as a turn since this was last true: a large event is on its way.
    pub(in crate::http) fn has_taken_a_turn(&mut self) -> bool {
        let taken = |pending: &mut Box<Pending>| std::mem::take(&mut pending.taken);
        self.pending
            .as_mut()
            .filter(|pending| pending.taken >= BATCH_BYTES)
            .map(taken)
            .is_some()
    }

    /// Ends our side of the connection.
    pub(in crate::http) fn poll_shutdown(
        &mut self,
        task: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(task)
    }
}

impl Pending {
    /// Keeps the first turn behind the head that has waited for it: both in one piece, unless the turn is a large one.
    fn keep_head(&mut self, framing: Framing, out: &WriteBatch) {
        let Some(mut head) = self.head.take() else {
            return;
        };
        if out.bytes > FIRST_TURN_COPIED_BYTES_MAX {
            self.segments.push_back(head.into());
            return self.keep_turn(framing, out, 0);
        }
        if !out.is_empty() {
            head.extend_from_slice(ChunkHead::new(framing, out.bytes).bytes());
            out.segments
                .iter()
                .for_each(|part| head.extend_from_slice(part.as_slice()));
            head.extend_from_slice(framing.tail());
        }
        self.segments.push_back(head.into());
    }

    /// Keeps what of a turn is not among the bytes that are written, its chunk around it.
    fn keep_turn(&mut self, framing: Framing, out: &WriteBatch, mut written: usize) {
        if let Some((part, chunk)) = out.chunk(framing) {
            return self.keep(chunk.len(), &mut written, |done| part.keep_chunk(done));
        }
        let (head, tail) = (ChunkHead::new(framing, out.bytes), framing.tail());
        self.keep(head.bytes().len(), &mut written, |done| {
            Bytes::copy_from_slice(&head.bytes()[done..])
        });
        for part in &out.segments {
            self.keep(part.as_slice().len(), &mut written, |done| part.keep(done));
        }
        self.keep(tail.len(), &mut written, |done| {
            Bytes::from_static(&tail[done..])
        });
    }

    /// Keeps what of a part of this length is not among the bytes that are written.
    fn keep(&mut self, length: usize, written: &mut usize, rest: impl FnOnce(usize) -> Bytes) {
        let done = length.min(*written);
        *written -= done;
        if done < length {
            self.segments.push_back(rest(done));
        }
    }

    /// Lets go of what the socket has taken.
    fn pass(&mut self, mut written: usize) {
        self.taken += written;
        while let Some(first) = self.segments.front_mut().filter(|_| written > 0) {
            let done = first.len().min(written);
            written -= done;
            first.advance(done);
            if first.is_empty() {
                self.segments.pop_front();
            }
        }
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
        let mut head = Self {
            text: [0; 18],
            len: 0,
        };
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
    use crate::sse::encode::{Frame, RunBuilder};
    use crate::sse::{Position, SourceTag};

    #[test]
    fn the_head_of_a_chunk_is_its_length_in_hex_and_http_1_0_has_none() {
        assert_eq!(ChunkHead::new(Framing::Chunked, 255).bytes(), b"ff\r\n");
        assert_eq!(
            ChunkHead::new(Framing::Chunked, usize::MAX).bytes(),
            b"ffffffffffffffff\r\n"
        );
        assert_eq!(ChunkHead::new(Framing::UntilClose, 255).bytes(), b"");
    }
    #[tokio::test]
    async fn what_a_socket_does_not_take_of_copied_events_is_kept_while_their_memory_is_used_again()
    {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let mut writer = ChunkWriter::new(server, Framing::UntilClose, 0, Vec::new());
        let mut sent = Vec::new();
        let mut number = 0;
        let mut memory = None;
        let mut copies = RunBuilder::default();
        let mut turn = |out: &mut WriteBatch| {
            copies.begin(BATCH_BYTES);
            while copies.len() < BATCH_BYTES - 1000 {
                number += 1;
                let position = Position {
                    tag: SourceTag::of_identity("t"),
                    seq: number,
                    fingerprint: None,
                };
                copies.push(&Frame::event(None, number.to_string().as_bytes(), position));
            }
            let chunk = copies.finish();
            let place = chunk.content().as_ptr() as usize;
            assert_eq!(
                *memory.get_or_insert(place),
                place,
                "what is kept is not kept there"
            );
            out.push_events(chunk, true);
        };
        let mut refusals = 0;
        while refusals < 3 {
            poll_fn(|task| {
                WriteBatch::with(|out| {
                    turn(out);
                    sent.extend_from_slice(out.segments[0].as_slice());
                    writer.write(task, out).unwrap();
                });
                // The next turn is written into the same memory, while nothing of the one before is read.
                WriteBatch::with(|out| turn(out));
                Poll::Ready(())
            })
            .await;
            while !poll_fn(|task| Poll::Ready(writer.poll_written(task).is_ready())).await {
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
