//! Permits for reviews whose bodies are in memory, with a share for each peer address.
//!
//! A body that comes slowly holds its permit until the deadline. Without the shares, eight such bodies of one pod would
//! make every other review wait, and pods would start without a sidecar.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// 8 at a time: max memory = 8 x (8 MiB + its tree, some five times that), reached only by bodies of that size.
const REVIEWS_MAX: usize = 8;

/// 4 of them for one peer address. An API server has a review answered in a millisecond.
const OF_PEER_MAX: usize = REVIEWS_MAX / 2;

/// Permits of all peers, and the shares of those that have or want some.
#[derive(Debug)]
pub(super) struct Reviews {
    all: Semaphore,
    shares: Mutex<HashMap<IpAddr, Weak<Semaphore>>>,
}

/// A permit for one review.
#[derive(Debug)]
pub(super) struct Permit<'r> {
    _all: tokio::sync::SemaphorePermit<'r>,
    _share: OwnedSemaphorePermit,
}

impl Default for Reviews {
    fn default() -> Self {
        Self {
            all: Semaphore::new(REVIEWS_MAX),
            shares: Mutex::default(),
        }
    }
}

impl Reviews {
    /// Waits for a permit; none only when the semaphores are closed, which they never are.
    pub(super) async fn acquire(&self, peer: IpAddr) -> Option<Permit<'_>> {
        let share = self.share(peer).acquire_owned().await.ok()?;
        // In this order: a request that waits for its share holds nothing that others need.
        let all = self.all.acquire().await.ok()?;
        Some(Permit {
            _all: all,
            _share: share,
        })
    }

    fn share(&self, peer: IpAddr) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&peer).and_then(Weak::upgrade) {
            return share;
        }
        // Shares are held by requests, whose number is bounded; those without one go.
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(OF_PEER_MAX));
        shares.insert(peer, Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[tokio::test]
    async fn one_peer_address_leaves_permits_for_others() {
        let reviews = Reviews::default();
        let mut held = Vec::new();
        for _ in 0..OF_PEER_MAX {
            held.push(reviews.acquire(ONE).await.unwrap());
        }
        let mut waiting = pin!(reviews.acquire(ONE));
        let mut task = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut task).is_pending());
        drop(reviews.acquire(OTHER).await.unwrap());
        held.pop();
        assert!(matches!(
            waiting.as_mut().poll(&mut task),
            Poll::Ready(Some(_))
        ));
    }

    #[tokio::test]
    async fn shares_of_peers_that_have_left_are_forgotten() {
        let reviews = Reviews::default();
        drop(reviews.acquire(ONE).await);
        drop(reviews.acquire(OTHER).await);
        assert_eq!(reviews.shares.lock().unwrap().len(), 1);
    }
}
