//! The bodies of answers: none, a short text, an event stream on HTTP/2, or a socket that is about to be taken back.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use hyper::body::{Frame, SizeHint};

use super::h2::{H2Body, Reset};
use super::member::StreamState;
use super::take_back::TakeBack;

/// What an answer carries. Two words: hyper keeps it in the task of every HTTP/2 stream.
pub(super) enum Body {
    Text(Box<Bytes>),
    H2(Box<H2Body>),
    /// HTTP/1: says when hyper has come to the body, and never gives any.
    TakeBack(Arc<TakeBack>),
}

impl hyper::body::Body for Body {
    type Data = Piece;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, Reset>>> {
        match self.get_mut() {
            Self::Text(text) if text.is_empty() => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut **text).into())))),
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

/// Bytes of a body on their way out.
pub(super) struct Piece {
    bytes: Bytes,
    /// Whose HTTP/2 stream is reset when they are out. Asked for sooner, the reset would overtake them: h2 throws away
    /// what a stream that is reset has not sent.
    reset: Option<Arc<StreamState>>,
}

impl Piece {
    /// The last bytes of a stream that is to be reset.
    pub(super) fn before_reset(bytes: Bytes, state: Arc<StreamState>) -> Self {
        Self { bytes, reset: Some(state) }
    }
}

impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, reset: None }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // All of it is with the connection's own bytes, in their order. Otherwise the connection is gone.
        if let Some(state) = self.reset.take().filter(|_| self.bytes.is_empty()) {
            state.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_two_words() {
        assert_eq!(
            size_of::<Body>(),
            2 * size_of::<usize>(),
            "with more, the task of an HTTP/2 stream takes 128 bytes more"
        );
    }
}
