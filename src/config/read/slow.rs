//! Reads `slow:` and `priority:` of a route: slow clients, and the tiers of events.

use crate::config::location::Location;
use crate::config::reader::ValueReader;
use crate::event::Tier;
use crate::feed::{Slow, SlowPolicy};
use crate::subject::{Covers, Filter};

use super::sources::filter;

/// 1000 filters in the rules of a route: the subject of every event is compared with them one by
/// one.
const PRIORITY_FILTERS_MAX: usize = 1000;

const POLICIES: [(&str, SlowPolicy); 3] = [
    ("shed", SlowPolicy::Shed),
    ("conflate", SlowPolicy::Conflate),
    ("disconnect", SlowPolicy::Disconnect),
];

pub(super) fn slow(value: &ValueReader<'_>) -> Option<Slow> {
    value.map(|keys| {
        let default = Slow::default();
        let lag = keys.get_or("lag", default.lag, |value| {
            value.count().map(|count| count as u64)
        });
        if lag < Slow::LAG_MIN {
            keys.error(
                "lag",
                format!("`lag` must be at least {}", Slow::LAG_MIN),
                Some("a quarter of `lag` must be at least one event"),
            );
        }
        Some(Slow {
            lag,
            stall_timeout: keys.get_or(
                "stall_timeout",
                default.stall_timeout,
                ValueReader::positive_duration,
            ),
            retry: keys.get_or("retry", default.retry, ValueReader::positive_duration),
            policy: keys.get_or("policy", default.policy, |value| value.one_of(&POLICIES)),
        })
    })
}

const TIERS: [(&str, Tier); 3] = [
    ("critical", Tier::Critical),
    ("normal", Tier::Normal),
    ("telemetry", Tier::Telemetry),
];

/// One filter of a rule with its location.
struct LocatedRule {
    at: Location,
    filter: Filter,
    tier: Tier,
}

/// Reads the rules as one flat list: the first filter that matches decides.
pub(super) fn priority(value: &ValueReader<'_>) -> Option<Vec<(Filter, Tier)>> {
    let rules: Vec<LocatedRule> = value.list(rule)?.into_iter().flatten().collect();
    if rules.len() > PRIORITY_FILTERS_MAX {
        value.error(
            format!(
                "the rules have {} subjects together, the maximum is {PRIORITY_FILTERS_MAX}",
                rules.len()
            ),
            None,
        );
        return None;
    }
    let mut known = Covers::default();
    for rule in &rules {
        let first = known.first(&rule.filter).and_then(|first| rules.get(first));
        if let Some(first) = first {
            value.error_at(
                rule.at,
                format!(
                    "this rule has no effect: the rule in line {} covers it",
                    first.at.line
                ),
                Some("the first rule that matches decides: write specific rules first"),
            );
        }
        known.add(&rule.filter);
    }
    let rules = rules.into_iter().map(|rule| (rule.filter, rule.tier));
    Some(rules.collect())
}

fn rule(value: &ValueReader<'_>) -> Option<Vec<LocatedRule>> {
    value.map(|keys| {
        let subjects = keys.require("subjects", |value| {
            value.some(|value| Some((value.location(), filter(value)?)))
        });
        let tier = keys.require("tier", |value| value.one_of(&TIERS))?;
        let rules = subjects?
            .into_iter()
            .map(|(at, filter)| LocatedRule { at, filter, tier });
        Some(rules.collect())
    })
}
