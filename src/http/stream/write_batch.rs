//! The bytes of one turn of an event stream, on their way to its transport.
//!
//! A turn of [`EventStream`](super::event_stream::EventStream) fills the [`WriteBatch`] of its
//! thread; the transport then writes the batch, or keeps the part that the socket did not accept.
//! Every thread has one batch and reuses it, so that a delivery allocates nothing and an idle
//! client holds no buffer.
//!
//! A [`Segment`] is an encoded event with the envelope of a transport around it, shared with all
//! other clients, or a run of small events that was copied for this turn. Copied segments
//! are borrowed: their memory is reused by the next turn, so whatever outlives the turn is copied.
//!
//! With a content coding, events of a feed that compresses are blocks already; [`WriteBatch::code`]
//! makes stored blocks of the rest.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::ops::Range;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use crate::encoding::coding::{Block, BlockSize, Checksum};
use crate::encoding::{Coding, Enveloped};
use crate::feed::Batch;

/// Bytes of one turn: whole events and control events.
#[derive(Debug, Default)]
pub(in crate::http) struct WriteBatch {
    /// In the order in which they are written.
    pub(in crate::http) segments: Vec<Segment>,
    /// Sum of the lengths of their contents.
    pub(in crate::http) bytes: usize,
    pub(in crate::http) stats: WriteStats,
    /// Filled by the cursors; empty between turns.
    pub(in crate::http) batch: Batch,
    /// Segments that are blocks of a content coding, by index.
    blocks: Vec<(usize, BlockSize)>,
    /// Buffer for short bytes of one client, such as ids of several sources.
    scratch: BytesMut,
}

/// Bytes of one write that belong together.
#[derive(Debug)]
pub(in crate::http) struct Segment {
    bytes: Bytes,
    /// Range of the content. If the segment is events, the rest of `bytes` is their envelope.
    content: Range<usize>,
    /// The memory belongs to this thread and is reused: bytes that are kept must be copied.
    is_borrowed: bool,
}

/// Statistics of a turn, counted when its bytes reach the socket.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::http) struct WriteStats {
    pub(in crate::http) events: u64,
    /// Time at which the oldest event was received from NATS.
    pub(in crate::http) oldest: Option<Instant>,
    /// Time of the turn; `None` if the socket did not accept all bytes at once.
    pub(in crate::http) batched_at: Option<Instant>,
    /// Number of a sample among the events: the exemplar of the write.
    pub(in crate::http) sample: Option<NonZeroU32>,
}

/// Bytes of a turn before and after the compression.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct CodedTurn {
    pub(in crate::http) plain: usize,
    pub(in crate::http) sent: usize,
    /// Checksum of the event stream after the turn.
    pub(in crate::http) checksum: Checksum,
}

/// Statistics and length of bytes that reached the socket.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::http) struct Written {
    pub(in crate::http) stats: WriteStats,
    pub(in crate::http) bytes: usize,
}

/// Bytes that are kept until the socket accepts them.
#[derive(Debug)]
pub(in crate::http) struct Unsent {
    pub(in crate::http) bytes: Bytes,
    /// Counted when all of them reach the socket.
    pub(in crate::http) written: Written,
}

/// 32 KiB per turn, and as many segments as one vectored write takes without a second array: many
/// events in one write, and few bytes that were read from the feed and not yet written.
pub(in crate::http) const BATCH_BYTES: usize = 32 * 1024;

impl Written {
    /// Returns the same for bytes that the socket did not accept at once: they are timed when it
    /// accepts them.
    pub(in crate::http) fn delayed(mut self) -> Self {
        self.stats.batched_at = None;
        self
    }
}

impl WriteBatch {
    /// Runs a closure with the empty batch of this thread.
    pub(in crate::http) fn with<R>(run: impl FnOnce(&mut Self) -> R) -> R {
        thread_local! {
            static BATCH: RefCell<WriteBatch> = RefCell::default();
        }
        BATCH.with(|batch| match batch.try_borrow_mut() {
            Ok(mut batch) => {
                batch.clear();
                let result = run(&mut batch);
                // Release shared events: an idle thread must not keep them alive.
                batch.clear();
                result
            }
            // Only if one event stream is polled inside another.
            Err(_) => run(&mut Self::default()),
        })
    }

    fn clear(&mut self) {
        self.segments.clear();
        self.blocks.clear();
        self.batch.items.clear();
        self.bytes = 0;
        self.stats = WriteStats::default();
    }

    /// Adds bytes without an envelope.
    pub(in crate::http) fn push(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        self.segments.push(Segment {
            content: 0..bytes.len(),
            bytes,
            is_borrowed: false,
        });
    }

    /// Adds whole events with the ids of a single source. `is_borrowed`: copied for this turn.
    pub(in crate::http) fn push_events(&mut self, events: Enveloped, is_borrowed: bool) {
        let (bytes, content) = events.into_parts();
        self.bytes += content.len();
        self.segments.push(Segment {
            bytes,
            content,
            is_borrowed,
        });
    }

    /// Adds compressed events.
    pub(in crate::http) fn push_block(&mut self, block: &Block) {
        self.blocks.push((self.segments.len(), block.size()));
        self.push_events(block.bytes().clone(), false);
    }

    /// Makes the segments of the turn blocks of a content coding. `checksum`: that of the event stream
    /// before the turn.
    pub(in crate::http) fn code(
        &mut self,
        coding: Coding,
        is_first: bool,
        is_last: bool,
        mut checksum: Checksum,
    ) -> CodedTurn {
        let mut segments = std::mem::take(&mut self.segments);
        let mut blocks = std::mem::take(&mut self.blocks);
        let (mut plain, mut before) = (BytesMut::new(), 0);
        self.bytes = 0;
        if is_first {
            self.scratch.extend_from_slice(coding.head());
        }
        let mut sizes = blocks.drain(..).peekable();
        for (index, segment) in segments.drain(..).enumerate() {
            let Some((_, size)) = sizes.next_if(|(at, _)| *at == index) else {
                plain.extend_from_slice(segment.as_slice());
                continue;
            };
            before += plain.len() + size.plain;
            checksum = coding.checksum(checksum, &plain);
            checksum = checksum.after_block(size.checksum);
            self.put_stored(coding, &mut plain);
            self.bytes += size.sent;
            self.segments.push(segment);
        }
        drop(sizes);
        before += plain.len();
        checksum = coding.checksum(checksum, &plain);
        if is_last {
            coding.put_stored(&mut self.scratch, &plain);
            plain.clear();
            coding.put_tail(&mut self.scratch, checksum);
        }
        self.put_stored(coding, &mut plain);
        self.blocks = blocks;
        CodedTurn {
            plain: before,
            sent: self.bytes,
            checksum,
        }
    }

    /// Adds stored blocks of these bytes, after those in the buffer.
    fn put_stored(&mut self, coding: Coding, plain: &mut BytesMut) {
        coding.put_stored(&mut self.scratch, plain);
        plain.clear();
        if !self.scratch.is_empty() {
            let bytes = self.scratch.split().freeze();
            self.push(bytes);
        }
    }

    /// Adds bytes that the closure writes.
    pub(in crate::http) fn write(&mut self, write: impl FnOnce(&mut BytesMut)) {
        write(&mut self.scratch);
        let bytes = self.scratch.split().freeze();
        self.push(bytes);
    }

    /// Notes an event that traces record.
    pub(in crate::http) fn note_sample(&mut self, sample: Option<NonZeroU32>) {
        self.stats.sample = self.stats.sample.or(sample);
    }

    /// Counts events; `received` is the time of the oldest.
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

    /// Returns the statistics of the whole batch.
    pub(in crate::http) fn written(&self) -> Written {
        Written {
            stats: self.stats,
            bytes: self.bytes,
        }
    }
}

impl Segment {
    /// Returns the content without the envelope around it.
    pub(in crate::http) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.content.clone()]
    }

    /// Returns the content with the envelope around it, if it has one.
    pub(in crate::http) fn enveloped(&self) -> Option<&[u8]> {
        (self.content.len() < self.bytes.len()).then_some(&self.bytes)
    }

    /// Returns the content after the first `written` bytes, to be kept.
    pub(in crate::http) fn rest(&self, written: usize) -> Bytes {
        self.owned(self.content.start + written..self.content.end)
    }

    /// Returns content and envelope after the first `written` bytes of both, to be kept.
    pub(in crate::http) fn enveloped_rest(&self, written: usize) -> Bytes {
        self.owned(written..self.bytes.len())
    }

    fn owned(&self, range: Range<usize>) -> Bytes {
        if self.is_borrowed {
            Bytes::copy_from_slice(&self.bytes[range])
        } else {
            self.bytes.slice(range)
        }
    }
}
