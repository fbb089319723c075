//! Reads `authentication.tickets:`: the path at which clients buy tickets.

use std::time::Duration;

use crate::config::location::Location;
use crate::config::read::cors::cors;
use crate::config::read::routes::{KnownProviders, path, provider_names};
use crate::config::reader::ValueReader;
use crate::http::config::{CorsConfig, PathTemplate, TicketsConfig};
use crate::subject::BucketName;

/// Tickets with the location of their path.
pub(in crate::config::read) struct LocatedTickets {
    pub(in crate::config::read) at: Location,
    pub(in crate::config::read) config: TicketsConfig,
}

/// Returns nothing if tickets are off.
pub(super) fn tickets(
    value: &ValueReader<'_>,
    providers: KnownProviders<'_>,
) -> Option<LocatedTickets> {
    value.map(|keys| {
        let path = keys.nullable("path", None, literal_path);
        let bucket = keys.nullable("bucket", None, |value| {
            value.parsed("the name of a bucket", BucketName::parse)
        });
        let ttl = keys.get_or("ttl", TicketsConfig::TTL, ttl);
        let names = keys.get("authenticate", |value| match value.is_empty_list() {
            true => Some(None),
            false => provider_names(value, providers).map(Some),
        });
        let cors = keys.get_or("cors", CorsConfig::default(), cors);
        if !keys.has("path") {
            if keys.has("bucket") {
                let hint = "clients buy tickets at this path, such as `path: /tickets`";
                keys.error("bucket", "`bucket` needs `path`", Some(hint));
            }
            return None;
        }
        if !keys.has("bucket") {
            let hint = "a NATS KV bucket makes each ticket valid once on all pods, such as `bucket: tickets`";
            keys.error("path", "`path` needs `bucket`", Some(hint));
        }
        if names == Some(None) || !keys.has("authenticate") {
            let hint = "name the providers with whose credentials a client can buy tickets, such as `authenticate: [idp]`";
            keys.error("path", "`path` needs `authenticate`", Some(hint));
        }
        Some(LocatedTickets {
            at: keys.location("path"),
            config: TicketsConfig {
                path: path?,
                bucket: bucket?,
                ttl,
                authenticate: names??,
                cors,
            },
        })
    })
}

fn literal_path(value: &ValueReader<'_>) -> Option<PathTemplate> {
    let path = path(value)?;
    if path.variables().next().is_some() {
        value.error("the path of tickets has no variables", None);
        return None;
    }
    Some(path)
}

fn ttl(value: &ValueReader<'_>) -> Option<Duration> {
    let ttl = value.positive_duration()?;
    if !(TicketsConfig::TTL_MIN..=TicketsConfig::TTL_MAX).contains(&ttl) {
        let hint = "a ticket is redeemed right after it was bought: 30s is enough";
        value.error("`ttl` is from 1s to 10m", Some(hint));
        return None;
    }
    Some(ttl)
}

#[cfg(test)]
mod tests {
    use crate::config::load::parse_bytes;
    use crate::config::{Loaded, Problems, effective};

    fn parse(tickets: &str, routes: &str) -> Result<Loaded, Problems> {
        let text = format!(
            "authentication:
  providers:
    - {{ name: idp, jwt: {{ keys: {{ secret: 0123456789abcdef0123456789abcdef }} }} }}
    - {{ name: q, jwt: {{ keys: {{ file: k }}, audience: [], from: [\"query:code\"] }} }}
  tickets: {{ {tickets} }}
  revocations: {{ bucket: revoked }}
presence: {{ bucket: clients }}
routes:
  - path: /orders/{{id}}
    authenticate: [idp]
    sources: [{{ subjects: [a] }}]
{routes}"
        );
        parse_bytes(text.as_bytes(), "f", &|_| None)
    }

    fn problems(tickets: &str, routes: &str) -> Vec<String> {
        let problems = parse(tickets, routes).expect_err(tickets);
        let problems = problems.as_slice().iter();
        problems.map(|problem| problem.message.clone()).collect()
    }

    const VALID: &str = "path: /tickets, bucket: tickets, authenticate: [idp]";

    #[test]
    fn tickets_are_off_by_default_and_have_defaults() {
        for off in ["", "path: null, bucket: null, ttl: 30s, authenticate: []"] {
            let loaded = parse(off, "").unwrap_or_else(|problems| panic!("{problems}"));
            assert_eq!(loaded.config.http.tickets, None);
        }
        let loaded = parse(VALID, "").unwrap_or_else(|problems| panic!("{problems}"));
        let shown = effective(&loaded.config)["authentication"]["tickets"].clone();
        let expected = serde_json::json!({
            "path": "/tickets", "bucket": "tickets", "ttl": "30s", "authenticate": ["idp"],
            "cors": { "origins": [], "credentials": false },
        });
        assert_eq!(shown, expected);
    }

    #[test]
    fn incomplete_and_contradictory_tickets_are_problems() {
        for (tickets, message) in [
            ("bucket: tickets", "`bucket` needs `path`"),
            (
                "path: /tickets, authenticate: [idp]",
                "`path` needs `bucket`",
            ),
            (
                "path: /tickets, bucket: tickets",
                "`path` needs `authenticate`",
            ),
            (
                "path: /tickets, bucket: tickets, authenticate: []",
                "`path` needs `authenticate`",
            ),
            (
                "path: /tickets, bucket: tickets, authenticate: [app]",
                "no provider of `authentication.providers` has this name",
            ),
            (
                "path: '/tickets/{id}', bucket: tickets, authenticate: [idp]",
                "the path of tickets has no variables",
            ),
            (
                "path: /orders/tickets, bucket: tickets, authenticate: [idp]",
                "the route `/orders/{id}` has this path",
            ),
            (
                "path: /tickets, bucket: clients, authenticate: [idp]",
                "tickets and `presence` have the same bucket",
            ),
            (
                "path: /tickets, bucket: revoked, authenticate: [idp]",
                "tickets and `revocations` have the same bucket",
            ),
            (
                "path: /tickets, bucket: a.b, authenticate: [idp]",
                "a bucket name has 1 to 128 letters, digits, `_` and `-`",
            ),
            (
                "path: /tickets, bucket: tickets, authenticate: [idp], ttl: 999ms",
                "`ttl` is from 1s to 10m",
            ),
            (
                "path: /tickets, bucket: tickets, authenticate: [idp], ttl: 601s",
                "`ttl` is from 1s to 10m",
            ),
        ] {
            assert_eq!(problems(tickets, ""), [message], "{tickets}");
        }
    }

    #[test]
    fn parameter_of_tickets_has_no_other_use() {
        let route =
            |keys: &str| format!("  - {{ path: /x, sources: [{{ subjects: [x] }}], {keys} }}\n");
        let message = "`{query.ticket}` is not available: the parameter has a ticket";
        let client = route("client: '{query.ticket}'");
        assert_eq!(problems(VALID, &client), [message]);
        let subject = "  - { path: /x, sources: [{ subjects: ['x.{query.ticket}'] }] }\n";
        assert_eq!(problems(VALID, subject), [message]);
        let position = route("last_event_id_query: ticket");
        let message = "`ticket` is the parameter of tickets";
        assert_eq!(problems(VALID, &position), [message]);
        for valid in [&client, &position] {
            assert!(parse("", valid).is_ok(), "without tickets: {valid}");
        }
    }
}
