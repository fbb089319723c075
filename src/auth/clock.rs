//! Wall-clock time of credentials as time of the monotonic clock, which no clock step moves.

use std::time::{Duration, Instant, SystemTime};

use super::Expiry;

/// One moment on both clocks: credentials have wall-clock time, event streams end by the monotonic
/// one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// Time since 1970.
    pub(super) wall: Duration,
    /// The same moment.
    pub(super) instant: Instant,
}

impl Now {
    /// Reads both clocks.
    pub(super) fn read() -> Self {
        Self {
            // A clock before 1970 makes every token one of the future.
            wall: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
            instant: Instant::now(),
        }
    }

    /// Returns an expiry on both clocks. `leeway` is the tolerated difference between the clocks of
    /// the issuer and of this pod. `None`: the end is later than any time of the monotonic clock.
    pub(super) fn expiry(self, expires: Duration, leeway: Duration) -> Option<Expiry> {
        let at = match expires.checked_sub(self.wall) {
            Some(left) => self.instant.checked_add(left),
            // A monotonic clock that began after the expiry cannot name it.
            None => Some(
                self.instant
                    .checked_sub(self.wall.saturating_sub(expires))
                    .unwrap_or(self.instant),
            ),
        };
        let left = expires.saturating_add(leeway).saturating_sub(self.wall);
        Some(Expiry {
            unix_seconds: expires.as_secs(),
            at: at?,
            end: self.instant.checked_add(left)?,
        })
    }
}
