//! Write coalescing: h2 copies frames under 1 KiB into one write, and sends larger ones vectored.
//!
//! h2 asks its transport `is_write_vectored` at two times. When it is constructed, the answer sets
//! the size from which a DATA frame is not copied into the write buffer: 256 bytes (yes) or 1 KiB
//! (no). Each frame that is not copied costs a write of its own, and an event is seldom under 256
//! bytes. Before each write, the answer sets whether the buffer and the rest of such a frame leave
//! in one system call (yes) or in two (no). h2 has no setting for either.
//!
//! [`CoalescedWrites`] therefore answers no until the first write, and after it what the transport
//! answers. The tests drive h2 itself and fail if it decides in another way
//! ([decision 26](../../../docs/decisions/0026-h2-write-coalescing.md)).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Transport whose h2 copies frames under 1 KiB.
pub(super) struct CoalescedWrites<T> {
    inner: T,
    has_written: bool,
}

impl<T> CoalescedWrites<T> {
    pub(super) fn new(inner: T) -> Self {
        Self {
            inner,
            has_written: false,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for CoalescedWrites<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(task, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for CoalescedWrites<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.has_written = true;
        Pin::new(&mut self.inner).poll_write(task, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.has_written = true;
        Pin::new(&mut self.inner).poll_write_vectored(task, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.has_written && self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(task)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use hyper::{Request, Response};
    use tokio::io::DuplexStream;

    use super::*;

    /// Size from which h2 0.4 does not copy a frame on a transport with vectored writes.
    const CHAIN_THRESHOLD: usize = 256;
    /// The same on a transport without.
    const CHAIN_THRESHOLD_WITHOUT_VECTORED_IO: usize = 1024;
    const FRAME_HEAD: usize = 9;

    /// Lengths of the slices of each write.
    type Writes = Vec<Vec<usize>>;

    /// Transport that records its writes, each of which is complete.
    struct Recorder {
        io: DuplexStream,
        is_write_vectored: bool,
        writes: Arc<Mutex<Writes>>,
    }

    impl AsyncRead for Recorder {
        fn poll_read(
            mut self: Pin<&mut Self>,
            task: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_read(task, buffer)
        }
    }

    impl AsyncWrite for Recorder {
        fn poll_write(
            mut self: Pin<&mut Self>,
            task: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.writes.lock().unwrap().push(vec![bytes.len()]);
            Pin::new(&mut self.io).poll_write(task, bytes)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            task: &mut Context<'_>,
            parts: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let lengths = parts.iter().map(|part| part.len()).collect();
            self.writes.lock().unwrap().push(lengths);
            Pin::new(&mut self.io).poll_write_vectored(task, parts)
        }

        fn is_write_vectored(&self) -> bool {
            self.is_write_vectored
        }

        fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_flush(task)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_shutdown(task)
        }
    }

    /// Returns how an h2 server writes three frames with `bytes` of payload, of three streams.
    async fn writes_of_three_frames<T: AsyncRead + AsyncWrite + Unpin>(
        bytes: usize,
        is_write_vectored: bool,
        wrap: impl FnOnce(Recorder) -> T,
    ) -> Writes {
        let (client, server) = tokio::io::duplex(1 << 20);
        let writes = Arc::new(Mutex::new(Writes::new()));
        let io = wrap(Recorder {
            io: server,
            is_write_vectored,
            writes: writes.clone(),
        });
        let (client, server) = tokio::join!(
            h2::client::handshake(client),
            h2::server::Builder::new().handshake::<_, Bytes>(io)
        );
        let ((mut requests, connection), mut server) = (client.unwrap(), server.unwrap());
        let connection = tokio::spawn(connection);
        let mut streams = Vec::new();
        for _ in 0..3 {
            let request = Request::get("http://sidestream/").body(()).unwrap();
            let (response, _) = requests.send_request(request, true).unwrap();
            let (_, mut respond) = server.accept().await.unwrap().unwrap();
            let sender = respond.send_response(Response::new(()), false).unwrap();
            streams.push((sender, response));
        }
        // Writes the response heads, which are not counted.
        poll_fn(|task| Poll::Ready(server.poll_closed(task).is_ready())).await;
        writes.lock().unwrap().clear();
        for (sender, _) in &mut streams {
            sender.send_data(vec![0; bytes].into(), false).unwrap();
        }
        poll_fn(|task| Poll::Ready(server.poll_closed(task).is_ready())).await;
        connection.abort();
        writes.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn frames_under_1_kib_leave_in_one_write() {
        let bytes = CHAIN_THRESHOLD_WITHOUT_VECTORED_IO - 1;
        let writes = writes_of_three_frames(bytes, true, CoalescedWrites::new).await;
        assert_eq!(writes, [[3 * (FRAME_HEAD + bytes)]]);
    }

    #[tokio::test]
    async fn frame_from_1_kib_on_leaves_in_one_vectored_write() {
        let copied = CHAIN_THRESHOLD_WITHOUT_VECTORED_IO;
        for bytes in [copied, 4 * copied] {
            let writes = writes_of_three_frames(bytes, true, CoalescedWrites::new).await;
            assert_eq!(writes, [[copied, FRAME_HEAD + bytes - copied]; 3]);
        }
    }

    /// If this fails, the answer of the transport may be enough, and [`CoalescedWrites`] may go.
    #[tokio::test]
    async fn h2_alone_writes_each_frame_from_256_bytes_on_separately_on_a_vectored_transport() {
        let bytes = CHAIN_THRESHOLD - 1;
        let writes = writes_of_three_frames(bytes, true, |io| io).await;
        assert_eq!(writes, [[3 * (FRAME_HEAD + bytes)]]);
        let writes = writes_of_three_frames(CHAIN_THRESHOLD, true, |io| io).await;
        assert_eq!(writes, [[CHAIN_THRESHOLD, FRAME_HEAD]; 3]);
    }

    /// If this fails, a transport that always answers no may be enough.
    #[tokio::test]
    async fn h2_alone_writes_a_large_frame_twice_on_a_transport_without_vectored_writes() {
        let copied = CHAIN_THRESHOLD_WITHOUT_VECTORED_IO;
        let bytes = 4 * copied;
        let writes = writes_of_three_frames(bytes, false, |io| io).await;
        let of_one = [[copied], [FRAME_HEAD + bytes - copied]];
        assert_eq!(writes, [of_one, of_one, of_one].concat());
    }

    #[test]
    fn locked_version_of_h2_is_the_one_that_was_read() {
        let lock = include_str!("../../../Cargo.lock");
        assert!(
            lock.contains("name = \"h2\"\nversion = \"0.4.20\"\n"),
            "another version of h2 is locked: check in its src/codec/framed_write.rs that \
             CHAIN_THRESHOLD is 256, CHAIN_THRESHOLD_WITHOUT_VECTORED_IO 1024, and that \
             FramedWrite::new asks is_write_vectored; see whether its Builder has a setting for \
             it; then update this version"
        );
    }
}
