//! An event stream as the body of an HTTP/2 response, and the tasks of a connection's streams, each of which can be ended.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
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
    rest: Bytes,
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
    pub(super) fn new(stream: EventStream, in_use: InUse) -> Self {
        Self { state: State::Open(stream), rest: Bytes::new(), idle_in: 0, _in_use: in_use }
    }

    pub(super) fn poll_frame(&mut self, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, Reset>>> {
        let stream = match &mut self.state {
            State::Open(stream) => stream,
            State::Last(_) | State::Ended => return Poll::Ready(self.last()),
            State::Breaking => return Poll::Pending,
        };
        // Asked for only when the stream's window is open.
        stream.state().is_taken();
        if self.rest.is_empty() {
            if self.idle_in == TURN.get() {
                return Poll::Pending;
            }
            let turn = Output::with(|out| {
                // An end that is asked for is taken up by the turn; here its task is noted.
                stream.state().poll_asked(task.waker());
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
            self.rest = data;
        } else {
            stream.state().takes_a_turn();
        }
        stream.state().offers();
        let data = self.rest.split_to(self.rest.len().min(FRAME_BYTES_MAX));
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

/// Where the event stream of a request and the task that hyper spawns for it find each other.
///
/// hyper never polls the body of a stream whose peer takes nothing, and offers no way to reset it; aborting its task
/// does (RST_STREAM, and nothing else of the connection is touched).
#[derive(Clone, Debug, Default)]
pub(super) struct Tasks(Arc<Mutex<Option<Link>>>);

/// One request's place for both.
pub(super) type Link = Arc<Mutex<Linked>>;

#[derive(Debug, Default)]
pub(super) struct Linked {
    task: Option<tokio::task::AbortHandle>,
    state: Option<Arc<StreamState>>,
}

impl Tasks {
    /// To be called when hyper hands over a request: its task is the next that is spawned.
    pub(super) fn link(&self) -> Link {
        let link = Link::default();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.clone());
        link
    }
}

/// The event stream of this request is this one.
pub(super) fn bind(link: &Link, state: &Arc<StreamState>) {
    let mut linked = link.lock().unwrap_or_else(PoisonError::into_inner);
    linked.state = Some(state.clone());
    linked.connect();
}

impl Linked {
    fn connect(&mut self) {
        if let (Some(task), Some(state)) = (&self.task, &self.state) {
            state.set_abort(task.clone());
        }
    }
}

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        let link = self.0.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        let carried = Carried { future, whose: Whose::Unknown(link.clone()) };
        let task = tokio::spawn(carried).abort_handle();
        let mut linked = link.lock().unwrap_or_else(PoisonError::into_inner);
        linked.task = Some(task);
        linked.connect();
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
}

/// Whose task it is.
enum Whose {
    /// It is being answered, perhaps with an event stream.
    Unknown(Link),
    Known(Arc<StreamState>),
    /// Its peer refuses bytes. In a box of its own: of a thousand peers few ever do.
    Refused(Box<(Arc<StreamState>, Patience)>),
}

impl<F: Future> Future for Carried<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        TURN.set(TURN.get() + 1);
        if this.future.poll(task).is_ready() {
            return Poll::Ready(());
        }
        this.whose.poll(task)
    }
}

impl Whose {
    /// Ready when the patience with its peer is over.
    fn poll(&mut self, task: &mut Context<'_>) -> Poll<()> {
        if let Self::Unknown(link) = self {
            let Some(state) = link.lock().unwrap_or_else(PoisonError::into_inner).state.clone() else {
                return Poll::Pending;
            };
            *self = Self::Known(state);
        }
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
