//! Judges whether one build is slower than another, from the ratios of paired runs.
//!
//! A ratio is the cost of the tree divided by the cost of the base in the same round, so 1.02 means
//! 2 % more. Its distribution on a busy machine is not normal and has outliers. Therefore only the
//! order of the ratios is used: the median, and the order statistics that contain the true median
//! with a probability of 95 %. With fewer than six ratios no interval reaches 95 %; then it is the
//! whole range, which contains the median with 94 % (five ratios), 88 % (four) or 75 % (three).
//!
//! A build is slower only if both hold: the median is beyond the limit, and the whole interval is
//! above 1. The first alone would fail on noise, the second alone on differences too small to
//! matter.

use std::fmt;

/// Median of the ratios and the interval that contains the true median.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    /// Lower end of the interval.
    pub(crate) low: f64,
    /// Median.
    pub(crate) median: f64,
    /// Upper end of the interval.
    pub(crate) high: f64,
    /// Number of ratios.
    pub(crate) count: usize,
}

/// Result of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The median is within the limit.
    Ok,
    /// Slower, or larger, than the limit allows.
    Slower,
    /// Faster, or smaller, by more than the limit.
    Faster,
    /// The difference is beyond the limit, but the runs differ by more than that.
    Noise,
    /// Above the bound, but the base is too: not the fault of the tree.
    Above,
}

impl Spread {
    /// Returns the spread of `ratios`, or `None` if it is empty.
    pub(crate) fn of(mut ratios: Vec<f64>) -> Option<Self> {
        ratios.sort_by(f64::total_cmp);
        let count = ratios.len();
        let outside = outside_interval(count);
        Some(Self {
            low: *ratios.get(outside)?,
            median: (ratios[(count - 1) / 2] + ratios[count / 2]) / 2.0,
            high: ratios[count - 1 - outside],
            count,
        })
    }

    /// Compares with a base: `limit` is the tolerated difference, 0.03 for 3 %.
    pub(crate) fn against_base(&self, limit: f64) -> Verdict {
        if (self.median - 1.0).abs() <= limit {
            Verdict::Ok
        } else if self.count < RATIOS_MIN {
            Verdict::Noise
        } else if self.low > 1.0 {
            Verdict::Slower
        } else if self.high < 1.0 {
            Verdict::Faster
        } else {
            Verdict::Noise
        }
    }

    /// Compares with a bound, 1.35 for 1.35 times the cost of the bare loop.
    ///
    /// On a busy machine, the base may exceed the bound too. `base` is its spread.
    pub(crate) fn against_bound(&self, bound: f64, base: &Self) -> Verdict {
        if self.median <= bound {
            Verdict::Ok
        } else if base.median > bound {
            Verdict::Above
        } else if self.count >= RATIOS_MIN && self.low > bound {
            Verdict::Slower
        } else {
            Verdict::Noise
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Ok => "ok",
            Self::Slower => "slower",
            Self::Faster => "faster",
            Self::Noise => "noise",
            Self::Above => "above",
        })
    }
}

/// Number of ratios to leave out at each end, so that the rest contains the median with 95 %.
///
/// The number of ratios below the true median is binomial with p = 1/2.
fn outside_interval(count: usize) -> usize {
    let mut probability = 0.5_f64.powi(i32::try_from(count).unwrap_or(i32::MAX));
    let mut below = probability;
    let mut outside = 0;
    while outside < count / 2 {
        probability *= (count - outside) as f64 / (outside + 1) as f64;
        below += probability;
        if 2.0 * below > 0.05 {
            break;
        }
        outside += 1;
    }
    outside
}

/// Fewer ratios than this prove nothing.
const RATIOS_MIN: usize = 3;
