//! The task of an event stream on its own HTTP/1 connection.
//!
//! ```text
//! poll: direct writes are adopted -> poll_drive -> (Pending) -> direct writes are allowed, if idle
//!
//! Open:    request to end? client gone? pending bytes written? -> EventStream::poll_next -> write
//! Closing: the last bytes are written, then our side of the connection is shut down
//! Linger:  waits for the client to close its side, at most LINGER
//! ```
//!
//! The task ends when the connection ends. A socket that accepts no bytes is watched by the stall
//! timer; the bytes that it has not accepted are kept in the [`ChunkWriter`], at most one turn.
//!
//! Memory: the task with the event stream in it, and a box with its I/O state, each as large as a
//! size class of the allocator.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::Sleep;

use super::chunk_writer::{ChunkWriter, ClientInput};
use crate::http::context::ConnectionGuard;
use crate::http::stream::client_messages::ClientMessages;
use crate::http::stream::event_stream::{EventStream, Step};
use crate::http::stream::stall::StallTimer;
use crate::http::stream::write_batch::WriteBatch;
use crate::http::transport::{LINGER, Transport};
use crate::lifecycle::shutdown::Guard;
use crate::presence::CloseReason;

/// Writes one event stream to its socket until either ends.
pub(in crate::http) struct H1Stream<T> {
    phase: Phase,
    io: Box<StreamIo<T>>,
}

/// Socket of an event stream, and what is released at its end.
struct StreamIo<T> {
    writer: ChunkWriter<T>,
    /// `None` for most event streams.
    rare: Option<Box<Rare>>,
    _guard: ConnectionGuard,
    _shutdown: Guard,
}

/// State that few event streams need.
#[derive(Default)]
struct Rare {
    /// Runs while the socket accepts no bytes.
    stall: StallTimer,
    /// The client's side of a WebSocket; `None` after its end.
    messages: Option<ClientMessages>,
}

enum Phase {
    /// Events are written as they arrive.
    Open(EventStream),
    /// The last bytes are in the writer. Without a deadline during a drain, which has its own.
    Closing(Box<EventStream>, Option<Pin<Box<Sleep>>>),
    /// Our side of the connection is shut down; the client closes its side.
    Linger(Pin<Box<Sleep>>),
}

impl<T: Transport> H1Stream<T> {
    pub(in crate::http) fn new(
        writer: ChunkWriter<T>,
        stream: EventStream,
        guard: ConnectionGuard,
        shutdown: Guard,
        messages: Option<ClientMessages>,
    ) -> Self {
        if let Some(sink) = writer.direct_sink() {
            stream.set_direct_sink(sink);
        }
        let io = StreamIo {
            writer,
            rare: messages.map(Rare::of).map(Box::new),
            _guard: guard,
            _shutdown: shutdown,
        };
        Self {
            phase: Phase::Open(stream),
            io: Box::new(io),
        }
    }

    /// Registers the waker of the task that will poll it, so that a request to end wakes it.
    pub(in crate::http) fn begin(&self, task: &Context<'_>) {
        if let Some(stream) = self.stream() {
            stream.state().poll_close_request(task.waker());
        }
    }

    /// Adopts the direct writes that happened while the task was idle.
    fn adopt_direct_writes(&mut self) {
        let Some(writes) = self.io.writer.take_direct_writes() else {
            return;
        };
        if let Phase::Open(stream) = &mut self.phase {
            stream.adopt_direct_writes(writes.last_write);
        }
        if let Some(unsent) = writes.unsent {
            self.io.writer.keep(*unsent);
        }
    }

    /// Allows direct writes while the task waits, if nothing is in flight.
    fn allow_direct_writes(&self) {
        if let Phase::Open(stream) = &self.phase
            && self.io.writer.is_clear()
        {
            stream.allow_direct_writes();
        }
    }

    /// Ends direct writes: the answers to the client are written first.
    fn end_direct_writes(&self) {
        if let Phase::Open(stream) = &self.phase {
            stream.end_direct_writes();
        }
    }

    /// Ready at the end of the connection, with the reason if the event stream has none yet.
    fn poll_drive(&mut self, task: &mut Context<'_>) -> Poll<CloseReason> {
        loop {
            if let Some(forced) = self.forced_end(task) {
                self.io.writer.abort();
                return Poll::Ready(forced);
            }
            match self.poll_input(task) {
                ClientInput::Nothing => {}
                ClientInput::Answered => self.end_direct_writes(),
                ClientInput::Closed => {
                    self.end_direct_writes();
                    self.begin_close(CloseReason::Client);
                }
                ClientInput::Disconnected => return Poll::Ready(CloseReason::Client),
            }
            match self.poll_flushed(task) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(CloseReason::Client),
                Poll::Pending => return self.poll_blocked(task),
            }
            match &mut self.phase {
                Phase::Open(stream) => {
                    let turn = WriteBatch::with(|out| {
                        let step = ready!(stream.poll_next(task, out));
                        let written = self.io.writer.write(task, out);
                        if let Ok(Some(written)) = written {
                            stream.record_written(written);
                            self.io.stop_stall_timer();
                        }
                        Poll::Ready(written.map(|written| (step, written.is_some())))
                    });
                    match ready!(turn) {
                        // Most turns: one event, one write, and the task is woken by what follows.
                        Ok((Step::Wait, true)) => return Poll::Pending,
                        // There is more to read, or the rest of this turn must be written first.
                        Ok((Step::More | Step::Wait, _)) => {}
                        Ok((Step::Close(close), _)) => self.begin_close(close),
                        Err(_) => return Poll::Ready(CloseReason::Client),
                    }
                }
                Phase::Closing(stream, _) => {
                    if ready!(self.io.writer.poll_shutdown(task)).is_err() {
                        return Poll::Ready(CloseReason::Client);
                    }
                    stream.set_delivered();
                    self.phase = Phase::Linger(Box::pin(tokio::time::sleep(LINGER)));
                }
                Phase::Linger(_) => return self.poll_deadline(task),
            }
        }
    }

    /// Reads what the client sends.
    fn poll_input(&mut self, task: &mut Context<'_>) -> ClientInput {
        let StreamIo { writer, rare, .. } = &mut *self.io;
        let messages = rare.as_mut().and_then(|rare| rare.messages.as_mut());
        if let (Some(messages), Phase::Open(stream)) = (messages, &mut self.phase) {
            return writer.poll_messages(task, messages, &mut |text| stream.receive_message(text));
        }
        match writer.poll_disconnected(task) {
            Poll::Ready(()) => ClientInput::Disconnected,
            Poll::Pending => ClientInput::Nothing,
        }
    }

    /// Ready when pending bytes are on the socket, and counts them; false if the socket is broken.
    fn poll_flushed(&mut self, task: &mut Context<'_>) -> Poll<bool> {
        let Ok(written) = ready!(self.io.writer.poll_written(task)) else {
            return Poll::Ready(false);
        };
        if let Some(written) = written {
            if let Some(stream) = self.stream() {
                stream.record_written(written);
                stream.state().clear_blocked();
            }
            self.io.stop_stall_timer();
            if self.io.messages().is_some() {
                // The client was not read while bytes were pending.
                task.waker().wake_by_ref();
            }
        }
        Poll::Ready(true)
    }

    /// Ends the response body. The connection ends when all bytes are written.
    fn begin_close(&mut self, close: CloseReason) {
        let deadline = (close != CloseReason::Drain).then(|| Box::pin(tokio::time::sleep(LINGER)));
        let before = std::mem::replace(
            &mut self.phase,
            Phase::Linger(Box::pin(tokio::time::sleep(LINGER))),
        );
        let Phase::Open(stream) = before else { return };
        // The WebSocket is closed: what its client sends from now on is discarded.
        self.io.end_messages();
        if !stream.is_aborted() {
            self.io.writer.finish();
        }
        self.phase = Phase::Closing(Box::new(stream), deadline);
    }

    fn stream(&self) -> Option<&EventStream> {
        match &self.phase {
            Phase::Open(stream) => Some(stream),
            Phase::Closing(stream, _) => Some(stream),
            Phase::Linger(_) => None,
        }
    }

    /// Returns the reason of an end that discards pending bytes.
    fn forced_end(&mut self, task: &Context<'_>) -> Option<CloseReason> {
        let state = self.stream()?.state();
        state.close_request()?;
        // The request has consumed the waker, and a forced end may follow.
        state
            .poll_close_request(task.waker())
            .filter(|close| state.is_forced_now(*close))
    }

    /// Polls the stall timer, and the deadline of an end, while the socket accepts no bytes.
    fn poll_blocked(&mut self, task: &mut Context<'_>) -> Poll<CloseReason> {
        let has_progressed = self.io.writer.take_progress();
        if let Some(state) = self.stream().map(|stream| stream.state().clone()) {
            if has_progressed {
                state.clear_slow();
                self.io.stop_stall_timer();
            }
            let stall = &mut self.io.rare.get_or_insert_default().stall;
            if stall.poll(task, &state, || false).is_ready() {
                self.io.writer.abort();
                return Poll::Ready(CloseReason::Slow);
            }
        }
        self.poll_deadline(task)
    }

    /// Polls the deadline of an end; an open event stream has none.
    fn poll_deadline(&mut self, task: &mut Context<'_>) -> Poll<CloseReason> {
        match &mut self.phase {
            Phase::Open(_) | Phase::Closing(_, None) => Poll::Pending,
            Phase::Closing(_, Some(deadline)) => {
                ready!(deadline.as_mut().poll(task));
                self.io.writer.abort();
                Poll::Ready(CloseReason::Client)
            }
            // Without a reset: the kernel still delivers the rest to the client, and limits the
            // time.
            Phase::Linger(deadline) => deadline.as_mut().poll(task).map(|()| CloseReason::Client),
        }
    }
}

impl Rare {
    fn of(messages: ClientMessages) -> Self {
        Self {
            stall: StallTimer::default(),
            messages: Some(messages),
        }
    }
}

impl<T> StreamIo<T> {
    /// Stops the stall timer: the socket accepts bytes.
    fn stop_stall_timer(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.stall.stop();
        }
    }

    fn messages(&self) -> Option<&ClientMessages> {
        self.rare.as_ref()?.messages.as_ref()
    }

    fn end_messages(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.messages = None;
        }
    }
}

impl<T: Transport> Future for H1Stream<T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.adopt_direct_writes();
        let Poll::Ready(close) = this.poll_drive(task) else {
            this.allow_direct_writes();
            return Poll::Pending;
        };
        if let Phase::Open(stream) = &mut this.phase {
            stream.end(close);
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;
    use crate::http::h1::sink::TaskSocket;
    use crate::http::h1::tls_sink::TaskTls;

    #[test]
    fn an_idle_task_fits_size_classes_of_the_allocator() {
        // tokio's part of a task is 104 bytes, and its alignment 128.
        let task = 104 + size_of::<H1Stream<TaskSocket<TcpStream>>>();
        assert!(task <= 256, "{task}: the next size is 384");
        assert_eq!(
            size_of::<H1Stream<TaskSocket<TcpStream>>>(),
            size_of::<H1Stream<TaskTls>>()
        );
        let (clear, tls) = (
            size_of::<StreamIo<TaskSocket<TcpStream>>>(),
            size_of::<StreamIo<TaskTls>>(),
        );
        assert!(clear <= 64, "{clear}: the next size is 80");
        assert!(tls <= 64, "{tls}: the next size is 80");
    }
}
