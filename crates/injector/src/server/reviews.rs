//! Permits for reviews whose bodies are in memory, with a share for each peer address.
//!
//! A slow body holds its permit until the timeout. Without the shares, eight slow bodies of one pod
//! would delay every other review, and pods would start without a sidecar. A request waits for its
//! share first: while it waits, it holds nothing that other peers need.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// 8 reviews at the same time: at most 8 x (8 MiB + its tree, some five times that) of memory.
const REVIEWS_MAX: usize = 8;

/// 4 of them for one peer address. A review of an API server takes a millisecond.
const SHARE_MAX: usize = REVIEWS_MAX / 2;

/// Permits for all peers, and the shares of peers that hold or want a permit.
#[derive(Debug)]
pub(super) struct ReviewPermits {
    all: Semaphore,
    shares: Mutex<HashMap<IpAddr, Weak<Semaphore>>>,
}

/// Permit for one review.
#[derive(Debug)]
pub(super) struct ReviewPermit<'r> {
    _all: SemaphorePermit<'r>,
    _share: OwnedSemaphorePermit,
}

impl Default for ReviewPermits {
    fn default() -> Self {
        Self {
            all: Semaphore::new(REVIEWS_MAX),
            shares: Mutex::default(),
        }
    }
}

impl ReviewPermits {
    /// Waits for a permit. `None` if the semaphores are closed, which does not happen.
    pub(super) async fn acquire(&self, peer: IpAddr) -> Option<ReviewPermit<'_>> {
        let share = self.share(peer).acquire_owned().await.ok()?;
        let all = self.all.acquire().await.ok()?;
        Some(ReviewPermit {
            _all: all,
            _share: share,
        })
    }

    fn share(&self, peer: IpAddr) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&peer).and_then(Weak::upgrade) {
            return share;
        }
        // Requests hold the shares, and their number is bounded; unused shares are removed.
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(SHARE_MAX));
        shares.insert(peer, Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // here a failure is the result

    use std::net::Ipv4Addr;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    #[tokio::test]
    async fn one_peer_address_leaves_permits_for_others() {
        let permits = ReviewPermits::default();
        let mut held = Vec::new();
        for _ in 0..SHARE_MAX {
            held.push(permits.acquire(ONE).await.unwrap());
        }
        let mut waiting = pin!(permits.acquire(ONE));
        let mut task = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut task).is_pending());
        drop(permits.acquire(OTHER).await.unwrap());
        held.pop();
        assert!(matches!(
            waiting.as_mut().poll(&mut task),
            Poll::Ready(Some(_))
        ));
    }

    #[tokio::test]
    async fn shares_of_peers_without_requests_are_removed() {
        let permits = ReviewPermits::default();
        drop(permits.acquire(ONE).await);
        drop(permits.acquire(OTHER).await);
        assert_eq!(permits.shares.lock().unwrap().len(), 1);
    }
}
