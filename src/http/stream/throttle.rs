//! How fast one event stream is given events: its client's tokens, and what the pressure on the pod cuts.

use std::time::{Duration, Instant};

use crate::feed::{Throttle, ThrottleDecision};
use crate::limit::LoadLevel;
use crate::limit::clients::EventTokens;
use crate::sse::Tier;

/// 100 ms: at level 1 an event stream is given at most ten telemetry events a second.
const TELEMETRY_EVERY: Duration = Duration::from_millis(100);

/// What of it lasts from turn to turn; most event streams never have any.
#[derive(Debug, Default)]
pub(in crate::http) struct ThrottleState {
    /// When the client has tokens again, while events wait for them.
    pub(in crate::http) until: Option<Instant>,
    /// When a telemetry event was given last.
    telemetry: Option<Instant>,
    /// A token was taken for an event that did not come yet.
    holds: bool,
}

/// One turn.
pub(in crate::http) struct ThrottlePass<'t> {
    tokens: Option<EventTokens<'t>>,
    level: LoadLevel,
    throttle: &'t mut ThrottleState,
    now: Instant,
    skipped: [u64; Tier::ALL.len()],
}

impl<'t> ThrottlePass<'t> {
    /// A turn; none when nothing has to wait and nothing is cut.
    pub(in crate::http) fn new(
        tokens: Option<EventTokens<'t>>,
        level: LoadLevel,
        throttle: &'t mut Option<Box<ThrottleState>>,
    ) -> Option<Self> {
        if tokens.is_none() && level == LoadLevel::None {
            *throttle = None;
            return None;
        }
        let throttle = &mut **throttle.get_or_insert_default();
        throttle.until = None;
        Some(Self {
            tokens,
            level,
            throttle,
            now: Instant::now(),
            skipped: [0; Tier::ALL.len()],
        })
    }

    /// What was passed by.
    pub(in crate::http) fn skipped(&self) -> impl Iterator<Item = (Tier, u64)> {
        Tier::ALL
            .into_iter()
            .zip(self.skipped)
            .filter(|(_, count)| *count > 0)
    }

    /// Whether the pressure leaves no place for telemetry.
    fn cuts_telemetry(&self) -> bool {
        let last = self.throttle.telemetry;
        match self.level {
            LoadLevel::None => false,
            LoadLevel::Thin => {
                last.is_some_and(|last| self.now.saturating_duration_since(last) < TELEMETRY_EVERY)
            }
            LoadLevel::Shed | LoadLevel::Reject => true,
        }
    }

    fn take(&mut self, cost: u32) -> Result<(), Duration> {
        if std::mem::take(&mut self.throttle.holds) {
            return Ok(());
        }
        self.tokens
            .as_ref()
            .map_or(Ok(()), |tokens| tokens.take(cost))
    }

    fn owe(&self) {
        if let Some(tokens) = &self.tokens {
            tokens.borrow();
        }
    }

    /// Half of the rate, and a quarter: an event costs as many tokens more.
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
        let verdict = if tier == Tier::Telemetry && self.cuts_telemetry() {
            ThrottleDecision::Skip
        } else {
            match (self.take(self.cost()), tier) {
                (Ok(()), _) => ThrottleDecision::Deliver,
                (Err(wait), _) if !is_urgent => {
                    self.throttle.until = Some(self.now + wait);
                    ThrottleDecision::Defer
                }
                (Err(_), Tier::Telemetry) => ThrottleDecision::Skip,
                (Err(_), _) => {
                    self.owe();
                    ThrottleDecision::Deliver
                }
            }
        };
        match (verdict, tier) {
            (ThrottleDecision::Skip, _) => self.skipped[tier as usize] += 1,
            (ThrottleDecision::Deliver, Tier::Telemetry) => {
                self.throttle.telemetry = Some(self.now)
            }
            _ => {}
        }
        verdict
    }

    fn is_ready(&mut self) -> bool {
        match self.take(self.cost()) {
            Ok(()) => self.throttle.holds = true,
            Err(wait) => self.throttle.until = Some(self.now + wait),
        }
        self.throttle.holds
    }

    fn record(&mut self) {
        if self.take(1).is_err() {
            self.owe();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::limit::{ClientLimiter, ClientPermit, PerClient, Rate};

    fn permit(rate: u32, burst: u32) -> ClientPermit {
        let clients: Arc<ClientLimiter> = ClientLimiter::new();
        clients.set(PerClient {
            events: Some(Rate::new(rate, burst)),
            ..PerClient::default()
        });
        clients.acquire("a").unwrap().unwrap()
    }

    fn ask(
        turn: &mut ThrottlePass<'_>,
        tier: Tier,
        is_urgent: bool,
        times: usize,
    ) -> Vec<ThrottleDecision> {
        (0..times).map(|_| turn.decide(tier, is_urgent)).collect()
    }

    #[test]
    fn nothing_is_asked_for_without_tokens_and_pressure() {
        assert!(ThrottlePass::new(None, LoadLevel::None, &mut None).is_none());
    }

    #[test]
    fn events_wait_for_tokens_and_it_is_known_until_when() {
        let (permit, mut throttle) = (permit(1, 3), None::<Box<ThrottleState>>);
        let mut turn = ThrottlePass::new(permit.events(), LoadLevel::None, &mut throttle).unwrap();
        assert_eq!(
            ask(&mut turn, Tier::Normal, false, 3),
            [ThrottleDecision::Deliver; 3]
        );
        assert_eq!(
            ask(&mut turn, Tier::Telemetry, false, 2),
            [ThrottleDecision::Defer; 2]
        );
        let wait = throttle
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
    fn what_is_critical_never_waits_and_what_stands_before_it_goes_on_credit_or_is_passed_by() {
        let (permit, mut throttle) = (permit(1, 1), None::<Box<ThrottleState>>);
        let mut turn = ThrottlePass::new(permit.events(), LoadLevel::None, &mut throttle).unwrap();
        assert_eq!(
            ask(&mut turn, Tier::Critical, false, 5),
            [ThrottleDecision::Deliver; 5]
        );
        assert_eq!(
            ask(&mut turn, Tier::Normal, true, 2),
            [ThrottleDecision::Deliver; 2]
        );
        assert_eq!(
            ask(&mut turn, Tier::Telemetry, true, 2),
            [ThrottleDecision::Skip; 2]
        );
        assert_eq!(turn.skipped().collect::<Vec<_>>(), [(Tier::Telemetry, 2)]);
        assert_eq!(turn.decide(Tier::Normal, false), ThrottleDecision::Defer);
        assert!(
            throttle.as_ref().unwrap().until.unwrap()
                > Instant::now() + Duration::from_millis(1200),
            "borrowed tokens are paid back first"
        );
    }

    #[test]
    fn pressure_thins_telemetry_then_cuts_it_and_leaves_the_rest_where_no_rate_is_configured() {
        let mut throttle = None::<Box<ThrottleState>>;
        let mut turn = ThrottlePass::new(None, LoadLevel::Thin, &mut throttle).unwrap();
        assert_eq!(
            ask(&mut turn, Tier::Telemetry, false, 2),
            [ThrottleDecision::Deliver, ThrottleDecision::Skip]
        );
        assert_eq!(
            ask(&mut turn, Tier::Normal, false, 100),
            [ThrottleDecision::Deliver; 100]
        );
        turn.now += TELEMETRY_EVERY;
        assert_eq!(
            turn.decide(Tier::Telemetry, false),
            ThrottleDecision::Deliver
        );
        for level in [LoadLevel::Shed, LoadLevel::Reject] {
            let mut turn = ThrottlePass::new(None, level, &mut throttle).unwrap();
            assert_eq!(
                ask(&mut turn, Tier::Telemetry, false, 2),
                [ThrottleDecision::Skip; 2]
            );
            assert_eq!(
                ask(&mut turn, Tier::Critical, false, 100),
                [ThrottleDecision::Deliver; 100]
            );
            assert_eq!(
                ask(&mut turn, Tier::Normal, false, 100),
                [ThrottleDecision::Deliver; 100]
            );
        }
    }

    #[test]
    fn pressure_halves_and_quarters_the_rate_of_normal_events() {
        for (level, given) in [
            (LoadLevel::Thin, 8),
            (LoadLevel::Shed, 4),
            (LoadLevel::Reject, 2),
        ] {
            let (permit, mut throttle) = (permit(1, 8), None::<Box<ThrottleState>>);
            let mut turn = ThrottlePass::new(permit.events(), level, &mut throttle).unwrap();
            let verdicts = ask(&mut turn, Tier::Normal, false, 9);
            assert_eq!(
                verdicts
                    .iter()
                    .filter(|verdict| **verdict == ThrottleDecision::Deliver)
                    .count(),
                given,
                "{level:?}"
            );
        }
    }

    #[test]
    fn a_token_that_was_taken_ahead_is_not_taken_twice() {
        let (permit, mut throttle) = (permit(1, 2), None::<Box<ThrottleState>>);
        let mut turn = ThrottlePass::new(permit.events(), LoadLevel::None, &mut throttle).unwrap();
        assert!(turn.is_ready() && turn.is_ready());
        turn.record();
        assert!(turn.is_ready());
        turn.record();
        assert!(!turn.is_ready());
    }
}
