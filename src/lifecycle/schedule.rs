//! When what of a drain is to be over, and how what is left of it is compressed when there is less time than planned.

use std::time::Duration;

use tokio::time::Instant;

use super::drain::Config;

/// 2 s: what the process needs after its clients, to leave NATS in order and to end.
const LEAVE: Duration = Duration::from_secs(2);

/// 8 s, of the 10 s that container runtimes give between their signal and their kill when nobody says otherwise.
const AFTER_SIGNAL_MAX: Duration = Duration::from_secs(8);

/// The moments of one drain, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Until then everything is accepted and served as ever.
    pub accept_until: Instant,
    /// By then every event stream has been told to end.
    pub spread_until: Instant,
    /// What is left then is cut.
    pub deadline: Instant,
}

/// What of a grace period a drain may use.
#[must_use]
pub fn usable(grace: Duration) -> Duration {
    grace.saturating_sub(LEAVE).max(grace / 2)
}

impl Schedule {
    /// The schedule of a drain that begins now, within what a grace period leaves to it.
    #[must_use]
    pub fn new(config: &Config, began: Instant, grace: Option<Duration>) -> Self {
        let accept_until = began + config.accept_for;
        // A configuration with a shorter `timeout` is refused; here the order holds whatever comes.
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

    /// A signal says that the end is near: what is left is compressed. Returns how long that may take.
    pub fn hurry(&mut self, now: Instant) -> Duration {
        // Where the grace period is known it does not end sooner: the deadline is within it from the beginning.
        self.compress(now, AFTER_SIGNAL_MAX);
        self.deadline.saturating_duration_since(now)
    }

    /// Brings every moment that is still to come nearer, all by the same factor, so that the last is `within` from now.
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
            "in their order"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    /// The three moments, in milliseconds from `from`.
    fn moments(schedule: &Schedule, from: Instant) -> [u128; 3] {
        [
            schedule.accept_until,
            schedule.spread_until,
            schedule.deadline,
        ]
        .map(|moment| moment.saturating_duration_since(from).as_millis())
    }

    #[test]
    fn a_drain_takes_the_times_of_the_configuration() {
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
    fn a_grace_period_that_is_too_short_compresses_every_part_alike_and_leaves_two_seconds() {
        let began = Instant::now();
        let config = Config::default();
        assert_eq!(
            moments(&Schedule::new(&config, began, Some(S(22))), began),
            [2_500, 12_500, 20_000]
        );
        // Of a tiny one half is used.
        assert_eq!(
            moments(&Schedule::new(&config, began, Some(S(2))), began),
            [125, 625, 1_000]
        );
    }

    #[test]
    fn a_signal_compresses_what_is_left_and_moves_nothing_that_is_over() {
        let began = Instant::now();
        let mut schedule = Schedule::new(&Config::default(), began, None);
        let now = began + S(8);
        assert_eq!(schedule.hurry(now), S(8));
        assert_eq!(moments(&schedule, began), [5_000, 8_000 + 4_250, 16_000]);
        // Near its end there is nothing to compress.
        assert_eq!(schedule.hurry(began + S(14)), S(2));
        assert_eq!(moments(&schedule, began), [5_000, 12_250, 16_000]);
    }
}
