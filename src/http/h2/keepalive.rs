//! Keepalive of an HTTP/2 connection: PING frames that find a dead peer.
//!
//! A ping is sent 20 s after the last reply; without a reply within 10 s the connection is closed.
//! A stalled event stream requests a ping at once, to learn whether its client lives.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

/// 20 s from a reply to the next ping.
const PING_EVERY: Duration = Duration::from_secs(20);

/// 10 s for the reply: dead peers are found within 30 s.
const REPLY_MAX: Duration = Duration::from_secs(10);

/// Pings a peer while it is polled.
pub(super) struct Keepalive {
    pings: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    /// A ping was sent, and its reply has not arrived.
    is_waiting: bool,
}

impl Keepalive {
    /// `pings` belongs to a connection that nothing else pings.
    pub(super) fn new(pings: Option<PingPong>) -> Self {
        Self {
            pings,
            timer: Box::pin(tokio::time::sleep(PING_EVERY)),
            is_waiting: false,
        }
    }

    /// Sends a ping at the next poll, unless a reply is outstanding.
    pub(super) fn ping_now(&mut self) {
        if !self.is_waiting {
            self.timer.as_mut().reset(Instant::now());
        }
    }

    /// Ready when the peer has not replied in time. Polled before its connection, which writes the
    /// ping.
    pub(super) fn poll(&mut self, task: &mut Context<'_>) -> Poll<()> {
        let Some(pings) = &mut self.pings else {
            return Poll::Pending;
        };
        loop {
            if self.is_waiting && pings.poll_pong(task).is_ready() {
                self.is_waiting = false;
                self.timer.as_mut().reset(Instant::now() + PING_EVERY);
            }
            ready!(self.timer.as_mut().poll(task));
            if self.is_waiting {
                return Poll::Ready(());
            }
            // Fails only on a connection that has ended.
            self.is_waiting = pings.send_ping(Ping::opaque()).is_ok();
            let wait = if self.is_waiting {
                REPLY_MAX
            } else {
                PING_EVERY
            };
            self.timer.as_mut().reset(Instant::now() + wait);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use h2::{client, server};
    use tokio::io::duplex;

    use super::*;

    /// End of a connection, and its duration.
    #[derive(Debug, PartialEq, Eq)]
    struct Served {
        is_dead: bool,
        lasted: Duration,
    }

    /// Serves a connection without streams until its peer is dead or disconnects.
    async fn serve(io: tokio::io::DuplexStream) -> Served {
        let mut connection: server::Connection<_, bytes::Bytes> =
            server::handshake(io).await.unwrap();
        let mut keepalive = Keepalive::new(connection.ping_pong());
        let begun = Instant::now();
        let is_dead = poll_fn(|task| match keepalive.poll(task) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending => connection.poll_closed(task).map(|_| false),
        })
        .await;
        Served {
            is_dead,
            lasted: begun.elapsed(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_replies_is_pinged_repeatedly() {
        let (ours, theirs) = duplex(64 * 1024);
        let (_requests, connection) = client::handshake(theirs).await.unwrap();
        let client = tokio::spawn(connection);
        let served = tokio::spawn(serve(ours));
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(!served.is_finished());
        client.abort();
        assert!(!served.await.unwrap().is_dead, "it has disconnected");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_reply_is_dead_after_thirty_seconds() {
        let (ours, theirs) = duplex(64 * 1024);
        let (_requests, mut connection) = client::handshake(theirs).await.unwrap();
        let polled = poll_fn(|task| Poll::Ready(Pin::new(&mut connection).poll(task))).await;
        assert!(polled.is_pending(), "the client sends its preface only");
        let expected = Served {
            is_dead: true,
            lasted: PING_EVERY + REPLY_MAX,
        };
        assert_eq!(serve(ours).await, expected);
    }
}
