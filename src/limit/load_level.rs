//! One level for everything that can become scarce: what is measured, what it cause for, and how quickly that is followed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// How hard the pod is pressed. What each level does is decided where event streams are opened and read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum LoadLevel {
    /// Nothing is cut.
    #[default]
    None,
    /// Telemetry is thinned.
    Thin,
    /// No telemetry; normal events at half their rate.
    Shed,
    /// A quarter of that rate, and no new event streams.
    Reject,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// File descriptors in use, as a share of the way from `warn` to `reject`.
    Descriptors,
    /// Bytes of all windows, as a share of `limits.window_bytes`.
    WindowBytes,
    /// Seconds by which the slowest shard is late.
    LoopLag,
    /// Messages that NATS has ready and this pod has not taken.
    Pending,
}

/// One look at everything.
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

/// The level in force, as everybody sees it. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SharedLevel(Arc<AtomicU8>);

/// Follows the readings with hysteresis.
#[derive(Debug, Default)]
pub struct LoadMonitor {
    level: LoadLevel,
    /// Since when more, or less, than the level has been asked for without a break.
    above: Option<Instant>,
    below: Option<Instant>,
}

/// The level is another one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// Before.
    pub from: LoadLevel,
    /// Now.
    pub to: LoadLevel,
    /// What cause for most now, and what it measures; none when nothing cause for anything.
    pub cause: Option<(Measure, f64)>,
}

/// From which reading on a measure cause for levels 1, 2 and 3.
///
/// - Descriptors never ask for 3: over `reject` event streams are refused by the door, which sees the end of it at once.
/// - Windows give way by themselves at their bound, so their memory cause for no more than 1; 2 is more than the bound,
///   with nothing left to give.
/// - A shard that is a quarter of a second late is felt; one that is three seconds late serves nobody.
/// - 10,000 messages are a second's at a high rate. How far a pod is behind never cause for 3: whoever is refused finds
///   other pods behind the same messages, and what makes a pod slow at them is seen by its event loops.
const ASKS: [(Measure, [f64; 3]); 4] = [
    (Measure::Descriptors, [0.0, 0.5, f64::INFINITY]),
    (Measure::WindowBytes, [0.95, 1.05, f64::INFINITY]),
    (Measure::LoopLag, [0.25, 1.0, 3.0]),
    (Measure::Pending, [10_000.0, 50_000.0, f64::INFINITY]),
];

/// 0.1: a level is asked for until its measure is a tenth below where it began.
const EASE: f64 = 0.1;

/// 500 ms a step up: a burst, or a moment in which the machine was busy elsewhere, is no monitor.
const RISE_AFTER: Duration = Duration::from_millis(500);

/// 3 s a step down: what has just been cut is what made it better.
const FALL_AFTER: Duration = Duration::from_secs(3);

impl LoadMonitor {
    /// Takes one look in; the level changes by one step at a time.
    pub fn update(&mut self, readings: Readings, now: Instant) -> Option<Change> {
        let (asked, cause) = self.asked(readings);
        let since = |clock: &mut Option<Instant>, runs: bool| {
            *clock = runs.then(|| clock.unwrap_or(now));
            clock.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
        };
        let above = since(&mut self.above, asked > self.level);
        let below = since(&mut self.below, asked < self.level);
        let from = self.level;
        let number = from as u8;
        if asked > from && above >= RISE_AFTER {
            self.level = LoadLevel::from_number(number + 1);
        } else if asked < from && below >= FALL_AFTER {
            self.level = LoadLevel::from_number(number - 1);
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

    /// The level in force.
    #[must_use]
    pub fn level(&self) -> LoadLevel {
        self.level
    }

    /// The highest level that a measure cause for, and which one it is.
    fn asked(&self, readings: Readings) -> (LoadLevel, Option<(Measure, f64)>) {
        let mut most = (LoadLevel::None, None);
        for (measure, steps) in ASKS {
            let value = readings.of(measure);
            let mut asked = 0;
            for (place, step) in (1..).zip(steps) {
                // A step that is already taken is left a little later than it was taken.
                let span = if measure == Measure::Descriptors {
                    1.0
                } else {
                    step
                };
                let eased = if place <= self.level as u8 && span.is_finite() {
                    step - span * EASE
                } else {
                    step
                };
                asked = if value >= eased { place } else { asked };
            }
            if asked > most.0 as u8 {
                most = (LoadLevel::from_number(asked), Some((measure, value)));
            }
        }
        most
    }
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
    /// The level in force.
    #[must_use]
    pub fn level(&self) -> LoadLevel {
        LoadLevel::from_number(self.0.load(Ordering::Relaxed))
    }

    /// Says that it is another one.
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

    /// The level's name in `sidestream_pressure_level`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Thin => "thin",
            Self::Shed => "shed",
            Self::Reject => "reject",
        }
    }

    /// The level's number in logs and on `/health`: 0 to 3.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// What is done about it, for people.
    #[must_use]
    pub fn explain(self) -> &'static str {
        match self {
            Self::None => "nothing is cut",
            Self::Thin => "telemetry is thinned",
            Self::Shed => "no telemetry, normal events at half their rate",
            Self::Reject => {
                "no telemetry, normal events at a quarter of their rate, no new event streams"
            }
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "file descriptors",
            Self::WindowBytes => "memory of windows",
            Self::LoopLag => "event loops that are late",
            Self::Pending => "messages that wait at NATS",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing is scarce.
    const CALM: Readings = Readings {
        descriptors: -4.0,
        window_bytes: 0.5,
        loop_lag: 0.001,
        pending: 0.0,
    };

    /// Looks four times a second, as the pod does; returns the changes as (milliseconds, level).
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
    fn each_measure_asks_for_its_levels() {
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
    fn it_rises_step_by_step_and_falls_more_slowly() {
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
    fn a_moment_is_no_pressure() {
        let mut monitor = LoadMonitor::default();
        let hard = Readings {
            loop_lag: 9.0,
            ..CALM
        };
        let looks = [hard, hard, CALM].into_iter().cycle().take(300);
        assert_eq!(follow(&mut monitor, Instant::now(), looks), []);
    }

    #[test]
    fn what_wavers_about_a_step_changes_nothing_twice() {
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
    fn the_measure_that_asks_for_most_is_told() {
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
            "nothing is the cause of its end"
        );
    }
}
