//! Reads `sources:` of a route: streams and core NATS, with their subjects.

use super::templates::{Scope, check_request_variables, explain};
use crate::config::location::Location;
use crate::config::reader::ValueReader;
use crate::config::reader::map::MapReader;
use crate::http::config::{Delivery, SourceConfig};
use crate::subject::{
    Allow, BucketName, ClaimPath, Covers, Filter, InvalidFilter, SubjectTemplate, Variable,
};

/// 4 sources: the id of an event has a position for each, and at most 128 bytes.
const SOURCES_MAX: usize = 4;

const DELIVERY: [(&str, Delivery); 2] = [
    ("shared", Delivery::Shared),
    ("republish", Delivery::Republish),
];

/// Source with its location.
pub(super) struct LocatedSource {
    pub(super) at: Location,
    pub(super) config: SourceConfig,
}

pub(super) fn sources(value: &ValueReader<'_>, scope: Scope<'_>) -> Option<Vec<LocatedSource>> {
    distinct(value, |value| source(value, scope))
}

/// Reads the sources of the application's event streams: `allow` in place of `subjects`.
pub(super) fn subscribe_sources(value: &ValueReader<'_>) -> Option<Vec<LocatedSource>> {
    distinct(value, subscribe_source)
}

fn distinct(
    value: &ValueReader<'_>,
    read: impl Fn(&ValueReader<'_>) -> Option<SourceConfig>,
) -> Option<Vec<LocatedSource>> {
    let sources = value.some_of(SOURCES_MAX, |value| {
        let config = read(value)?;
        let at = value.location();
        Some(LocatedSource { at, config })
    })?;
    for (index, source) in sources.iter().enumerate() {
        check_unique(value, source, &sources[..index]);
    }
    warn_of_duplicates(value, &sources);
    Some(sources)
}

/// Reports a source that the positions in an event id could not distinguish from an earlier one.
fn check_unique(value: &ValueReader<'_>, source: &LocatedSource, earlier: &[LocatedSource]) {
    let LocatedSource { at, config } = source;
    let same_stream = earlier
        .iter()
        .find(|other| other.config.stream == config.stream);
    if let Some(first) = same_stream {
        let name = config
            .stream
            .as_ref()
            .map_or("core NATS", |_| "this JetStream stream");
        // An event id has one position per source, found by the source's tag.
        value.error_at(
            *at,
            format!(
                "{name} is already a source of this route, in line {}",
                first.at.line
            ),
            Some("write the subjects of both into one source"),
        );
        return;
    }
    let same_identity = earlier
        .iter()
        .find(|other| config.identity.is_some() && other.config.identity == config.identity);
    if let Some(first) = same_identity {
        value.error_at(
            *at,
            format!(
                "the source in line {} has the same `identity`",
                first.at.line
            ),
            Some("an event id could not distinguish the two: use two routes"),
        );
    }
}

/// Warns of subjects that come from both a stream and core NATS. A message that is published to a
/// stream is published to core NATS too, and two sources do not know each other's events.
fn warn_of_duplicates(value: &ValueReader<'_>, sources: &[LocatedSource]) {
    let Some(core) = sources.iter().find(|source| source.config.stream.is_none()) else {
        return;
    };
    let live = core.config.reach();
    for source in sources {
        let (Some(stream), None) = (&source.config.stream, &source.config.bucket) else {
            continue;
        };
        let overlaps = |one: &Filter| live.iter().any(|other| one.overlaps(other));
        if source.config.reach().iter().any(overlaps) {
            let stream = if value.is_filled() {
                "a JetStream stream"
            } else {
                stream
            };
            value.warn_at(
                core.at,
                format!("core NATS and the JetStream stream `{stream}` have subjects in common: clients receive each of their events twice"),
                "remove these subjects from core NATS: the stream has every message",
            );
        }
    }
}

fn subscribe_source(value: &ValueReader<'_>) -> Option<SourceConfig> {
    value.map(|keys| {
        let origin = origin(keys);
        let filters = keys.require("allow", |value| value.some(filter))?;
        let allow = Allow {
            filters,
            claims: Vec::new(),
        };
        Some(SourceConfig { allow, ..origin })
    })
}

/// Reads the stream of a source, without its subjects.
fn origin(keys: &mut MapReader<'_>) -> SourceConfig {
    let bucket = keys.nullable("bucket", None, bucket);
    let stream = keys.nullable("stream", None, stream);
    if stream.is_some() && bucket.is_some() {
        keys.error(
            "stream",
            "a source is a JetStream stream or a KV bucket",
            Some("remove one of them: the stream of a bucket is `KV_` and its name"),
        );
    }
    let stream = bucket.as_ref().map(BucketName::stream).or(stream);
    let is_core = stream.is_none() && !keys.has("stream") && !keys.has("bucket");
    let identity = keys.nullable("identity", None, identity);
    if identity.is_some() && is_core {
        keys.error(
            "identity",
            "core NATS has no `identity`",
            Some("its event ids are valid in this pod only"),
        );
    }
    let delivery = keys.get_or("delivery", Delivery::default(), |value| {
        value.one_of(&DELIVERY)
    });
    if delivery != Delivery::default() && is_core {
        keys.error(
            "delivery",
            "core NATS has no `delivery`",
            Some("core NATS always has one subscription per subject that clients read"),
        );
    }
    if delivery != Delivery::default() && bucket.is_some() {
        keys.error(
            "delivery",
            "a KV bucket is delivered by one consumer of the pod",
            Some("remove `delivery`"),
        );
    }
    SourceConfig {
        stream,
        bucket,
        identity,
        delivery,
        subjects: Vec::new(),
        allow: Allow::default(),
    }
}

fn source(value: &ValueReader<'_>, scope: Scope<'_>) -> Option<SourceConfig> {
    value.map(|keys| {
        let origin = origin(keys);
        let allow = keys.get_or("allow", Allow::default(), |value| allow(value, scope));
        let mut allowed = Covers::default();
        for filter in &allow.filters {
            allowed.add(filter);
        }
        let allowed = (!allow.filters.is_empty()).then_some(&allowed);
        let is_every_key = keys.has("bucket") && !keys.has("subjects") && allow.is_empty();
        let subjects = if is_every_key {
            SubjectTemplate::parse(">").ok().map(|every| vec![every])
        } else {
            keys.require("subjects", |value| {
                value.some(|value| subject(value, scope, allowed))
            })
        };
        let is_any = |subjects: &Vec<SubjectTemplate>| {
            subjects.iter().any(SubjectTemplate::is_whole_variable)
        };
        if allow.filters.is_empty() && !allow.claims.is_empty() && subjects.as_ref().is_some_and(is_any) {
            value.warn_at(
                keys.location("allow"),
                "only claims bound the subjects of this source: the pod reads everything that it can",
                "add the filters that any client may read, such as `orders.>`; a subject must then lie within both",
            );
        }
        Some(SourceConfig {
            subjects: subjects?,
            allow,
            ..origin
        })
    })
}

fn bucket(value: &ValueReader<'_>) -> Option<BucketName> {
    value.parsed("the name of a KV bucket", BucketName::parse)
}

fn stream(value: &ValueReader<'_>) -> Option<String> {
    value.parsed("the name of a JetStream stream", |text| {
        // As the server checks it (ADR-6 of NATS).
        let is_forbidden = |char: char| {
            char.is_whitespace()
                || char.is_control()
                || matches!(char, '.' | '*' | '>' | '/' | '\\')
        };
        if text.is_empty() || text.len() > 255 || text.contains(is_forbidden) {
            return Err(
                "the name of a stream has 1 to 255 bytes, no white space and none of `.*>/\\`",
            );
        }
        Ok(text.to_owned())
    })
}

fn identity(value: &ValueReader<'_>) -> Option<String> {
    value.parsed("an identity", |text| {
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

/// Entry of `allow`.
enum AllowEntry {
    Filter(Filter),
    Claim(ClaimPath),
}

fn allow(value: &ValueReader<'_>, scope: Scope<'_>) -> Option<Allow> {
    let mut allow = Allow::default();
    for entry in value.list(|value| allow_entry(value, scope))? {
        match entry {
            AllowEntry::Filter(filter) => allow.filters.push(filter),
            AllowEntry::Claim(claim) => allow.claims.push(claim),
        }
    }
    Some(allow)
}

/// Reads a filter, or a claim in braces.
fn allow_entry(value: &ValueReader<'_>, scope: Scope<'_>) -> Option<AllowEntry> {
    let template = value.parsed("a subject", |text| Ok(SubjectTemplate::parse(text).ok()))?;
    let whole = template.filter(SubjectTemplate::is_whole_variable);
    let variable = whole
        .as_ref()
        .and_then(|template| template.variables().next());
    let Some(Variable::Claim(claim)) = variable else {
        return filter(value).map(AllowEntry::Filter);
    };
    check_request_variables(value, variable.into_iter(), scope);
    Some(AllowEntry::Claim(claim.clone()))
}

/// Reads a subject with wildcards and without variables.
pub(super) fn filter(value: &ValueReader<'_>) -> Option<Filter> {
    value.parsed("a subject", |text| {
        if text.contains(['{', '}']) {
            return Err("variables are not allowed here");
        }
        reject_mqtt_wildcards(text)?;
        Filter::parse(text).map_err(InvalidFilter::explain)
    })
}

/// Rejects the wildcards of MQTT. As ordinary characters they would match no published subject.
fn reject_mqtt_wildcards(text: &str) -> Result<(), &'static str> {
    if text.split(['.', '/']).any(|part| matches!(part, "#" | "+")) {
        return Err(
            "`#` and `+` are not wildcards of NATS: `>` matches all remaining tokens, `*` matches one",
        );
    }
    Ok(())
}

fn subject(
    value: &ValueReader<'_>,
    scope: Scope<'_>,
    allowed: Option<&Covers>,
) -> Option<SubjectTemplate> {
    value.parsed("a subject", reject_mqtt_wildcards)?;
    let template = value.parsed_or("a subject", SubjectTemplate::parse, |error| {
        explain(value, &error)
    })?;
    if template.as_str().contains('/') && !template.as_str().contains('.') {
        value.warn(
            "a subject without a dot is one token: `/` is an ordinary character",
            "NATS separates tokens by dots",
        );
    }
    check_request_variables(value, template.variables(), scope);
    let is_fixed = template.variables().next().is_none();
    let is_allowed =
        |filter: &Filter| allowed.is_none_or(|allowed| allowed.first(filter).is_some());
    if is_fixed && !template.reach(&Allow::default()).iter().all(is_allowed) {
        value.error(
            "this subject is outside of `allow`",
            Some("every request would be rejected: widen `allow`"),
        );
    }
    Some(template)
}
