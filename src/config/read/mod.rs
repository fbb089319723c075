//! From the tree to the configuration: keys, types, defaults, and checks between keys.
//!
//! One function per section, in the order of the reference file. Each takes the [`ValueReader`] of
//! its section and returns nothing if it was invalid; the problems are in the report by then.
//! Defaults come from the `Default` of the section's type. A new key needs a line here, in
//! `config::effective`, in `sidecar.yaml` and in docs/configuration.md; tests compare the four.

mod admin;
mod application;
mod authentication;
mod begin;
mod cors;
mod limits;
mod listen;
mod nats;
mod per_client;
mod routes;
mod schemas;
mod slow;
mod sources;
mod templates;
mod tracing;
mod versions;

use std::cell::Cell;
use std::net::IpAddr;

use ipnet::IpNet;

use super::model::{Config, RevocationAccess};
use super::reader::ValueReader;
use super::reader::map::MapReader;
use crate::http;
use crate::http::config::{ForwardedHeader, RouteConfig, SubscribeConfig};
use crate::lifecycle::drain;
use crate::presence;
use crate::subject::BucketName;
use crate::telemetry::{self, logs};
use authentication::Authentication;
use authentication::tickets::LocatedTickets;
use limits::Limits;
use routes::{KnownProviders, RouteRules};

/// Reads the whole file. The result is valid only if no error was reported.
pub(super) fn config(root: &ValueReader<'_>) -> Option<Config> {
    root.map(|keys| {
        keys.not_yet(&["upstream"]);
        let default = Config::default();
        // True if a listener asks clients for a certificate, or is invalid and may do so.
        let has_client_ca = Cell::new(false);
        let listen = keys.get("listen", |value| {
            value.some_of(listen::LISTENERS_MAX, |value| {
                let listener = listen::listener(value);
                let has = listener.as_ref().is_none_or(|(_, one)| one.has_client_ca());
                has_client_ca.set(has_client_ca.get() || has);
                listener
            })
        });
        let admin = keys.get_or("admin", default.admin, admin::admin);
        let listen = match listen {
            Some(listen) => listen::distinct(keys, listen, admin.address),
            None => default.listen,
        };
        let nats = keys.get_or("nats", default.nats, nats::nats);
        let authentication = keys.get_or(
            "authentication",
            Authentication::default(),
            authentication::authentication,
        );
        let names = authentication.names();
        let mut without_listener = authentication.names_of_certificates();
        without_listener.retain(|_| !has_client_ca.get());
        let rules = RouteRules {
            providers: KnownProviders {
                names: names.as_deref(),
                without_listener: &without_listener,
            },
            has_tickets: authentication.tickets.is_some(),
        };
        let application = keys
            .get("application", application::application)
            .unwrap_or_default();
        let subscribe = application.subscribe.as_ref();
        let subscribe = subscribe.map(|subscribe| &subscribe.route);
        let routes = match subscribe {
            Some(_) => keys.get("routes", |value| routes::routes(value, rules, true)),
            None => keys.require("routes", |value| routes::routes(value, rules, false)),
        }
        .unwrap_or_default();
        routes::check(keys, &routes, subscribe);
        let routes: Vec<RouteConfig> = routes.into_iter().map(|route| route.config).collect();
        let presence = keys.get_or("presence", default.presence, presence);
        let described = application.subscribe.iter();
        let described = described
            .map(|subscribe| &subscribe.route.config)
            .chain(&routes);
        let schemas = keys.get_or("schemas", default.schemas, |value| {
            schemas::schemas(value, described)
        });
        let tickets = authentication.tickets.as_ref();
        let tickets = tickets.map(|tickets| {
            let others = [
                ("presence", &presence.bucket),
                ("revocations", &authentication.config.revocations.bucket),
            ];
            check_tickets(keys, tickets, &routes, others);
            tickets.config.clone()
        });
        // If they are not known, a claim is not reported.
        let has_providers = names.as_deref().is_none_or(|names| !names.is_empty());
        let limits = keys.get_or("limits", Limits::default(), |value| {
            limits::limits(value, has_providers)
        });
        Some(Config {
            listen,
            admin,
            nats,
            authentication: authentication.config,
            http: http::Config {
                routes,
                connections_max: limits.connections_max,
                per_client: limits.per_client,
                subjects_per_request_max: limits.subjects_per_request_max,
                trusted_proxies: keys
                    .get_or("trusted_proxies", Vec::new(), |value| value.list(network)),
                forwarded_header: keys.get_or(
                    "forwarded_header",
                    default.http.forwarded_header,
                    |value| value.one_of(&ForwardedHeader::ALL),
                ),
                renew_before: authentication.renew_before,
                tickets,
                application: application.config,
                subscribe: application.subscribe.map(|subscribe| SubscribeConfig {
                    header: subscribe.header,
                    route: subscribe.route.config,
                }),
            },
            schemas,
            window_bytes_max: limits.window_bytes_max,
            feeds_max: limits.feeds_max,
            file_descriptors: limits.file_descriptors,
            replays: limits.replays,
            drain: keys.get_or("drain", default.drain, drain),
            presence,
            tracing: keys.get_or("tracing", default.tracing, tracing::tracing),
            log: keys.get_or("log", default.log, log),
        })
    })
}

/// Reads the keys of [`RevocationAccess`].
pub(super) fn revocation_access(root: &ValueReader<'_>) -> Option<RevocationAccess> {
    root.map(|keys| {
        let revocations = keys.get("authentication", |value| {
            value.map(|keys| keys.get("revocations", authentication::revocations))
        });
        Some(RevocationAccess {
            nats: keys.get_or("nats", crate::nats::Config::default(), nats::nats),
            bucket: revocations.and_then(|revocations| revocations.bucket),
        })
    })
}

/// Reports tickets whose path or bucket is used otherwise.
fn check_tickets(
    keys: &MapReader<'_>,
    LocatedTickets { at, config }: &LocatedTickets,
    routes: &[RouteConfig],
    others: [(&str, &Option<BucketName>); 2],
) {
    let path = config.path.as_str();
    if let Some(route) = routes
        .iter()
        .find(|route| route.path.matches(path).is_some())
    {
        let message = format!("the route `{}` has this path", route.path.as_str());
        keys.error_at(*at, message, Some("use a path of its own for tickets"));
    }
    for (name, bucket) in others {
        if bucket.as_ref() == Some(&config.bucket) {
            let message = format!("tickets and `{name}` have the same bucket");
            keys.error_at(*at, message, Some("use a bucket of its own for tickets"));
        }
    }
}

fn network(value: &ValueReader<'_>) -> Option<IpNet> {
    value.parsed("a network", |text| {
        let one = |_| text.parse::<IpAddr>().map(IpNet::from);
        text.parse()
            .map(|net: IpNet| net.trunc())
            .or_else(one)
            .map_err(|_| "a network is written as `10.0.0.0/8` or `fd00::/8`")
    })
}

fn drain(value: &ValueReader<'_>) -> Option<drain::Config> {
    value.map(|keys| {
        let default = drain::Config::default();
        let accept_for = keys.get_or("accept_for", default.accept_for, ValueReader::duration);
        let spread = keys.get_or("spread", default.spread, ValueReader::duration);
        let timeout = keys.get_or("timeout", default.timeout, ValueReader::positive_duration);
        if timeout < accept_for + spread {
            let hint = "event streams are cut at `timeout`: leave some seconds after the two for pending events";
            keys.error("timeout", "`timeout` is shorter than `accept_for` and `spread` together", Some(hint));
        }
        let (retry_min, retry_max) = keys.get_or("retry", (default.retry_min, default.retry_max), drain_retry);
        Some(drain::Config { accept_for, spread, timeout, retry_min, retry_max })
    })
}

fn drain_retry(value: &ValueReader<'_>) -> Option<(std::time::Duration, std::time::Duration)> {
    value.map(|keys| {
        let default = drain::Config::default();
        let min = keys.get_or("min", default.retry_min, ValueReader::positive_duration);
        let max = keys.get_or("max", default.retry_max, ValueReader::positive_duration);
        if min > max {
            keys.error(
                "min",
                "`min` is longer than `max`",
                Some("clients wait for a time drawn from between the two"),
            );
        }
        Some((min, max))
    })
}

fn presence(value: &ValueReader<'_>) -> Option<presence::Config> {
    value.map(|keys| {
        let default = presence::Config::default();
        let bucket =
            |value: &ValueReader<'_>| value.parsed("the name of a bucket", BucketName::parse);
        let bucket = keys.nullable("bucket", None, bucket);
        let max_bytes = keys.get_or("max_bytes", default.max_bytes, |value| {
            Some(value.positive_size()? as u64)
        });
        if max_bytes < presence::Config::MAX_BYTES_MIN {
            keys.error(
                "max_bytes",
                "the bucket is too small for more than a few clients",
                Some("at least 64KiB"),
            );
        }
        Some(presence::Config { bucket, max_bytes })
    })
}

fn log(value: &ValueReader<'_>) -> Option<logs::Config> {
    value.map(|keys| {
        let default = logs::Config::default();
        let formats = [("json", logs::Format::Json), ("text", logs::Format::Text)];
        Some(logs::Config {
            format: keys.get_or("format", default.format, |value| value.one_of(&formats)),
            filter: keys.get_or("filter", default.filter, filter),
        })
    })
}

fn filter(value: &ValueReader<'_>) -> Option<String> {
    let text = value.text()?;
    let Err(invalid) = telemetry::filter::filter(&text) else {
        return Some(text);
    };
    let meant = invalid
        .suggestion()
        .map(|level| format!("did you mean `{level}`?"));
    let hint = meant.as_deref().filter(|_| !value.is_filled());
    let filled = value
        .is_filled()
        .then_some("its value came from the environment and is not shown");
    value.error(invalid.explain(), hint.or(filled));
    None
}
