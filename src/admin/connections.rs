//! What `/connections` lists: the open event streams of this pod, of one client or route, or one client's on all pods.

use serde_json::{Value, json};

use super::list::{Entries, Members};
use crate::presence::{Entry, Key, StreamHandle, StreamTable};

/// How many are listed unless the request says otherwise.
const LIMIT: usize = 1_000;

/// 10,000, about 5 MB: a list beyond is for a program, which can ask by route or client.
const LIMIT_MAX: usize = 10_000;

/// What a bad query is told.
pub(super) const HINT: &str = "?client=, ?route=, ?scope= (pod, or cluster with a client) and ?limit= (1 to 10000, by default 1000)";

/// Event streams that are asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query {
    filter: Filter,
    limit: usize,
    /// On all pods, not only on this one.
    is_of_cluster: bool,
}

/// Conditions for an event stream to be listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    client: Option<String>,
    route: Option<String>,
}

/// Why there is no list.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoList {
    /// There is no registry over all pods.
    NotConfigured,
    /// It cannot be read now.
    Unavailable(String),
}

impl Query {
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self {
            filter: Filter::default(),
            limit: LIMIT,
            is_of_cluster: false,
        };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "client" => parsed.filter.client = Some(value.into_owned()),
                "route" => parsed.filter.route = Some(value.into_owned()),
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
        if parsed.is_of_cluster && parsed.filter.client.is_none() {
            return Err("the scope cluster needs a client".to_owned());
        }
        Ok(parsed)
    }
}

impl Filter {
    pub(super) fn passes(&self, member: &dyn StreamHandle) -> bool {
        self.passes_route(member.route())
            && self
                .client
                .as_ref()
                .is_none_or(|client| client == member.client())
    }

    fn passes_route(&self, route: &str) -> bool {
        self.route.as_ref().is_none_or(|wanted| wanted == route)
    }
}

/// Entries that fit, up to the limit.
pub(super) async fn entries(registry: &StreamTable, query: Query) -> Result<Entries, NoList> {
    let Query {
        filter,
        limit,
        is_of_cluster,
    } = query;
    match &filter.client {
        Some(client) if is_of_cluster => of_cluster(registry, client, &filter, limit).await,
        _ => Ok(Entries::Pod(Members::new(registry.clone(), filter, limit))),
    }
}

/// Everything known of one client on all pods; `complete` is false when it has more than the limit.
async fn of_cluster(
    registry: &StreamTable,
    client: &str,
    filter: &Filter,
    limit: usize,
) -> Result<Entries, NoList> {
    let cluster = registry.presence().ok_or(NoList::NotConfigured)?;
    let mut found = cluster
        .find(client, limit)
        .await
        .map_err(|why| NoList::Unavailable(why.to_string()))?;
    found
        .entries
        .retain(|(_, entry)| filter.passes_route(&entry.route));
    let (total, is_complete) = (found.entries.len(), found.is_complete);
    Ok(Entries::PresenceStore {
        total,
        is_complete,
        found: found.entries.into_iter(),
    })
}

pub(super) fn listed((key, entry): &(Key, Entry)) -> Value {
    let Entry {
        pod,
        route,
        subjects,
        unlisted,
        state,
        since,
        last_event_id,
        reason,
        claimed,
        expires,
    } = entry;
    json!({
        "client": key.client,
        "connection": key.connection,
        "pod": pod,
        "route": route,
        "subjects": subjects,
        "subjects_total": unlisted.as_ref().map_or(subjects.len(), |unlisted| unlisted.total),
        "state": state,
        "reason": reason,
        "claimed": claimed,
        "since": since,
        "expires": expires,
        "last_event_id": last_event_id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_and_what_it_cannot_be_is_refused() {
        let parsed = Query::parse("client=a%2Fb+c&route=/events/{id}&limit=7").unwrap();
        let Filter { client, route } = &parsed.filter;
        assert_eq!(
            (client.as_deref(), route.as_deref()),
            (Some("a/b c"), Some("/events/{id}"))
        );
        assert_eq!(parsed.limit, 7);
        let all = Query {
            filter: Filter::default(),
            limit: LIMIT,
            is_of_cluster: false,
        };
        assert_eq!(Query::parse("").unwrap(), all);
        assert!(
            Query::parse("client=a&scope=cluster")
                .unwrap()
                .is_of_cluster
        );
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
