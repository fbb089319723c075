//! Limits the rate of events of one event stream: tokens of its client, and load shedding.
//!
//! [`ThrottlePass`] exists for one turn, and only if the client has a rate limit
//! (`limits.per_client.events`) or the load level of the pod is above 0. The cursor asks it before
//! each event. Nothing is queued: the cursor stays at an event that must wait, and
//! [`ClientLimits::until`] becomes a deadline of the event stream's timer.
//!
//! | load level | telemetry | tokens for a normal event |
//! | --- | --- | --- |
//! | 0 | delivered | 1 |
//! | 1 | one event every 100 ms | 1 |
//! | 2 | skipped | 2 |
//! | 3 | skipped | 4 |
//!
//! Critical events never wait: without tokens they borrow. If a critical event follows, normal
//! events before it borrow too and telemetry before it is skipped. Skipped events become a gap.

use std::time::{Duration, Instant};

use super::compact_time;
use crate::event::Tier;
use crate::feed::{Throttle, ThrottleDecision};
use crate::limit::clients::{EventTokens, Throttled};
use crate::limit::{ClientPermit, LoadLevel};

/// 100 ms: at load level 1 an event stream receives at most ten telemetry events per second.
const TELEMETRY_EVERY: Duration = Duration::from_millis(100);

/// Limits of the client of one event stream, and their state from turn to turn.
#[derive(Debug, Default)]
pub(in crate::http) struct ClientLimits {
    /// Permit of the client, if clients are limited.
    permit: Option<ClientPermit>,
    /// Time at which the client has tokens again, while events wait for them.
    pub(in crate::http) until: Option<Instant>,
    /// Time of the last telemetry event.
    telemetry: Option<Instant>,
    /// It holds a token for an event that it has not read yet.
    has_token: bool,
}

/// Rate limit during one turn.
pub(in crate::http) struct ThrottlePass<'t> {
    limits: &'t mut ClientLimits,
    level: LoadLevel,
    now: Instant,
    skipped: [u64; Tier::ALL.len()],
    keeps_all: bool,
}

impl ClientLimits {
    pub(in crate::http) fn of(permit: ClientPermit) -> Self {
        Self {
            permit: Some(permit),
            ..Self::default()
        }
    }

    /// Counts other filter sets in place of those that the event stream reads.
    ///
    /// # Errors
    /// [`Throttled`] if the client has reached a limit: they are as before.
    pub(in crate::http) fn change_filter_sets(
        &mut self,
        filter_sets: impl IntoIterator<Item = u64>,
    ) -> Result<(), Throttled> {
        match &mut self.permit {
            Some(permit) => permit.change_filter_sets(filter_sets),
            None => Ok(()),
        }
    }

    /// Returns the tokens of the client, if it has a rate limit.
    pub(in crate::http) fn events(&self) -> Option<EventTokens<'_>> {
        self.permit.as_ref().and_then(ClientPermit::events)
    }
}

impl<'t> ThrottlePass<'t> {
    /// Returns `None` if nothing waits and nothing is skipped.
    pub(in crate::http) fn new(
        limits: &'t mut Option<Box<ClientLimits>>,
        level: LoadLevel,
    ) -> Option<Self> {
        let has_rate = limits
            .as_ref()
            .is_some_and(|limits| limits.events().is_some());
        if !has_rate && level == LoadLevel::None {
            match limits {
                Some(known) if known.permit.is_some() => {
                    (known.until, known.telemetry, known.has_token) = (None, None, false);
                }
                _ => *limits = None,
            }
            return None;
        }
        let limits = &mut **limits.get_or_insert_default();
        limits.until = None;
        Some(Self {
            limits,
            level,
            now: compact_time::now(),
            skipped: [0; Tier::ALL.len()],
            keeps_all: false,
        })
    }

    /// Skips no event: each one is part of a state.
    pub(in crate::http) fn keep_all(mut self) -> Self {
        self.keeps_all = true;
        self
    }

    /// Returns the number of skipped events by tier.
    pub(in crate::http) fn skipped(&self) -> impl Iterator<Item = (Tier, u64)> {
        Tier::ALL
            .into_iter()
            .zip(self.skipped)
            .filter(|(_, count)| *count > 0)
    }

    /// Returns true if the load level skips a telemetry event now.
    fn skips_telemetry(&self) -> bool {
        let last = self.limits.telemetry;
        match self.level {
            _ if self.keeps_all => false,
            LoadLevel::None => false,
            LoadLevel::Thin => {
                last.is_some_and(|last| self.now.saturating_duration_since(last) < TELEMETRY_EVERY)
            }
            LoadLevel::Shed | LoadLevel::Reject => true,
        }
    }

    fn take(&mut self, cost: u32) -> Result<(), Duration> {
        if std::mem::take(&mut self.limits.has_token) {
            return Ok(());
        }
        self.limits
            .events()
            .map_or(Ok(()), |tokens| tokens.take(cost))
    }

    fn borrow(&self) {
        if let Some(tokens) = self.limits.events() {
            tokens.borrow();
        }
    }

    /// Tokens for one event: half of the rate at level 2, a quarter at level 3.
    fn cost(&self) -> u32 {
        match self.level {
            LoadLevel::None | LoadLevel::Thin => 1,
            LoadLevel::Shed => 2,
            LoadLevel::Reject => 4,
        }
    }
}

impl Throttle for ThrottlePass<'_> {
    fn decide(&mut self, tier: Tier, is_urgent: bool) -> ThrottleDecision {
        if tier == Tier::Critical {
            self.record();
            return ThrottleDecision::Deliver;
        }
        let decision = if tier == Tier::Telemetry && self.skips_telemetry() {
            ThrottleDecision::Skip
        } else {
            match (self.take(self.cost()), tier) {
                (Ok(()), _) => ThrottleDecision::Deliver,
                (Err(wait), _) if !is_urgent => {
                    self.limits.until = Some(self.now + wait);
                    ThrottleDecision::Defer
                }
                (Err(_), Tier::Telemetry) if !self.keeps_all => ThrottleDecision::Skip,
                (Err(_), _) => {
                    self.borrow();
                    ThrottleDecision::Deliver
                }
            }
        };
        match (decision, tier) {
            (ThrottleDecision::Skip, _) => self.skipped[tier as usize] += 1,
            (ThrottleDecision::Deliver, Tier::Telemetry) => self.limits.telemetry = Some(self.now),
            _ => {}
        }
        decision
    }

    fn is_ready(&mut self) -> bool {
        match self.take(self.cost()) {
            Ok(()) => self.limits.has_token = true,
            Err(wait) => self.limits.until = Some(self.now + wait),
        }
        self.limits.has_token
    }

    fn record(&mut self) {
        if self.take(1).is_err() {
            self.borrow();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::auth::Principal;
    use crate::limit::{ClientLimiter, PerClient, Rate};

    fn limits(rate: u32, burst: u32) -> Option<Box<ClientLimits>> {
        let clients: Arc<ClientLimiter> = ClientLimiter::new();
        let limits = PerClient {
            events: Some(Rate::new(rate, burst)),
            ..PerClient::default()
        };
        clients.set(limits.into());
        let permit = clients
            .acquire("a", &Principal::Anonymous, [])
            .unwrap()
            .unwrap();
        Some(Box::new(ClientLimits::of(permit)))
    }

    fn ask(
        pass: &mut ThrottlePass<'_>,
        tier: Tier,
        is_urgent: bool,
        times: usize,
    ) -> Vec<ThrottleDecision> {
        (0..times).map(|_| pass.decide(tier, is_urgent)).collect()
    }

    #[test]
    fn without_rate_limit_and_load_shedding_there_is_no_throttle() {
        assert!(ThrottlePass::new(&mut None, LoadLevel::None).is_none());
    }

    #[test]
    fn events_wait_until_the_client_has_tokens_again() {
        let mut state = limits(1, 3);
        let mut pass = ThrottlePass::new(&mut state, LoadLevel::None).unwrap();
        assert_eq!(
            ask(&mut pass, Tier::Normal, false, 3),
            [ThrottleDecision::Deliver; 3]
        );
        assert_eq!(
            ask(&mut pass, Tier::Telemetry, false, 2),
            [ThrottleDecision::Defer; 2]
        );
        let wait = state
            .as_ref()
            .unwrap()
            .until
            .unwrap()
            .saturating_duration_since(Instant::now());
        assert!(
            wait > Duration::from_millis(500) && wait <= Duration::from_secs(1),
            "{wait:?}"
        );
    }

    #[test]
    fn critical_events_never_wait_and_events_before_them_borrow_or_are_skipped() {
        let mut state = limits(1, 1);
        let mut pass = ThrottlePass::new(&mut state, LoadLevel::None).unwrap();
        assert_eq!(
            ask(&mut pass, Tier::Critical, false, 5),
            [ThrottleDecision::Deliver; 5]
        );
        assert_eq!(
            ask(&mut pass, Tier::Normal, true, 2),
            [ThrottleDecision::Deliver; 2]
        );
        assert_eq!(
            ask(&mut pass, Tier::Telemetry, true, 2),
            [ThrottleDecision::Skip; 2]
        );
        assert_eq!(pass.skipped().collect::<Vec<_>>(), [(Tier::Telemetry, 2)]);
        assert_eq!(pass.decide(Tier::Normal, false), ThrottleDecision::Defer);
        assert!(
            state.as_ref().unwrap().until.unwrap() > Instant::now() + Duration::from_millis(1200),
            "borrowed tokens are paid back first"
        );
    }

    #[test]
    fn load_shedding_without_a_rate_limit_thins_and_then_skips_telemetry_only() {
        let mut state = None;
        let mut pass = ThrottlePass::new(&mut state, LoadLevel::Thin).unwrap();
        assert_eq!(
            ask(&mut pass, Tier::Telemetry, false, 2),
            [ThrottleDecision::Deliver, ThrottleDecision::Skip]
        );
        assert_eq!(
            ask(&mut pass, Tier::Normal, false, 100),
            [ThrottleDecision::Deliver; 100]
        );
        pass.now += TELEMETRY_EVERY;
        assert_eq!(
            pass.decide(Tier::Telemetry, false),
            ThrottleDecision::Deliver
        );
        for level in [LoadLevel::Shed, LoadLevel::Reject] {
            let mut pass = ThrottlePass::new(&mut state, level).unwrap();
            assert_eq!(
                ask(&mut pass, Tier::Telemetry, false, 2),
                [ThrottleDecision::Skip; 2]
            );
            assert_eq!(
                ask(&mut pass, Tier::Critical, false, 100),
                [ThrottleDecision::Deliver; 100]
            );
            assert_eq!(
                ask(&mut pass, Tier::Normal, false, 100),
                [ThrottleDecision::Deliver; 100]
            );
        }
    }

    #[test]
    fn events_of_a_state_are_never_skipped() {
        for level in [LoadLevel::Thin, LoadLevel::Shed, LoadLevel::Reject] {
            let mut state = limits(1, 8);
            let mut pass = ThrottlePass::new(&mut state, level).unwrap().keep_all();
            for is_urgent in [false, true] {
                let decisions = ask(&mut pass, Tier::Telemetry, is_urgent, 20);
                assert!(!decisions.contains(&ThrottleDecision::Skip), "{level:?}");
            }
        }
    }

    #[test]
    fn load_shedding_halves_and_quarters_the_rate_of_normal_events() {
        for (level, delivered) in [
            (LoadLevel::Thin, 8),
            (LoadLevel::Shed, 4),
            (LoadLevel::Reject, 2),
        ] {
            let mut state = limits(1, 8);
            let mut pass = ThrottlePass::new(&mut state, level).unwrap();
            let decisions = ask(&mut pass, Tier::Normal, false, 9);
            assert_eq!(
                decisions
                    .iter()
                    .filter(|decision| **decision == ThrottleDecision::Deliver)
                    .count(),
                delivered,
                "{level:?}"
            );
        }
    }

    #[test]
    fn a_token_taken_in_advance_is_used_once() {
        let mut state = limits(1, 2);
        let mut pass = ThrottlePass::new(&mut state, LoadLevel::None).unwrap();
        assert!(pass.is_ready() && pass.is_ready());
        pass.record();
        assert!(pass.is_ready());
        pass.record();
        assert!(!pass.is_ready());
    }
}
