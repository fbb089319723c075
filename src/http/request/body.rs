//! Response bodies on HTTP/1: none, a short text, a response of the application, or a socket to
//! reclaim.
//!
//! The body of an event stream is empty for hyper: [`Body::Reclaim`] stays pending, and its first
//! poll shows that hyper has written the head (`h1::reclaim`).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use crate::http::application::response_body::PassedBody;
use crate::http::h1::reclaim::{PassedResponse, SocketReclaim};

/// Body of a response that hyper writes.
pub(in crate::http) enum Body {
    Text(Bytes),
    /// Body of the application's response.
    Passed(
        PassedBody,
        #[expect(dead_code, reason = "its drop ends the response")] PassedResponse,
    ),
    /// Marks the socket as ready to reclaim and never ends.
    Reclaim(Arc<SocketReclaim>),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Text(text) if text.is_empty() => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Self::Passed(body, _) => Pin::new(body).poll_frame(task),
            Self::Reclaim(reclaim) => {
                reclaim.set_reached();
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Passed(body, _) => body.is_end_stream(),
            Self::Reclaim(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => SizeHint::with_exact(text.len() as u64),
            Self::Passed(body, _) => body.size_hint(),
            Self::Reclaim(_) => SizeHint::default(),
        }
    }
}
