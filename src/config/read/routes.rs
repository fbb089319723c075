//! Reads `routes:`: the paths, the sources and the options of each route.
//!
//! The sources, the templates and the rules for slow clients have files of their own. Checks that
//! need more than one route are here: no route hides another one, and a JetStream stream is read in
//! one way by all routes.

use std::collections::HashMap;

use super::begin::{begin_by_client, check_begin};
use super::cors::cors;
use super::slow::{priority, slow};
use super::sources::{LocatedSource, sources, subscribe_sources};
use super::templates::{Scope, client, event};
use super::versions::versions;
use crate::config::location::Location;
use crate::config::reader::ValueReader;
use crate::config::reader::map::MapReader;
use crate::config::spelling::nearest;
use crate::encoding::{Coding, Framing};
use crate::feed;
use crate::http::config::{
    CloseStyle, CompressionConfig, Delivery, Expired, PathTemplate, RouteBegin, RouteConfig,
    SubscribeConfig, TICKET_QUERY, Unauthenticated,
};
use crate::payload::PayloadFormat;
use crate::subject::BucketName;

/// 1000 routes: each has its own metrics, and each request is compared with them one by one.
const ROUTES_MAX: usize = 1000;

/// 5000 subjects in all routes together, those of `allow` included: five for each of 1000 routes.
/// The filters of a stream form one set. NATS gets those filters of it that do not overlap, and
/// finding them takes quadratic time.
const SUBJECTS_MAX: usize = 5000;

/// 16 providers of one route: each looks for its credentials in every request.
const PROVIDERS_MAX: usize = 16;

/// 1024 bytes and 32 segments: the path of every request is compared with every route.
const PATH_BYTES_MAX: usize = 1024;
const PATH_SEGMENTS_MAX: usize = 32;

/// Route with the locations that messages need.
pub(super) struct LocatedRoute {
    /// Location of the path.
    at: Location,
    /// Location of each source.
    sources: Vec<Location>,
    pub(super) config: RouteConfig,
}

/// Authentication providers that a route can name.
#[derive(Clone, Copy)]
pub(super) struct KnownProviders<'a> {
    /// Their names; `None` if they are not known.
    pub(super) names: Option<&'a [&'a str]>,
    /// Names of those that need a client certificate, if no listener asks for one.
    pub(super) without_listener: &'a [&'a str],
}

/// Settings of `authentication` that routes depend on.
#[derive(Clone, Copy)]
pub(super) struct RouteRules<'a> {
    pub(super) providers: KnownProviders<'a>,
    /// Requests can have a ticket.
    pub(super) has_tickets: bool,
}

/// Reads the routes. `may_be_empty`: the application opens event streams.
pub(super) fn routes(
    value: &ValueReader<'_>,
    rules: RouteRules<'_>,
    may_be_empty: bool,
) -> Option<Vec<LocatedRoute>> {
    let read = |value: &ValueReader<'_>| route(value, rules);
    if may_be_empty {
        value.list_of(ROUTES_MAX, read)
    } else {
        value.some_of(ROUTES_MAX, read)
    }
}

/// Checks the routes together, with that of the application's event streams.
pub(super) fn check(
    keys: &MapReader<'_>,
    routes: &[LocatedRoute],
    subscribe: Option<&LocatedRoute>,
) {
    let subjects: usize = routes
        .iter()
        .chain(subscribe)
        .flat_map(|route| &route.config.sources)
        .map(|source| source.subjects.len() + source.allow.len())
        .sum();
    if subjects > SUBJECTS_MAX {
        keys.error(
            "routes",
            format!("the routes have {subjects} subjects together, the maximum is {SUBJECTS_MAX}"),
            Some("use wildcards and variables"),
        );
        return;
    }
    check_hidden(keys, routes);
    check_streams(keys, routes.iter().chain(subscribe));
}

/// Reports routes that no request can reach.
fn check_hidden(keys: &MapReader<'_>, routes: &[LocatedRoute]) {
    for (index, route) in routes.iter().enumerate() {
        let first = routes[..index]
            .iter()
            .find(|other| hides(&other.config.path, &route.config.path));
        if let Some(first) = first {
            keys.error_at(
                route.at,
                format!(
                    "no request reaches this route: the route in line {} matches first",
                    first.at.line
                ),
                Some("write each path once, specific paths first"),
            );
        }
    }
}

/// Keys of a stream at its first source.
struct FirstUse<'r> {
    at: Location,
    bucket: Option<&'r BucketName>,
    identity: Option<&'r str>,
    delivery: Delivery,
}

/// Reports streams that routes read in different ways: all routes share one reader of a stream.
fn check_streams<'r>(keys: &MapReader<'_>, routes: impl Iterator<Item = &'r LocatedRoute>) {
    let mut known: HashMap<&str, FirstUse<'_>> = HashMap::new();
    for route in routes {
        for (at, source) in route.sources.iter().zip(&route.config.sources) {
            let Some(stream) = &source.stream else {
                continue;
            };
            let identity = source.identity.as_deref();
            let first = known.entry(stream).or_insert(FirstUse {
                at: *at,
                bucket: source.bucket.as_ref(),
                identity,
                delivery: source.delivery,
            });
            for (key, is_same) in [
                ("bucket", first.bucket == source.bucket.as_ref()),
                ("identity", first.identity == identity),
                ("delivery", first.delivery == source.delivery),
            ] {
                if !is_same {
                    keys.error_at(
                        *at,
                        format!(
                            "this JetStream stream has another `{key}` in line {}",
                            first.at.line
                        ),
                        Some("use the same value in every source of the stream"),
                    );
                }
            }
        }
    }
}

/// Returns whether the first path matches every request for the second.
fn hides(first: &PathTemplate, second: &PathTemplate) -> bool {
    let (mut one, mut two) = (first.as_str().split('/'), second.as_str().split('/'));
    loop {
        match (one.next(), two.next()) {
            (None, None) => return true,
            (Some(one), Some(two)) if one == two || one.starts_with('{') => {}
            _ => return false,
        }
    }
}

fn route(value: &ValueReader<'_>, rules: RouteRules<'_>) -> Option<LocatedRoute> {
    value.map(|keys| {
        let path = keys.require("path", path);
        let scope = Scope {
            path: path.as_ref(),
            authenticates: keys.has("authenticate"),
            has_tickets: rules.has_tickets,
        };
        let authenticate = keys.nullable("authenticate", None, |value| {
            provider_names(value, rules.providers)
        });
        let sources = keys.require("sources", |value| sources(value, scope));
        // The defaults do not depend on the path, so the rest is read even if the path is invalid.
        let any_path = PathTemplate::parse("/any").ok()?;
        let default = default(any_path, sources.as_deref());
        let client = keys.nullable("client", default.client.clone(), |value| {
            client(value, scope)
        });
        let event = keys.nullable("event", default.event.clone(), |value| event(value, scope));
        let unauthenticated = keys.get_or("unauthenticated", default.unauthenticated, |value| {
            value.one_of(&UNAUTHENTICATED)
        });
        let doctor = keys.get_or("doctor", default.doctor, ValueReader::boolean);
        let options = options(keys, default);
        if rules.has_tickets && options.last_event_id_query.as_deref() == Some(TICKET_QUERY) {
            let message = "`ticket` is the parameter of tickets";
            keys.error("last_event_id_query", message, Some("use another name"));
        }
        let (locations, sources) = sources?
            .into_iter()
            .map(|LocatedSource { at, config }| (at, config))
            .unzip();
        let config = RouteConfig {
            path: path?,
            authenticate: authenticate.unwrap_or_default(),
            unauthenticated,
            sources,
            client,
            event,
            doctor,
            ..options
        };
        check_begin(keys, &config);
        check_compression(keys, &config);
        Some(LocatedRoute {
            at: keys.location("path"),
            sources: locations,
            config,
        })
    })
}

/// Reads the keys of a route that the application's event streams have. The application
/// authenticates its clients and names them.
pub(super) fn subscribe(keys: &mut MapReader<'_>) -> Option<LocatedRoute> {
    let scope = Scope {
        path: None,
        authenticates: false,
        has_tickets: false,
    };
    let sources = keys.require("sources", subscribe_sources);
    let path = PathTemplate::without_path(SubscribeConfig::LABEL);
    let default = default(path, sources.as_deref());
    let event = keys.nullable("event", None, |value| event(value, scope));
    let options = options(keys, default);
    if options.framings.contains(&Framing::WebSocket) {
        let message = "the application answers a request, and a WebSocket has no answer";
        keys.error(
            "framings",
            message,
            Some("remove `websocket`, or add a route"),
        );
    }
    if options.framings.contains(&Framing::GrpcWeb) {
        let message = "a gRPC call names the path of a route, and the application has none";
        keys.error(
            "framings",
            message,
            Some("remove `grpc_web`, or add a route"),
        );
    }
    let (locations, sources) = sources?
        .into_iter()
        .map(|LocatedSource { at, config }| (at, config))
        .unzip();
    let config = RouteConfig {
        sources,
        event,
        ..options
    };
    check_begin(keys, &config);
    Some(LocatedRoute {
        at: keys.location("sources"),
        sources: locations,
        config,
    })
}

/// Defaults of a route with these sources: a KV bucket begins with its keys.
fn default(path: PathTemplate, sources: Option<&[LocatedSource]>) -> RouteConfig {
    let default = RouteConfig::new(path, Vec::new());
    let mut sources = sources.unwrap_or_default().iter();
    if !sources.any(|source| source.config.bucket.is_some()) {
        return default;
    }
    RouteConfig {
        begin: RouteBegin::Latest,
        ..default
    }
}

/// Reads the keys that do not depend on others.
fn options(keys: &mut MapReader<'_>, default: RouteConfig) -> RouteConfig {
    RouteConfig {
        framings: keys.get_or("framings", default.framings, framings),
        compression: keys.nullable("compression", default.compression, compression),
        format: keys.nullable("format", default.format, |value| value.one_of(&FORMATS)),
        versions: keys.nullable("versions", default.versions.clone(), versions),
        heartbeat: keys.get_or(
            "heartbeat",
            default.heartbeat,
            ValueReader::positive_duration,
        ),
        retry: keys.get_or("retry", default.retry, ValueReader::positive_duration),
        max_age: keys.get_or("max_age", default.max_age, ValueReader::positive_duration),
        window: keys.get_or("window", default.window, window),
        checkpoint: keys.nullable(
            "checkpoint",
            default.checkpoint,
            ValueReader::positive_duration,
        ),
        last_event_id_query: keys.nullable(
            "last_event_id_query",
            default.last_event_id_query.clone(),
            query_name,
        ),
        begin: keys.get_or("begin", default.begin, |value| {
            value.one_of(&RouteBegin::ALL)
        }),
        finite: keys.get_or("finite", default.finite, ValueReader::boolean),
        begin_by_client: keys.nullable("begin_by_client", default.begin_by_client, begin_by_client),
        expired: keys.get_or("expired", default.expired, |value| value.one_of(&EXPIRED)),
        slow: keys.get_or("slow", default.slow, slow),
        priority: keys.get_or("priority", default.priority, priority),
        close: keys.get_or("close", default.close, |value| value.one_of(&CLOSE)),
        cors: keys.get_or("cors", default.cors, cors),
        ..default
    }
}

const FRAMINGS: [(&str, Framing); 5] = [
    (Framing::Sse.as_str(), Framing::Sse),
    (Framing::Ndjson.as_str(), Framing::Ndjson),
    (Framing::WebSocket.as_str(), Framing::WebSocket),
    (Framing::LongPoll.as_str(), Framing::LongPoll),
    (Framing::GrpcWeb.as_str(), Framing::GrpcWeb),
];
const FORMATS: [(&str, PayloadFormat); 1] = [(
    PayloadFormat::CloudEvents.as_str(),
    PayloadFormat::CloudEvents,
)];
const CODINGS: [(&str, Coding); 2] = [
    (Coding::Zstd.as_str(), Coding::Zstd),
    (Coding::Gzip.as_str(), Coding::Gzip),
];
const UNAUTHENTICATED: [(&str, Unauthenticated); 3] = [
    ("auto", Unauthenticated::Auto),
    ("status", Unauthenticated::Status),
    ("stream", Unauthenticated::Stream),
];
const EXPIRED: [(&str, Expired); 3] = [
    ("auto", Expired::Auto),
    ("status", Expired::Status),
    ("gap", Expired::Gap),
];
const CLOSE: [(&str, CloseStyle); 2] = [("clean", CloseStyle::Clean), ("abort", CloseStyle::Abort)];

/// Reads the names of providers.
pub(super) fn provider_names(
    value: &ValueReader<'_>,
    providers: KnownProviders<'_>,
) -> Option<Vec<Box<str>>> {
    let names = value.some_of(PROVIDERS_MAX, |value| provider(value, providers))?;
    let repeated = names
        .iter()
        .enumerate()
        .any(|(nth, name)| names[..nth].contains(name));
    if repeated {
        value.error(
            format!("{} has a provider twice", value.name()),
            Some("write each provider once: the first that finds its credentials decides"),
        );
        return None;
    }
    Some(names)
}

fn provider(value: &ValueReader<'_>, providers: KnownProviders<'_>) -> Option<Box<str>> {
    let name = value.text()?;
    if providers.without_listener.contains(&&*name) {
        value.error(
            "no client can have a certificate: no listener has `client_ca`",
            Some("add `tls.client_ca` to a listener, with the authorities of the clients"),
        );
        return None;
    }
    let Some(known) = providers.names else {
        return Some(name.into());
    };
    if known.contains(&&*name) {
        return Some(name.into());
    }
    let hint = match (nearest(&name, known), known) {
        (_, []) => "`authentication.providers` has no provider".into(),
        (Some(near), _) if !value.is_filled() => format!("did you mean `{near}`?"),
        _ => format!("the providers are `{}`", known.join("`, `")),
    };
    value.error(
        "no provider of `authentication.providers` has this name",
        Some(&hint),
    );
    None
}

pub(super) fn path(value: &ValueReader<'_>) -> Option<PathTemplate> {
    let text = value.text()?;
    let express = text
        .split('/')
        .find_map(|segment| segment.strip_prefix(':'))
        .filter(|_| !value.is_filled());
    if let Some(name) = express {
        value.error(
            format!("`:{name}` is not a path variable"),
            Some(&format!("write `{{{name}}}`")),
        );
        return None;
    }
    let path = value.parsed("a path", check_path)?;
    if path.as_str().contains('*') {
        value.warn(
            "`*` in a path is an ordinary character",
            "`{name}` matches any one segment, and only a whole one",
        );
    }
    Some(path)
}

fn check_path(text: &str) -> Result<PathTemplate, &'static str> {
    if text.len() > PATH_BYTES_MAX || text.split('/').count() > PATH_SEGMENTS_MAX + 1 {
        return Err("a path has at most 1024 bytes and 32 segments");
    }
    // Syntax of Express, Envoy and others. As ordinary characters they would match no request.
    let is_foreign =
        |segment: &str| matches!(segment, "*" | "**" | "+") || segment.starts_with(':');
    if text.split('/').any(is_foreign) {
        return Err(
            "a path has no wildcards such as `*` or `:name`: `{name}` matches any one segment",
        );
    }
    // RFC 3986, 3.3: other characters arrive percent-encoded and would never match.
    let is_encoded = |byte: u8| !byte.is_ascii_graphic() || matches!(byte, b'?' | b'#');
    if text.bytes().any(is_encoded) {
        return Err("a path has no `?`, no `#` and no characters that a browser would encode");
    }
    PathTemplate::parse(text)
}

fn framings(value: &ValueReader<'_>) -> Option<Vec<Framing>> {
    let framings = value.some_of(FRAMINGS.len(), |value| value.one_of(&FRAMINGS))?;
    let repeated = framings
        .iter()
        .enumerate()
        .find(|(nth, framing)| framings[..*nth].contains(framing));
    if let Some((_, framing)) = repeated {
        value.error(
            format!("{} has `{}` twice", value.name(), framing.as_str()),
            Some("write each framing once, the preferred one first"),
        );
        return None;
    }
    Some(framings)
}

fn compression(value: &ValueReader<'_>) -> Option<CompressionConfig> {
    value.map(|keys| {
        let default = CompressionConfig::default();
        Some(CompressionConfig {
            algorithms: keys.get_or("algorithms", default.algorithms, codings),
            min_rate: keys.get_or("min_rate", default.min_rate, ValueReader::size),
        })
    })
}

fn codings(value: &ValueReader<'_>) -> Option<Vec<Coding>> {
    let codings = value.some_of(CODINGS.len(), |value| value.one_of(&CODINGS))?;
    let repeated = codings
        .iter()
        .enumerate()
        .find(|(nth, coding)| codings[..*nth].contains(coding));
    if let Some((_, coding)) = repeated {
        value.error(
            format!("{} has `{}` twice", value.name(), coding.as_str()),
            Some("write each algorithm once, the preferred one first"),
        );
        return None;
    }
    Some(codings)
}

/// Checks that some event streams of the route can be compressed.
fn check_compression(keys: &mut MapReader<'_>, route: &RouteConfig) {
    if route.compression.is_none() {
        return;
    }
    if route.sources.len() > 1 && !route.path.as_str().is_empty() {
        keys.error(
            "compression",
            "the clients of several sources share no bytes that could be compressed once",
            Some("use one route for each source"),
        );
    }
    let is_compressed = |framing: &Framing| Framing::COMPRESSED.contains(framing);
    if !route.framings.iter().any(is_compressed) {
        keys.error(
            "compression",
            "only the framings `sse` and `ndjson` are compressed",
            Some("add one of them to `framings`, or remove `compression`"),
        );
    }
}

fn query_name(value: &ValueReader<'_>) -> Option<Box<str>> {
    value.parsed("the name of a query parameter", |text| {
        let is_valid = !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        if is_valid {
            Ok(text.into())
        } else {
            Err("the name of a query parameter has letters, digits, `_`, `-` and `.` only")
        }
    })
}

fn window(value: &ValueReader<'_>) -> Option<feed::Limits> {
    value.map(|keys| {
        let default = feed::Limits::default();
        Some(feed::Limits {
            events: keys.get_or("events", default.events, ValueReader::count),
            bytes: keys.get_or("bytes", default.bytes, ValueReader::positive_size),
            age: keys.get_or("age", default.age, ValueReader::positive_duration),
        })
    })
}
