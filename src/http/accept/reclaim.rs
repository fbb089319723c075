//! A socket lent to hyper for one request, and how it is taken back once the head of the answer is written.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::http::request::rejection::RejectionCode;
use crate::http::stream::event_stream::EventStream;
use crate::http::stream::write_batch::Framing;
use crate::net::request_head::LineScan;

/// Where the event stream of an HTTP/1 connection waits until hyper has written the head of its answer.
#[derive(Default)]
pub(in crate::http) struct SocketReclaim {
    reached: AtomicBool,
    blocked: AtomicBool,
    /// A [`Preface`], as a number.
    hello: AtomicU8,
    heard_bytes: AtomicUsize,
    /// Heads that were parsed, and the one with a bare line feed, counted from 1; 0: none.
    heads: AtomicU32,
    bare_head: AtomicU32,
    /// The status with which hyper answered a head by itself; 0: none.
    refused: AtomicU16,
    /// HTTP/2: what may still be read in this turn.
    turn_bytes: AtomicUsize,
    held: Mutex<Option<Parked>>,
}

/// What a connection begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::http) enum Preface {
    /// An end, or an error.
    #[default]
    Unknown,
    /// Nothing yet.
    Silence,
    Http1,
    /// By prior knowledge.
    Http2,
    /// On a port in clear text.
    Tls,
}

/// An event stream that waits for its socket.
pub(in crate::http) struct Parked {
    pub(in crate::http) stream: EventStream,
    pub(in crate::http) framing: Framing,
    /// What hyper wrote since: it goes out with the first bytes of the event stream, in one segment.
    pub(in crate::http) head: Vec<u8>,
}

impl SocketReclaim {
    pub(in crate::http) fn put(&self, stream: EventStream, framing: Framing) {
        *self.lock() = Some(Parked {
            stream,
            framing,
            head: Vec::new(),
        });
    }

    /// Takes what hyper writes, once there is an event stream that it can go out with.
    fn hold(&self, parts: &[IoSlice<'_>]) -> Option<usize> {
        let mut held = self.lock();
        let head = &mut held.as_mut()?.head;
        let before = head.len();
        // Room for what it goes out with.
        head.reserve(FIRST_BYTES);
        parts.iter().for_each(|part| head.extend_from_slice(part));
        Some(head.len() - before)
    }

    /// Drops the answer that hyper gives by itself to a head that it cannot read: it says nothing but a status. Ours comes
    /// in its place, when hyper has let go of the socket.
    fn drop_refusal(&self, parts: &[IoSlice<'_>]) -> Option<usize> {
        let head = parts.first()?.strip_prefix(b"HTTP/1.1 ")?;
        let status = match head.first_chunk()? {
            b"414" => 414,
            b"431" => 431,
            // Ours has content.
            b"400" if head.windows(EMPTY.len()).any(|window| window == EMPTY) => 400,
            _ => return None,
        };
        self.refused.store(status, Ordering::Relaxed);
        Some(parts.iter().map(|part| part.len()).sum())
    }

    /// The status with which hyper answered a head by itself.
    pub(in crate::http) fn refused(&self) -> Option<RejectionCode> {
        match self.refused.load(Ordering::Relaxed) {
            0 => None,
            431 => Some(RejectionCode::HeadTooLarge),
            414 => Some(RejectionCode::TargetTooLong),
            _ => Some(RejectionCode::Malformed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Parked>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether hyper has written the head into its buffer and asked for the body.
    pub(in crate::http) fn is_reached(&self) -> bool {
        self.reached.load(Ordering::Relaxed)
    }

    pub(in crate::http) fn set_reached(&self) {
        self.reached.store(true, Ordering::Relaxed);
    }

    /// Whether the last write or flush did not finish: what hyper wrote before is not all on the wire.
    pub(in crate::http) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    pub(in crate::http) fn set_blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Ordering::Relaxed);
    }

    /// What the connection has begun with.
    pub(in crate::http) fn hello(&self) -> Preface {
        match self.hello.load(Ordering::Relaxed) {
            1 => Preface::Silence,
            2 => Preface::Http1,
            3 => Preface::Http2,
            4 => Preface::Tls,
            _ => Preface::Unknown,
        }
    }

    fn set_hello(&self, hello: Preface) {
        self.hello.store(hello as u8, Ordering::Relaxed);
    }

    /// Whether the client has sent anything.
    pub(in crate::http) fn is_heard(&self) -> bool {
        self.heard_bytes() > 0
    }

    /// How much the client has sent.
    pub(in crate::http) fn heard_bytes(&self) -> usize {
        self.heard_bytes.load(Ordering::Relaxed)
    }

    fn add_heard(&self, bytes: usize) {
        self.heard_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes that another head was parsed; false if it has a bare line feed, or one before it had.
    pub(in crate::http) fn begin_head(&self) -> bool {
        let head = self.heads.fetch_add(1, Ordering::Relaxed) + 1;
        !(1..=head).contains(&self.bare_head.load(Ordering::Relaxed))
    }

    /// HTTP/2: the connection is polled, and may read again.
    pub(in crate::http) fn begin_turn(&self) {
        self.turn_bytes.store(READ_BYTES, Ordering::Relaxed);
    }

    pub(in crate::http) fn take(&self) -> Option<Parked> {
        self.lock().take()
    }
}

/// A transport lent to hyper, or to h2 for good; what happens on it is noted where hyper's will be taken back.
pub(in crate::http) struct SniffingIo<T> {
    pub(in crate::http) inner: T,
    place: Arc<SocketReclaim>,
    kind: Kind,
    /// HTTP/1: over everything that hyper is given.
    scan: LineScan,
    /// Read, and given to nobody yet.
    before: Vec<u8>,
    /// Set when our side has ended, which h2 asks for.
    linger: Option<Pin<Box<Sleep>>>,
}

/// For which protocol it is lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// In clear text: HTTP/1, unless the first bytes are something else.
    Any,
    Http1,
    /// Nothing was written yet.
    Http2Begins,
    Http2,
}

/// 256: what an HTTP/2 connection reads in one turn. A gateway asks for a hundred event streams in four kilobytes; whatever
/// h2, its tables and the answers need for each request that is read and not answered stays allocated at the height of the
/// largest burst, so bursts are taken half a dozen requests at a time.
const READ_BYTES: usize = 256;

/// 2 s: how long a client may take to close its side after ours. Closing with bytes of the client unread, such as an
/// acknowledgement that it sends for what it gets, would reset the connection and could take the end from the client.
pub(in crate::http) const LINGER: Duration = Duration::from_secs(2);

/// In the head of an answer without content.
const EMPTY: &[u8] = b"content-length: 0\r\n";

/// 512: the head of an answer, and the first bytes of an event stream that continues nothing.
const FIRST_BYTES: usize = 512;

/// 64 KiB: what a client may still say in that time, far more than it has reason to.
const LAST_WORDS_MAX: usize = 64 * 1024;

impl<T> SniffingIo<T> {
    /// What it begins with is HTTP/1, or hyper is given nothing of it ([`SocketReclaim::hello`]).
    pub(in crate::http) fn any(inner: T, place: Arc<SocketReclaim>) -> Self {
        Self {
            inner,
            place,
            kind: Kind::Any,
            scan: LineScan::default(),
            before: Vec::new(),
            linger: None,
        }
    }

    pub(in crate::http) fn http1(inner: T, place: Arc<SocketReclaim>) -> Self {
        place.set_hello(Preface::Http1);
        Self {
            kind: Kind::Http1,
            ..Self::any(inner, place)
        }
    }

    /// It reads in turns: whoever polls the connection begins each ([`SocketReclaim::begin_turn`]). `before`: what was read
    /// already.
    pub(in crate::http) fn http2(inner: T, before: Vec<u8>, place: Arc<SocketReclaim>) -> Self {
        Self {
            inner,
            place,
            kind: Kind::Http2Begins,
            scan: LineScan::default(),
            before,
            linger: None,
        }
    }

    /// What it was lent, and what was read and not given to hyper.
    pub(in crate::http) fn into_inner(self) -> (T, Vec<u8>) {
        (self.inner, self.before)
    }

    /// Before each write: how much of it is held instead.
    fn begin_write(&mut self, parts: &[IoSlice<'_>]) -> Option<usize> {
        match self.kind {
            Kind::Any | Kind::Http1 => self
                .place
                .hold(parts)
                .or_else(|| self.place.drop_refusal(parts)),
            Kind::Http2Begins | Kind::Http2 => {
                self.kind = Kind::Http2;
                None
            }
        }
    }
}

impl<T: AsyncRead + Unpin> SniffingIo<T> {
    /// Reads what was read before, then from the socket.
    fn poll_read_on(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.before.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let given = self.before.len().min(buf.remaining());
        buf.put_slice(&self.before[..given]);
        self.before.drain(..given);
        if self.before.is_empty() {
            self.before = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Reads until it is known what the connection begins with. HTTP/2 by prior knowledge begins with `PRI` (RFC 9113,
    /// 3.4), which is no method of HTTP/1; a record of TLS that is a handshake with 0x16 (RFC 8446, 5.1).
    fn poll_read_first(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let begin = buf.filled().len();
        loop {
            let read = Pin::new(&mut self.inner).poll_read(cx, buf);
            if read.is_pending() && self.before.is_empty() {
                self.place.set_hello(Preface::Silence);
            }
            ready!(read)?;
            let heard = &buf.filled()[begin..];
            if self.before.is_empty() && !matches!(heard, [b'P' | 0x16, ..]) {
                // What nearly all are: where it is read to is where it stays. An end tells nothing.
                if !heard.is_empty() {
                    self.kind = Kind::Http1;
                    self.place.set_hello(Preface::Http1);
                }
                return Poll::Ready(Ok(()));
            }
            let is_over = heard.is_empty();
            self.before.extend_from_slice(heard);
            buf.set_filled(begin);
            let hello = match &self.before[..] {
                [0x16, ..] => Preface::Tls,
                [b'P', b'R', b'I', ..] => Preface::Http2,
                b"P" | b"PR" if !is_over => continue,
                _ => {
                    self.kind = Kind::Http1;
                    self.place.set_hello(Preface::Http1);
                    return self.poll_read_on(cx, buf);
                }
            };
            self.place.set_hello(hello);
            // Nobody is to be woken: whoever polls the connection looks at what it begins with.
            return Poll::Pending;
        }
    }

    /// Reads what the turn leaves; then it is the other tasks' turn first.
    fn poll_read_in_turns(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = self.place.turn_bytes.load(Ordering::Relaxed);
        if left == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut space = [0; READ_BYTES];
        let mut part = ReadBuf::new(&mut space[..left.min(buf.remaining())]);
        ready!(self.poll_read_on(cx, &mut part))?;
        buf.put_slice(part.filled());
        self.place
            .turn_bytes
            .store(left - part.filled().len(), Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for SniffingIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = match self.kind {
            Kind::Any => self.poll_read_first(cx, buf),
            Kind::Http1 => self.poll_read_on(cx, buf),
            Kind::Http2Begins | Kind::Http2 => self.poll_read_in_turns(cx, buf),
        };
        self.place.add_heard(buf.filled().len() - before);
        if self.kind == Kind::Http1
            && let Some(head) = self.scan.read(&buf.filled()[before..])
        {
            self.place.bare_head.store(head + 1, Ordering::Relaxed);
        }
        read
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for SniffingIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(held) = self.begin_write(&[IoSlice::new(buf)]) {
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
        if let Some(held) = self.begin_write(bufs) {
            return Poll::Ready(Ok(held));
        }
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.place.set_blocked(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        // h2 asks once before its first write, to decide which frames it gathers for one write: those under 256 bytes for
        // a yes, those under 1 KiB for a no, and an event is seldom under 256. Later it asks before each write whether
        // a frame and its payload can go out together.
        self.kind != Kind::Http2Begins && self.inner.is_write_vectored()
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// How much one read takes; nothing when the turn is over.
    async fn read(io: &mut SniffingIo<tokio::io::DuplexStream>) -> Option<usize> {
        let mut space = [0; 8 * 1024];
        poll_fn(|task| {
            let mut buffer = ReadBuf::new(&mut space);
            Poll::Ready(match Pin::new(&mut *io).poll_read(task, &mut buffer) {
                Poll::Ready(read) => {
                    read.unwrap();
                    Some(buffer.filled().len())
                }
                Poll::Pending => None,
            })
        })
        .await
    }

    #[tokio::test]
    async fn an_http2_connection_takes_a_burst_of_requests_in_turns() {
        let (mut client, server) = tokio::io::duplex(4 * READ_BYTES);
        let place = Arc::new(SocketReclaim::default());
        let mut io = SniffingIo::http2(server, Vec::new(), place.clone());
        client.write_all(&[0; 2 * READ_BYTES + 1]).await.unwrap();
        for expected in [READ_BYTES, READ_BYTES, 1] {
            place.begin_turn();
            assert_eq!(read(&mut io).await, Some(expected));
            assert_eq!(
                read(&mut io).await,
                None,
                "the turn is over, or there is no more"
            );
        }
        assert_eq!(place.heard_bytes(), 2 * READ_BYTES + 1);
        drop(client);
        assert_eq!(
            read(&mut io).await,
            Some(0),
            "the end of the connection is seen"
        );
    }

    #[tokio::test]
    async fn a_turn_that_is_over_wakes_its_task() {
        let (mut client, server) = tokio::io::duplex(4 * READ_BYTES);
        let place = Arc::new(SocketReclaim::default());
        let mut io = SniffingIo::http2(server, Vec::new(), place.clone());
        client.write_all(&[0; 3 * READ_BYTES]).await.unwrap();
        let mut space = [0; 3 * READ_BYTES];
        let mut buffer = ReadBuf::new(&mut space);
        let all = poll_fn(|task| {
            place.begin_turn();
            while buffer.remaining() > 0 {
                ready!(Pin::new(&mut io).poll_read(task, &mut buffer)).unwrap();
            }
            Poll::Ready(())
        });
        tokio::time::timeout(Duration::from_secs(5), all)
            .await
            .expect("each turn that is over wakes for another one");
    }

    #[tokio::test]
    async fn h2_is_told_to_gather_frames_and_then_how_to_write_them() {
        let (_client, server) = tokio::io::duplex(64);
        let mut io = SniffingIo::http2(server, Vec::new(), Arc::default());
        assert!(!io.is_write_vectored());
        io.write_all(b"settings").await.unwrap();
        assert!(io.is_write_vectored());
    }
}
