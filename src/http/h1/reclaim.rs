//! Socket reclaim: hyper serves the request of an HTTP/1 connection, then the event stream gets the
//! socket.
//!
//! hyper keeps 16 KiB of buffers per connection for a response that reads nothing. An event stream
//! lasts for hours and needs none of them, so it takes the socket back once hyper has written the
//! head of the response:
//!
//! ```text
//! service       answer is an event stream -> SocketReclaim::park, body = Body::Reclaim
//! hyper         writes the head           -> ReclaimIo keeps it in Parked::head
//! hyper         polls the body            -> Body sets `reached`, stays pending
//! connection    reached and not blocked   -> drops hyper, SocketReclaim::take
//! H1Stream      writes head and first events with one write
//! ```
//!
//! The same wrapper replaces the responses with which hyper rejects a head that it cannot parse
//! (a bare status): they are dropped, and the connection sends the rejection with code and hint.
//! It also scans heads for faults that hyper accepts (`net::request_head`).
//!
//! Everything runs on the one task of the connection; the atomics and the mutex exist because hyper
//! requires `Send`.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::chunk::BodyDelimiter;
use crate::http::accept::detect::{Detector, Preface, PrefaceCell};
use crate::http::application::tunnel::Tunnel;
use crate::http::request::rejection_code::RejectionCode;
use crate::http::stream::event_stream::EventStream;
use crate::net::request_head::{HeadFault, HeadScan};

/// State of a connection that hyper serves, shared by its IO, its service and its task.
#[derive(Default)]
pub(in crate::http) struct SocketReclaim {
    /// Detected protocol.
    pub(in crate::http) preface: PrefaceCell,
    has_received: AtomicBool,
    reached: AtomicBool,
    blocked: AtomicBool,
    /// Number of bytes that the socket has accepted.
    written: AtomicU64,
    /// The request that hyper has just read has not been polled twice.
    is_new_request: AtomicBool,
    /// Number of parsed heads.
    heads: AtomicU32,
    /// Number of the head with a fault, counted from 1; 0: none.
    faulty_head: AtomicU32,
    /// The fault is two lengths, and not a bare line feed.
    has_two_lengths: AtomicBool,
    /// The end of a body is unknown, so later heads are not scanned.
    is_blind: AtomicBool,
    /// Status with which hyper rejected a head; 0: none.
    rejected: AtomicU16,
    /// [`PASSING`], [`PASSED`], or 0: no response of the application is being written.
    passed: AtomicU8,
    /// The last response was ready before its request was complete.
    is_unread: AtomicBool,
    parked: Mutex<Option<Parked>>,
    after: Mutex<Option<AfterHead>>,
}

/// Rest of a WebSocket after the response head.
pub(in crate::http) enum AfterHead {
    /// A tunnel to the application.
    Tunnel(Tunnel),
    /// The last bytes: the WebSocket is closed at once.
    Last(Bytes),
}

/// Response of the application that hyper writes; dropped with its body.
///
/// Until its bytes are on the socket, bytes that look like a response of hyper are content.
pub(in crate::http) struct PassedResponse(Arc<SocketReclaim>);

/// The body of a passed response has not ended.
const PASSING: u8 = 1;
/// The body has ended; hyper may still have bytes of it.
const PASSED: u8 = 2;

/// Event stream that waits for its socket.
pub(in crate::http) struct Parked {
    pub(in crate::http) stream: EventStream,
    pub(in crate::http) delimiter: BodyDelimiter,
    /// Head of the response as hyper wrote it. It is sent with the first events in one segment.
    pub(in crate::http) head: Vec<u8>,
}

/// Header of hyper's own responses, which have no content.
const NO_CONTENT: &[u8] = b"content-length: 0\r\n";

/// 512: the head of the response and the first bytes of an event stream that does not resume.
const FIRST_BYTES: usize = 512;

impl SocketReclaim {
    /// Stores the event stream of the response that hyper is about to write.
    pub(in crate::http) fn park(&self, stream: EventStream, delimiter: BodyDelimiter) {
        *self.lock() = Some(Parked {
            stream,
            delimiter,
            head: Vec::new(),
        });
    }

    /// Takes the event stream out.
    pub(in crate::http) fn take(&self) -> Option<Parked> {
        self.lock().take()
    }

    /// Marks the response that hyper is about to write as one of the application.
    pub(in crate::http) fn begin_passed(self: &Arc<Self>) -> PassedResponse {
        self.passed.store(PASSING, Ordering::Relaxed);
        PassedResponse(Arc::clone(self))
    }

    /// Marks the request as incomplete: after its response, the client may still be sending.
    pub(in crate::http) fn set_unread(&self) {
        self.is_unread.store(true, Ordering::Relaxed);
    }

    /// Returns whether the client may still be sending the request that was answered last.
    pub(in crate::http) fn is_unread(&self) -> bool {
        self.is_unread.load(Ordering::Relaxed)
    }

    /// Stores what begins after the response head that hyper is about to write.
    pub(in crate::http) fn set_after(&self, after: AfterHead) {
        *self.after.lock().unwrap_or_else(PoisonError::into_inner) = Some(after);
    }

    /// Takes it out.
    pub(in crate::http) fn take_after(&self) -> Option<AfterHead> {
        let mut after = self.after.lock().unwrap_or_else(PoisonError::into_inner);
        after.take()
    }

    /// Returns whether hyper has polled the body: the head of the response is in its buffer.
    pub(in crate::http) fn is_reached(&self) -> bool {
        self.reached.load(Ordering::Relaxed)
    }

    pub(in crate::http) fn set_reached(&self) {
        self.reached.store(true, Ordering::Relaxed);
    }

    /// Returns whether the last write or flush is incomplete, so that earlier bytes of hyper are
    /// not on the socket yet.
    pub(in crate::http) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    fn set_blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Ordering::Relaxed);
    }

    /// Returns the number of bytes that the socket has accepted.
    pub(in crate::http) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn record_write(&self, written: &Poll<io::Result<usize>>) {
        self.set_blocked(written.is_pending());
        if let Poll::Ready(Ok(bytes)) = written {
            self.written.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
    }

    /// Notes that hyper has read a request: a client that has closed its side after it still gets
    /// the answer if that is ready at once.
    pub(in crate::http) fn set_new_request(&self) {
        self.is_new_request.store(true, Ordering::Relaxed);
    }

    /// Returns whether the client has sent anything.
    pub(in crate::http) fn has_received(&self) -> bool {
        self.has_received.load(Ordering::Relaxed)
    }

    /// Counts a parsed head.
    ///
    /// # Errors
    /// Returns the code of a fault in this head or an earlier one.
    pub(in crate::http) fn begin_head(&self) -> Result<(), RejectionCode> {
        let head = self.heads.fetch_add(1, Ordering::Relaxed) + 1;
        if !(1..=head).contains(&self.faulty_head.load(Ordering::Relaxed)) {
            return Ok(());
        }
        Err(if self.has_two_lengths.load(Ordering::Relaxed) {
            RejectionCode::TwoLengths
        } else {
            RejectionCode::BareLineFeed
        })
    }

    /// Returns whether later heads are not scanned, so that the connection must end after the
    /// response.
    pub(in crate::http) fn is_blind(&self) -> bool {
        self.is_blind.load(Ordering::Relaxed)
    }

    /// Returns the code of a head that hyper could not parse.
    pub(in crate::http) fn rejected(&self) -> Option<RejectionCode> {
        match self.rejected.load(Ordering::Relaxed) {
            0 => None,
            431 => Some(RejectionCode::HeadTooLarge),
            414 => Some(RejectionCode::TargetTooLong),
            _ => Some(RejectionCode::Malformed),
        }
    }

    /// Keeps the bytes that hyper writes while an event stream is parked.
    fn keep_head(&self, parts: &[IoSlice<'_>]) -> Option<usize> {
        let mut parked = self.lock();
        let head = &mut parked.as_mut()?.head;
        let before = head.len();
        // Room for the first bytes of the event stream.
        head.reserve(FIRST_BYTES);
        parts.iter().for_each(|part| head.extend_from_slice(part));
        Some(head.len() - before)
    }

    /// Drops hyper's response to a head that it could not parse.
    fn drop_parser_response(&self, parts: &[IoSlice<'_>]) -> Option<usize> {
        if self.passed.load(Ordering::Relaxed) != 0 {
            return None;
        }
        let head = parts.first()?.strip_prefix(b"HTTP/1.1 ")?;
        let status = match head.first_chunk()? {
            b"414" => 414,
            b"431" => 431,
            // Our own responses with 400 have content.
            b"400" if memchr::memmem::find(head, NO_CONTENT).is_some() => 400,
            _ => return None,
        };
        self.rejected.store(status, Ordering::Relaxed);
        Some(parts.iter().map(|part| part.len()).sum())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Parked>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PassedResponse {
    fn drop(&mut self) {
        self.0.passed.store(PASSED, Ordering::Relaxed);
    }
}

/// Socket of an HTTP/1 connection while hyper has it.
pub(in crate::http) struct ReclaimIo<T> {
    inner: T,
    reclaim: Arc<SocketReclaim>,
    detector: Detector,
    /// Scans everything that hyper reads.
    scan: HeadScan,
}

impl<T> ReclaimIo<T> {
    /// Wraps a socket and detects its protocol. hyper reads nothing if it is not HTTP/1.
    pub(in crate::http) fn detecting(inner: T, reclaim: Arc<SocketReclaim>) -> Self {
        Self {
            inner,
            reclaim,
            detector: Detector::new(),
            scan: HeadScan::default(),
        }
    }

    /// Wraps a socket that speaks HTTP/1.
    pub(in crate::http) fn http1(inner: T, reclaim: Arc<SocketReclaim>) -> Self {
        reclaim.preface.set(Preface::Http1);
        Self {
            detector: Detector::http1(),
            ..Self::detecting(inner, reclaim)
        }
    }

    /// Returns the socket and the bytes that were read and not passed to hyper.
    pub(in crate::http) fn into_inner(self) -> (T, Vec<u8>) {
        (self.inner, self.detector.into_read_ahead())
    }

    /// Returns the number of bytes that are kept or dropped instead of written.
    fn intercept(&self, parts: &[IoSlice<'_>]) -> Option<usize> {
        self.reclaim
            .keep_head(parts)
            .or_else(|| self.reclaim.drop_parser_response(parts))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReclaimIo<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let preface = &this.reclaim.preface;
        let read = this
            .detector
            .poll_read(&mut this.inner, preface, task, buffer);
        let received = &buffer.filled()[before..];
        if received.is_empty() {
            // hyper drops a request whose client has closed its side before the service has been
            // polled. It sees the end at its next poll.
            let is_end = matches!(read, Poll::Ready(Ok(())));
            if is_end && this.reclaim.is_new_request.swap(false, Ordering::Relaxed) {
                task.waker().wake_by_ref();
                return Poll::Pending;
            }
            return read;
        }
        this.reclaim.has_received.store(true, Ordering::Relaxed);
        if this.detector.is_http1() {
            let reclaim = &this.reclaim;
            if let Some((head, fault)) = this.scan.read(received) {
                let has_two_lengths = fault == HeadFault::TwoLengths;
                reclaim
                    .has_two_lengths
                    .store(has_two_lengths, Ordering::Relaxed);
                reclaim.faulty_head.store(head + 1, Ordering::Relaxed);
            }
            reclaim
                .is_blind
                .store(this.scan.is_blind(), Ordering::Relaxed);
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReclaimIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(count) = self.intercept(&[IoSlice::new(bytes)]) {
            return Poll::Ready(Ok(count));
        }
        let written = Pin::new(&mut self.inner).poll_write(task, bytes);
        self.reclaim.record_write(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(count) = self.intercept(parts) {
            return Poll::Ready(Ok(count));
        }
        let written = Pin::new(&mut self.inner).poll_write_vectored(task, parts);
        self.reclaim.record_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(task);
        self.reclaim.set_blocked(flushed.is_pending());
        // hyper flushes when all its bytes are written.
        if flushed.is_ready() && self.reclaim.passed.load(Ordering::Relaxed) == PASSED {
            self.reclaim.passed.store(0, Ordering::Relaxed);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(task)
    }
}
