//! Limits that a client has from the claims of its principal.
//!
//! A claim of the wrong form counts as missing: the next one applies, and at last the fixed value.

use std::num::NonZeroU32;

use serde_json::Value;

use super::config::{PerClient, PerClientClaims, Rate};
use crate::auth::Principal;
use crate::subject::ClaimPath;

/// 1,000,000,000, as in the configuration: no count reaches it.
const COUNT_MAX: u64 = 1_000_000_000;

impl PerClientClaims {
    /// Returns the limits that the principal has from its claims; `None` where it has no such
    /// claim.
    pub(super) fn limits_of(&self, principal: &Principal) -> PerClient {
        PerClient {
            connections: first(&self.connections, principal, count),
            filter_sets: first(&self.filter_sets, principal, count),
            connects: first(&self.connects, principal, rate),
            events: first(&self.events, principal, rate),
        }
    }
}

/// Returns the value of the first claim with the right form.
fn first<T>(
    claims: &[ClaimPath],
    principal: &Principal,
    read: impl Fn(&Value) -> Option<T>,
) -> Option<T> {
    let mut values = claims.iter().filter_map(|claim| principal.claim(claim));
    values.find_map(read)
}

/// Reads a whole number above 0.
fn number(value: &Value) -> Option<u64> {
    value
        .as_u64()
        .filter(|count| (1..=COUNT_MAX).contains(count))
}

fn count(value: &Value) -> Option<usize> {
    usize::try_from(number(value)?).ok()
}

/// Reads `{"rate": 10, "burst": 50}`.
fn rate(value: &Value) -> Option<Rate> {
    let tokens = |name| NonZeroU32::new(u32::try_from(number(value.get(name)?)?).ok()?);
    Some(Rate {
        rate: tokens("rate")?,
        burst: tokens("burst")?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims(paths: &[&str]) -> Vec<ClaimPath> {
        let paths = paths.iter().map(|path| ClaimPath::parse(path).unwrap());
        paths.collect()
    }

    #[test]
    fn first_claim_with_the_right_form_counts() {
        let limits = PerClientClaims {
            connections: claims(&[".limits.streams", ".plan.streams"]),
            connects: claims(&[".limits.connects"]),
            ..PerClientClaims::default()
        };
        for (value, connections) in [
            (
                json!({ "limits": { "streams": 3 }, "plan": { "streams": 9 } }),
                Some(3),
            ),
            (
                json!({ "limits": { "streams": "3" }, "plan": { "streams": 9 } }),
                Some(9),
            ),
            (json!({ "limits": { "streams": 0 } }), None),
            (json!({ "limits": { "streams": 1_000_000_001 } }), None),
            (json!({ "limits": { "streams": -1 } }), None),
            (json!({ "limits": { "streams": 1.5 } }), None),
            (json!({ "limits": { "streams": [3] } }), None),
            (json!({ "limits": 3 }), None),
            (json!({}), None),
        ] {
            let found = limits.limits_of(&Principal::with_claims(value.clone()));
            assert_eq!(found.connections, connections, "{value}");
            assert_eq!(found.filter_sets, None);
        }
        for (value, connects) in [
            (json!({ "rate": 2, "burst": 5 }), Some(Rate::new(2, 5))),
            (
                json!({ "rate": 2, "burst": 5, "unit": "s" }),
                Some(Rate::new(2, 5)),
            ),
            (json!({ "rate": 2 }), None),
            (json!({ "rate": 0, "burst": 5 }), None),
            (json!(2), None),
        ] {
            let claims = json!({ "limits": { "connects": value } });
            assert_eq!(
                limits.limits_of(&Principal::with_claims(claims)).connects,
                connects,
                "{value}"
            );
        }
        let anonymous = limits.limits_of(&Principal::Anonymous);
        assert_eq!(anonymous, PerClient::default());
    }
}
