//! The bodies of answers: none, a short text, an event stream on HTTP/2, or a socket that is about to be taken back.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::h2::{H2Body, Reset};
use super::take_back::TakeBack;

/// What an answer carries.
pub(super) enum Body {
    Text(Bytes),
    H2(H2Body),
    /// HTTP/1: says when hyper has come to the body, and never gives any.
    TakeBack(Arc<TakeBack>),
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
                place.set_reached();
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
