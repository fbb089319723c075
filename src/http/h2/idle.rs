//! Whether an HTTP/2 connection still has a use: one that carries nothing keeps a descriptor from somebody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// 30 s: a page that is left for another on the same server asks within seconds; a connection that is opened again costs
/// a handshake.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// What one connection carries. HTTP/1 needs none: hyper's deadline for a head covers the time between requests.
#[derive(Debug, Default)]
pub(in crate::http) struct IdleTracker {
    /// Requests that are being answered, event streams for as long as they are open.
    open: AtomicUsize,
    /// All requests so far.
    requests: AtomicUsize,
    close_now: Notify,
}

/// One request that is being answered, until it is dropped.
#[derive(Debug)]
pub(in crate::http) struct UseGuard(Arc<IdleTracker>);

impl IdleTracker {
    /// A request has come.
    pub(in crate::http) fn begin(self: &Arc<Self>) -> UseGuard {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        UseGuard(self.clone())
    }

    /// The request that is being answered was refused: without another one the connection is to end.
    pub(in crate::http) fn close_if_unused(&self) {
        if self.open.load(Ordering::Relaxed) <= 1 {
            self.close_now.notify_one();
        }
    }

    /// Over when the connection has no use any more.
    pub(in crate::http) async fn over(&self) {
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

    /// Over when it carries nothing after so long; a request that came in the last moment goes on.
    pub(in crate::http) async fn unused_after(&self, wait: Duration) {
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
    async fn a_connection_is_over_when_it_has_carried_nothing_for_a_while() {
        let idle = Arc::new(IdleTracker::default());
        let event_stream = idle.begin();
        assert!(
            timeout(IDLE_MAX * 10, idle.over()).await.is_err(),
            "it carries an event stream"
        );
        drop(event_stream);
        assert!(timeout(IDLE_MAX * 2, idle.over()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_ends_a_connection_only_if_it_carries_nothing_else() {
        let idle = Arc::new(IdleTracker::default());
        let (event_stream, refused) = (idle.begin(), idle.begin());
        idle.close_if_unused();
        drop(refused);
        assert!(timeout(IDLE_MAX * 2, idle.over()).await.is_err());
        drop(event_stream);
        let _refused = idle.begin();
        idle.close_if_unused();
        assert!(timeout(Duration::from_millis(1), idle.over()).await.is_ok());
    }
}
