//! An event stream as the body of an HTTP/2 response, and the tasks of a connection's streams, each of which can be ended.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use hyper::body::Frame;
use hyper::rt::Executor;
use pin_project_lite::pin_project;

use super::body::Piece;
use super::event_stream::{EventStream, Step};
use super::idle::InUse;
use super::member::StreamState;
use super::output::Output;
use super::patience::Patience;
use crate::registry::Close;

/// One DATA frame per turn, with all events that are ready. To be put in a box: it lies in hyper's future, and that in the
/// task, whose memory tokio rounds up to 128 bytes.
pub(super) struct H2Body {
    state: State,
    _in_use: InUse,
    /// What of an event that is larger than a frame is still to be handed out.
    rest: Option<Box<Bytes>>,
    /// The turn of its task in which everything was handed out that there was, with all that wakes the task noted: hyper
    /// asks once more, and for that the event stream need not be looked through again.
    idle_in: u64,
}

#[expect(clippy::large_enum_variant, reason = "it is open for hours and ended for a moment")]
enum State {
    Open(EventStream),
    /// What it says of its end is kept back until everything before it has been taken.
    Last(Box<(EventStream, Bytes)>),
    /// Its last bytes are handed out.
    Ended,
    /// Its last bytes are handed out, and the stream is reset when they are on their way.
    Breaking,
}

/// 64 KiB: hyper hands HTTP/2 all of what it is given at once, and asks again when the peer has taken it. Of a larger
/// event it gets a part at a time, so that a peer that takes it slowly is seen to take it.
const FRAME_BYTES_MAX: usize = 64 * 1024;

/// The body ends as a reset of its stream: what an event stream is owed will not come.
#[derive(Debug)]
pub(super) struct Reset(Close);

impl std::fmt::Display for Reset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "event stream ended: {}", self.0.reason())
    }
}

impl std::error::Error for Reset {}

impl H2Body {
    /// To be called in the task that polls it.
    pub(super) fn new(stream: EventStream, in_use: InUse) -> Self {
        OPENED.set(Some(stream.state().clone()));
        Self { state: State::Open(stream), rest: None, idle_in: 0, _in_use: in_use }
    }

    pub(super) fn poll_frame(&mut self, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, Reset>>> {
        let stream = match &mut self.state {
            State::Open(stream) => stream,
            State::Last(_) | State::Ended => return Poll::Ready(self.last()),
            State::Breaking => return Poll::Pending,
        };
        // Asked for only when the stream's window is open.
        stream.state().is_taken();
        let mut data = if let Some(rest) = self.rest.take() {
            stream.state().takes_a_turn();
            *rest
        } else {
            if self.idle_in == TURN.get() {
                return Poll::Pending;
            }
            if self.idle_in == 0 {
                // As long as nobody knows whose task it is.
                stream.state().poll_asked(task.waker());
            }
            let turn = Output::with(|out| {
                let step = std::task::ready!(stream.poll_next(task, out));
                // Handed to HTTP/2 is the nearest to the socket that can be seen here.
                stream.sent((out.tally, out.bytes));
                let is_kept = matches!(step, Step::End(close) if !stream.breaks(close)) && out.parts.len() > 1;
                let kept = if is_kept { out.parts.pop().map(|part| part.keep(0)) } else { None };
                Poll::Ready((step, join(out), kept))
            });
            let (step, data, kept) = std::task::ready!(turn);
            if let Step::End(close) = step {
                return Poll::Ready(self.end(close, data, kept));
            }
            if step == Step::Wait {
                self.idle_in = TURN.get();
            }
            data
        };
        stream.state().offers();
        if data.len() > FRAME_BYTES_MAX {
            let first = data.split_to(FRAME_BYTES_MAX);
            self.rest = Some(Box::new(std::mem::replace(&mut data, first)));
        }
        Poll::Ready(Some(Ok(Frame::data(data.into()))))
    }

    /// The frame before the last, or the last one.
    fn end(&mut self, close: Close, data: Bytes, kept: Option<Bytes>) -> Option<Result<Frame<Piece>, Reset>> {
        let State::Open(mut stream) = std::mem::replace(&mut self.state, State::Ended) else { return None };
        if StreamState::is_forced(close) {
            return Some(Err(Reset(close)));
        }
        // Until its last bytes are on their way, too: whoever does not take them is waited for no longer than before.
        stream.state().offers();
        if stream.breaks(close) {
            self.state = State::Breaking;
            return Some(Ok(Frame::data(Piece::before_reset(data, stream.state().clone()))));
        }
        match kept {
            Some(last) => self.state = State::Last(Box::new((stream, last))),
            None => stream.set_delivered(),
        }
        // An empty frame would count as a flood at a careful receiver.
        (!data.is_empty()).then(|| Ok(Frame::data(data.into())))
    }

    /// What was kept back: hyper asks again when the client's window is open behind everything that it was handed.
    fn last(&mut self) -> Option<Result<Frame<Piece>, Reset>> {
        let State::Last(held) = std::mem::replace(&mut self.state, State::Ended) else { return None };
        let (mut stream, last) = *held;
        stream.state().is_taken();
        stream.set_delivered();
        stream.state().offers();
        Some(Ok(Frame::data(last.into())))
    }

    pub(super) fn is_end(&self) -> bool {
        matches!(self.state, State::Ended)
    }
}

/// One piece for one frame: events are copied together only when there are several.
fn join(out: &mut Output) -> Bytes {
    if out.parts.len() == 1 {
        return out.parts[0].keep(0);
    }
    let mut joined = BytesMut::with_capacity(out.bytes);
    for part in &out.parts {
        joined.extend_from_slice(part.as_slice());
    }
    joined.freeze()
}

/// Runs the tasks that hyper spawns for the streams of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tasks;

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
{
    fn execute(&self, future: F) {
        tokio::spawn(Carried { future, whose: Whose::Unknown });
    }
}

pin_project! {
    /// hyper's task of one stream, and beside it the patience with a peer that shuts the stream's window. Its end resets
    /// the stream.
    ///
    /// hyper's future stands in the task itself: there are as many as clients, and none lasts less than its event stream.
    struct Carried<F> {
        #[pin]
        future: F,
        whose: Whose,
    }
}

thread_local! {
    /// Which poll of a stream's task this thread is in.
    static TURN: Cell<u64> = const { Cell::new(0) };
    /// The event stream that was opened in it.
    static OPENED: RefCell<Option<Arc<StreamState>>> = const { RefCell::new(None) };
}

/// Whose task it is.
enum Whose {
    /// It is being answered, perhaps with an event stream.
    Unknown,
    Known(Arc<StreamState>),
    /// Its peer refuses bytes. In a box of its own: of a thousand peers few ever do.
    Refused(Box<(Arc<StreamState>, Patience)>),
}

impl<F: Future> Future for Carried<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.whose.poll_reset(task).is_ready() {
            return Poll::Ready(());
        }
        TURN.set(TURN.get() + 1);
        let polled = this.future.poll(task);
        if let Whose::Unknown = this.whose
            && let Some(state) = OPENED.take()
        {
            *this.whose = Whose::Known(state);
        }
        if polled.is_ready() { polled.map(drop) } else { this.whose.poll(task) }
    }
}

impl Whose {
    /// Ready when the task is to end at once. Whoever asks for that, or for any other end, wakes it.
    fn poll_reset(&self, task: &Context<'_>) -> Poll<()> {
        let state = match self {
            Self::Unknown => return Poll::Pending,
            Self::Known(state) => state,
            Self::Refused(refused) => &refused.0,
        };
        state.poll_asked(task.waker());
        if state.is_reset() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ready when the patience with its peer is over.
    fn poll(&mut self, task: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Known(state) if state.is_offered() => {
                *self = Self::Refused(Box::new((state.clone(), Patience::default())));
            }
            Self::Refused(refused) if !refused.0.is_offered() => {
                // It waits for events again. What an end has begun to wait for goes on: the box stays.
                refused.1.rest();
                return Poll::Pending;
            }
            _ => {}
        }
        match self {
            Self::Refused(refused) => refused.1.poll(task, &refused.0),
            _ => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_fits_a_size_of_the_allocator() {
        assert!(size_of::<H2Body>() <= 320, "{}: the next size is 384", size_of::<H2Body>());
    }
}
