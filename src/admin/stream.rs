//! Event stream of the page: a response that goes on until its client leaves.
//!
//! The deadline of a connection ([`Watch::deadline`]) cuts every other response. An event stream goes
//! on while its client reads: it has something to send at least every 5 s, so a body that was not
//! polled for a whole interval has a client that stopped reading.

use std::convert::Infallible;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::time::{Instant, sleep};

/// 10 min: the browser then reconnects, with a session that is checked again.
const AGE_MAX: Duration = Duration::from_secs(600);

/// Response is not an event stream.
const PLAIN: u8 = 0;
/// Event stream whose body was not polled since the last check.
const IDLE: u8 = 1;
const POLLED: u8 = 2;

/// Watch of the response of one connection. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch(Arc<AtomicU8>);

impl Watch {
    /// Returns the body of an event stream.
    pub(super) fn body(
        &self,
        events: impl Stream<Item = Bytes> + Send + 'static,
    ) -> UnsyncBoxBody<Bytes, Infallible> {
        let polled = self.0.clone();
        polled.store(POLLED, Ordering::Relaxed);
        let frames = events.map(move |bytes| {
            polled.store(POLLED, Ordering::Relaxed);
            Ok(Frame::data(bytes))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    /// Returns when the connection must be closed: after `interval` for a plain response; for an
    /// event stream after an interval in which its client read nothing, or at its age limit.
    pub(super) async fn deadline(&self, interval: Duration) {
        let begin = Instant::now();
        loop {
            sleep(interval).await;
            let is_read = self
                .0
                .compare_exchange(POLLED, IDLE, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
            if !is_read || begin.elapsed() >= AGE_MAX {
                return;
            }
        }
    }

    /// Returns whether the response is an event stream.
    pub(super) fn is_event_stream(&self) -> bool {
        self.0.load(Ordering::Relaxed) != PLAIN
    }
}

/// Returns one event. The data has no line ends: it is JSON.
pub(super) fn event(name: &str, data: &dyn Display) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(15);

    #[tokio::test(start_paused = true)]
    async fn plain_response_ends_after_one_interval_and_an_unread_event_stream_after_two() {
        let begin = Instant::now();
        Watch::default().deadline(INTERVAL).await;
        assert_eq!(begin.elapsed(), INTERVAL);

        let (begin, watch) = (Instant::now(), Watch::default());
        let _unread = watch.body(stream::pending());
        watch.deadline(INTERVAL).await;
        assert_eq!(begin.elapsed(), 2 * INTERVAL);
    }

    #[tokio::test(start_paused = true)]
    async fn event_stream_that_is_read_ends_at_its_age_limit() {
        let (begin, watch) = (Instant::now(), Watch::default());
        let events = stream::unfold((), |()| async {
            sleep(Duration::from_secs(5)).await;
            Some((Bytes::from_static(b"event"), ()))
        });
        let mut body = watch.body(events);
        let reading = async { while body.frame().await.is_some() {} };
        tokio::select! {
            () = watch.deadline(INTERVAL) => {}
            () = reading => {}
        }
        assert_eq!(begin.elapsed(), AGE_MAX);
    }
}
