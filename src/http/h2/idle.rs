//! Idle timeout of an HTTP/2 connection: one without requests uses a file descriptor for nothing.
//!
//! Every request holds a [`UseGuard`], an event stream for as long as it is open. HTTP/1 needs no
//! tracker: hyper's timeout for a request head covers the time between requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// 30 s: a page that is left for another one of the same server sends requests within seconds; a
/// new connection costs a handshake.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Requests of one connection.
#[derive(Debug, Default)]
pub(in crate::http) struct IdleTracker {
    /// Requests without a complete response, and open event streams.
    open: AtomicUsize,
    /// All requests until now.
    requests: AtomicUsize,
    close_now: Notify,
}

/// One request in progress; dropping it ends it.
#[derive(Debug)]
pub(in crate::http) struct UseGuard(Arc<IdleTracker>);

impl IdleTracker {
    /// Counts a request.
    pub(in crate::http) fn begin(self: &Arc<Self>) -> UseGuard {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        UseGuard(self.clone())
    }

    /// Ends the connection if the current request, which was rejected, is its only one.
    pub(in crate::http) fn close_if_unused(&self) {
        if self.open.load(Ordering::Relaxed) <= 1 {
            self.close_now.notify_one();
        }
    }

    /// Ends the connection when its requests have ended.
    pub(in crate::http) fn close(&self) {
        self.close_now.notify_one();
    }

    /// Waits until the connection is idle: no open request, and no new one for [`IDLE_MAX`].
    pub(in crate::http) async fn until_idle(&self) {
        loop {
            let before = self.requests.load(Ordering::Relaxed);
            tokio::select! {
                () = self.close_now.notified() => return,
                () = tokio::time::sleep(IDLE_MAX) => {}
            }
            if self.open.load(Ordering::Relaxed) == 0
                && self.requests.load(Ordering::Relaxed) == before
            {
                return;
            }
        }
    }

    /// Waits at least `wait`, and then until no request is open.
    pub(in crate::http) async fn until_unused(&self, wait: Duration) {
        loop {
            tokio::time::sleep(wait).await;
            if self.open.load(Ordering::Relaxed) == 0 {
                return;
            }
        }
    }
}

impl Drop for UseGuard {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_with_an_open_event_stream_is_never_idle() {
        let idle = Arc::new(IdleTracker::default());
        let event_stream = idle.begin();
        assert!(timeout(IDLE_MAX * 10, idle.until_idle()).await.is_err());
        drop(event_stream);
        assert!(timeout(IDLE_MAX * 2, idle.until_idle()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_rejection_ends_a_connection_only_if_it_has_no_other_request() {
        let idle = Arc::new(IdleTracker::default());
        let (event_stream, rejected) = (idle.begin(), idle.begin());
        idle.close_if_unused();
        drop(rejected);
        assert!(timeout(IDLE_MAX * 2, idle.until_idle()).await.is_err());
        drop(event_stream);
        let _rejected = idle.begin();
        idle.close_if_unused();
        assert!(
            timeout(Duration::from_millis(1), idle.until_idle())
                .await
                .is_ok()
        );
    }
}
