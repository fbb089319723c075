//! Moments of a drain as pure time, and their compression when less time is left than planned.
//!
//! A [`Schedule`] is built from the settings and the grace period of the pod. If a signal arrives
//! while a drain that a command began is running, the container runtime will kill the process soon:
//! every moment that is still ahead moves closer by the same factor, so no phase is skipped.
//! `app::drain` receives the moments through a watch channel and follows when they move.

use std::time::Duration;

use tokio::time::Instant;

use super::drain::Config;

/// 2 s: time after the clients to close NATS and exit.
const LEAVE: Duration = Duration::from_secs(2);

/// 8 s of the 10 s that container runtimes wait by default between SIGTERM and SIGKILL.
const AFTER_SIGNAL_MAX: Duration = Duration::from_secs(8);

/// Moments of one drain in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// End of the time in which everything is still accepted.
    pub accept_until: Instant,
    /// Moment by which every event stream was asked to end.
    pub spread_until: Instant,
    /// Moment at which the event streams that are left are cut.
    pub deadline: Instant,
}

/// Part of a grace period that the drain may use.
#[must_use]
pub fn usable(grace: Duration) -> Duration {
    grace.saturating_sub(LEAVE).max(grace / 2)
}

impl Schedule {
    /// Returns the schedule of a drain that begins now, compressed into the grace period if it is
    /// known.
    #[must_use]
    pub fn new(config: &Config, began: Instant, grace: Option<Duration>) -> Self {
        let accept_until = began + config.accept_for;
        // The configuration check rejects a shorter `timeout`; the order holds here regardless.
        let deadline = began + config.timeout;
        let spread_until = (accept_until + config.spread).min(deadline);
        let mut schedule = Self {
            accept_until: accept_until.min(deadline),
            spread_until,
            deadline,
        };
        if let Some(grace) = grace {
            schedule.compress(began, usable(grace));
        }
        schedule
    }

    /// Compresses the rest after a signal. Returns the time until the deadline.
    pub fn compress_after_signal(&mut self, now: Instant) -> Duration {
        // With a known grace period the deadline already fits into it.
        self.compress(now, AFTER_SIGNAL_MAX);
        self.deadline.saturating_duration_since(now)
    }

    /// Moves every future moment closer by the same factor, so that the deadline is `within` from
    /// now.
    fn compress(&mut self, now: Instant, within: Duration) {
        let left = self.deadline.saturating_duration_since(now);
        if left <= within {
            return;
        }
        let factor = within.as_secs_f64() / left.as_secs_f64();
        for moment in [
            &mut self.accept_until,
            &mut self.spread_until,
            &mut self.deadline,
        ] {
            let ahead = moment.saturating_duration_since(now);
            if !ahead.is_zero() {
                *moment = now + ahead.mul_f64(factor);
            }
        }
        debug_assert!(
            self.accept_until <= self.spread_until && self.spread_until <= self.deadline,
            "moments of a drain are ordered"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    /// The three moments in milliseconds after `from`.
    fn moments(schedule: &Schedule, from: Instant) -> [u128; 3] {
        [
            schedule.accept_until,
            schedule.spread_until,
            schedule.deadline,
        ]
        .map(|moment| moment.saturating_duration_since(from).as_millis())
    }

    #[test]
    fn drain_follows_the_configured_durations() {
        let began = Instant::now();
        let config = Config::default();
        assert_eq!(
            moments(&Schedule::new(&config, began, None), began),
            [5_000, 25_000, 40_000]
        );
        assert_eq!(
            moments(&Schedule::new(&config, began, Some(S(60))), began),
            [5_000, 25_000, 40_000]
        );
    }

    #[test]
    fn short_grace_period_compresses_every_phase_and_leaves_two_seconds() {
        let began = Instant::now();
        let config = Config::default();
        assert_eq!(
            moments(&Schedule::new(&config, began, Some(S(22))), began),
            [2_500, 12_500, 20_000]
        );
        // Half of a very short grace period is used.
        assert_eq!(
            moments(&Schedule::new(&config, began, Some(S(2))), began),
            [125, 625, 1_000]
        );
    }

    #[test]
    fn signal_compresses_the_rest_and_does_not_move_past_moments() {
        let began = Instant::now();
        let mut schedule = Schedule::new(&Config::default(), began, None);
        let now = began + S(8);
        assert_eq!(schedule.compress_after_signal(now), S(8));
        assert_eq!(moments(&schedule, began), [5_000, 8_000 + 4_250, 16_000]);
        // Close to the deadline there is nothing to compress.
        assert_eq!(schedule.compress_after_signal(began + S(14)), S(2));
        assert_eq!(moments(&schedule, began), [5_000, 12_250, 16_000]);
    }
}
