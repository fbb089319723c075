//! The bodies of answers: none, a short text, an event stream on HTTP/2, or a socket that is about to be taken back.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::event_stream::EventStream;
use super::h2::{H2Body, Reset};
use super::wire::Framing;

/// What an answer carries.
pub(super) enum Body {
    Text(Bytes),
    H2(H2Body),
    /// HTTP/1: says when hyper has come to the body, and never gives any.
    TakeBack(Arc<TakeBack>),
}

/// Where the event stream of an HTTP/1 connection waits until hyper has written the head of its answer.
#[derive(Default)]
pub(super) struct TakeBack {
    reached: AtomicBool,
    blocked: AtomicBool,
    heard_bytes: AtomicUsize,
    stream: Mutex<Option<(EventStream, Framing)>>,
}

impl TakeBack {
    pub(super) fn put(&self, stream: EventStream, framing: Framing) {
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some((stream, framing));
    }

    /// Whether hyper has written the head into its buffer and asked for the body.
    pub(super) fn is_reached(&self) -> bool {
        self.reached.load(Ordering::Relaxed)
    }

    /// Whether the last write or flush did not finish: what hyper wrote is not all on the wire.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    pub(super) fn set_blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Ordering::Relaxed);
    }

    /// Whether the client has sent anything.
    pub(super) fn is_heard(&self) -> bool {
        self.heard_bytes() > 0
    }

    /// How much the client has sent.
    pub(super) fn heard_bytes(&self) -> usize {
        self.heard_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn add_heard(&self, bytes: usize) {
        self.heard_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn take(&self) -> Option<(EventStream, Framing)> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        match self.get_mut() {
            Self::Text(text) if text.is_empty() => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Self::H2(body) => body.poll_frame(task),
            Self::TakeBack(place) => {
                place.reached.store(true, Ordering::Relaxed);
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::H2(body) => body.is_end(),
            Self::TakeBack(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => SizeHint::with_exact(text.len() as u64),
            Self::H2(_) | Self::TakeBack(_) => SizeHint::default(),
        }
    }
}
