//! The bodies of answers on HTTP/1: none, a short text, or a socket that is about to be taken back.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use crate::http::accept::reclaim::SocketReclaim;

/// What hyper carries.
pub(in crate::http) enum Body {
    Text(Bytes),
    /// Says when hyper has come to the body, and never gives any.
    SocketReclaim(Arc<SocketReclaim>),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Text(text) if text.is_empty() => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Self::SocketReclaim(place) => {
                place.set_reached();
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::SocketReclaim(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => SizeHint::with_exact(text.len() as u64),
            Self::SocketReclaim(_) => SizeHint::default(),
        }
    }
}
