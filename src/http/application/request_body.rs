//! Body of a passed request, from either protocol, with its progress.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::RecvStream;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::http::h2::read_budget::Upload;

/// Body of a passed request.
pub(in crate::http) struct RequestBody {
    bytes: RequestBytes,
    progress: Arc<Progress>,
}

/// Origin of the bytes.
pub(in crate::http) enum RequestBytes {
    /// The request has no body.
    Empty,
    /// HTTP/1.
    Http1(Incoming),
    /// HTTP/2. A body that passes to the application is an upload.
    Http2 {
        body: RecvStream,
        _upload: Option<Upload>,
    },
}

/// Reason why a body has no next frame.
type BodyError = Box<dyn Error + Send + Sync>;

/// Progress of a body on its way to the application.
#[derive(Debug)]
pub(in crate::http) struct Progress {
    began: Instant,
    /// Milliseconds from `began` to the last bytes.
    last: AtomicU64,
    /// The application has the whole body.
    is_complete: AtomicBool,
    /// Fault of the client that has ended the body.
    fault: OnceLock<BodyFault>,
}

/// Fault of a client in the body of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyFault {
    /// The client has left, or reset its request.
    Cut,
    /// The parser has rejected the body, such as the size of a chunk.
    Malformed,
}

impl RequestBody {
    pub(in crate::http) fn new(bytes: RequestBytes) -> Self {
        let bytes = match bytes {
            RequestBytes::Http1(body) if body.is_end_stream() => RequestBytes::Empty,
            RequestBytes::Http2 { body, .. } if body.is_end_stream() => RequestBytes::Empty,
            bytes => bytes,
        };
        let progress = Progress {
            began: Instant::now(),
            last: AtomicU64::new(0),
            is_complete: AtomicBool::new(matches!(bytes, RequestBytes::Empty)),
            fault: OnceLock::new(),
        };
        Self {
            bytes,
            progress: Arc::new(progress),
        }
    }

    /// Returns whether the request has no body.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self.bytes, RequestBytes::Empty)
    }

    /// Returns the progress, which remains after the body.
    pub(in crate::http) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }
}

impl Progress {
    /// Time of the last bytes, or of the beginning.
    pub(super) fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }

    /// Returns whether all bytes of the client were read.
    pub(in crate::http) fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Relaxed)
    }

    pub(super) fn fault(&self) -> Option<BodyFault> {
        self.fault.get().copied()
    }

    fn fail(&self, error: &BodyError) {
        // The first fault counts.
        self.fault.get_or_init(|| BodyFault::of(&**error));
    }

    fn advance(&self) {
        let elapsed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(elapsed, Ordering::Relaxed);
    }
}

impl BodyFault {
    fn of(error: &(dyn Error + 'static)) -> Self {
        use io::ErrorKind::{InvalidData, InvalidInput};

        let mut cause = Some(error);
        while let Some(error) = cause {
            let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
            if matches!(kind, Some(InvalidData | InvalidInput)) {
                return Self::Malformed;
            }
            cause = error.source();
        }
        Self::Cut
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let frame = match &mut this.bytes {
            RequestBytes::Empty => None,
            RequestBytes::Http1(body) => ready!(Pin::new(body).poll_frame(task))
                .map(|frame| frame.map_err(Self::Error::from)),
            RequestBytes::Http2 { body, .. } => ready!(poll_http2(body, task)),
        };
        this.progress.advance();
        if let Some(Err(error)) = &frame {
            this.progress.fail(error);
        }
        // The application's client does not poll a body of a known length after its last bytes.
        if frame.is_none() || this.is_end_stream() {
            this.progress.is_complete.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.bytes {
            RequestBytes::Empty => true,
            RequestBytes::Http1(body) => body.is_end_stream(),
            RequestBytes::Http2 { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.bytes {
            RequestBytes::Empty => SizeHint::with_exact(0),
            RequestBytes::Http1(body) => body.size_hint(),
            // The field `Content-Length`, if there is one, is sent as it is.
            RequestBytes::Http2 { .. } => SizeHint::default(),
        }
    }
}

/// Returns the next frame of an HTTP/2 body, and its window to the client, which sends only as much
/// as the application reads.
fn poll_http2(
    body: &mut RecvStream,
    task: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    if let Some(data) = ready!(body.poll_data(task)) {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        return Poll::Ready(Some(Ok(Frame::data(data))));
    }
    let trailers = ready!(body.poll_trailers(task))?;
    Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
}
