//! An event stream as the body of an HTTP/2 response, and the tasks of a connection's streams, each of which can be ended.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use hyper::body::Frame;
use hyper::rt::Executor;

use super::event_stream::{EventStream, Step};
use super::idle::InUse;
use super::member::StreamState;
use super::output::Output;
use crate::registry::Close;

/// One DATA frame per turn, with all events that are ready.
pub(super) struct H2Body {
    /// None when its last bytes are handed out.
    stream: Option<EventStream>,
    _in_use: InUse,
}

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
        Self { stream: Some(stream), _in_use: in_use }
    }

    pub(super) fn poll_frame(&mut self, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        let turn = Output::with(|out| {
            let step = std::task::ready!(stream.poll_next(task, out));
            // Handed to HTTP/2 is the nearest to the socket that can be seen here: it is asked for only when the
            // stream's window is open.
            stream.sent(out.tally, out.bytes);
            Poll::Ready((step, join(out)))
        });
        let (step, data) = std::task::ready!(turn);
        if let Step::End(close) = step {
            self.stream = None;
            if StreamState::is_forced(close) {
                return Poll::Ready(Some(Err(Reset(close))));
            }
        }
        // An empty frame would count as a flood at a careful receiver.
        Poll::Ready((!data.is_empty()).then(|| Ok(Frame::data(data))))
    }

    pub(super) fn is_end(&self) -> bool {
        self.stream.is_none()
    }
}

/// One piece for one frame: events are copied together only when there are several.
fn join(out: &mut Output) -> Bytes {
    if out.parts.len() == 1 {
        return out.parts.pop().unwrap_or_default();
    }
    let mut joined = BytesMut::with_capacity(out.bytes);
    for part in &out.parts {
        joined.extend_from_slice(part);
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
        let task = tokio::spawn(future).abort_handle();
        if let Some(link) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let mut linked = link.lock().unwrap_or_else(PoisonError::into_inner);
            linked.task = Some(task);
            linked.connect();
        }
    }
}
