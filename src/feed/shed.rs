//! Load shedding for a slow client: which unread events are skipped, and the gaps that report them.
//!
//! A client is slow if its socket has accepted no bytes for the stall timeout while events are
//! unread. When the socket accepts bytes again, the event stream reads once with a [`Shedder`] for
//! all of its cursors; the policy of the route decides per event. Critical events are never
//! skipped. There is no list of skipped events: the state of a slow client is its cursor.
//!
//! A run of skipped events is reported as one gap (`GapRun`), placed before the next item.

use std::time::Duration;

use crate::event::{Position, Tier};

use super::{Batch, Gap, GapReason, Item};

/// Policy of a route for slow clients (`slow:`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    /// Maximum number of unread events of a slow client; beyond it the event stream ends.
    pub lag: u64,
    /// Time without accepted bytes after which a client is slow.
    pub stall_timeout: Duration,
    /// `retry:` for a client whose event stream ended because of its lag.
    pub retry: Duration,
    /// Events that it receives until then.
    pub policy: SlowPolicy,
}

/// Selection of the unread events that a slow client receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowPolicy {
    /// No telemetry above a quarter of the lag limit; only critical events above three quarters.
    Shed,
    /// Only the newest event per subject, and all critical events.
    Conflate,
    /// All events.
    Disconnect,
}

/// One read of a slow client over all of its cursors: what may be skipped, and what was.
///
/// It is created when a stalled socket accepts bytes again, and dropped after that read.
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
            // 1000: a tenth of a window; at ten events per second more than a minute and a half.
            lag: 1000,
            // 2 s: longer than a lost segment or a handover between radio cells takes.
            stall_timeout: Duration::from_secs(2),
            retry: Duration::from_secs(5),
            policy: SlowPolicy::Shed,
        }
    }
}

impl Slow {
    /// Minimum lag limit: with it, a single unread event is never skipped.
    pub const LAG_MIN: u64 = 4;
}

impl Shedder {
    /// Creates a shedder for a read with `waiting` unread events in all cursors.
    #[must_use]
    pub fn new(slow: &Slow, waiting: u64) -> Self {
        Self {
            policy: slow.policy,
            lag: slow.lag,
            waiting,
            skipped: [0; Tier::ALL.len()],
        }
    }

    /// Events that this read has skipped and reported.
    pub fn skipped(&self) -> impl Iterator<Item = (Tier, u64)> {
        Tier::ALL
            .into_iter()
            .zip(self.skipped)
            .filter(|(_, count)| *count > 0)
    }

    pub(super) fn conflates(&self) -> bool {
        self.policy == SlowPolicy::Conflate
    }

    /// Subtracts events that are no longer unread, delivered or not.
    pub(super) fn consumed(&mut self, events: u64) {
        self.waiting = self.waiting.saturating_sub(events);
    }

    /// True if the next event is skipped; it still counts as unread. `newest`: it is the newest
    /// unread event of its subject.
    pub(super) fn skips(&mut self, tier: Tier, newest: bool) -> bool {
        let is_skipped = match (self.policy, tier) {
            (SlowPolicy::Disconnect, _) | (_, Tier::Critical) => false,
            (SlowPolicy::Conflate, _) => !newest,
            (SlowPolicy::Shed, Tier::Normal) => {
                self.waiting.saturating_mul(4) > self.lag.saturating_mul(3)
            }
            (SlowPolicy::Shed, Tier::Telemetry) => self.waiting.saturating_mul(4) > self.lag,
        };
        if is_skipped {
            self.skipped[tier as usize] += 1;
        }
        is_skipped
    }

    pub(super) fn reason(&self) -> GapReason {
        if self.conflates() {
            GapReason::Conflated
        } else {
            GapReason::Slow
        }
    }
}

/// Gap of the current read that covers a run of skipped events.
#[derive(Debug, Default)]
pub(super) struct GapRun(Option<(usize, GapReason)>);

impl GapRun {
    /// Continues the gap that was pushed last, for evicted events.
    pub(super) fn begin(batch: &Batch) -> Self {
        let last = batch.items.len().checked_sub(1);
        Self(last.map(|index| (index, GapReason::Slow)))
    }

    /// Counts one more skipped event after `position`.
    pub(super) fn grow(&mut self, why: GapReason, position: Position, batch: &mut Batch) {
        let known = self.0.filter(|(_, reason)| *reason == why);
        if let Some(Item::Gap { gap, .. }) = known.and_then(|(index, _)| batch.items.get_mut(index))
            && let Some(missed) = &mut gap.missed
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
        self.0 = Some((batch.items.len() - 1, why));
    }

    /// Ends the run, because an event is delivered. One gap of conflated events covers the whole
    /// read; events that the rate limit or the load level skips are counted where they are missing.
    pub(super) fn end(&mut self) {
        self.0 = self.0.filter(|(_, reason)| *reason == GapReason::Conflated);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::SourceTag;

    fn shedder(policy: SlowPolicy, waiting: u64) -> Shedder {
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
    fn telemetry_is_skipped_above_a_quarter_and_normal_events_above_three_quarters() {
        for (waiting, telemetry, normal) in [
            (1, false, false),
            (250, false, false),
            (251, true, false),
            (750, true, false),
            (751, true, true),
        ] {
            let mut shedder = shedder(SlowPolicy::Shed, waiting);
            assert_eq!(shedder.skips(Tier::Telemetry, true), telemetry, "{waiting}");
            assert_eq!(shedder.skips(Tier::Normal, true), normal, "{waiting}");
            assert!(!shedder.skips(Tier::Critical, false), "{waiting}");
            let skipped: u64 = shedder.skipped().map(|(_, count)| count).sum();
            assert_eq!(skipped, u64::from(telemetry) + u64::from(normal));
        }
    }

    #[test]
    fn shedding_stops_when_few_events_are_left() {
        let mut shedder = shedder(SlowPolicy::Shed, 1000);
        let mut delivered = 0;
        for _ in 0..1000 {
            delivered += u64::from(!shedder.skips(Tier::Normal, true));
            shedder.consumed(1);
        }
        assert_eq!(delivered, 750);
    }

    #[test]
    fn conflation_skips_all_but_the_newest_and_disconnect_skips_nothing() {
        let mut conflate = shedder(SlowPolicy::Conflate, 2);
        assert!(conflate.skips(Tier::Normal, false));
        assert!(!conflate.skips(Tier::Normal, true) && !conflate.skips(Tier::Critical, false));
        let mut disconnect = shedder(SlowPolicy::Disconnect, 1_000_000);
        assert!(
            Tier::ALL
                .into_iter()
                .all(|tier| !disconnect.skips(tier, false))
        );
    }

    #[test]
    fn skipped_events_are_counted_where_they_are_missing_and_conflated_ones_once_per_read() {
        let position = Position {
            tag: SourceTag::of_stream("S", 1),
            seq: 1,
            fingerprint: None,
        };
        for (reason, expected) in [
            (GapReason::Slow, vec![1, 2]),
            (GapReason::Conflated, vec![3]),
        ] {
            let (mut batch, mut run) = (Batch::default(), GapRun::default());
            run.grow(reason, position, &mut batch);
            run.end();
            run.grow(reason, position, &mut batch);
            run.grow(reason, position, &mut batch);
            let missed = batch.items.iter().map(|item| match item {
                Item::Gap { gap, .. } => gap.missed.unwrap(),
                Item::Event { .. } | Item::Copied { .. } | Item::Coded { .. } => 0,
            });
            assert_eq!(missed.collect::<Vec<_>>(), expected, "{reason}");
        }
    }
}
