//! Writes batches of shared bytes to one HTTP/1 socket: chunks, vectored writes, pending bytes.
//!
//! One batch is one chunk. Most batches are a single segment that is stored with the head and tail
//! of its chunk, and cost one `write`; others are written with one `writev` of chunk head, segments
//! and tail. Bytes that the socket does not accept are kept as [`Pending`], at most one batch, and
//! the event stream is not read until they are written ([`ChunkWriter::poll_written`]). An idle
//! client has no pending bytes and no buffer.
//!
//! The response head waits for the first batch, so that both are one write.
//!
//! The client has nothing to send during an event stream, unless it is a WebSocket. What it sends is
//! discarded up to 16 KiB; the read also detects that it disconnects
//! ([`ChunkWriter::poll_disconnected`]).

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::ReadBuf;

use super::chunk::{BodyDelimiter, ChunkHead};
use crate::feed::DirectSink;
use crate::http::stream::client_messages::{ClientMessages, ClientState, Receive};
use crate::http::stream::direct_path::DirectWrites;
use crate::http::stream::write_batch::{BATCH_BYTES, Segment, Unsent, WriteBatch, Written};
use crate::http::transport::Transport;

/// Socket that was reclaimed from hyper, and what it has not accepted.
pub(in crate::http) struct ChunkWriter<T> {
    io: T,
    delimiter: BodyDelimiter,
    /// Bytes that the client has sent during the event stream.
    discarded: u32,
    /// `None` for an idle client.
    pending: Option<Box<Pending>>,
}

/// Bytes that the socket has not accepted.
#[derive(Default)]
struct Pending {
    /// At most one batch.
    segments: VecDeque<Bytes>,
    /// Bytes that the socket has accepted since the last [`ChunkWriter::take_progress`].
    accepted: usize,
    /// Counted when all segments are on the socket.
    written: Written,
    /// Response head that waits for the first batch; then there are no segments.
    head: Option<Vec<u8>>,
}

/// Input of the client of a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum ClientInput {
    /// Nothing to act on.
    Nothing,
    /// Answers to the client are pending.
    Answered,
    /// The client closes its WebSocket; the answer is pending.
    Closed,
    /// The client has disconnected.
    Disconnected,
}

/// 4 KiB of answers wait for the socket. A client that does not read them is not read either.
const ANSWERS_MAX: usize = 4 * 1024;

/// 16 KiB: a client that sends more than a stray request during an event stream is disconnected.
const DISCARD_MAX: u32 = 16 * 1024;

/// Slices of one vectored write: more than a batch of small events has, few enough for the stack.
const SLICES: usize = 256;

/// 1 KiB: a first batch up to this size is copied after the response head. The first bytes of a
/// client that does not resume are a tenth of it.
const FIRST_BATCH_COPIED_MAX: usize = 1024;

const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

impl<T: Transport> ChunkWriter<T> {
    /// `early` is the number of bytes that the client has already sent after its request. `head` is
    /// the response head, not written yet.
    pub(in crate::http) fn new(
        io: T,
        delimiter: BodyDelimiter,
        early: usize,
        head: Vec<u8>,
    ) -> Self {
        let pending = Pending {
            head: Some(head),
            ..Pending::default()
        };
        let discarded = u32::try_from(early).unwrap_or(u32::MAX);
        Self {
            io,
            delimiter,
            discarded,
            pending: Some(Box::new(pending)),
        }
    }

    /// Returns a sink for direct writes. It writes chunks or messages, so HTTP/1.0 has none.
    pub(in crate::http) fn direct_sink(&self) -> Option<Arc<dyn DirectSink>> {
        match self.delimiter {
            BodyDelimiter::Chunked | BodyDelimiter::Messages => self.io.direct_sink(),
            BodyDelimiter::UntilClose => None,
        }
    }

    /// See [`Transport::take_direct_writes`].
    pub(in crate::http) fn take_direct_writes(&self) -> Option<DirectWrites> {
        self.io.take_direct_writes()
    }

    /// Returns true if the socket has accepted everything.
    pub(in crate::http) fn is_clear(&self) -> bool {
        self.pending.is_none()
    }

    /// Keeps the rest of a direct write, to be written next.
    pub(in crate::http) fn keep(&mut self, unsent: Unsent) {
        debug_assert!(
            self.is_clear(),
            "direct writes happen only while nothing is pending"
        );
        // With TLS all bytes can be accepted while their record waits for the socket.
        let bytes = Some(unsent.bytes).filter(|bytes| !bytes.is_empty());
        self.pending = Some(Box::new(Pending {
            segments: bytes.into_iter().collect(),
            written: unsent.written,
            ..Pending::default()
        }));
    }

    /// Resets the connection and discards pending bytes.
    pub(in crate::http) fn abort(&self) {
        self.io.abort();
    }

    /// Reads the client's side of a WebSocket while nothing is pending. When that is written, the
    /// task has to call it again.
    pub(in crate::http) fn poll_messages(
        &mut self,
        task: &mut Context<'_>,
        messages: &mut ClientMessages,
        receive: Receive<'_>,
    ) -> ClientInput {
        if self.pending.is_some() {
            return ClientInput::Nothing;
        }
        let mut answers = BytesMut::new();
        let mut state = messages.read_early(&mut answers, receive);
        let mut space = [MaybeUninit::uninit(); 512];
        while state == ClientState::Open && answers.len() < ANSWERS_MAX {
            let mut buffer = ReadBuf::uninit(&mut space);
            match Pin::new(&mut self.io).poll_read(task, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    state = messages.read(buffer.filled(), &mut answers, receive);
                }
                Poll::Ready(_) => return ClientInput::Disconnected,
            }
        }
        if !answers.is_empty() {
            let pending = self.pending.get_or_insert_default();
            pending.segments.push_back(answers.freeze());
        }
        match state {
            ClientState::Closed => ClientInput::Closed,
            ClientState::Open if self.pending.is_some() => ClientInput::Answered,
            ClientState::Open => ClientInput::Nothing,
        }
    }

    /// Ready when the client has disconnected, or has sent more than [`DISCARD_MAX`].
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

    /// Writes one batch as one chunk, as much as the socket accepts at once, and keeps the rest.
    /// Nothing but the response head may be pending. Returns what was written if that is all of it.
    pub(in crate::http) fn write(
        &mut self,
        task: &mut Context<'_>,
        out: &WriteBatch,
    ) -> io::Result<Option<Written>> {
        let written = out.written();
        if let Some(pending) = &mut self.pending {
            debug_assert!(
                pending.head.is_some(),
                "a batch is written after the one before it"
            );
            pending.written = written;
            pending.keep_head(self.delimiter, out);
            return Ok(None);
        }
        if out.is_empty() {
            return Ok(Some(written));
        }
        let (accepted, length) = self.write_now(task, out)?;
        if accepted == length && Pin::new(&mut self.io).poll_flush(task)?.is_ready() {
            return Ok(Some(written));
        }
        let pending = self.pending.insert(Box::default());
        pending.written = written.delayed();
        if accepted < length {
            pending.keep_batch(self.delimiter, out, accepted);
        }
        Ok(None)
    }

    /// Writes a batch to the socket. Returns the number of bytes that it has accepted, and the
    /// length of the chunk.
    fn write_now(
        &mut self,
        task: &mut Context<'_>,
        out: &WriteBatch,
    ) -> io::Result<(usize, usize)> {
        let io = Pin::new(&mut self.io);
        // Most batches: events that are stored as a chunk.
        if let Some((_, chunk)) = stored_chunk(self.delimiter, out) {
            return Ok((accepted(io.poll_write(task, chunk))?, chunk.len()));
        }
        let (head, tail) = (
            ChunkHead::new(self.delimiter, out.bytes),
            self.delimiter.tail(),
        );
        let length = head.bytes().len() + out.bytes + tail.len();
        if out.segments.len() + 2 > SLICES {
            return Ok((0, length));
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        slices[0] = IoSlice::new(head.bytes());
        for (slice, segment) in slices[1..].iter_mut().zip(&out.segments) {
            *slice = IoSlice::new(segment.as_slice());
        }
        slices[out.segments.len() + 1] = IoSlice::new(tail);
        let slices = &slices[..out.segments.len() + 2];
        Ok((accepted(io.poll_write_vectored(task, slices))?, length))
    }

    /// Ends the response body.
    pub(in crate::http) fn finish(&mut self) {
        if self.delimiter == BodyDelimiter::Chunked {
            self.pending
                .get_or_insert_default()
                .segments
                .push_back(Bytes::from_static(LAST_CHUNK));
        }
    }

    /// Ready when nothing is pending, with what was written if it was pending before.
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
            let accepted = match pending.segments.as_slices() {
                // The first bytes of an event stream, and the rest of a single event.
                ([segment], []) => ready!(io.poll_write(task, segment))?,
                _ => {
                    let mut slices = [IoSlice::new(&[]); SLICES];
                    let count = pending.segments.len().min(SLICES);
                    for (slice, segment) in slices.iter_mut().zip(&pending.segments) {
                        *slice = IoSlice::new(segment);
                    }
                    ready!(io.poll_write_vectored(task, &slices[..count]))?
                }
            };
            if accepted == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            pending.advance(accepted);
        }
        // With TLS, bytes are written when their ciphertext is.
        ready!(Pin::new(&mut self.io).poll_flush(task))?;
        let written = pending.written;
        self.pending = None;
        Poll::Ready(Ok(Some(written)))
    }

    /// Returns true if the socket has accepted a batch's worth of bytes since this was last true: a
    /// large event makes progress.
    pub(in crate::http) fn take_progress(&mut self) -> bool {
        let Some(pending) = &mut self.pending else {
            return false;
        };
        let has_progressed = pending.accepted >= BATCH_BYTES;
        if has_progressed {
            pending.accepted = 0;
        }
        has_progressed
    }

    /// Shuts down our side of the connection.
    pub(in crate::http) fn poll_shutdown(
        &mut self,
        task: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(task)
    }
}

impl Pending {
    /// Keeps the first batch after the response head, in one piece unless the batch is large.
    fn keep_head(&mut self, delimiter: BodyDelimiter, out: &WriteBatch) {
        let Some(mut head) = self.head.take() else {
            return;
        };
        if out.bytes > FIRST_BATCH_COPIED_MAX {
            self.segments.push_back(head.into());
            return self.keep_batch(delimiter, out, 0);
        }
        if !out.is_empty() {
            head.extend_from_slice(ChunkHead::new(delimiter, out.bytes).bytes());
            for segment in &out.segments {
                head.extend_from_slice(segment.as_slice());
            }
            head.extend_from_slice(delimiter.tail());
        }
        self.segments.push_back(head.into());
    }

    /// Keeps a batch, with the chunk around it, except its first `accepted` bytes.
    fn keep_batch(&mut self, delimiter: BodyDelimiter, out: &WriteBatch, mut accepted: usize) {
        if let Some((segment, chunk)) = stored_chunk(delimiter, out) {
            return self.keep(chunk.len(), &mut accepted, |done| {
                segment.enveloped_rest(done)
            });
        }
        let (head, tail) = (ChunkHead::new(delimiter, out.bytes), delimiter.tail());
        self.keep(head.bytes().len(), &mut accepted, |done| {
            Bytes::copy_from_slice(&head.bytes()[done..])
        });
        for segment in &out.segments {
            self.keep(segment.as_slice().len(), &mut accepted, |done| {
                segment.rest(done)
            });
        }
        self.keep(tail.len(), &mut accepted, |done| {
            Bytes::from_static(&tail[done..])
        });
    }

    /// Keeps one part of a chunk, except what is among the `accepted` bytes that are left.
    fn keep(&mut self, length: usize, accepted: &mut usize, rest: impl FnOnce(usize) -> Bytes) {
        let done = length.min(*accepted);
        *accepted -= done;
        if done < length {
            self.segments.push_back(rest(done));
        }
    }

    /// Removes bytes that the socket has accepted.
    fn advance(&mut self, mut accepted: usize) {
        self.accepted += accepted;
        while let Some(first) = self.segments.front_mut().filter(|_| accepted > 0) {
            let done = first.len().min(accepted);
            accepted -= done;
            first.advance(done);
            if first.is_empty() {
                self.segments.pop_front();
            }
        }
    }
}

/// Returns the batch as one chunk if it is a single segment that is stored as one, or as messages.
fn stored_chunk(delimiter: BodyDelimiter, out: &WriteBatch) -> Option<(&Segment, &[u8])> {
    match (&out.segments[..], delimiter) {
        ([segment], BodyDelimiter::Chunked) => segment.enveloped().map(|chunk| (segment, chunk)),
        // It has no envelope.
        ([segment], BodyDelimiter::Messages) => Some((segment, segment.as_slice())),
        _ => None,
    }
}

/// Returns the number of accepted bytes: 0 while the socket is blocked, an error if it accepts
/// none.
fn accepted(written: Poll<io::Result<usize>>) -> io::Result<usize> {
    match written {
        Poll::Ready(Ok(0)) => Err(io::ErrorKind::WriteZero.into()),
        Poll::Ready(written) => written,
        Poll::Pending => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpStream;

    use super::super::chunk::ENVELOPE;
    use super::*;
    use crate::encoding::{EventParts, Framing, RunBuilder};
    use crate::event::{Position, SourceTag};

    #[tokio::test]
    async fn pending_bytes_of_copied_events_survive_the_reuse_of_their_memory() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let mut writer = ChunkWriter::new(server, BodyDelimiter::UntilClose, 0, Vec::new());
        let mut sent = Vec::new();
        let mut number = 0;
        let mut memory = None;
        let mut copies = RunBuilder::default();
        let mut fill = |out: &mut WriteBatch| {
            copies.begin(ENVELOPE, BATCH_BYTES);
            while copies.len() < BATCH_BYTES - 1000 {
                number += 1;
                let position = Position {
                    tag: SourceTag::of_identity("t"),
                    seq: number,
                    fingerprint: None,
                };
                let data = number.to_string();
                let parts = EventParts {
                    name: None,
                    subject: "a",
                    data: data.as_bytes(),
                    position,
                };
                copies.push(&Framing::Sse.encoder().event(parts, ENVELOPE));
            }
            let run = copies.finish();
            let place = run.content().as_ptr() as usize;
            assert_eq!(
                *memory.get_or_insert(place),
                place,
                "pending bytes do not hold the memory of the run"
            );
            out.push_events(run, true);
        };
        let mut times_blocked = 0;
        while times_blocked < 3 {
            poll_fn(|task| {
                WriteBatch::with(|out| {
                    fill(out);
                    sent.extend_from_slice(out.segments[0].as_slice());
                    writer.write(task, out).unwrap();
                });
                // The next batch reuses the memory before anything of this one is read.
                WriteBatch::with(|out| fill(out));
                Poll::Ready(())
            })
            .await;
            if poll_fn(|task| Poll::Ready(writer.poll_written(task).is_ready())).await {
                continue;
            }
            times_blocked += 1;
            let mut received = vec![0; 100_000];
            loop {
                tokio::select! {
                    written = poll_fn(|task| writer.poll_written(task)) => {
                        written.unwrap();
                        break;
                    }
                    read = client.read(&mut received) => {
                        let received = &received[..read.unwrap()];
                        assert!(
                            *received == sent[..received.len()],
                            "the client receives what was written"
                        );
                        sent.drain(..received.len());
                    }
                }
            }
        }
        let mut rest = vec![0; sent.len()];
        client.read_exact(&mut rest).await.unwrap();
        assert!(rest == sent, "the client receives what was written");
    }
}
