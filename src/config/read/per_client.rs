//! Reads `limits.per_client:`: values, or lists of claims that end with a value.

use std::num::NonZeroU32;

use crate::config::reader::ValueReader;
use crate::config::reader::map::MapReader;
use crate::limit::{PerClient, PerClientClaims, PerClientConfig, Rate};
use crate::subject::{ClaimPath, SubjectTemplate, Variable};

/// 8 claims of one limit: each is searched for at every new event stream.
const CLAIMS_MAX: usize = 8;

/// Reads the limits of one client. `has_providers`: clients can have claims.
pub(super) fn per_client(
    value: &ValueReader<'_>,
    feeds_max: usize,
    has_providers: bool,
) -> Option<PerClientConfig> {
    value.map(|keys| {
        let PerClient {
            connections,
            filter_sets: auto,
            connects,
            events,
        } = PerClient::among(feeds_max);
        let connections = limit(keys, "connections", connections, has_providers, |value| {
            value.count()
        });
        let filter_sets = limit(keys, "filter_sets", Some(None), has_providers, |value| {
            value.auto_or(ValueReader::count)
        });
        let connects = limit(keys, "connects", connects, has_providers, rate);
        let events = limit(keys, "events", events, has_providers, rate);
        Some(PerClientConfig {
            fixed: PerClient {
                connections: connections.fixed,
                filter_sets: filter_sets.fixed.and_then(|count| count.or(auto)),
                connects: connects.fixed,
                events: events.fixed,
            },
            claims: PerClientClaims {
                connections: connections.claims,
                filter_sets: filter_sets.claims,
                connects: connects.claims,
                events: events.claims,
            },
        })
    })
}

/// One limit: claims, then a value; `None` is no limit.
struct Limit<T> {
    claims: Vec<ClaimPath>,
    fixed: Option<T>,
}

/// Item of a list: a claim, or the value at its end.
enum Item<T> {
    Claim(ClaimPath),
    Value(Option<T>),
}

/// Reads a value, null, or a list of claims that ends with one of the two.
fn limit<T>(
    keys: &mut MapReader<'_>,
    key: &'static str,
    default: Option<T>,
    has_providers: bool,
    read: impl Fn(&ValueReader<'_>) -> Option<T>,
) -> Limit<T> {
    let mut claims = Vec::new();
    let fixed = keys.nullable(key, default, |value| {
        if !value.is_list() {
            return read(value);
        }
        let items = value.some_of(CLAIMS_MAX + 1, |value| Some(item(value, &read)))?;
        let mut items = items.into_iter().collect::<Option<Vec<_>>>()?;
        let last = match items.pop()? {
            Item::Value(last) => last,
            Item::Claim(_) => {
                let hint = "the last item is the limit of clients without the claims, or null";
                value.error(format!("{} ends with a claim", value.name()), Some(hint));
                return None;
            }
        };
        for item in items {
            match item {
                Item::Claim(claim) => claims.push(claim),
                Item::Value(_) => {
                    let hint = "no later item could apply: the first that a client has counts";
                    let message = format!("{} has a value before its end", value.name());
                    value.error(message, Some(hint));
                    return None;
                }
            }
        }
        if !has_providers {
            value.error(
                "a claim needs a provider in `authentication.providers`",
                Some("without one no client has claims: use the value alone"),
            );
        }
        last
    });
    Limit { claims, fixed }
}

fn item<T>(
    value: &ValueReader<'_>,
    read: impl Fn(&ValueReader<'_>) -> Option<T>,
) -> Option<Item<T>> {
    if value.is_null() {
        return Some(Item::Value(None));
    }
    let Some(text) = value.single().filter(|text| text.starts_with('{')) else {
        return Some(Item::Value(Some(read(value)?)));
    };
    let template = SubjectTemplate::parse(text).ok();
    let whole = template.filter(SubjectTemplate::is_whole_variable);
    let variable = whole.as_ref().and_then(|whole| whole.variables().next());
    if let Some(Variable::Claim(claim)) = variable {
        return Some(Item::Claim(claim.clone()));
    }
    value.error(
        "a limit is a value or one claim",
        Some("write the claim as `\"{claim.limits.connections}\"`"),
    );
    None
}

fn rate(value: &ValueReader<'_>) -> Option<Rate> {
    value.map(|keys| {
        let rate = keys.require("rate", tokens);
        let burst = keys.require("burst", tokens);
        Some(Rate {
            rate: rate?,
            burst: burst?,
        })
    })
}

fn tokens(value: &ValueReader<'_>) -> Option<NonZeroU32> {
    // A count is at most 1,000,000,000.
    value
        .count()
        .and_then(|count| NonZeroU32::new(u32::try_from(count).ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::config::{effective, parse};

    const PROVIDER: &str = "authentication: { providers: [{ name: a, jwt: { keys: { secret: 0123456789abcdef0123456789abcdef } } }] }\n";

    fn read(provider: &str, limits: &str) -> Result<Value, String> {
        let text = format!(
            "{provider}routes: [{{ path: /a, sources: [{{ subjects: [a] }}] }}]\nlimits: {{ feeds: 400, per_client: {{ {limits} }} }}\n"
        );
        match parse(&text, "f", &|_| None) {
            Ok(config) => Ok(effective(&config)["limits"]["per_client"].clone()),
            Err(problems) => Err(problems.as_slice()[0].message.clone()),
        }
    }

    #[test]
    fn list_has_claims_and_a_value_at_its_end() {
        let shown = read(
            PROVIDER,
            r#"connections: ["{claim.a.b}", '{claim["c.d"]}', 10], filter_sets: ["{claim.sets}", auto],
               connects: ["{claim.c}", { rate: 1, burst: 2 }], events: ["{claim.e}", null]"#,
        );
        let expected = json!({
            "connections": ["{claim.a.b}", r#"{claim["c.d"]}"#, 10],
            "filter_sets": ["{claim.sets}", 100],
            "connects": ["{claim.c}", { "rate": 1, "burst": 2 }],
            "events": ["{claim.e}", null],
        });
        assert_eq!(shown.unwrap(), expected);
        assert_eq!(read("", "connections: 5").unwrap()["connections"], 5);
        assert_eq!(
            read("", "filter_sets: null").unwrap()["filter_sets"],
            Value::Null
        );
        // A list of one value is the value.
        assert_eq!(
            read(PROVIDER, "connections: [5]").unwrap()["connections"],
            5
        );
    }

    #[test]
    fn other_lists_are_problems() {
        for (limits, problem) in [
            (
                r#"connections: ["{claim.a}"]"#,
                "`connections` ends with a claim",
            ),
            ("connections: []", "`connections` is empty"),
            (
                r#"connections: [5, "{claim.a}", 10]"#,
                "`connections` has a value before its end",
            ),
            (
                r#"connections: ["{claim.a}.b", 10]"#,
                "a limit is a value or one claim",
            ),
            (
                r#"connections: ["{query.a}", 10]"#,
                "a limit is a value or one claim",
            ),
            (
                r#"connections: "{claim.a}""#,
                "expected a whole number without a unit, at most 1000000000",
            ),
            (
                r#"connections: ["{claim.a}", 0]"#,
                "an item of `connections` must be more than 0",
            ),
            (
                r#"events: ["{claim.a}", { rate: 1 }]"#,
                "`burst` is missing in `limits.per_client.events[1]`",
            ),
        ] {
            assert_eq!(read(PROVIDER, limits).unwrap_err(), problem, "{limits}");
        }
        assert_eq!(
            read("", r#"connections: ["{claim.a}", 10]"#).unwrap_err(),
            "a claim needs a provider in `authentication.providers`"
        );
    }
}
