//! Times of one event stream in four bytes each: hundredths of a second since it opened.
//!
//! A pod keeps five of these times for each client and compares most of them with every event.
//! [`StreamClock`] is the origin, in ticks of the process; [`CompactInstant`] is a time or a
//! duration relative to it. The group timer of an HTTP/2 connection compares event streams with
//! different origins and therefore uses ticks of the process ([`ticks_at`], [`instant_of`]).

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

use crate::presence::queue::unix_millis;

/// Time of an event stream, or a duration: at most 497 days. Configured durations are at most a
/// year.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::http) struct CompactInstant(u32);

/// Time at which an event stream opened, in ticks of the process.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct StreamClock(u64);

/// 10 ms: much less than every duration of a route that is measured in ticks.
const TICK: Duration = Duration::from_millis(10);

/// Tick 0 of the process.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The same in milliseconds of Unix time.
static UNIX_EPOCH: LazyLock<u64> =
    LazyLock::new(|| unix_millis(SystemTime::now() - EPOCH.elapsed()));

/// Returns the beginning of tick 0. A simulation begins at a multiple of ticks from it: otherwise
/// times would be rounded differently in each run.
#[must_use]
pub fn tick_origin() -> Instant {
    *EPOCH
}

/// Returns the current time by the clock of the runtime, which timers use too and a simulation can
/// pause.
pub(in crate::http) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Returns the tick of the process at `time`.
pub(in crate::http) fn ticks_at(time: Instant) -> u64 {
    let since = time.saturating_duration_since(*EPOCH);
    since.as_secs() * 100 + u64::from(since.subsec_nanos()) / TICK.as_nanos() as u64
}

/// Returns the time at which a tick of the process begins.
pub(in crate::http) fn instant_of(ticks: u64) -> Instant {
    *EPOCH + Duration::from_millis(ticks.saturating_mul(TICK.as_millis() as u64))
}

impl CompactInstant {
    pub(in crate::http) const ZERO: Self = Self(0);

    /// Later than every event stream lasts.
    pub(in crate::http) const NEVER: Self = Self(u32::MAX);

    pub(in crate::http) fn new(ticks: u32) -> Self {
        Self(ticks)
    }

    pub(in crate::http) fn ticks(self) -> u32 {
        self.0
    }

    /// Rounds a duration down, to at least one tick, so that a repeated timer always advances.
    pub(in crate::http) fn from_duration(duration: Duration) -> Self {
        Self(
            u32::try_from(duration.as_millis() / TICK.as_millis())
                .unwrap_or(u32::MAX)
                .max(1),
        )
    }

    /// Returns the time that is `duration` later.
    pub(in crate::http) fn after(self, duration: Self) -> Self {
        Self(self.0.saturating_add(duration.0))
    }

    /// Returns the duration since an earlier time.
    pub(in crate::http) fn since(self, earlier: Self) -> Duration {
        TICK * self.0.saturating_sub(earlier.0)
    }
}

impl StreamClock {
    pub(in crate::http) fn now() -> Self {
        Self(ticks_at(now()))
    }

    /// Converts to a time of this event stream.
    pub(in crate::http) fn at(self, time: Instant) -> CompactInstant {
        CompactInstant(u32::try_from(ticks_at(time).saturating_sub(self.0)).unwrap_or(u32::MAX))
    }

    /// Converts to a tick of the process.
    pub(in crate::http) fn ticks_at(self, time: CompactInstant) -> u64 {
        self.0 + u64::from(time.0)
    }

    /// Converts to an [`Instant`].
    pub(in crate::http) fn instant(self, time: CompactInstant) -> Instant {
        instant_of(self.ticks_at(time))
    }

    /// Returns the time at which the event stream opened, in milliseconds of Unix time.
    pub(in crate::http) fn opened(self) -> u64 {
        *UNIX_EPOCH + self.0 * TICK.as_millis() as u64
    }

    /// Returns the duration since the event stream opened.
    pub(in crate::http) fn elapsed(self) -> Duration {
        now().saturating_duration_since(instant_of(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_reached_at_its_instant_and_not_before() {
        let clock = StreamClock::now();
        let deadline = clock
            .at(Instant::now())
            .after(CompactInstant::from_duration(Duration::from_millis(1234)));
        let instant = clock.instant(deadline);
        assert_eq!(clock.at(instant), deadline);
        assert!(clock.at(instant - Duration::from_nanos(1)) < deadline);
        assert_eq!(
            deadline,
            CompactInstant(123).after(clock.at(Instant::now())),
            "rounded down to hundredths"
        );
    }

    #[test]
    fn a_duration_below_one_tick_is_rounded_up_to_one() {
        assert!(
            CompactInstant::ZERO.after(CompactInstant::from_duration(Duration::from_millis(1)))
                > CompactInstant::ZERO
        );
    }

    #[test]
    fn a_time_beyond_the_range_saturates() {
        let year = CompactInstant::from_duration(Duration::from_secs(8760 * 3600));
        assert!(year.after(year) == CompactInstant::NEVER && year < CompactInstant::NEVER);
    }
}
