//! The bytes of one turn of an event stream, on their way to its socket.

use std::cell::RefCell;
use std::ops::Range;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use crate::feed::Batch;
use crate::sse::encode::Chunk;

/// What one turn brings: whole events, shared with every other client that gets them.
#[derive(Debug, Default)]
pub(in crate::http) struct WriteBatch {
    /// To be written in this order.
    pub(in crate::http) segments: Vec<Segment>,
    /// Their length.
    pub(in crate::http) bytes: usize,
    pub(in crate::http) stats: WriteStats,
    /// What the cursors fill; empty between turns.
    pub(in crate::http) batch: Batch,
    /// Where short pieces of a client's own are written, such as ids of several sources.
    scratch: BytesMut,
}

/// A piece of a turn.
#[derive(Debug)]
pub(in crate::http) struct Segment {
    bytes: Bytes,
    /// What of it is the piece; around it stands what makes it a chunk of HTTP/1.1, if it is events.
    piece: Range<usize>,
    /// The bytes stand in memory of this thread, which is used again: whoever keeps some of them copies those.
    is_borrowed: bool,
}

/// What is counted when the bytes are on the socket.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::http) struct WriteStats {
    pub(in crate::http) events: u64,
    /// Receipt of the oldest event among them.
    pub(in crate::http) oldest: Option<Instant>,
    /// When they were handed out; none once the socket has kept them waiting.
    pub(in crate::http) handed: Option<Instant>,
}

/// 32 KiB a turn, and as many parts as one vectored write takes without a second array: many events in one write, and
/// little that is handed out but not yet on the socket.
pub(in crate::http) const BATCH_BYTES: usize = 32 * 1024;

/// What is counted of a turn that is on the socket, and its bytes.
pub(in crate::http) type Written = (WriteStats, usize);

/// How the body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Framing {
    /// HTTP/1.1: chunks, one per write.
    Chunked,
    /// HTTP/1.0: the close.
    UntilClose,
}

impl Framing {
    /// What stands behind a chunk.
    pub(in crate::http) fn tail(self) -> &'static [u8] {
        match self {
            Self::Chunked => b"\r\n",
            Self::UntilClose => b"",
        }
    }
}

impl WriteBatch {
    /// Runs with this thread's own output, emptied. It is used again, so that a delivery allocates nothing and a
    /// client that waits holds none.
    pub(in crate::http) fn with<R>(run: impl FnOnce(&mut Self) -> R) -> R {
        thread_local! {
            static OUTPUT: RefCell<WriteBatch> = RefCell::default();
        }
        OUTPUT.with(|output| match output.try_borrow_mut() {
            Ok(mut output) => {
                output.clear();
                let result = run(&mut output);
                // Give back what it still shares: an event must not live on because this thread fell silent.
                output.clear();
                result
            }
            // Only if one event stream were polled inside another.
            Err(_) => run(&mut Self::default()),
        })
    }

    fn clear(&mut self) {
        self.segments.clear();
        self.batch.items.clear();
        self.bytes = 0;
        self.stats = WriteStats::default();
    }

    pub(in crate::http) fn push(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        self.segments.push(Segment {
            piece: 0..bytes.len(),
            bytes,
            is_borrowed: false,
        });
    }

    /// Adds whole events with the ids of a single source. `is_lent`: copied for this turn, rather than shared.
    pub(in crate::http) fn push_events(&mut self, chunk: Chunk, is_borrowed: bool) {
        let (bytes, piece) = chunk.into_parts();
        self.bytes += piece.len();
        self.segments.push(Segment {
            bytes,
            piece,
            is_borrowed,
        });
    }

    /// Adds bytes that are written now.
    pub(in crate::http) fn write(&mut self, write: impl FnOnce(&mut BytesMut)) {
        write(&mut self.scratch);
        let part = self.scratch.split().freeze();
        self.push(part);
    }

    /// Counts events of which the oldest was received then.
    pub(in crate::http) fn count(&mut self, events: u64, received: Instant) {
        self.stats.events += events;
        self.stats.oldest = Some(
            self.stats
                .oldest
                .map_or(received, |oldest| oldest.min(received)),
        );
    }

    pub(in crate::http) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The turn as it stands in memory with what makes it a chunk, if it is one part that does.
    pub(in crate::http) fn chunk(&self, framing: Framing) -> Option<(&Segment, &[u8])> {
        match &self.segments[..] {
            [part] if framing == Framing::Chunked => part.chunk().map(|chunk| (part, chunk)),
            _ => None,
        }
    }
}

impl Segment {
    pub(in crate::http) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.piece.clone()]
    }

    /// The piece with what makes it a chunk of HTTP/1.1, if that stands around it.
    fn chunk(&self) -> Option<&[u8]> {
        (self.piece.len() < self.bytes.len()).then_some(&self.bytes)
    }

    /// What of the piece stands behind so many bytes, to be kept.
    pub(in crate::http) fn keep(&self, done: usize) -> Bytes {
        self.keep_range(self.piece.start + done..self.piece.end)
    }

    /// The same of the chunk.
    pub(in crate::http) fn keep_chunk(&self, done: usize) -> Bytes {
        self.keep_range(done..self.bytes.len())
    }

    fn keep_range(&self, range: Range<usize>) -> Bytes {
        if self.is_borrowed {
            Bytes::copy_from_slice(&self.bytes[range])
        } else {
            self.bytes.slice(range)
        }
    }
}
