//! Query of `/connections`: event streams of this pod, or of one client on all pods.
//!
//! `?client=` and `?route=` filter the event streams of this pod. `?scope=cluster` with a client
//! reads the presence bucket. [`List`](super::list::List) writes the result.

use super::list::{Entries, Filter, PodStreams};
use crate::presence::StreamTable;

/// Default number of listed event streams.
const LIMIT: usize = 1_000;

/// 10,000, about 5 MB. Programs that need more can query by route or client.
const LIMIT_MAX: usize = 10_000;

/// Hint for an invalid query.
pub(super) const HINT: &str = "?client=, ?route=, ?scope= (pod, or cluster with a client) and ?limit= (1 to 10000, by default 1000)";

/// Query for event streams.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query {
    filter: Filter,
    limit: usize,
    /// Event streams of all pods.
    is_of_cluster: bool,
}

/// Error that prevents a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ListError {
    /// No presence bucket is configured.
    NotConfigured,
    /// The presence bucket cannot be read now.
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
                    _ => return Err(format!("{value:?} is not a limit from 1 to 10000")),
                },
                "scope" => match &*value {
                    "pod" => parsed.is_of_cluster = false,
                    "cluster" => parsed.is_of_cluster = true,
                    _ => return Err(format!("{value:?} is not a scope: use pod or cluster")),
                },
                _ => return Err(format!("unknown parameter {name:?}")),
            }
        }
        if parsed.is_of_cluster && parsed.filter.client.is_none() {
            return Err("the scope cluster needs the parameter client".to_owned());
        }
        Ok(parsed)
    }
}

/// Returns the entries that match, up to the limit.
pub(super) async fn entries(streams: &StreamTable, query: Query) -> Result<Entries, ListError> {
    let Query {
        filter,
        limit,
        is_of_cluster,
    } = query;
    match &filter.client {
        Some(client) if is_of_cluster => of_cluster(streams, client, &filter, limit).await,
        _ => Ok(Entries::Pod(PodStreams::new(
            streams.clone(),
            filter,
            limit,
        ))),
    }
}

/// Returns the entries of one client on all pods. `complete` is false if it has more than the
/// limit.
async fn of_cluster(
    streams: &StreamTable,
    client: &str,
    filter: &Filter,
    limit: usize,
) -> Result<Entries, ListError> {
    let cluster = streams.presence().ok_or(ListError::NotConfigured)?;
    let mut found = cluster
        .find(client, limit)
        .await
        .map_err(|why| ListError::Unavailable(why.to_string()))?;
    found
        .entries
        .retain(|(_, entry)| filter.matches_route(&entry.route));
    let (total, is_complete) = (found.entries.len(), found.is_complete);
    Ok(Entries::Cluster {
        total,
        is_complete,
        found: found.entries.into_iter(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_is_decoded_and_invalid_parameters_are_rejected() {
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
