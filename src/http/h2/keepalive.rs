//! The pings of an HTTP/2 connection: whether its peer lives.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

/// 20 s between an answer and the next ping, and 10 s for the answer: dead peers are gone within 30 s.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));

/// Pings a peer as long as it is polled.
pub(super) struct Keepalive {
    pings: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    /// An answer is waited for.
    is_asked: bool,
}

impl Keepalive {
    /// `pings`: of a connection that nobody else pings.
    pub(super) fn new(pings: Option<PingPong>) -> Self {
        Self {
            pings,
            timer: Box::pin(tokio::time::sleep(PING.0)),
            is_asked: false,
        }
    }

    /// Pings the peer with the next poll, unless its answer is waited for already.
    pub(super) fn ask(&mut self) {
        if !self.is_asked {
            self.timer.as_mut().reset(Instant::now());
        }
    }

    /// Ready when the peer has not answered in time. To be polled before its connection, which writes the ping.
    pub(super) fn poll(&mut self, task: &mut Context<'_>) -> Poll<()> {
        let Some(pings) = &mut self.pings else {
            return Poll::Pending;
        };
        loop {
            if self.is_asked && pings.poll_pong(task).is_ready() {
                self.is_asked = false;
                self.timer.as_mut().reset(Instant::now() + PING.0);
            }
            ready!(self.timer.as_mut().poll(task));
            if self.is_asked {
                return Poll::Ready(());
            }
            // It fails only on a connection that has ended.
            self.is_asked = pings.send_ping(Ping::opaque()).is_ok();
            self.timer
                .as_mut()
                .reset(Instant::now() + if self.is_asked { PING.1 } else { PING.0 });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use h2::{client, server};
    use tokio::io::duplex;

    use super::*;

    /// Serves a connection without streams until its peer is given up or goes; whether it was given up, and after how long.
    async fn serve(io: tokio::io::DuplexStream) -> (bool, Duration) {
        let mut connection = server::handshake(io).await.unwrap();
        let mut keepalive = Keepalive::new(connection.ping_pong());
        let (begun, _): (_, &mut server::Connection<_, bytes::Bytes>) =
            (Instant::now(), &mut connection);
        let is_dead = poll_fn(|task| match keepalive.poll(task) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending => connection.poll_closed(task).map(|_| false),
        });
        (is_dead.await, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_answers_is_pinged_again_and_again() {
        let (ours, theirs) = duplex(64 * 1024);
        let (_requests, connection) = client::handshake(theirs).await.unwrap();
        let client = tokio::spawn(connection);
        let served = tokio::spawn(serve(ours));
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(!served.is_finished());
        client.abort();
        assert!(!served.await.unwrap().0, "its end is seen as one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_answer_is_given_up_after_half_a_minute() {
        let (ours, theirs) = duplex(64 * 1024);
        let (_requests, mut connection) = client::handshake(theirs).await.unwrap();
        let said = poll_fn(|task| Poll::Ready(Pin::new(&mut connection).poll(task))).await;
        assert!(said.is_pending(), "it says hello and nothing more");
        assert_eq!(serve(ours).await, (true, PING.0 + PING.1));
    }
}
