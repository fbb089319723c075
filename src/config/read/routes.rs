//! Reads `routes:`: paths, sources, templates, and what a route gives its clients.

use std::borrow::Cow;
use std::collections::HashMap;

use super::super::problem::Mark;
use super::super::walk::{Keys, Place};
use super::cors::cors;
use crate::feed::{self, Slow, SlowPolicy};
use crate::http::config::{CloseStyle, Delivery, Expired, PathTemplate, RouteConfig, SourceConfig};
use crate::sse::{EventName, Tier};
use crate::subject::template::InvalidTemplate;
use crate::subject::{Covers, Filter, SubjectTemplate, TextTemplate, Variable, Variables};

/// 4 sources: the id of an event has a component for each, and at most 128 bytes.
const SOURCES_MAX: usize = 4;

/// 1000 routes: each has metrics of its own, and each request is compared with them in turn.
const ROUTES_MAX: usize = 1000;

/// 5000 subjects in all routes together, those of `allow` included: five for each of the most routes. The filters of a
/// stream are one set, of which NATS is asked for as many filters as do not overlap: to find them takes the square of their
/// number.
const SUBJECTS_MAX: usize = 5000;

/// 1000 filters in the rules of a route: they are compared with the subject of every event, one after the other.
const PRIORITY_FILTERS_MAX: usize = 1000;

/// 1024 bytes and 32 segments: what a request's path is compared with, for every route.
const PATH_BYTES_MAX: usize = 1024;
const PATH_SEGMENTS_MAX: usize = 32;

pub(super) fn routes(place: &Place<'_>) -> Option<Vec<RouteConfig>> {
    let routes = place.some_of(ROUTES_MAX, route)?;
    let sources = routes.iter().flat_map(|(_, _, route)| &route.sources);
    let subjects: usize = sources
        .map(|source| source.subjects.len() + source.allow.len())
        .sum();
    if subjects > SUBJECTS_MAX {
        place.problem(
            format!(
                "the routes have {subjects} subjects together, at most {SUBJECTS_MAX} are served"
            ),
            Some("use wildcards and variables"),
        );
        return None;
    }
    for (index, (at, _, route)) in routes.iter().enumerate() {
        let first = routes[..index]
            .iter()
            .find(|(_, _, other)| hides(&other.path, &route.path));
        if let Some((first, ..)) = first {
            let message = format!(
                "this route is never reached: that of line {} answers first",
                first.line
            );
            place.problem_at(
                *at,
                message,
                Some("name every path once, the more special ones first"),
            );
        }
    }
    identities(place, &routes);
    Some(routes.into_iter().map(|(_, _, route)| route).collect())
}

/// A stream is followed once for all routes, under one name.
fn identities(place: &Place<'_>, routes: &[(Mark, Vec<Mark>, RouteConfig)]) {
    let mut known: HashMap<&str, (Mark, Option<&str>, Delivery)> = HashMap::new();
    for (_, marks, route) in routes {
        for (at, source) in marks.iter().zip(&route.sources) {
            let Some(stream) = &source.stream else {
                continue;
            };
            let identity = source.identity.as_deref();
            let (first, other, delivery) =
                *known
                    .entry(stream)
                    .or_insert((*at, identity, source.delivery));
            for (key, is_same) in [
                ("identity", other == identity),
                ("delivery", delivery == source.delivery),
            ] {
                if !is_same {
                    let message = format!(
                        "this JetStream stream has another `{key}` in line {}",
                        first.line
                    );
                    place.problem_at(
                        *at,
                        message,
                        Some("give it the same one wherever it is a source"),
                    );
                }
            }
        }
    }
}

/// Whether every request for the second path is answered by the first.
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

/// A route, where its path stands, and where its sources do.
fn route(place: &Place<'_>) -> Option<(Mark, Vec<Mark>, RouteConfig)> {
    place.map(|keys| {
        let path = keys.require("path", path);
        let sources = keys.require("sources", |place| sources(place, path.as_ref()));
        // The defaults do not depend on the path: the rest is read whether the path is good or not.
        let any_path = PathTemplate::parse("/any").ok()?;
        let default = RouteConfig::new(any_path, Vec::new());
        let client = keys.nullable("client", default.client.clone(), |place| {
            client(place, path.as_ref())
        });
        let event = keys.nullable("event", default.event.clone(), event);
        let rest = rest(keys, default);
        let (marks, sources) = sources?.into_iter().unzip();
        Some((
            keys.at("path"),
            marks,
            RouteConfig {
                path: path?,
                sources,
                client,
                event,
                ..rest
            },
        ))
    })
}

/// What stands for itself.
fn rest(keys: &mut Keys<'_>, default: RouteConfig) -> RouteConfig {
    RouteConfig {
        heartbeat: keys.or("heartbeat", default.heartbeat, Place::positive_duration),
        retry: keys.or("retry", default.retry, Place::positive_duration),
        max_age: keys.or("max_age", default.max_age, Place::positive_duration),
        window: keys.or("window", default.window, window),
        checkpoint: keys.nullable("checkpoint", default.checkpoint, Place::positive_duration),
        last_event_id_query: keys.nullable(
            "last_event_id_query",
            default.last_event_id_query.clone(),
            query_name,
        ),
        expired: keys.or("expired", default.expired, |place| place.one_of(&EXPIRED)),
        slow: keys.or("slow", default.slow, slow),
        priority: keys.or("priority", default.priority, priority),
        close: keys.or("close", default.close, |place| place.one_of(&CLOSE)),
        cors: keys.or("cors", default.cors, cors),
        ..default
    }
}

const DELIVERY: [(&str, Delivery); 2] = [
    ("shared", Delivery::Shared),
    ("republish", Delivery::Republish),
];

const EXPIRED: [(&str, Expired); 3] = [
    ("auto", Expired::Auto),
    ("status", Expired::Status),
    ("gap", Expired::Gap),
];
const CLOSE: [(&str, CloseStyle); 2] = [("clean", CloseStyle::Clean), ("abort", CloseStyle::Abort)];

fn path(place: &Place<'_>) -> Option<PathTemplate> {
    let text = place.text()?;
    let express = text
        .split('/')
        .find_map(|segment| segment.strip_prefix(':'))
        .filter(|_| !place.is_filled());
    if let Some(name) = express {
        place.problem(
            format!("`:{name}` is no variable in a path"),
            Some(&format!("write `{{{name}}}`")),
        );
        return None;
    }
    let path = place.parsed("a path", |text| {
        if text.len() > PATH_BYTES_MAX || text.split('/').count() > PATH_SEGMENTS_MAX + 1 {
            return Err("a path has at most 1024 bytes and 32 segments");
        }
        // Of Express, Envoy and others: taken by the letter, they match nothing that a client asks for.
        if text.split('/').any(|segment| matches!(segment, "*" | "**" | "+") || segment.starts_with(':')) {
            return Err("a path has no wildcards such as `*` or `:name`: `{name}` stands for any one segment");
        }
        // RFC 3986, 3.3: anything else reaches us percent-encoded, and would never match.
        if text.bytes().any(|byte| !byte.is_ascii_graphic() || matches!(byte, b'?' | b'#')) {
            return Err("a path holds no `?`, no `#` and nothing that a browser would encode");
        }
        PathTemplate::parse(text)
    })?;
    if path.as_str().contains('*') {
        place.warn(
            "`*` is a letter like any other in a path",
            "`{name}` stands for any one segment, and a whole one",
        );
    }
    Some(path)
}

fn sources(place: &Place<'_>, path: Option<&PathTemplate>) -> Option<Vec<(Mark, SourceConfig)>> {
    let sources = place.some_of(SOURCES_MAX, |place| {
        source(place, path).map(|source| (place.at(), source))
    })?;
    for (index, (at, source)) in sources.iter().enumerate() {
        if let Some((first, _)) = sources[..index]
            .iter()
            .find(|(_, other)| other.stream == source.stream)
        {
            let what = source
                .stream
                .as_ref()
                .map_or("core NATS", |_| "this JetStream stream");
            // An id has one component for each source, found by the source's tag: two of one tag would be one.
            let hint = "put the subjects of both into one source";
            place.problem_at(
                *at,
                format!(
                    "{what} is a source of this route already, in line {}",
                    first.line
                ),
                Some(hint),
            );
        } else if let Some(identity) = &source.identity
            && let Some((first, _)) = sources[..index]
                .iter()
                .find(|(_, other)| other.identity.as_ref() == Some(identity))
        {
            let message = format!("the source in line {} has this `identity` too", first.line);
            place.problem_at(
                *at,
                message,
                Some("an id could not tell the two apart: put them into two routes"),
            );
        }
    }
    twice(place, &sources);
    Some(sources)
}

/// Warns of subjects that come from a stream and from core NATS: what is published to a stream is published to core NATS,
/// too, and two sources do not know each other's events.
fn twice(place: &Place<'_>, sources: &[(Mark, SourceConfig)]) {
    let Some((at, core)) = sources.iter().find(|(_, source)| source.stream.is_none()) else {
        return;
    };
    let live = core.reach();
    for (_, source) in sources {
        let Some(stream) = &source.stream else {
            continue;
        };
        if source
            .reach()
            .iter()
            .any(|one| live.iter().any(|other| one.overlaps(other)))
        {
            let stream = if place.is_filled() {
                "a JetStream stream"
            } else {
                stream
            };
            place.warn_at(
                *at,
                format!("core NATS and the JetStream stream `{stream}` have subjects in common: clients get each of their events twice"),
                "name these subjects at the stream only: it has what core NATS has",
            );
        }
    }
}

fn source(place: &Place<'_>, path: Option<&PathTemplate>) -> Option<SourceConfig> {
    place.map(|keys| {
        let stream = keys.nullable("stream", None, stream);
        let identity = keys.nullable("identity", None, identity);
        if identity.is_some() && stream.is_none() && !keys.has("stream") {
            keys.problem(
                "identity",
                "core NATS has no `identity`",
                Some("its ids are of this pod only"),
            );
        }
        let delivery = keys.or("delivery", Delivery::default(), |place| {
            place.one_of(&DELIVERY)
        });
        if delivery != Delivery::default() && stream.is_none() && !keys.has("stream") {
            keys.problem(
                "delivery",
                "core NATS has no `delivery`",
                Some("it is always subscribed to on demand"),
            );
        }
        let allow = keys.or("allow", Vec::new(), |place| place.list(filter));
        let mut within = Covers::default();
        allow.iter().for_each(|filter| within.add(filter));
        let within = if allow.is_empty() {
            None
        } else {
            Some(&within)
        };
        let subjects = keys.require("subjects", |place| {
            place.some(|place| subject(place, path, within))
        });
        Some(SourceConfig {
            stream,
            identity,
            delivery,
            subjects: subjects?,
            allow,
        })
    })
}

fn stream(place: &Place<'_>) -> Option<String> {
    place.parsed("the name of a JetStream stream", |text| {
        // As the server checks it (ADR-6 of NATS).
        let odd = |char: char| {
            char.is_whitespace()
                || char.is_control()
                || matches!(char, '.' | '*' | '>' | '/' | '\\')
        };
        if text.is_empty() || text.len() > 255 || text.contains(odd) {
            return Err(
                "the name of a stream has 1 to 255 bytes, no white space and none of `.*>/\\`",
            );
        }
        Ok(text.to_owned())
    })
}

fn identity(place: &Place<'_>) -> Option<String> {
    place.parsed("an identity", |text| {
        if text.is_empty()
            || text.len() > 255
            || text.trim() != text
            || text.contains(char::is_control)
        {
            return Err(
                "an identity has 1 to 255 bytes, no control characters and no space at its ends",
            );
        }
        Ok(text.to_owned())
    })
}

fn filter(place: &Place<'_>) -> Option<Filter> {
    place.parsed("a subject", |text| {
        if text.contains(['{', '}']) {
            return Err("there are no variables here");
        }
        of_nats(text)?;
        Filter::parse(text).map_err(crate::subject::InvalidFilter::explain)
    })
}

/// Refuses wildcards of MQTT: taken by the letter, they match nothing that is published.
fn of_nats(text: &str) -> Result<(), &'static str> {
    if text.split(['.', '/']).any(|part| matches!(part, "#" | "+")) {
        return Err(
            "`#` and `+` are no wildcards of NATS: `>` stands for all the last tokens, `*` for one",
        );
    }
    Ok(())
}

fn subject(
    place: &Place<'_>,
    path: Option<&PathTemplate>,
    within: Option<&Covers>,
) -> Option<SubjectTemplate> {
    place.parsed("a subject", of_nats)?;
    let template = place.parsed_or("a subject", SubjectTemplate::parse, |fault| {
        explain(place, &fault)
    })?;
    if template.as_str().contains('/') && !template.as_str().contains('.') {
        place.warn(
            "a subject without a dot is one token: `/` is a letter like any other",
            "NATS separates tokens by dots",
        );
    }
    of_a_request(place, template.variables(), path);
    let fixed = template.variables().next().is_none();
    let reached = |filter: &Filter| within.is_none_or(|within| within.first(filter).is_some());
    if fixed && !template.reach(&[]).iter().all(reached) {
        place.problem(
            "this subject is outside of `allow`",
            Some("every request would be refused: widen `allow`"),
        );
    }
    Some(template)
}

fn client(place: &Place<'_>, path: Option<&PathTemplate>) -> Option<TextTemplate> {
    let template = text_template(place)?;
    of_a_request(place, template.variables(), path);
    Some(template)
}

fn text_template(place: &Place<'_>) -> Option<TextTemplate> {
    let text = place.text()?;
    place.parsed_or(
        "a template",
        |_| TextTemplate::parse(&text),
        |fault| explain(place, &fault),
    )
}

/// A fault in a template; what came from the environment is not quoted.
fn explain(place: &Place<'_>, fault: &InvalidTemplate) -> String {
    match fault {
        InvalidTemplate::Unknown(_) if place.is_filled() => {
            "a variable in this template does not exist".into()
        }
        fault => fault.to_string(),
    }
}

/// Checks that a request has these variables.
fn of_a_request<'v>(
    place: &Place<'_>,
    variables: impl Iterator<Item = &'v Variable>,
    path: Option<&PathTemplate>,
) {
    for variable in variables {
        match (variable, path) {
            (Variable::SubjectToken(_), _) => {
                place.problem(
                    "`{subject.N}` stands in `event` only",
                    Some("a request has no subject yet"),
                );
            }
            (Variable::Path(name), Some(path))
                if path.variables().all(|known| known != &**name) =>
            {
                let names: Vec<String> = path
                    .variables()
                    .map(|name| format!("`{{{name}}}`"))
                    .collect();
                let hint = if names.is_empty() {
                    "the path has none".into()
                } else {
                    format!("the path has {}", names.join(", "))
                };
                let name = if place.is_filled() {
                    "this variable".into()
                } else {
                    format!("`{{{name}}}`")
                };
                place.problem(
                    format!("{name} is no variable of the route's path"),
                    Some(&hint),
                );
            }
            _ => {}
        }
    }
}

fn event(place: &Place<'_>) -> Option<TextTemplate> {
    let template = text_template(place)?;
    if template
        .variables()
        .any(|variable| !matches!(variable, Variable::SubjectToken(_)))
    {
        let hint = "an event is named once for all clients: only `{subject.N}` stands in its name";
        place.problem(
            "the name of an event holds no variable of a request",
            Some(hint),
        );
        return None;
    }
    let sound = template
        .fill(&Sample)
        .and_then(|name| EventName::parse(&name))
        .is_some();
    if !sound {
        let hint = "a name has 1 to 128 bytes, no control characters, no space first, does not begin with `sidestream.` and does not end in `;base64`";
        place.problem("this can be no name of an event", Some(hint));
    }
    Some(template)
}

/// A value for every variable.
struct Sample;

impl Variables for Sample {
    fn values(&self, _: &Variable) -> Vec<Cow<'_, str>> {
        vec!["x".into()]
    }
}

fn query_name(place: &Place<'_>) -> Option<Box<str>> {
    place.parsed("the name of a query parameter", |text| {
        let sound = !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        if sound {
            Ok(text.into())
        } else {
            Err("the name of a query parameter is made of letters, digits, `_`, `-` and `.`")
        }
    })
}

fn window(place: &Place<'_>) -> Option<feed::Limits> {
    place.map(|keys| {
        let default = feed::Limits::default();
        Some(feed::Limits {
            events: keys.or("events", default.events, Place::count),
            bytes: keys.or("bytes", default.bytes, Place::positive_size),
            age: keys.or("age", default.age, Place::positive_duration),
        })
    })
}

const POLICIES: [(&str, SlowPolicy); 3] = [
    ("shed", SlowPolicy::Shed),
    ("conflate", SlowPolicy::Conflate),
    ("disconnect", SlowPolicy::Disconnect),
];

fn slow(place: &Place<'_>) -> Option<Slow> {
    place.map(|keys| {
        let default = Slow::default();
        let lag = keys.or("lag", default.lag, |place| {
            place.count().map(|count| count as u64)
        });
        if lag < Slow::LAG_MIN {
            let least = Slow::LAG_MIN;
            keys.problem(
                "lag",
                format!("`lag` is at least {least}"),
                Some("a quarter of it must be an event"),
            );
        }
        Some(Slow {
            lag,
            stall_timeout: keys.or(
                "stall_timeout",
                default.stall_timeout,
                Place::positive_duration,
            ),
            retry: keys.or("retry", default.retry, Place::positive_duration),
            policy: keys.or("policy", default.policy, |place| place.one_of(&POLICIES)),
        })
    })
}

const TIERS: [(&str, Tier); 3] = [
    ("critical", Tier::Critical),
    ("normal", Tier::Normal),
    ("telemetry", Tier::Telemetry),
];

/// The rules, flattened: the first filter that fits decides.
fn priority(place: &Place<'_>) -> Option<Vec<(Filter, Tier)>> {
    let rules = place.list(|place| {
        place.map(|keys| {
            let subjects = keys.require("subjects", |place| {
                place.some(|place| Some((place.at(), filter(place)?)))
            });
            let tier = keys.require("tier", |place| place.one_of(&TIERS));
            Some((subjects?, tier?))
        })
    })?;
    let rules: Vec<(Mark, Filter, Tier)> = rules
        .into_iter()
        .flat_map(|(subjects, tier)| {
            subjects
                .into_iter()
                .map(move |(at, filter)| (at, filter, tier))
        })
        .collect();
    if rules.len() > PRIORITY_FILTERS_MAX {
        let count = rules.len();
        place.problem(
            format!(
                "the rules have {count} subjects together, at most {PRIORITY_FILTERS_MAX} are read"
            ),
            None,
        );
        return None;
    }
    let mut known = Covers::default();
    for (at, filter, _) in &rules {
        if let Some((first, ..)) = known.first(filter).and_then(|first| rules.get(first)) {
            let message = format!(
                "this rule never decides: that of line {} covers it",
                first.line
            );
            place.problem_at(
                *at,
                message,
                Some("the first that fits decides: put the special ones first"),
            );
        }
        known.add(filter);
    }
    Some(
        rules
            .into_iter()
            .map(|(_, filter, tier)| (filter, tier))
            .collect(),
    )
}
