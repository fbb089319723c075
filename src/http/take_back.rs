//! A socket lent to hyper for one request, and how it is taken back once the head of the answer is written.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::event_stream::EventStream;
use super::wire::Framing;

/// Where the event stream of an HTTP/1 connection waits until hyper has written the head of its answer.
#[derive(Default)]
pub(super) struct TakeBack {
    reached: AtomicBool,
    blocked: AtomicBool,
    heard_bytes: AtomicUsize,
    holds: AtomicBool,
    held: Mutex<Option<Held>>,
}

/// An event stream that waits for its socket.
pub(super) struct Held {
    pub(super) stream: EventStream,
    pub(super) framing: Framing,
    /// What hyper wrote since: it goes out with the first bytes of the event stream, in one segment.
    pub(super) head: Vec<u8>,
}

impl TakeBack {
    pub(super) fn put(&self, stream: EventStream, framing: Framing) {
        *self.lock() = Some(Held { stream, framing, head: Vec::new() });
        self.holds.store(true, Ordering::Relaxed);
    }

    /// Takes what hyper writes, once there is an event stream that it can go out with.
    fn hold(&self, parts: &[IoSlice<'_>]) -> Option<usize> {
        if !self.holds.load(Ordering::Relaxed) {
            return None;
        }
        let mut held = self.lock();
        let head = &mut held.as_mut()?.head;
        let before = head.len();
        parts.iter().for_each(|part| head.extend_from_slice(part));
        Some(head.len() - before)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether hyper has written the head into its buffer and asked for the body.
    pub(super) fn is_reached(&self) -> bool {
        self.reached.load(Ordering::Relaxed)
    }

    pub(super) fn set_reached(&self) {
        self.reached.store(true, Ordering::Relaxed);
    }

    /// Whether the last write or flush did not finish: what hyper wrote before is not all on the wire.
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

    fn add_heard(&self, bytes: usize) {
        self.heard_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn take(&self) -> Option<Held> {
        self.lock().take()
    }
}

/// A transport lent to hyper; what happens on it is noted where it will be taken back.
pub(super) struct Watched<T> {
    pub(super) inner: T,
    place: Arc<TakeBack>,
    /// Set when our side has ended, which hyper asks for on HTTP/2 alone.
    linger: Option<Pin<Box<Sleep>>>,
}

/// 2 s: how long a client may take to close its side after ours. Closing with bytes of the client unread, such as an
/// acknowledgement that it sends for what it gets, would reset the connection and could take the end from the client.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// 64 KiB: what a client may still say in that time, far more than it has reason to.
const LAST_WORDS_MAX: usize = 64 * 1024;

impl<T> Watched<T> {
    pub(super) fn new(inner: T, place: Arc<TakeBack>) -> Self {
        Self { inner, place, linger: None }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.place.add_heard(buf.filled().len() - before);
        read
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(held) = self.place.hold(&[IoSlice::new(buf)]) {
            return Poll::Ready(Ok(held));
        }
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.place.set_blocked(written.is_pending());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(held) = self.place.hold(bufs) {
            return Poll::Ready(Ok(held));
        }
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.place.set_blocked(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.place.set_blocked(flushed.is_pending());
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { inner, linger, .. } = &mut *self;
        let linger = match linger {
            Some(linger) => linger,
            None => {
                ready!(Pin::new(&mut *inner).poll_shutdown(cx))?;
                linger.insert(Box::pin(tokio::time::sleep(LINGER)))
            }
        };
        let (mut space, mut heard_bytes) = ([0; 512], 0);
        while linger.as_mut().poll(cx).is_pending() && heard_bytes < LAST_WORDS_MAX {
            let mut buffer = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut *inner).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => heard_bytes += buffer.filled().len(),
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
