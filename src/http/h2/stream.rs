//! The task of an event stream on an HTTP/2 stream.
//!
//! ```text
//! poll: direct writes are adopted -> poll_drive -> (Pending) -> direct writes are allowed, if idle
//!
//! poll_drive: request to end? reset by the client? bytes in flight? -> stall timer
//!             rest of a large event? -> send the next part
//!             last bytes flushed? -> end
//!             EventStream::poll_next -> send
//! ```
//!
//! The task gives h2 one batch and waits until all of it is flushed. A batch that fits one part and
//! after which the event stream waits needs no further poll. Of a larger event at most
//! [`PART_BYTES_MAX`] are in flight, so that a client that reads slowly is seen to make progress.
//!
//! Memory: the task with the event stream in it, and a box with its I/O state, each as large as a
//! size class of the allocator.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;

use super::idle::UseGuard;
use super::sink::SharedStream;
use crate::http::request::call;
use crate::http::stream::client_messages::{ClientMessages, ClientState, Receive};
use crate::http::stream::event_stream::{EventStream, Step};
use crate::http::stream::stall::StallTimer;
use crate::http::stream::state::StreamState;
use crate::http::stream::write_batch::{Unsent, WriteBatch, WriteStats, Written};
use crate::presence::CloseReason;

/// 4 KiB of answers to a client are passed at a time; it is not read before they are written.
const ANSWERS_MAX: usize = 4 * 1024;

/// 64 KiB: largest part of an event that h2 receives at a time.
const PART_BYTES_MAX: usize = 64 * 1024;

/// Writes one event stream to its HTTP/2 stream until either ends.
pub(super) struct H2Stream {
    stream: EventStream,
    io: Box<StreamIo>,
}

/// HTTP/2 stream of an event stream, and what is released at its end.
struct StreamIo {
    shared: Arc<SharedStream>,
    /// Rest of a batch that is larger than one part.
    unsent: Option<Box<Unsent>>,
    /// Created when bytes stay in flight for the first time.
    stall: Option<Box<StallTimer>>,
    /// Set when the last batch is read from the event stream.
    last: Option<Last>,
    /// The client's side of a WebSocket.
    input: Option<Box<H2Input>>,
    _in_use: UseGuard,
}

/// The client's side of a WebSocket.
pub(super) struct H2Input {
    body: RecvStream,
    messages: ClientMessages,
}

#[derive(Clone, Copy)]
struct Last {
    close: CloseReason,
    /// The HTTP/2 stream is reset when the last bytes are flushed, instead of ended with them.
    is_aborted: bool,
}

impl H2Stream {
    pub(super) fn new(
        stream: EventStream,
        shared: SharedStream,
        in_use: UseGuard,
        input: Option<H2Input>,
    ) -> Self {
        let shared = Arc::new(shared);
        stream.set_direct_sink(shared.clone());
        let io = StreamIo {
            shared,
            unsent: None,
            stall: None,
            last: None,
            input: input.map(Box::new),
            _in_use: in_use,
        };
        Self {
            stream,
            io: Box::new(io),
        }
    }

    /// Ready at the end of the HTTP/2 stream, with the reason.
    fn poll_drive(&mut self, task: &mut Context<'_>) -> Poll<CloseReason> {
        // In every poll: a wake-up consumes the waker.
        let request = self.stream.state().poll_close_request(task.waker());
        let state = self.stream.state();
        if let Some(forced) = request.filter(|close| state.is_forced_now(*close)) {
            self.io.shared.reset();
            return Poll::Ready(forced);
        }
        if self.io.shared.has_ended(task) {
            return Poll::Ready(CloseReason::Client);
        }
        if self.stream.state().in_flight() > 0 {
            return self.poll_blocked(task);
        }
        self.record_progress();
        if let Some(unsent) = self.io.unsent.take() {
            return self.send(task, *unsent);
        }
        if self.io.input.is_some() && self.io.last.is_none() {
            // Only between whole messages: an answer is a frame of its own.
            let stream = &mut self.stream;
            let receive = &mut |text: &str| stream.receive_message(text);
            let (state, answers) = self.io.poll_input(task, receive);
            if !answers.is_empty() || state == ClientState::Closed {
                return self.answer(task, state, answers);
            }
        }
        if let Some(Last { close, is_aborted }) = self.io.last {
            self.stream.set_delivered();
            if is_aborted {
                // Not earlier: h2 discards what a stream has not sent when it is reset.
                self.io.shared.reset();
            }
            return Poll::Ready(close);
        }
        let (step, unsent) = ready!(WriteBatch::with(|out| {
            let step = ready!(self.stream.poll_next(task, out));
            let unsent = Unsent {
                bytes: join(out),
                written: out.written(),
            };
            Poll::Ready((step, unsent))
        }));
        match step {
            Step::Wait if unsent.bytes.len() <= PART_BYTES_MAX => {
                if self.io.shared.pass(unsent.bytes, false).is_err() {
                    return Poll::Ready(CloseReason::Client);
                }
                self.stream.record_written(unsent.written);
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
        self.send(task, unsent)
    }

    /// Sends answers to the client of a WebSocket, and continues after the connection's turn.
    fn answer(
        &mut self,
        task: &Context<'_>,
        state: ClientState,
        answers: BytesMut,
    ) -> Poll<CloseReason> {
        self.stream.end_direct_writes();
        if state == ClientState::Closed {
            // The task stays until the answer is flushed: h2 must not drop the last handle of its
            // own stream.
            self.io.last = Some(Last {
                close: CloseReason::Client,
                is_aborted: false,
            });
        }
        let written = Written {
            stats: WriteStats::default(),
            bytes: answers.len(),
        };
        let bytes = answers.freeze();
        self.send(task, Unsent { bytes, written })
    }

    /// Sends one part, and continues after the connection's turn.
    fn send(&mut self, task: &Context<'_>, mut unsent: Unsent) -> Poll<CloseReason> {
        let part_length = unsent.bytes.len().min(PART_BYTES_MAX);
        let part = unsent.bytes.split_to(part_length);
        let is_all = unsent.bytes.is_empty();
        let is_last = is_all && self.io.last.is_some_and(|last| !last.is_aborted);
        let trailers = is_last.then(|| self.stream.take_trailers()).flatten();
        let ends_with_data = is_last && trailers.is_none();
        // Careful receivers count empty frames as a flood, unless they end the stream.
        if (ends_with_data || !part.is_empty())
            && self.io.shared.pass(part, ends_with_data).is_err()
        {
            return Poll::Ready(CloseReason::Client);
        }
        if let Some(trailers) = trailers
            && self.io.shared.finish(call::fields(&trailers)).is_err()
        {
            return Poll::Ready(CloseReason::Client);
        }
        if is_all {
            // Passed to h2 is the closest to the socket that can be observed here.
            self.stream.record_written(unsent.written);
        } else {
            // Bytes are counted part by part, the event when it is complete.
            unsent.written = unsent.written.delayed();
            unsent.written.bytes -= part_length;
            self.stream.record_written(Written {
                stats: WriteStats::default(),
                bytes: part_length,
            });
            self.io.unsent = Some(Box::new(unsent));
        }
        task.waker().wake_by_ref();
        Poll::Pending
    }

    /// Records that everything in flight is flushed.
    fn record_progress(&mut self) {
        if self.io.unsent.is_some() {
            // A large event makes progress.
            self.stream.state().clear_slow();
        } else {
            self.stream.state().clear_blocked();
        }
        if let Some(stall) = &mut self.io.stall {
            stall.stop();
        }
    }

    /// Polls the stall timer while bytes stay in flight.
    fn poll_blocked(&mut self, task: &mut Context<'_>) -> Poll<CloseReason> {
        let StreamIo { shared, stall, .. } = &mut *self.io;
        let stall = stall.get_or_insert_default();
        ready!(stall.poll(task, self.stream.state(), || shared.blocks_others()));
        self.io.shared.reset();
        Poll::Ready(CloseReason::Slow)
    }

    /// Allows direct writes while the task waits, if nothing else is to be sent.
    fn allow_direct_writes(&self) {
        let is_clear =
            self.io.unsent.is_none() && self.io.last.is_none() && !self.stream.state().is_blocked();
        if is_clear {
            self.stream.allow_direct_writes();
        }
    }
}

impl H2Input {
    pub(super) fn new(body: RecvStream) -> Self {
        Self {
            body,
            messages: ClientMessages::new(Bytes::new()),
        }
    }
}

impl StreamIo {
    /// Reads the client's side of a WebSocket. Returns its state, and the answers.
    fn poll_input(
        &mut self,
        task: &mut Context<'_>,
        receive: Receive<'_>,
    ) -> (ClientState, BytesMut) {
        let mut answers = BytesMut::new();
        let Some(input) = &mut self.input else {
            return (ClientState::Open, answers);
        };
        while answers.len() < ANSWERS_MAX {
            let bytes = match input.body.poll_data(task) {
                Poll::Pending => return (ClientState::Open, answers),
                Poll::Ready(Some(Ok(bytes))) => bytes,
                // The client has ended its side, or the stream.
                Poll::Ready(_) => return (ClientState::Closed, answers),
            };
            // It fails only for more than was received.
            drop(input.body.flow_control().release_capacity(bytes.len()));
            if input.messages.read(&bytes, &mut answers, receive) == ClientState::Closed {
                return (ClientState::Closed, answers);
            }
        }
        (ClientState::Open, answers)
    }
}

impl Future for H2Stream {
    type Output = ();

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if let Some(last_write) = this.io.shared.direct_path.take_last_write() {
            this.stream.adopt_direct_writes(last_write);
        }
        let Poll::Ready(close) = this.poll_drive(task) else {
            this.allow_direct_writes();
            return Poll::Pending;
        };
        this.stream.end(close);
        Poll::Ready(())
    }
}

/// Joins the segments of a batch. A single segment is shared, not copied.
fn join(out: &WriteBatch) -> Bytes {
    if let [segment] = &out.segments[..] {
        return segment.rest(0);
    }
    let mut joined = BytesMut::with_capacity(out.bytes);
    for segment in &out.segments {
        joined.extend_from_slice(segment.as_slice());
    }
    joined.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_task_fits_size_classes_of_the_allocator() {
        // tokio's part of a task is 104 bytes, and its alignment 128.
        let task = 104 + size_of::<H2Stream>();
        assert!(task <= 256, "{task}: the next size is 384");
        assert!(
            size_of::<StreamIo>() <= 48,
            "{}: the next size is 64",
            size_of::<StreamIo>()
        );
        let shared = 2 * size_of::<usize>() + size_of::<SharedStream>();
        assert!(shared <= 96, "{shared}: the next size is 112");
    }
}
