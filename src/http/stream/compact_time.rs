//! Times of one event stream in four bytes each: hundredths of a second since it began.
//!
//! A pod holds four of them for each client, and looks at most of them with every event.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// A time of an event stream, or a length of time: 497 days at the most, and a configured one is a year at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::http) struct CompactInstant(u32);

/// When an event stream began, in ticks of the process.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct StreamClock(u64);

/// 10 ms: far below every duration of a route that is timed with it.
const TICK: Duration = Duration::from_millis(10);

/// What the ticks of the process count from.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Ticks of the process at this time.
pub(in crate::http) fn ticks_at(time: Instant) -> u64 {
    let since = time.saturating_duration_since(*EPOCH);
    since.as_secs() * 100 + u64::from(since.subsec_nanos()) / TICK.as_nanos() as u64
}

/// The time at which so many ticks of the process are over.
pub(in crate::http) fn instant_of(ticks: u64) -> Instant {
    *EPOCH + Duration::from_millis(ticks.saturating_mul(TICK.as_millis() as u64))
}

impl CompactInstant {
    pub(in crate::http) const ZERO: Self = Self(0);

    pub(in crate::http) fn new(count: u32) -> Self {
        Self(count)
    }

    pub(in crate::http) fn count(self) -> u32 {
        self.0
    }

    /// So long, or a little less; one at least, so that what is said again and again lets time go by.
    pub(in crate::http) fn lasting(duration: Duration) -> Self {
        Self(
            u32::try_from(duration.as_millis() / TICK.as_millis())
                .unwrap_or(u32::MAX)
                .max(1),
        )
    }

    pub(in crate::http) fn after(self, ticks: Self) -> Self {
        Self(self.0.saturating_add(ticks.0))
    }

    /// How long it is, or since an earlier time.
    pub(in crate::http) fn since(self, earlier: Self) -> Duration {
        TICK * self.0.saturating_sub(earlier.0)
    }
}

impl StreamClock {
    pub(in crate::http) fn now() -> Self {
        Self(ticks_at(Instant::now()))
    }

    /// The time of the event stream that this is.
    pub(in crate::http) fn at(self, time: Instant) -> CompactInstant {
        CompactInstant(u32::try_from(ticks_at(time).saturating_sub(self.0)).unwrap_or(u32::MAX))
    }

    /// The time that this is, in ticks of the process.
    pub(in crate::http) fn ticks_at(self, ticks: CompactInstant) -> u64 {
        self.0 + u64::from(ticks.0)
    }

    /// The same as an instant.
    pub(in crate::http) fn instant(self, ticks: CompactInstant) -> Instant {
        instant_of(self.ticks_at(ticks))
    }

    pub(in crate::http) fn elapsed(self) -> Duration {
        Instant::now().saturating_duration_since(instant_of(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_over_when_its_instant_has_come_and_not_before() {
        let began = StreamClock::now();
        let deadline = began
            .at(Instant::now())
            .after(CompactInstant::lasting(Duration::from_millis(1234)));
        let instant = began.instant(deadline);
        assert_eq!(began.at(instant), deadline);
        assert!(began.at(instant - Duration::from_nanos(1)) < deadline);
        assert_eq!(
            deadline,
            CompactInstant(123).after(began.at(Instant::now())),
            "whole hundredths"
        );
    }

    #[test]
    fn nothing_that_lasts_is_over_at_once() {
        assert!(
            CompactInstant::ZERO.after(CompactInstant::lasting(Duration::from_millis(1)))
                > CompactInstant::ZERO
        );
    }

    #[test]
    fn what_lasts_longer_than_can_be_told_ends_at_the_last_moment_that_can() {
        let year = CompactInstant::lasting(Duration::from_secs(8760 * 3600));
        assert!(year.after(year) == CompactInstant(u32::MAX) && year < CompactInstant(u32::MAX));
    }
}
