//! Viewers of the page: event streams with one snapshot per second, computed once for all of them.
//!
//! ```text
//! publish: waits for a viewer -> snapshot, on a blocking thread -> watch channel -> every viewer
//! ```
//!
//! Without a viewer nothing is computed. A slow viewer skips snapshots; it never delays the others.
//! When the admin port stops, each viewer receives one last snapshot, which shows the end of a drain.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use serde_json::Value;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use super::stream::event;

/// 8: a few operators, each with a tab or two. A snapshot has some kilobytes.
pub(super) const VIEWERS_MAX: usize = 8;

/// 1 s between two snapshots.
const EVERY: Duration = Duration::from_secs(1);

/// Function that computes the snapshot.
pub(super) type Snapshot = Arc<dyn Fn() -> Value + Send + Sync>;

/// Viewers of one admin port.
#[derive(Debug)]
pub(super) struct Viewers {
    permits: Arc<Semaphore>,
    published: watch::Sender<Published>,
    arrived: Notify,
}

/// State of the snapshots.
#[derive(Clone, Debug)]
enum Published {
    /// There was no viewer.
    Nothing,
    Snapshot(Bytes),
    /// The last snapshot.
    End(Bytes),
}

impl Viewers {
    pub(super) fn new() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(VIEWERS_MAX)),
            published: watch::Sender::new(Published::Nothing),
            arrived: Notify::new(),
        }
    }

    /// Returns the events of a new viewer; `None` if there are too many.
    pub(super) fn enter(&self) -> Option<impl Stream<Item = Bytes> + Send + use<>> {
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        let mut published = self.published.subscribe();
        // The newest one, which may be there already.
        published.mark_changed();
        self.arrived.notify_one();
        Some(stream::unfold(Some((published, permit)), next))
    }

    /// Returns when the admin port stops.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut published = self.published.subscribe();
        async move {
            let is_end = |published: &Published| matches!(published, Published::End(_));
            // An error is the end as well.
            drop(published.wait_for(is_end).await);
        }
    }

    /// Returns whether nothing has to be computed.
    fn is_empty(&self) -> bool {
        self.permits.available_permits() == VIEWERS_MAX
    }

    /// Publishes snapshots while there are viewers.
    pub(super) async fn publish(&self, snapshot: Snapshot) -> Infallible {
        loop {
            let arrived = self.arrived.notified();
            if self.is_empty() {
                self.published.send_replace(Published::Nothing);
                arrived.await;
            }
            let snapshot = snapshot.clone();
            // With many event streams it takes milliseconds, in which no probe would be answered.
            match tokio::task::spawn_blocking(move || snapshot()).await {
                Ok(computed) => {
                    let computed = Published::Snapshot(event("snapshot", &computed));
                    self.published.send_replace(computed);
                }
                // A defect of the page must not end the port of the probes.
                Err(error) => tracing::error!(%error, "cannot compute the admin page"),
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Sends the last snapshot and ends all viewers.
    pub(super) fn end(&self, snapshot: &Snapshot) {
        let last = match self.is_empty() {
            true => Bytes::new(),
            false => event("snapshot", &snapshot()),
        };
        self.published.send_replace(Published::End(last));
    }
}

type Viewer = (watch::Receiver<Published>, OwnedSemaphorePermit);

/// Returns the next snapshot of a viewer; `None` at the end.
async fn next(viewer: Option<Viewer>) -> Option<(Bytes, Option<Viewer>)> {
    let mut viewer = viewer?;
    loop {
        viewer.0.changed().await.ok()?;
        let published = viewer.0.borrow_and_update().clone();
        match published {
            Published::Nothing => {}
            Published::Snapshot(bytes) => return Some((bytes, Some(viewer))),
            Published::End(bytes) => return Some((bytes, None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures_util::StreamExt as _;
    use serde_json::json;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn snapshot_is_computed_once_for_all_viewers_and_never_without_one() {
        let viewers = Arc::new(Viewers::new());
        let computed = Arc::new(AtomicU64::new(0));
        let counted = computed.clone();
        let snapshot: Snapshot = Arc::new(move || json!(counted.fetch_add(1, Ordering::Relaxed)));
        let publishing = viewers.clone();
        tokio::spawn(async move { publishing.publish(snapshot).await });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(computed.load(Ordering::Relaxed), 0);

        let mut all: Vec<_> = (0..VIEWERS_MAX)
            .map(|_| Box::pin(viewers.enter().unwrap()))
            .collect();
        assert!(viewers.enter().is_none());
        for round in 0..3 {
            for viewer in &mut all {
                let expected = event("snapshot", &round);
                assert_eq!(viewer.next().await, Some(expected));
            }
        }
        assert_eq!(computed.load(Ordering::Relaxed), 3);

        drop(all);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let before = computed.load(Ordering::Relaxed);
        assert!(before <= 4);
        let mut late = pin!(viewers.enter().unwrap());
        assert_eq!(late.next().await, Some(event("snapshot", &before)));
        let last: Snapshot = Arc::new(|| json!("last"));
        viewers.end(&last);
        assert_eq!(late.next().await, Some(event("snapshot", &json!("last"))));
        assert_eq!(late.next().await, None);
        viewers.ended().await;
    }
}
