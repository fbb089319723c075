//! Body of the application's response on an HTTP/2 stream.
//!
//! The next frame of the application is read when the client's window had room for the last one. A
//! client that does not read stops the application, and at most one frame waits here.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use hyper::body::Body as _;
use tokio::time::{Instant, Sleep, sleep};

use super::idle::UseGuard;
use super::sink::DataChunk;
use crate::http::application::STALL_MAX;
use crate::http::application::response_body::PassedBody;
use crate::http::stream::group::StreamGroup;

/// Response of the application that is being sent.
pub(super) struct H2Passed {
    send: SendStream<DataChunk>,
    body: PassedBody,
    /// Bytes that wait for the window of the client.
    waiting: Bytes,
    /// End of the wait for that window.
    stall: Pin<Box<Sleep>>,
    group: Arc<StreamGroup>,
    _in_use: UseGuard,
}

impl H2Passed {
    pub(super) fn new(
        send: SendStream<DataChunk>,
        body: PassedBody,
        group: Arc<StreamGroup>,
        in_use: UseGuard,
    ) -> Self {
        Self {
            send,
            body,
            waiting: Bytes::new(),
            stall: Box::pin(sleep(Duration::ZERO)),
            group,
            _in_use: in_use,
        }
    }

    /// Sends waiting bytes, as far as the client's window has room. Returns whether they were the
    /// last ones.
    fn poll_waiting(&mut self, task: &mut Context<'_>) -> Poll<Result<bool, h2::Error>> {
        let mut is_last = false;
        while !self.waiting.is_empty() {
            self.send.reserve_capacity(self.waiting.len());
            let capacity = match self.send.poll_capacity(task) {
                Poll::Ready(Some(capacity)) => capacity?,
                Poll::Ready(None) => return Poll::Ready(Err(Reason::CANCEL.into())),
                Poll::Pending => {
                    ready!(self.stall.as_mut().poll(task));
                    tracing::debug!("response of the application cut; its client does not read");
                    self.send.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(Reason::CANCEL.into()));
                }
            };
            let part = self.waiting.split_to(capacity.min(self.waiting.len()));
            self.group.use_window(part.len());
            is_last = self.waiting.is_empty() && self.body.is_end_stream();
            self.send.send_data(DataChunk::from(part), is_last)?;
            self.stall.as_mut().reset(Instant::now() + STALL_MAX);
        }
        Poll::Ready(Ok(is_last))
    }

    /// Sends the body. Ready at its end.
    fn poll_send(&mut self, task: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            if ready!(self.poll_waiting(task))? {
                return Poll::Ready(Ok(()));
            }
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(task)) else {
                self.send.send_data(DataChunk::from(Bytes::new()), true)?;
                return Poll::Ready(Ok(()));
            };
            let Ok(frame) = frame else {
                // The client must not take a part for the whole.
                self.send.send_reset(Reason::INTERNAL_ERROR);
                return Poll::Ready(Ok(()));
            };
            match frame.into_data() {
                Ok(data) => {
                    self.waiting = data;
                    self.stall.as_mut().reset(Instant::now() + STALL_MAX);
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.send.send_trailers(trailers)?;
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }
}

impl Future for H2Passed {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<()> {
        if self.send.poll_reset(task).is_ready() {
            return Poll::Ready(());
        }
        self.poll_send(task).map(|sent| {
            if let Err(error) = sent {
                tracing::debug!(%error, "response of the application was not sent completely");
            }
        })
    }
}
