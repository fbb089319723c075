//! Body of the application's response, of one in the cache, or of a probe, on its way to the client.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use prometheus::IntGauge;
use tokio::sync::OwnedSemaphorePermit;

use super::cache::Reservation;
use crate::http::request::probe_body::ProbeBody;

/// Body of a passed response: bytes in memory, then those of the application.
pub(in crate::http) struct PassedBody {
    /// A stored response, or what was read of the application's for the cache.
    bytes: Bytes,
    /// Frame that was read after `bytes`.
    next: Option<Frame<Bytes>>,
    /// Bytes of the cache's bound while the client has not taken all of `bytes`.
    reserved: Option<Reservation>,
    /// `None`: nothing comes after `bytes`.
    rest: Option<Rest>,
}

/// Body that is not in memory.
enum Rest {
    /// The application sends it. The request is in progress until its end.
    Application {
        body: Incoming,
        _in_progress: InProgress,
    },
    Probe(Box<ProbeBody>),
}

/// Part of a body that was read for the cache.
pub(super) struct ReadAhead {
    pub(super) bytes: Bytes,
    /// Frame after `bytes`.
    pub(super) next: Option<Frame<Bytes>>,
    pub(super) reserved: Reservation,
}

/// A request in progress; dropping it ends it.
pub(in crate::http) struct InProgress {
    gauge: IntGauge,
    _permit: OwnedSemaphorePermit,
}

/// 64 KiB: maximum of one frame. hyper copies a frame into the write buffer of its connection, so a
/// slow client holds a part of a stored response and not all of it.
const FRAME_MAX: usize = 64 * 1024;

impl InProgress {
    pub(super) fn new(gauge: &IntGauge, permit: OwnedSemaphorePermit) -> Self {
        gauge.inc();
        Self {
            gauge: gauge.clone(),
            _permit: permit,
        }
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl PassedBody {
    /// Returns a body that the application sends.
    pub(super) fn new(body: Incoming, in_progress: InProgress) -> Self {
        Self {
            rest: Some(Rest::Application {
                body,
                _in_progress: in_progress,
            }),
            ..Self::stored(Bytes::new())
        }
    }

    /// Returns a body whose beginning was read for the cache.
    pub(super) fn after(ahead: ReadAhead, body: Incoming, in_progress: InProgress) -> Self {
        Self {
            bytes: ahead.bytes,
            next: ahead.next,
            reserved: Some(ahead.reserved),
            ..Self::new(body, in_progress)
        }
    }

    /// Returns the event stream of a probe.
    pub(in crate::http) fn probe(body: ProbeBody) -> Self {
        Self {
            rest: Some(Rest::Probe(Box::new(body))),
            ..Self::stored(Bytes::new())
        }
    }

    /// Returns a body in memory.
    pub(in crate::http) fn stored(bytes: Bytes) -> Self {
        Self {
            bytes,
            next: None,
            reserved: None,
            rest: None,
        }
    }
}

impl Body for PassedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if !self.bytes.is_empty() {
            let part = self.bytes.len().min(FRAME_MAX);
            return Poll::Ready(Some(Ok(Frame::data(self.bytes.split_to(part)))));
        }
        self.reserved = None;
        if let Some(next) = self.next.take() {
            return Poll::Ready(Some(Ok(next)));
        }
        match &mut self.rest {
            Some(Rest::Application { body, .. }) => Pin::new(body).poll_frame(task),
            Some(Rest::Probe(body)) => body
                .poll_line(task)
                .map(|line| line.map(Frame::data).map(Ok)),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty()
            && self.next.is_none()
            && match &self.rest {
                Some(Rest::Application { body, .. }) => body.is_end_stream(),
                Some(Rest::Probe(_)) => false,
                None => true,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let next = self.next.as_ref().and_then(Frame::data_ref);
        let ahead = (self.bytes.len() + next.map_or(0, Bytes::len)) as u64;
        let mut hint = match &self.rest {
            Some(Rest::Application { body, .. }) => body.size_hint(),
            Some(Rest::Probe(_)) => SizeHint::default(),
            None => SizeHint::with_exact(0),
        };
        // In this order: the lower bound is never above the upper one.
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(ahead));
        }
        hint.set_lower(hint.lower().saturating_add(ahead));
        hint
    }
}
