//! What `/connections` lists: the open event streams of this pod, of one client or route, or one client's on all pods.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::registry::{Entry, Key, Member, Registry};

/// How many are listed unless the request says otherwise.
const LIMIT: usize = 1_000;

/// 10,000, about 5 MB: a list beyond is for a program, which can ask by route or client.
const LIMIT_MAX: usize = 10_000;

/// What a bad query is told.
pub(super) const HINT: &str =
    "?client=, ?route=, ?scope= (pod, or cluster with a client) and ?limit= (1 to 10000, by default 1000)";

/// Which event streams are asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query<'q> {
    client: Option<Cow<'q, str>>,
    route: Option<Cow<'q, str>>,
    limit: usize,
    /// On all pods, not only on this one.
    is_of_cluster: bool,
}

/// Why there is no list.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoList {
    /// There is no registry over all pods.
    NotConfigured,
    /// It cannot be read now.
    Unavailable(String),
}

impl<'q> Query<'q> {
    pub(super) fn parse(query: &'q str) -> Result<Self, String> {
        let mut parsed = Self { client: None, route: None, limit: LIMIT, is_of_cluster: false };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "client" => parsed.client = Some(value),
                "route" => parsed.route = Some(value),
                "limit" => match value.parse() {
                    Ok(limit @ 1..=LIMIT_MAX) => parsed.limit = limit,
                    _ => return Err(format!("{value:?} is no limit")),
                },
                "scope" => match &*value {
                    "pod" => parsed.is_of_cluster = false,
                    "cluster" => parsed.is_of_cluster = true,
                    _ => return Err(format!("{value:?} is no scope")),
                },
                _ => return Err(format!("{name:?} is no parameter")),
            }
        }
        if parsed.is_of_cluster && parsed.client.is_none() {
            return Err("the scope cluster needs a client".to_owned());
        }
        Ok(parsed)
    }

    fn wants(&self, member: &dyn Member) -> bool {
        self.route.as_ref().is_none_or(|route| **route == **member.route())
            && self.client.as_ref().is_none_or(|client| client == member.client())
    }
}

/// Those that fit, up to the limit.
pub(super) async fn list(registry: &Registry, query: &Query<'_>) -> Result<Value, NoList> {
    match &query.client {
        Some(client) if query.is_of_cluster => of_cluster(registry, client, query).await,
        _ => Ok(of_pod(registry, query)),
    }
}

/// What is known of one client on all pods; `complete` is false when it has more than the limit.
async fn of_cluster(registry: &Registry, client: &str, query: &Query<'_>) -> Result<Value, NoList> {
    let cluster = registry.cluster().ok_or(NoList::NotConfigured)?;
    let found = cluster.find(client, query.limit).await.map_err(|why| NoList::Unavailable(why.to_string()))?;
    let fits = |entry: &Entry| query.route.as_ref().is_none_or(|route| **route == *entry.route);
    let listed: Vec<Value> = found.entries.iter().filter(|(_, entry)| fits(entry)).map(listed).collect();
    Ok(json!({ "scope": "cluster", "total": listed.len(), "complete": found.is_complete, "connections": listed }))
}

fn listed((key, entry): &(Key, Entry)) -> Value {
    let Entry { pod, route, subjects, state, since, last_event_id, reason, expires } = entry;
    json!({
        "client": key.client,
        "connection": key.connection,
        "pod": pod,
        "route": route,
        "subjects": subjects,
        "state": state,
        "reason": reason,
        "since": since,
        "expires": expires,
        "last_event_id": last_event_id,
    })
}

/// And how many fit in all.
fn of_pod(registry: &Registry, query: &Query<'_>) -> Value {
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
        assert_eq!(Query::parse("").unwrap(), Query { client: None, route: None, limit: LIMIT, is_of_cluster: false });
        assert!(Query::parse("client=a&scope=cluster").unwrap().is_of_cluster);
        assert!(!Query::parse("client=a&scope=pod").unwrap().is_of_cluster);
        for bad in [
            "scope=cluster",
            "client=a&scope=all",
            "limit=0",
            "limit=10001",
            "limit=-1",
            "limit=",
            "limit=99999999999999999999",
            "cleint=42",
        ] {
            Query::parse(bad).unwrap_err();
        }
    }
}
