//! What a slow reader is given: which of the events that wait for it are passed by, and how that is told.

use std::time::Duration;

use crate::sse::{Position, Tier};

use super::{Batch, Gap, GapReason, Item};

/// How a route treats clients whose own socket takes too little (`slow:`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    /// The most events that may wait for a slow client: with more its event stream ends.
    pub lag: u64,
    /// For how long a socket may refuse bytes before its client is slow.
    pub patience: Duration,
    /// How long a client that was ended for it waits before it comes back.
    pub retry: Duration,
    /// What it is given until then.
    pub policy: SlowPolicy,
}

/// What of the waiting events a slow client is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowPolicy {
    /// With more than a quarter of the lag waiting no telemetry, with more than three quarters only what is critical.
    Shed,
    /// The newest of each subject, and everything that is critical.
    Conflate,
    /// Everything.
    Disconnect,
}

/// One turn of a slow reader over all of its cursors: what may be passed by, and what was.
///
/// It is made when a socket that refused bytes for too long takes some again, and is over with that turn: there is no
/// list of what a client skips, only where its cursor stands.
#[derive(Debug)]
pub struct Shedder {
    policy: SlowPolicy,
    lag: u64,
    waiting: u64,
    skipped: [u64; Tier::ALL.len()],
}

impl Default for Slow {
    fn default() -> Self {
        Self {
            // 1000: a tenth of a window; at ten events a second more than a minute and a half behind.
            lag: 1000,
            // 2 s: longer than a lost segment or a hand-over between radio cells takes.
            patience: Duration::from_secs(2),
            retry: Duration::from_secs(5),
            policy: SlowPolicy::Shed,
        }
    }
}

impl Slow {
    /// The least lag that can be configured: with it one event that waits alone is never passed by.
    pub const LAG_MIN: u64 = 4;
}

impl Shedder {
    /// A turn with so many events waiting, in all cursors of the reader.
    #[must_use]
    pub fn new(slow: &Slow, waiting: u64) -> Self {
        Self {
            policy: slow.policy,
            lag: slow.lag,
            waiting,
            skipped: [0; Tier::ALL.len()],
        }
    }

    /// What was passed by so far, and told.
    pub fn skipped(&self) -> impl Iterator<Item = (Tier, u64)> {
        Tier::ALL
            .into_iter()
            .zip(self.skipped)
            .filter(|(_, count)| *count > 0)
    }

    pub(super) fn conflates(&self) -> bool {
        self.policy == SlowPolicy::Conflate
    }

    /// So many events wait no longer, whatever became of them.
    pub(super) fn passed(&mut self, events: u64) {
        self.waiting = self.waiting.saturating_sub(events);
    }

    /// Whether the next event is passed by; it still counts as waiting. `newest`: of its subject, among those that wait.
    pub(super) fn passes_by(&mut self, tier: Tier, newest: bool) -> bool {
        let passes = match (self.policy, tier) {
            (SlowPolicy::Disconnect, _) | (_, Tier::Critical) => false,
            (SlowPolicy::Conflate, _) => !newest,
            (SlowPolicy::Shed, Tier::Normal) => {
                self.waiting.saturating_mul(4) > self.lag.saturating_mul(3)
            }
            (SlowPolicy::Shed, Tier::Telemetry) => self.waiting.saturating_mul(4) > self.lag,
        };
        if passes {
            self.skipped[tier as usize] += 1;
        }
        passes
    }

    pub(super) fn reason(&self) -> GapReason {
        if self.conflates() {
            GapReason::Conflated
        } else {
            GapReason::Slow
        }
    }
}

/// The gap of one read that can still grow: one tells of a whole run of events that are passed by.
#[derive(Debug, Default)]
pub(super) struct GapRun(Option<usize>);

impl GapRun {
    /// The gap that was pushed last may grow.
    pub(super) fn begin(batch: &Batch) -> Self {
        Self(batch.items.len().checked_sub(1))
    }

    /// One more event is passed by, behind `position`.
    pub(super) fn grow(&mut self, why: GapReason, position: Position, batch: &mut Batch) {
        let known = self.0.and_then(|place| batch.items.get_mut(place));
        if let Some(Item::Gap {
            gap: Gap {
                reason,
                missed: Some(missed),
            },
            ..
        }) = known
            && *reason == why
        {
            *missed += 1;
            return;
        }
        batch.push(Item::Gap {
            gap: Gap {
                reason: why,
                missed: Some(1),
            },
            position,
        });
        self.0 = Some(batch.items.len() - 1);
    }

    /// Something is given. When events are conflated one gap tells of the whole read all the same.
    pub(super) fn interrupt(&mut self, relief: Option<&Shedder>) {
        if !relief.is_some_and(Shedder::conflates) {
            self.0 = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relief(policy: SlowPolicy, waiting: u64) -> Shedder {
        Shedder::new(
            &Slow {
                lag: 1000,
                policy,
                ..Slow::default()
            },
            waiting,
        )
    }

    #[test]
    fn telemetry_is_shed_above_a_quarter_and_normal_events_above_three_quarters() {
        for (waiting, telemetry, normal) in [
            (1, false, false),
            (250, false, false),
            (251, true, false),
            (750, true, false),
            (751, true, true),
        ] {
            let mut relief = relief(SlowPolicy::Shed, waiting);
            assert_eq!(
                relief.passes_by(Tier::Telemetry, true),
                telemetry,
                "{waiting}"
            );
            assert_eq!(relief.passes_by(Tier::Normal, true), normal, "{waiting}");
            assert!(!relief.passes_by(Tier::Critical, false), "{waiting}");
            let skipped: u64 = relief.skipped().map(|(_, count)| count).sum();
            assert_eq!(skipped, u64::from(telemetry) + u64::from(normal));
        }
    }

    #[test]
    fn shedding_stops_where_little_is_left() {
        let mut relief = relief(SlowPolicy::Shed, 1000);
        let mut given = 0;
        for _ in 0..1000 {
            given += u64::from(!relief.passes_by(Tier::Normal, true));
            relief.passed(1);
        }
        assert_eq!(given, 750);
    }

    #[test]
    fn conflating_passes_by_all_but_the_newest_and_disconnecting_nothing() {
        let mut conflate = relief(SlowPolicy::Conflate, 2);
        assert!(conflate.passes_by(Tier::Normal, false));
        assert!(
            !conflate.passes_by(Tier::Normal, true) && !conflate.passes_by(Tier::Critical, false)
        );
        let mut disconnect = relief(SlowPolicy::Disconnect, 1_000_000);
        assert!(
            Tier::ALL
                .into_iter()
                .all(|tier| !disconnect.passes_by(tier, false))
        );
    }
}
