//! Socket of an HTTP/2 connection, as h2 sees it.
//!
//! [`H2Io`] reads at most what the [`ReadBudget`] of the connection permits. It also returns bytes that
//! protocol detection has read ahead, and keeps the socket open for a moment after our end, so that
//! unread bytes of the client do not reset the connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::read_budget::ReadBudget;
use super::write_coalescing::CoalescedWrites;
use crate::http::accept::detect::ReadAhead;
use crate::http::transport::LINGER;

/// 64 KiB: bytes that are read and discarded after our end of the connection. A client has no
/// reason to send that much.
const LINGER_BYTES_MAX: usize = 64 * 1024;

/// Socket of an HTTP/2 connection.
pub(in crate::http) struct H2Io<T> {
    inner: CoalescedWrites<T>,
    read_ahead: ReadAhead,
    budget: Arc<ReadBudget>,
    /// Set after our end of the connection.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<T> H2Io<T> {
    /// Wraps a socket. `read_ahead`: bytes that protocol detection has read.
    pub(in crate::http) fn new(inner: T, read_ahead: Vec<u8>, budget: Arc<ReadBudget>) -> Self {
        Self {
            inner: CoalescedWrites::new(inner),
            read_ahead: ReadAhead::new(read_ahead),
            budget,
            linger: None,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for H2Io<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let left = this.budget.left();
        if left == 0 {
            task.waker().wake_by_ref();
            return Poll::Pending;
        }
        let space = left.min(buffer.remaining());
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(space));
        ready!(this.read_ahead.poll_read(&mut this.inner, task, &mut part))?;
        let count = part.filled().len();
        buffer.advance(count);
        this.budget.spend(count);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for H2Io<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(task, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(task, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { inner, linger, .. } = &mut *self;
        let linger = match linger {
            Some(linger) => linger,
            None => {
                ready!(Pin::new(&mut *inner).poll_shutdown(task))?;
                linger.insert(Box::pin(tokio::time::sleep(LINGER)))
            }
        };
        let (mut space, mut discarded) = ([0; 512], 0);
        while linger.as_mut().poll(task).is_pending() && discarded < LINGER_BYTES_MAX {
            let mut buffer = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut *inner).poll_read(task, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => discarded += buffer.filled().len(),
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::io::AsyncWriteExt as _;

    use super::super::read_budget::READ_BYTES;
    use super::*;

    /// Returns the number of bytes of one read, or `None` if the budget is spent.
    async fn read(io: &mut H2Io<tokio::io::DuplexStream>) -> Option<usize> {
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
    async fn burst_of_requests_is_read_in_parts_of_the_budget() {
        let (mut client, server) = tokio::io::duplex(4 * READ_BYTES);
        let budget = Arc::new(ReadBudget::default());
        let mut io = H2Io::new(server, vec![0], budget.clone());
        client.write_all(&[0; 2 * READ_BYTES + 1]).await.unwrap();
        budget.refill();
        assert_eq!(read(&mut io).await, Some(1), "bytes read ahead come first");
        assert_eq!(read(&mut io).await, Some(READ_BYTES - 1));
        for expected in [READ_BYTES, 2] {
            budget.refill();
            assert_eq!(read(&mut io).await, Some(expected));
            assert_eq!(
                read(&mut io).await,
                None,
                "the budget is spent, or all bytes are read"
            );
        }
        drop(client);
        assert_eq!(read(&mut io).await, Some(0), "end of the connection");
    }

    #[tokio::test]
    async fn spent_budget_wakes_the_task() {
        let (mut client, server) = tokio::io::duplex(4 * READ_BYTES);
        let budget = Arc::new(ReadBudget::default());
        let mut io = H2Io::new(server, Vec::new(), budget.clone());
        client.write_all(&[0; 3 * READ_BYTES]).await.unwrap();
        let mut space = [0; 3 * READ_BYTES];
        let mut buffer = ReadBuf::new(&mut space);
        let all = poll_fn(|task| {
            budget.refill();
            while buffer.remaining() > 0 {
                ready!(Pin::new(&mut io).poll_read(task, &mut buffer)).unwrap();
            }
            Poll::Ready(())
        });
        tokio::time::timeout(Duration::from_secs(5), all)
            .await
            .expect("a spent budget wakes the task again");
    }
}
