//! What `/connections` lists: the open event streams of this pod, or those of one client or route.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::registry::{Member, Registry};

/// How many are listed unless the request says otherwise.
const LIMIT: usize = 1_000;

/// 10,000, about 5 MB: a list beyond is for a program, which can ask by route or client.
const LIMIT_MAX: usize = 10_000;

/// What a bad query is told.
pub(super) const HINT: &str = "?client=, ?route= and ?limit= (1 to 10000, by default 1000)";

/// Which event streams are asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query<'q> {
    client: Option<Cow<'q, str>>,
    route: Option<Cow<'q, str>>,
    limit: usize,
}

impl<'q> Query<'q> {
    pub(super) fn parse(query: &'q str) -> Result<Self, String> {
        let mut parsed = Self { client: None, route: None, limit: LIMIT };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "client" => parsed.client = Some(value),
                "route" => parsed.route = Some(value),
                "limit" => match value.parse() {
                    Ok(limit @ 1..=LIMIT_MAX) => parsed.limit = limit,
                    _ => return Err(format!("{value:?} is no limit")),
                },
                _ => return Err(format!("{name:?} is no parameter")),
            }
        }
        Ok(parsed)
    }

    fn wants(&self, member: &dyn Member) -> bool {
        self.route.as_ref().is_none_or(|route| **route == **member.route())
            && self.client.as_ref().is_none_or(|client| client == member.client())
    }
}

/// Those that fit, up to the limit, and how many fit in all.
pub(super) fn list(registry: &Registry, query: &Query<'_>) -> Value {
    let (mut total, mut listed) = (0_u64, Vec::new());
    registry.for_each(|member| {
        if query.wants(member) {
            total += 1;
            // Only these are described: with a hundred thousand clients the others cost a comparison each.
            if listed.len() < query.limit {
                listed.push(json!(member.describe()));
            }
        }
    });
    json!({ "total": total, "connections": listed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_and_what_it_cannot_be_is_refused() {
        let parsed = Query::parse("client=a%2Fb+c&route=/events/{id}&limit=7").unwrap();
        assert_eq!((parsed.client.as_deref(), parsed.route.as_deref()), (Some("a/b c"), Some("/events/{id}")));
        assert_eq!(parsed.limit, 7);
        assert_eq!(Query::parse("").unwrap(), Query { client: None, route: None, limit: LIMIT });
        for bad in ["limit=0", "limit=10001", "limit=-1", "limit=", "limit=99999999999999999999", "cleint=42"] {
            Query::parse(bad).unwrap_err();
        }
    }
}
