//! An event stream on an HTTP/1 socket that was taken back from hyper: the task that stays.
//!
//! hyper keeps 16 KiB of buffers per connection for a response that reads nothing more; without them an idle client
//! costs about a kilobyte, and a delivery little more than its system call.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::Sleep;

use super::chunk_writer::ChunkWriter;
use super::sink::TaskSocket;
use crate::http::context::ConnectionGuard;
use crate::http::stream::event_stream::{EventStream, Step};
use crate::http::stream::stall::StallTimer;
use crate::http::stream::state::StreamState;
use crate::http::stream::write_batch::WriteBatch;
use crate::http::transport::{LINGER, Transport};
use crate::lifecycle::shutdown::Guard;
use crate::presence::CloseReason;

/// Writes one event stream to its socket until either ends.
///
/// It lies in two pieces, each as large as a size of the allocator: the task with the event stream in it, and its line.
pub(in crate::http) struct H1Stream<T> {
    phase: Phase,
    io: Box<StreamIo<T>>,
}

/// What an event stream is written to, and what is given back at its end.
struct StreamIo<T> {
    writer: ChunkWriter<T>,
    /// A socket that takes everything needs none.
    stall: Option<Box<StallTimer>>,
    _guard: ConnectionGuard,
    _release: Guard,
}

#[expect(
    clippy::large_enum_variant,
    reason = "the large one is what is there for hours"
)]
enum Phase {
    /// Events are written as they come.
    Open(EventStream),
    /// The last bytes are handed out; the socket takes them, or does not in time. A drain has a time of its own.
    Last(Box<EventStream>, Option<Pin<Box<Sleep>>>),
    /// Our side of the connection has ended, and the client's is waited for.
    Linger(Pin<Box<Sleep>>),
}

impl<T: Transport> H1Stream<T> {
    pub(in crate::http) fn new(
        writer: ChunkWriter<T>,
        stream: EventStream,
        guard: ConnectionGuard,
        release: Guard,
    ) -> Self {
        if let Some(socket) = writer.shared().filter(|_| writer.is_chunked()) {
            stream.set_direct_sink(socket.direct_sink());
        }
        let io = StreamIo {
            writer,
            stall: None,
            _guard: guard,
            _release: release,
        };
        Self {
            phase: Phase::Open(stream),
            io: Box::new(io),
        }
    }

    /// To be called once by the task that polls it: whoever asks for the end wakes it.
    pub(in crate::http) fn begin(&self, task: &Context<'_>) {
        if let Some(stream) = self.stream() {
            stream.state().poll_close_request(task.waker());
        }
    }

    /// The task runs: nobody else writes to the socket until it waits again.
    fn take_over(&mut self) {
        let Some((handed, rest)) = self.io.writer.shared().and_then(TaskSocket::close) else {
            return;
        };
        if let Phase::Open(stream) = &mut self.phase {
            stream.resync(handed);
        }
        if let Some(rest) = rest {
            self.io.writer.keep(*rest);
        }
    }

    /// The task waits: what it waits for may be written past it, if nothing else is under way to the client.
    fn release(&self) {
        if let (Some(socket), Phase::Open(stream)) = (self.io.writer.shared(), &self.phase)
            && self.io.writer.is_clear()
            && stream.is_idle()
        {
            socket.open();
        }
    }

    /// Ready at the end of the connection, with why its event stream ended if that is not known to it yet.
    fn poll_drive(&mut self, task: &mut Context<'_>) -> Poll<CloseReason> {
        loop {
            if let Some(forced) = self.forced(task) {
                self.io.writer.abort();
                return Poll::Ready(forced);
            }
            if self.io.writer.poll_disconnected(task).is_ready() {
                return Poll::Ready(CloseReason::Client);
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
                        if let Ok(Some(sent)) = written {
                            stream.sent(sent);
                            self.io.rest();
                        }
                        Poll::Ready(written.map(|sent| (step, sent.is_some())))
                    });
                    match ready!(turn) {
                        // What most turns come to: one event, one write, and everything that wakes the task is noted.
                        Ok((Step::Wait, true)) => return Poll::Pending,
                        // There is more, or what is left goes to the socket first.
                        Ok((Step::More | Step::Wait, _)) => {}
                        Ok((Step::Close(close), _)) => self.finish(close),
                        Err(_) => return Poll::Ready(CloseReason::Client),
                    }
                }
                Phase::Last(stream, _) => {
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

    /// Ready when what was handed out is on the socket, and counts it; false if the socket is broken.
    fn poll_flushed(&mut self, task: &mut Context<'_>) -> Poll<bool> {
        let Ok(sent) = ready!(self.io.writer.poll_written(task)) else {
            return Poll::Ready(false);
        };
        if let Some(sent) = sent {
            if let Some(stream) = self.stream() {
                stream.sent(sent);
                stream.state().clear_blocked();
            }
            self.io.rest();
        }
        Poll::Ready(true)
    }

    /// Ends the body: with everything written that it is owed, the connection follows.
    fn finish(&mut self, close: CloseReason) {
        let deadline = (close != CloseReason::Drain).then(|| Box::pin(tokio::time::sleep(LINGER)));
        let before = std::mem::replace(
            &mut self.phase,
            Phase::Linger(Box::pin(tokio::time::sleep(LINGER))),
        );
        let Phase::Open(stream) = before else { return };
        if !stream.is_aborted() {
            self.io.writer.finish();
        }
        self.phase = Phase::Last(Box::new(stream), deadline);
    }

    fn stream(&self) -> Option<&EventStream> {
        match &self.phase {
            Phase::Open(stream) => Some(stream),
            Phase::Last(stream, _) => Some(stream),
            Phase::Linger(_) => None,
        }
    }

    /// An end that waits for nobody.
    fn forced(&mut self, task: &Context<'_>) -> Option<CloseReason> {
        let state = self.stream()?.state();
        state.close_request()?;
        // The word to end has taken the note with it, and a forced end may follow.
        state
            .poll_close_request(task.waker())
            .filter(|close| StreamState::is_forced(*close))
    }

    /// The socket refuses bytes: its client has the patience of its route, and an end its own time.
    fn poll_blocked(&mut self, task: &mut Context<'_>) -> Poll<CloseReason> {
        let has_taken_a_turn = self.io.writer.has_taken_a_turn();
        if let Some(state) = self.stream().map(|stream| stream.state().clone()) {
            if has_taken_a_turn {
                state.clear_slow();
                self.io.rest();
            }
            if self
                .io
                .stall
                .get_or_insert_default()
                .poll(task, &state, || false)
                .is_ready()
            {
                self.io.writer.abort();
                return Poll::Ready(CloseReason::Slow);
            }
        }
        self.poll_deadline(task)
    }

    /// The end has its time; without an end there is none.
    fn poll_deadline(&mut self, task: &mut Context<'_>) -> Poll<CloseReason> {
        match &mut self.phase {
            Phase::Open(_) | Phase::Last(_, None) => Poll::Pending,
            Phase::Last(_, Some(deadline)) => {
                ready!(deadline.as_mut().poll(task));
                self.io.writer.abort();
                Poll::Ready(CloseReason::Client)
            }
            // Not reset: what the kernel still holds is the client's, and it bounds how long that may take.
            Phase::Linger(deadline) => deadline.as_mut().poll(task).map(|()| CloseReason::Client),
        }
    }
}

impl<T> StreamIo<T> {
    /// The socket takes bytes again.
    fn rest(&mut self) {
        if let Some(stall) = &mut self.stall {
            stall.rest();
        }
    }
}

impl<T: Transport> Future for H1Stream<T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.take_over();
        let Poll::Ready(close) = this.poll_drive(task) else {
            this.release();
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
    use tokio_rustls::server::TlsStream;

    use super::*;

    #[test]
    fn what_waits_for_events_fits_sizes_of_the_allocator() {
        // tokio's part of a task is 104 bytes, and its alignment 128.
        let task = 104 + size_of::<H1Stream<TaskSocket>>();
        assert!(task <= 384, "{task}: the next size is 512");
        assert_eq!(
            size_of::<H1Stream<TaskSocket>>(),
            size_of::<H1Stream<TlsStream<TcpStream>>>()
        );
        let (clear, tls) = (
            size_of::<StreamIo<TaskSocket>>(),
            size_of::<StreamIo<TlsStream<TcpStream>>>(),
        );
        assert!(clear <= 64, "{clear}: the next size is 80");
        assert!(tls <= 1280, "{tls}: the next size is 1536");
    }
}
