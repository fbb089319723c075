//! Reads `begin_by_client` of a route, and checks that its sources have a beginning and an end.

use crate::config::reader::ValueReader;
use crate::config::reader::map::MapReader;
use crate::http::config::{BEGIN_QUERIES, BeginByClient, RouteBegin, RouteConfig};
use crate::subject::Variable;

/// 100,000 events: a client reads them page by page, but a page that shows them all does not.
const EVENTS_MAX: u64 = 100_000;

/// Reads the beginnings that a client can ask for.
pub(super) fn begin_by_client(value: &ValueReader<'_>) -> Option<BeginByClient> {
    value.map(|keys| {
        let default = BeginByClient::default();
        let max_age = keys.get_or("max_age", default.max_age, ValueReader::positive_duration);
        let max_events = keys.get_or("max_events", default.max_events, |value| {
            let count = value.count()? as u64;
            if count > EVENTS_MAX {
                value.error(
                    format!("`max_events` is at most {EVENTS_MAX}"),
                    Some("a client that needs more begins with `since`"),
                );
                return None;
            }
            Some(count)
        });
        Some(BeginByClient {
            max_age,
            max_events,
        })
    })
}

/// Reports beginnings that no source of the route has, and parameters with two meanings.
pub(super) fn check_begin(keys: &MapReader<'_>, route: &RouteConfig) {
    let has_stream = route.sources.iter().any(|source| source.stream.is_some());
    if !has_stream {
        let begins = [
            ("begin", route.begin != RouteBegin::Live),
            ("begin_by_client", route.begin_by_client.is_some()),
        ];
        for (key, _) in begins.into_iter().filter(|(_, is_set)| *is_set) {
            keys.error(
                key,
                "core NATS has no past to begin with",
                Some("capture the subjects in a JetStream stream, and name it in `sources`"),
            );
        }
    }
    if route.finite && !(has_stream && route.sources.len() == 1) {
        keys.error(
            "finite",
            "a finite event stream has one source, and it is a JetStream stream",
            Some("the newest message of a JetStream stream says whether its events have ended"),
        );
    }
    if route.begin == RouteBegin::Latest && !(has_stream && route.sources.len() == 1) {
        keys.error(
            "begin",
            "the latest state needs one source, and it is a JetStream stream or a KV bucket",
            Some("use one route for each source; with a KV bucket, `latest` is the default"),
        );
    }
    if route.begin_by_client.is_none() {
        return;
    }
    let is_begin = |name: &str| BEGIN_QUERIES.contains(&name);
    if let Some(name) = route
        .last_event_id_query
        .as_deref()
        .filter(|name| is_begin(name))
    {
        keys.error(
            "last_event_id_query",
            format!("`{name}` is a parameter of `begin_by_client`"),
            Some("use another name"),
        );
    }
    let taken = route.variables().find_map(|variable| match variable {
        Variable::Query(name) if is_begin(name) => Some(name),
        _ => None,
    });
    if let Some(name) = taken {
        keys.error(
            "begin_by_client",
            format!("the route reads the query parameter `{name}` as a variable"),
            Some("rename the variable: `since` and `last` are where an event stream begins"),
        );
    }
}
