//! Load level: one number from 0 to 3 for everything that can become scarce.
//!
//! ```text
//! readings (4 per second) -> demanded level -> hysteresis -> level
//!   descriptors, window memory,                up after 500 ms, one step at a time
//!   event-loop lag, NATS backlog               down after 3 s, one step at a time
//! ```
//!
//! [`LoadMonitor`] is pure: `app::load` reads the measures on the admin thread, passes them with
//! the time to [`LoadMonitor::update`], and publishes a change through [`SharedLevel`], which event
//! streams read without a lock. The highest demand of any measure counts.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// Load level of the pod. The effect of a level is implemented in `http::request::respond` (new
/// event streams) and `http::stream::throttle` (open ones).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum LoadLevel {
    /// No load shedding.
    #[default]
    None,
    /// Telemetry events are thinned.
    Thin,
    /// No telemetry events; normal events at half their rate.
    Shed,
    /// No telemetry events; normal events at a quarter of their rate; new event streams are
    /// rejected.
    Reject,
}

/// Measure of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// File descriptors in use: 0 at `limits.file_descriptors.warn`, 1 at `reject`.
    Descriptors,
    /// Bytes of all windows as a share of `limits.window_bytes`.
    WindowBytes,
    /// Event-loop lag of the slowest shard in seconds.
    LoopLag,
    /// Messages that NATS has ready for this pod (backlog).
    Pending,
}

/// One reading of every measure.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Readings {
    /// See [`Measure::Descriptors`].
    pub descriptors: f64,
    /// See [`Measure::WindowBytes`].
    pub window_bytes: f64,
    /// See [`Measure::LoopLag`].
    pub loop_lag: f64,
    /// See [`Measure::Pending`].
    pub pending: f64,
}

/// Current level, shared by all threads. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SharedLevel(Arc<AtomicU8>);

/// Computes the level from readings, with hysteresis.
#[derive(Debug, Default)]
pub struct LoadMonitor {
    level: LoadLevel,
    /// Since when the readings have continuously demanded a higher, or allow a lower, level.
    above: Option<Instant>,
    below: Option<Instant>,
}

/// Change of the level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// Previous level.
    pub from: LoadLevel,
    /// New level.
    pub to: LoadLevel,
    /// Measure with the highest demand and its reading. `None`: nothing demands a level.
    pub cause: Option<(Measure, f64)>,
}

/// Readings from which a measure demands levels 1, 2 and 3.
///
/// - Descriptors never demand level 3: above `reject` the connection limiter rejects event streams,
///   and it notices the end of the shortage at once.
/// - Windows shrink by themselves at their limit, so their memory demands at most level 1. Level 2
///   is for a use above the limit with nothing left to evict.
/// - An event-loop lag of 250 ms is noticeable; a shard with a lag of 3 s serves no client.
/// - 10,000 messages are the traffic of one second at a high rate. The backlog never demands level
///   3: the client would find the same backlog on other pods, and if this pod is the slow one, its
///   event loops lag.
const THRESHOLDS: [(Measure, [f64; 3]); 4] = [
    (Measure::Descriptors, [0.0, 0.5, f64::INFINITY]),
    (Measure::WindowBytes, [0.95, 1.05, f64::INFINITY]),
    (Measure::LoopLag, [0.25, 1.0, 3.0]),
    (Measure::Pending, [10_000.0, 50_000.0, f64::INFINITY]),
];

/// 0.1: a level ends when its measure is a tenth below the threshold that started it.
const HYSTERESIS: f64 = 0.1;

/// 500 ms per step up: a burst, or a moment in which the machine was busy elsewhere, is not load.
const RISE_AFTER: Duration = Duration::from_millis(500);

/// 3 s per step down: the measures improved because of the level that would end.
const FALL_AFTER: Duration = Duration::from_secs(3);

impl LoadMonitor {
    /// Evaluates one set of readings. The level changes by one step at a time.
    pub fn update(&mut self, readings: Readings, now: Instant) -> Option<Change> {
        let (demanded, cause) = self.demanded(readings);
        let above = elapsed(&mut self.above, demanded > self.level, now);
        let below = elapsed(&mut self.below, demanded < self.level, now);
        let from = self.level;
        if demanded > from && above >= RISE_AFTER {
            self.level = LoadLevel::from_number(from.number() + 1);
        } else if demanded < from && below >= FALL_AFTER {
            self.level = LoadLevel::from_number(from.number() - 1);
        }
        if self.level == from {
            return None;
        }
        (self.above, self.below) = (None, None);
        Some(Change {
            from,
            to: self.level,
            cause,
        })
    }

    /// Returns the current level.
    #[must_use]
    pub fn level(&self) -> LoadLevel {
        self.level
    }

    /// Returns the highest level that any measure demands, and that measure with its reading.
    fn demanded(&self, readings: Readings) -> (LoadLevel, Option<(Measure, f64)>) {
        let mut highest = (LoadLevel::None, None);
        for (measure, thresholds) in THRESHOLDS {
            let value = readings.of(measure);
            let mut demanded = 0;
            for (number, threshold) in (1..).zip(thresholds) {
                if value >= self.threshold(measure, number, threshold) {
                    demanded = number;
                }
            }
            if demanded > highest.0.number() {
                highest = (LoadLevel::from_number(demanded), Some((measure, value)));
            }
        }
        highest
    }

    /// Returns the threshold of a level, lower by the hysteresis if the level is in force.
    fn threshold(&self, measure: Measure, number: u8, threshold: f64) -> f64 {
        // The reading of descriptors begins at 0, so its span is the distance from `warn` to
        // `reject`.
        let span = if measure == Measure::Descriptors {
            1.0
        } else {
            threshold
        };
        if number <= self.level.number() && span.is_finite() {
            threshold - span * HYSTERESIS
        } else {
            threshold
        }
    }
}

/// Starts or resets a stopwatch by a condition and returns how long the condition has held.
fn elapsed(since: &mut Option<Instant>, holds: bool, now: Instant) -> Duration {
    if !holds {
        *since = None;
        return Duration::ZERO;
    }
    now.saturating_duration_since(*since.get_or_insert(now))
}

impl Readings {
    fn of(&self, measure: Measure) -> f64 {
        match measure {
            Measure::Descriptors => self.descriptors,
            Measure::WindowBytes => self.window_bytes,
            Measure::LoopLag => self.loop_lag,
            Measure::Pending => self.pending,
        }
    }
}

impl SharedLevel {
    /// Returns the current level.
    #[must_use]
    pub fn level(&self) -> LoadLevel {
        LoadLevel::from_number(self.0.load(Ordering::Relaxed))
    }

    /// Changes the level.
    pub fn set(&self, level: LoadLevel) {
        self.0.store(level as u8, Ordering::Relaxed);
    }
}

impl LoadLevel {
    fn from_number(number: u8) -> Self {
        match number {
            0 => Self::None,
            1 => Self::Thin,
            2 => Self::Shed,
            _ => Self::Reject,
        }
    }

    /// Every level, from the lowest.
    pub const ALL: [Self; 4] = [Self::None, Self::Thin, Self::Shed, Self::Reject];

    /// Returns the label of `sidestream_pressure_level`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Thin => "thin",
            Self::Shed => "shed",
            Self::Reject => "reject",
        }
    }

    /// Returns the number of the level in logs and on `/health`, 0 to 3.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Returns the effect of the level, for logs and health checks.
    #[must_use]
    pub fn explain(self) -> &'static str {
        match self {
            Self::None => "no load shedding",
            Self::Thin => "telemetry events are thinned",
            Self::Shed => "no telemetry events, normal events at half their rate",
            Self::Reject => {
                "no telemetry events, normal events at a quarter of their rate, new event streams rejected"
            }
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "file descriptors",
            Self::WindowBytes => "memory of windows",
            Self::LoopLag => "event-loop lag",
            Self::Pending => "NATS backlog",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readings without load.
    const CALM: Readings = Readings {
        descriptors: -4.0,
        window_bytes: 0.5,
        loop_lag: 0.001,
        pending: 0.0,
    };

    /// Feeds four readings per second, as `app::load` does. Returns changes as (milliseconds,
    /// level).
    fn follow(
        monitor: &mut LoadMonitor,
        start: Instant,
        looks: impl IntoIterator<Item = Readings>,
    ) -> Vec<(u64, u8)> {
        let times = (0..).map(|look| look * 250);
        let changed = |(at, readings): (u64, Readings)| {
            let change = monitor.update(readings, start + Duration::from_millis(at))?;
            Some((at, change.to.number()))
        };
        times.zip(looks).filter_map(changed).collect()
    }

    #[test]
    fn each_measure_demands_its_levels() {
        let cases = [
            (
                Readings {
                    descriptors: -0.1,
                    ..CALM
                },
                0,
            ),
            (
                Readings {
                    descriptors: 0.0,
                    ..CALM
                },
                1,
            ),
            (
                Readings {
                    descriptors: 0.6,
                    ..CALM
                },
                2,
            ),
            (
                Readings {
                    descriptors: 9.0,
                    ..CALM
                },
                2,
            ),
            (
                Readings {
                    window_bytes: 0.94,
                    ..CALM
                },
                0,
            ),
            (
                Readings {
                    window_bytes: 1.0,
                    ..CALM
                },
                1,
            ),
            (
                Readings {
                    window_bytes: 2.0,
                    ..CALM
                },
                2,
            ),
            (
                Readings {
                    loop_lag: 0.2,
                    ..CALM
                },
                0,
            ),
            (
                Readings {
                    loop_lag: 0.3,
                    ..CALM
                },
                1,
            ),
            (
                Readings {
                    loop_lag: 5.0,
                    ..CALM
                },
                3,
            ),
            (
                Readings {
                    pending: 60_000.0,
                    ..CALM
                },
                2,
            ),
            (
                Readings {
                    pending: 1e9,
                    descriptors: 9.0,
                    window_bytes: 2.0,
                    ..CALM
                },
                2,
            ),
        ];
        for (readings, level) in cases {
            let mut monitor = LoadMonitor::default();
            follow(&mut monitor, Instant::now(), [readings; 40]);
            assert_eq!(monitor.level().number(), level, "{readings:?}");
        }
    }

    #[test]
    fn level_rises_step_by_step_and_falls_more_slowly() {
        let mut monitor = LoadMonitor::default();
        let start = Instant::now();
        let hard = Readings {
            loop_lag: 9.0,
            ..CALM
        };
        assert_eq!(
            follow(&mut monitor, start, [hard; 10]),
            [(500, 1), (1250, 2), (2000, 3)]
        );
        let later = start + Duration::from_secs(10);
        assert_eq!(
            follow(&mut monitor, later, [CALM; 60]),
            [(3000, 2), (6250, 1), (9500, 0)]
        );
    }

    #[test]
    fn short_peak_does_not_raise_the_level() {
        let mut monitor = LoadMonitor::default();
        let hard = Readings {
            loop_lag: 9.0,
            ..CALM
        };
        let looks = [hard, hard, CALM].into_iter().cycle().take(300);
        assert_eq!(follow(&mut monitor, Instant::now(), looks), []);
    }

    #[test]
    fn reading_around_a_threshold_changes_the_level_once() {
        let mut monitor = LoadMonitor::default();
        let at = |pending: f64| Readings { pending, ..CALM };
        let looks = [at(10_100.0); 4]
            .into_iter()
            .chain([at(9_500.0), at(10_100.0)].into_iter().cycle().take(400));
        assert_eq!(follow(&mut monitor, Instant::now(), looks), [(500, 1)]);
        let below = follow(&mut monitor, Instant::now(), [at(8_900.0); 20]);
        assert_eq!(below, [(3000, 0)]);
    }

    #[test]
    fn change_names_the_measure_with_the_highest_demand() {
        let mut monitor = LoadMonitor::default();
        let readings = Readings {
            window_bytes: 1.0,
            pending: 70_000.0,
            ..CALM
        };
        let start = Instant::now();
        assert_eq!(monitor.update(readings, start), None);
        let change = monitor.update(readings, start + RISE_AFTER).unwrap();
        let cause = Some((Measure::Pending, 70_000.0));
        assert_eq!(
            change,
            Change {
                from: LoadLevel::None,
                to: LoadLevel::Thin,
                cause
            }
        );
        let looks =
            (0..20).filter_map(|look| monitor.update(CALM, start + Duration::from_secs(1 + look)));
        assert_eq!(
            looks.map(|change| change.cause).collect::<Vec<_>>(),
            [None],
            "the end of load has no cause"
        );
    }
}
