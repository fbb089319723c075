//! How fast one event stream is given events: its client's tokens, and what the pressure on the pod cuts.

use std::time::{Duration, Instant};

use crate::feed::{Pace, Verdict};
use crate::limit::Level;
use crate::limit::clients::EventTokens;
use crate::sse::Tier;

/// 100 ms: at level 1 an event stream is given at most ten telemetry events a second.
const TELEMETRY_EVERY: Duration = Duration::from_millis(100);

/// What of it lasts from turn to turn; most event streams never have any.
#[derive(Debug, Default)]
pub(in crate::http) struct Paced {
    /// When the client has tokens again, while events wait for them.
    pub(in crate::http) until: Option<Instant>,
    /// When a telemetry event was given last.
    telemetry: Option<Instant>,
    /// A token was taken for an event that did not come yet.
    holds: bool,
}

/// One turn.
pub(in crate::http) struct Turn<'t> {
    tokens: Option<EventTokens<'t>>,
    level: Level,
    paced: &'t mut Paced,
    now: Instant,
    skipped: [u64; Tier::ALL.len()],
}

impl<'t> Turn<'t> {
    /// A turn; none when nothing has to wait and nothing is cut.
    pub(in crate::http) fn new(
        tokens: Option<EventTokens<'t>>,
        level: Level,
        paced: &'t mut Option<Box<Paced>>,
    ) -> Option<Self> {
        if tokens.is_none() && level == Level::None {
            *paced = None;
            return None;
        }
        let paced = &mut **paced.get_or_insert_default();
        paced.until = None;
        Some(Self {
            tokens,
            level,
            paced,
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
        let last = self.paced.telemetry;
        match self.level {
            Level::None => false,
            Level::Telemetry => {
                last.is_some_and(|last| self.now.saturating_duration_since(last) < TELEMETRY_EVERY)
            }
            Level::Normal | Level::Connections => true,
        }
    }

    fn take(&mut self, cost: u32) -> Result<(), Duration> {
        if std::mem::take(&mut self.paced.holds) {
            return Ok(());
        }
        self.tokens
            .as_ref()
            .map_or(Ok(()), |tokens| tokens.take(cost))
    }

    fn owe(&self) {
        if let Some(tokens) = &self.tokens {
            tokens.owe();
        }
    }

    /// Half of the rate, and a quarter: an event costs as many tokens more.
    fn cost(&self) -> u32 {
        match self.level {
            Level::None | Level::Telemetry => 1,
            Level::Normal => 2,
            Level::Connections => 4,
        }
    }
}

impl Pace for Turn<'_> {
    fn ask(&mut self, tier: Tier, hurried: bool) -> Verdict {
        if tier == Tier::Critical {
            self.charge();
            return Verdict::Give;
        }
        let verdict = if tier == Tier::Telemetry && self.cuts_telemetry() {
            Verdict::PassBy
        } else {
            match (self.take(self.cost()), tier) {
                (Ok(()), _) => Verdict::Give,
                (Err(wait), _) if !hurried => {
                    self.paced.until = Some(self.now + wait);
                    Verdict::Wait
                }
                (Err(_), Tier::Telemetry) => Verdict::PassBy,
                (Err(_), _) => {
                    self.owe();
                    Verdict::Give
                }
            }
        };
        match (verdict, tier) {
            (Verdict::PassBy, _) => self.skipped[tier as usize] += 1,
            (Verdict::Give, Tier::Telemetry) => self.paced.telemetry = Some(self.now),
            _ => {}
        }
        verdict
    }

    fn is_ready(&mut self) -> bool {
        match self.take(self.cost()) {
            Ok(()) => self.paced.holds = true,
            Err(wait) => self.paced.until = Some(self.now + wait),
        }
        self.paced.holds
    }

    fn charge(&mut self) {
        if self.take(1).is_err() {
            self.owe();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::limit::{Clients, PerClient, Rate, Visit};

    fn visit(rate: u32, burst: u32) -> Visit {
        let clients: Arc<Clients> = Clients::new();
        clients.set(PerClient {
            events: Some(Rate::new(rate, burst)),
            ..PerClient::default()
        });
        clients.enter("a").unwrap().unwrap()
    }

    fn ask(turn: &mut Turn<'_>, tier: Tier, hurried: bool, times: usize) -> Vec<Verdict> {
        (0..times).map(|_| turn.ask(tier, hurried)).collect()
    }

    #[test]
    fn nothing_is_asked_for_without_tokens_and_pressure() {
        assert!(Turn::new(None, Level::None, &mut None).is_none());
    }

    #[test]
    fn events_wait_for_tokens_and_it_is_known_until_when() {
        let (visit, mut paced) = (visit(1, 3), None::<Box<Paced>>);
        let mut turn = Turn::new(visit.events(), Level::None, &mut paced).unwrap();
        assert_eq!(ask(&mut turn, Tier::Normal, false, 3), [Verdict::Give; 3]);
        assert_eq!(
            ask(&mut turn, Tier::Telemetry, false, 2),
            [Verdict::Wait; 2]
        );
        let wait = paced
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
        let (visit, mut paced) = (visit(1, 1), None::<Box<Paced>>);
        let mut turn = Turn::new(visit.events(), Level::None, &mut paced).unwrap();
        assert_eq!(ask(&mut turn, Tier::Critical, false, 5), [Verdict::Give; 5]);
        assert_eq!(ask(&mut turn, Tier::Normal, true, 2), [Verdict::Give; 2]);
        assert_eq!(
            ask(&mut turn, Tier::Telemetry, true, 2),
            [Verdict::PassBy; 2]
        );
        assert_eq!(turn.skipped().collect::<Vec<_>>(), [(Tier::Telemetry, 2)]);
        assert_eq!(turn.ask(Tier::Normal, false), Verdict::Wait);
        assert!(
            paced.as_ref().unwrap().until.unwrap() > Instant::now() + Duration::from_millis(1200),
            "what is owed is paid first"
        );
    }

    #[test]
    fn pressure_thins_telemetry_then_cuts_it_and_leaves_the_rest_where_no_rate_is_configured() {
        let mut paced = None::<Box<Paced>>;
        let mut turn = Turn::new(None, Level::Telemetry, &mut paced).unwrap();
        assert_eq!(
            ask(&mut turn, Tier::Telemetry, false, 2),
            [Verdict::Give, Verdict::PassBy]
        );
        assert_eq!(
            ask(&mut turn, Tier::Normal, false, 100),
            [Verdict::Give; 100]
        );
        turn.now += TELEMETRY_EVERY;
        assert_eq!(turn.ask(Tier::Telemetry, false), Verdict::Give);
        for level in [Level::Normal, Level::Connections] {
            let mut turn = Turn::new(None, level, &mut paced).unwrap();
            assert_eq!(
                ask(&mut turn, Tier::Telemetry, false, 2),
                [Verdict::PassBy; 2]
            );
            assert_eq!(
                ask(&mut turn, Tier::Critical, false, 100),
                [Verdict::Give; 100]
            );
            assert_eq!(
                ask(&mut turn, Tier::Normal, false, 100),
                [Verdict::Give; 100]
            );
        }
    }

    #[test]
    fn pressure_halves_and_quarters_the_rate_of_normal_events() {
        for (level, given) in [
            (Level::Telemetry, 8),
            (Level::Normal, 4),
            (Level::Connections, 2),
        ] {
            let (visit, mut paced) = (visit(1, 8), None::<Box<Paced>>);
            let mut turn = Turn::new(visit.events(), level, &mut paced).unwrap();
            let verdicts = ask(&mut turn, Tier::Normal, false, 9);
            assert_eq!(
                verdicts
                    .iter()
                    .filter(|verdict| **verdict == Verdict::Give)
                    .count(),
                given,
                "{level:?}"
            );
        }
    }

    #[test]
    fn a_token_that_was_taken_ahead_is_not_taken_twice() {
        let (visit, mut paced) = (visit(1, 2), None::<Box<Paced>>);
        let mut turn = Turn::new(visit.events(), Level::None, &mut paced).unwrap();
        assert!(turn.is_ready() && turn.is_ready());
        turn.charge();
        assert!(turn.is_ready());
        turn.charge();
        assert!(!turn.is_ready());
    }
}
