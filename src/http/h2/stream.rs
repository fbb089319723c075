//! An event stream on a stream of HTTP/2: the task that stays.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};

use super::sink::SharedStream;
use crate::http::h2::idle::UseGuard;
use crate::http::stream::event_stream::{EventStream, Step};
use crate::http::stream::stall::StallTimer;
use crate::http::stream::state::StreamState;
use crate::http::stream::write_batch::{WriteBatch, WriteStats, Written};
use crate::presence::CloseReason;

/// 64 KiB: of a larger event a part at a time is handed over, so that a peer that takes it slowly is seen to take it.
const PART_BYTES_MAX: usize = 64 * 1024;

/// Hands one event stream to its HTTP/2 stream until either ends.
///
/// It lies in two pieces, each as large as a size of the allocator: the task with the event stream in it, and its line.
pub(super) struct H2Stream {
    stream: EventStream,
    io: Box<StreamIo>,
}

/// What an event stream is handed to.
struct StreamIo {
    shared: Arc<SharedStream>,
    /// What is still to be handed over of a turn that is larger than the others.
    rest: Option<Box<Rest>>,
    /// A window that lets everything out needs none.
    stall: Option<Box<StallTimer>>,
    /// Its last bytes are handed out.
    last: Option<Last>,
    _in_use: UseGuard,
}

struct Rest {
    bytes: Bytes,
    /// What will be counted when all of it is handed over.
    unsent: Written,
}

#[derive(Clone, Copy)]
struct Last {
    close: CloseReason,
    /// The HTTP/2 stream does not end with them; it is reset when they are out.
    is_aborted: bool,
}

impl H2Stream {
    pub(super) fn new(stream: EventStream, shared: SharedStream, in_use: UseGuard) -> Self {
        let shared = Arc::new(shared);
        stream.set_direct_sink(shared.clone());
        let io = StreamIo {
            shared,
            rest: None,
            stall: None,
            last: None,
            _in_use: in_use,
        };
        Self {
            stream,
            io: Box::new(io),
        }
    }

    /// Ready at the end of the HTTP/2 stream, with why.
    fn poll_drive(&mut self, task: &mut Context<'_>) -> Poll<CloseReason> {
        // Noted each time: whoever wakes the task takes the note with it.
        let asked = self.stream.state().poll_close_request(task.waker());
        if let Some(forced) = asked.filter(|close| StreamState::is_forced(*close)) {
            self.io.shared.reset();
            return Poll::Ready(forced);
        }
        if self.io.shared.has_ended(task) {
            return Poll::Ready(CloseReason::Client);
        }
        if self.stream.state().in_flight() > 0 {
            return self.poll_blocked(task);
        }
        self.note_taken();
        if let Some(rest) = self.io.rest.take() {
            return self.send(task, *rest);
        }
        if let Some(Last { close, is_aborted }) = self.io.last {
            self.stream.set_delivered();
            if is_aborted {
                // Sooner, the reset would overtake them: h2 throws away what a stream that is reset has not sent.
                self.io.shared.reset();
            }
            return Poll::Ready(close);
        }
        let (step, unsent, bytes) = ready!(WriteBatch::with(|out| {
            let step = ready!(self.stream.poll_next(task, out));
            Poll::Ready((step, (out.stats, out.bytes), join(out)))
        }));
        match step {
            Step::Wait if bytes.len() <= PART_BYTES_MAX => {
                if self.io.shared.send(bytes, false).is_err() {
                    return Poll::Ready(CloseReason::Client);
                }
                self.stream.sent(unsent);
                return Poll::Pending;
            }
            Step::Wait | Step::More => {}
            Step::Close(close) if StreamState::is_forced(close) => {
                self.io.shared.reset();
                return Poll::Ready(close);
            }
            Step::Close(close) => {
                self.io.last = Some(Last {
                    close,
                    is_aborted: self.stream.is_aborted(),
                })
            }
        }
        self.send(task, Rest { bytes, unsent })
    }

    /// Hands over a part, and goes on behind a turn of the connection.
    fn send(&mut self, task: &Context<'_>, mut rest: Rest) -> Poll<CloseReason> {
        let part = rest.bytes.split_to(rest.bytes.len().min(PART_BYTES_MAX));
        let part_bytes = part.len();
        let is_all = rest.bytes.is_empty();
        let is_last = is_all && self.io.last.is_some_and(|last| !last.is_aborted);
        // An empty frame would count as a flood at a careful receiver, unless it is the end.
        if (is_last || !part.is_empty()) && self.io.shared.send(part, is_last).is_err() {
            return Poll::Ready(CloseReason::Client);
        }
        if is_all {
            // Handed to HTTP/2 is the nearest to the socket that can be seen here.
            self.stream.sent(rest.unsent);
        } else {
            // The bytes are counted as they go; the event, when it is complete.
            rest.unsent.0.handed = None;
            rest.unsent.1 -= part_bytes;
            self.stream.sent((WriteStats::default(), part_bytes));
            self.io.rest = Some(Box::new(rest));
        }
        task.waker().wake_by_ref();
        Poll::Pending
    }

    /// What was handed over is out.
    fn note_taken(&mut self) {
        if self.io.rest.is_some() {
            // A large event is on its way.
            self.stream.state().clear_slow();
        } else {
            self.stream.state().clear_blocked();
        }
        if let Some(stall) = &mut self.io.stall {
            stall.rest();
        }
    }

    /// What was handed over is not out: its client has the patience of its route.
    fn poll_blocked(&mut self, task: &mut Context<'_>) -> Poll<CloseReason> {
        let StreamIo { shared, stall, .. } = &mut *self.io;
        let blocks_others = || shared.blocks_others();
        ready!(
            stall
                .get_or_insert_default()
                .poll(task, self.stream.state(), blocks_others)
        );
        self.io.shared.reset();
        Poll::Ready(CloseReason::Slow)
    }
}

impl Future for H2Stream {
    type Output = ();

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if let Some(handed) = this.io.shared.direct_path.take_over() {
            this.stream.resync(handed);
        }
        let Poll::Ready(close) = this.poll_drive(task) else {
            // What it waits for may be handed over past it, if nothing else is on its way to the client.
            let is_free = this.io.rest.is_none()
                && this.io.last.is_none()
                && !this.stream.state().is_blocked();
            if is_free && this.stream.is_idle() {
                this.io.shared.direct_path.enable();
            }
            return Poll::Pending;
        };
        this.stream.end(close);
        Poll::Ready(())
    }
}

/// One piece: events are copied together only when there are several.
fn join(out: &WriteBatch) -> Bytes {
    if let [part] = &out.segments[..] {
        return part.keep(0);
    }
    let mut joined = BytesMut::with_capacity(out.bytes);
    out.segments
        .iter()
        .for_each(|part| joined.extend_from_slice(part.as_slice()));
    joined.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_events_fits_sizes_of_the_allocator() {
        // tokio's part of a task is 104 bytes, and its alignment 128.
        let task = 104 + size_of::<H2Stream>();
        assert!(task <= 384, "{task}: the next size is 512");
        assert!(
            size_of::<StreamIo>() <= 48,
            "{}: the next size is 64",
            size_of::<StreamIo>()
        );
        let shared = 2 * size_of::<usize>() + size_of::<SharedStream>();
        assert!(shared <= 96, "{shared}: the next size is 112");
    }
}
