//! An event stream on an HTTP/1 socket that was taken back from hyper: the task that stays.
//!
//! hyper keeps 16 KiB of buffers per connection for a response that reads nothing more; without them an idle client
//! costs about a kilobyte, and a delivery little more than its system call.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::Sleep;

use super::context::Counted;
use super::event_stream::{EventStream, Step};
use super::member::StreamState;
use super::outlet::TaskSocket;
use super::output::Output;
use super::patience::Patience;
use super::take_back::LINGER;
use super::transport::Transport;
use super::wire::Wire;
use crate::lifecycle::drain::Release;
use crate::registry::Close;

/// Writes one event stream to its socket until either ends.
pub(super) struct Driver<T> {
    wire: Wire<T>,
    phase: Phase,
    patience: Patience,
    /// Whoever asks for the end wakes this task.
    is_noted: bool,
    _counted: Counted,
    _release: Release,
}

enum Phase {
    /// Events are written as they come.
    Open(EventStream),
    /// The last bytes are handed out; the socket takes them, or does not in time. A drain has a time of its own.
    Last(EventStream, Option<Pin<Box<Sleep>>>),
    /// Our side of the connection has ended, and the client's is waited for.
    Linger(Pin<Box<Sleep>>),
}

impl<T: Transport> Driver<T> {
    pub(super) fn new(wire: Wire<T>, stream: EventStream, counted: Counted, release: Release) -> Self {
        if let Some(socket) = wire.shared().filter(|_| wire.is_chunked()) {
            stream.set_outlet(socket);
        }
        let (phase, patience) = (Phase::Open(stream), Patience::default());
        Self { wire, phase, patience, is_noted: false, _counted: counted, _release: release }
    }

    /// The task runs: nobody else writes to the socket until it waits again.
    fn take_over(&mut self) {
        let Some((handed, rest)) = self.wire.shared().and_then(TaskSocket::close) else { return };
        if let Phase::Open(stream) = &mut self.phase {
            stream.follow(handed);
        }
        if let Some(rest) = rest {
            self.wire.keep(*rest);
        }
    }

    /// The task waits: what it waits for may be written past it, if nothing else is under way to the client.
    fn give_over(&self) {
        if let (Some(socket), Phase::Open(stream)) = (self.wire.shared(), &self.phase)
            && self.wire.is_clear()
            && stream.is_at_rest()
        {
            socket.open();
        }
    }

    /// Ready at the end of the connection, with why its event stream ended if that is not known to it yet.
    fn poll_drive(&mut self, task: &mut Context<'_>) -> Poll<Close> {
        loop {
            if let Some(forced) = self.forced(task) {
                self.wire.abort();
                return Poll::Ready(forced);
            }
            if self.wire.poll_gone(task).is_ready() {
                return Poll::Ready(Close::Client);
            }
            match self.poll_sent(task) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(Close::Client),
                Poll::Pending => return self.poll_refused(task),
            }
            match &mut self.phase {
                Phase::Open(stream) => {
                    let turn = Output::with(|out| {
                        let step = ready!(stream.poll_next(task, out));
                        let written = self.wire.write(task, out);
                        if let Ok(Some(sent)) = written {
                            stream.sent(sent);
                            self.patience.rest();
                        }
                        Poll::Ready(written.map(|sent| (step, sent.is_some())))
                    });
                    match ready!(turn) {
                        // What most turns come to: one event, one write, and everything that wakes the task is noted.
                        Ok((Step::Wait, true)) => return Poll::Pending,
                        // There is more, or what is left goes to the socket first.
                        Ok((Step::More | Step::Wait, _)) => {}
                        Ok((Step::End(close), _)) => self.finish(close),
                        Err(_) => return Poll::Ready(Close::Client),
                    }
                }
                Phase::Last(stream, _) => {
                    if ready!(self.wire.poll_shutdown(task)).is_err() {
                        return Poll::Ready(Close::Client);
                    }
                    stream.set_delivered();
                    self.phase = Phase::Linger(Box::pin(tokio::time::sleep(LINGER)));
                }
                Phase::Linger(_) => return self.poll_deadline(task),
            }
        }
    }

    /// Ready when what was handed out is on the socket, and counts it; false if the socket is broken.
    fn poll_sent(&mut self, task: &mut Context<'_>) -> Poll<bool> {
        let Ok(sent) = ready!(self.wire.poll_written(task)) else { return Poll::Ready(false) };
        if let Some(sent) = sent {
            if let Some(stream) = self.stream() {
                stream.sent(sent);
                stream.state().takes();
            }
            self.patience.rest();
        }
        Poll::Ready(true)
    }

    /// Ends the body: with everything written that it is owed, the connection follows.
    fn finish(&mut self, close: Close) {
        let deadline = (close != Close::Drain).then(|| Box::pin(tokio::time::sleep(LINGER)));
        let before = std::mem::replace(&mut self.phase, Phase::Linger(Box::pin(tokio::time::sleep(LINGER))));
        let Phase::Open(stream) = before else { return };
        if !stream.breaks(close) {
            self.wire.finish();
        }
        self.phase = Phase::Last(stream, deadline);
    }

    fn stream(&self) -> Option<&EventStream> {
        match &self.phase {
            Phase::Open(stream) | Phase::Last(stream, _) => Some(stream),
            Phase::Linger(_) => None,
        }
    }

    /// An end that waits for nobody.
    fn forced(&mut self, task: &Context<'_>) -> Option<Close> {
        let state = self.stream()?.state();
        // The task stays the same: it is noted again only when a word to end has taken the note with it.
        let asked = match state.asked() {
            None if self.is_noted => None,
            _ => state.poll_asked(task.waker()),
        };
        self.is_noted = true;
        asked.filter(|close| StreamState::is_forced(*close))
    }

    /// The socket refuses bytes: its client has the patience of its route, and an end its own time.
    fn poll_refused(&mut self, task: &mut Context<'_>) -> Poll<Close> {
        let has_taken_a_turn = self.wire.has_taken_a_turn();
        if let Phase::Open(stream) | Phase::Last(stream, _) = &self.phase {
            if has_taken_a_turn {
                stream.state().takes_a_turn();
                self.patience.rest();
            }
            if self.patience.poll(task, stream.state()).is_ready() {
                self.wire.abort();
                return Poll::Ready(Close::Slow);
            }
        }
        self.poll_deadline(task)
    }

    /// The end has its time; without an end there is none.
    fn poll_deadline(&mut self, task: &mut Context<'_>) -> Poll<Close> {
        match &mut self.phase {
            Phase::Open(_) | Phase::Last(_, None) => Poll::Pending,
            Phase::Last(_, Some(deadline)) => {
                ready!(deadline.as_mut().poll(task));
                self.wire.abort();
                Poll::Ready(Close::Client)
            }
            // Not reset: what the kernel still holds is the client's, and it bounds how long that may take.
            Phase::Linger(deadline) => deadline.as_mut().poll(task).map(|()| Close::Client),
        }
    }
}

impl<T: Transport> Future for Driver<T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.take_over();
        let Poll::Ready(close) = this.poll_drive(task) else {
            this.give_over();
            return Poll::Pending;
        };
        if let Phase::Open(stream) = &mut this.phase {
            stream.end(close);
        }
        Poll::Ready(())
    }
}
