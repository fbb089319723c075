//! The counted end: one side signals, the other sides hold releases, and zero releases is the end.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// How a drain proceeds (`drain:` in the configuration).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long everything is accepted and served as ever after readiness failed.
    pub accept_for: Duration,
    /// How long the ends of the event streams are spread over.
    pub spread: Duration,
    /// When what is left is cut.
    pub timeout: Duration,
    /// The shortest time a drained client is told to wait before it connects again.
    pub retry_min: Duration,
    /// The longest.
    pub retry_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            // 5 s: what a load balancer needs to hear that a pod is not ready any more.
            accept_for: Duration::from_secs(5),
            spread: Duration::from_secs(20),
            // 40 s: accept_for and spread, and as much again as clients need to take what is pending.
            timeout: Duration::from_secs(40),
            retry_min: Duration::from_millis(500),
            retry_max: Duration::from_secs(3),
        }
    }
}

/// Makes the two ends of a drain.
#[must_use]
pub fn channel() -> (Signal, Watch) {
    let (told, hears) = watch::channel(Told::Nothing);
    let (release, released) = mpsc::channel(1);
    (
        Signal { told, released },
        Watch {
            told: hears,
            release: Release { _release: release },
        },
    )
}

/// What the watches were told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Nothing,
    /// To end in good order.
    End,
    /// That the time for it is over.
    Cut,
}

/// The side that drains and waits until everything is released.
#[derive(Debug)]
pub struct Signal {
    told: watch::Sender<Told>,
    released: mpsc::Receiver<std::convert::Infallible>,
}

/// The side that hears of the drain. As long as a clone lives, the drain is not over: it is the release.
#[derive(Clone, Debug)]
pub struct Watch {
    told: watch::Receiver<Told>,
    release: Release,
}

/// A release alone: what only has to be waited for. A third of a watch's size.
#[derive(Clone, Debug)]
pub struct Release {
    // Never sent on; its end is the message.
    _release: mpsc::Sender<std::convert::Infallible>,
}

impl Signal {
    /// Tells every watch to end, and returns when the last one is dropped.
    pub async fn drain(mut self) {
        self.begin();
        self.released().await;
    }

    /// Tells every watch to end.
    pub fn begin(&self) {
        self.tell(Told::End);
    }

    /// Tells every watch that the time to end is over: what is left is to be dropped as it is.
    pub fn cut(&self) {
        self.tell(Told::Cut);
    }

    /// Returns when the last watch is dropped. May be dropped and called again.
    pub async fn released(&mut self) {
        // `None` as soon as no sender is left.
        let ended = self.released.recv().await;
        debug_assert!(ended.is_none(), "nothing is ever sent");
    }

    fn tell(&self, told: Told) {
        self.told.send_modify(|before| *before = told.max(*before));
    }
}

impl Watch {
    /// Returns when the drain has begun, at once if it has already.
    pub async fn signaled(&mut self) {
        self.at_least(Told::End).await;
    }

    /// Returns when the time of the drain is over, at once if it is already.
    pub async fn cut(&mut self) {
        self.at_least(Told::Cut).await;
    }

    /// Hears no more; the drain still waits for it.
    #[must_use]
    pub fn into_release(self) -> Release {
        self.release
    }

    /// Whether the drain has begun.
    #[must_use]
    pub fn is_signaled(&self) -> bool {
        *self.told.borrow() >= Told::End
    }

    async fn at_least(&mut self, wanted: Told) {
        // An error means that the signal side is gone without draining: nobody waits for us, and nothing ends.
        if self.told.wait_for(|told| *told >= wanted).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_is_over_when_the_last_release_is_dropped_and_not_before() {
        let (signal, watch) = channel();
        let mut second = watch.clone();
        assert!(!watch.is_signaled());
        let mut drained = tokio::spawn(signal.drain());
        second.signaled().await;
        drop(second);
        assert!(
            tokio::time::timeout(Duration::from_secs(9), &mut drained)
                .await
                .is_err()
        );
        assert!(watch.is_signaled());
        drop(watch);
        drained.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_end_in_time_hears_that_it_is_cut() {
        let (mut signal, mut watch) = channel();
        signal.begin();
        watch.signaled().await;
        assert!(
            tokio::time::timeout(Duration::from_secs(9), watch.cut())
                .await
                .is_err()
        );
        assert!(
            tokio::time::timeout(Duration::from_secs(9), signal.released())
                .await
                .is_err()
        );
        signal.cut();
        signal.begin();
        watch.cut().await;
        drop(watch);
        signal.released().await;
    }
}
