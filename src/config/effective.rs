//! The effective configuration: in the shape of the file, with every default and without secrets.
//!
//! `/config` shows it, and its hash identifies the configuration (`sidestream check`, the log).

use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::model::Config;
use super::units::{format_duration, format_size};
use crate::auth::config::{ForwardConfig, JwtConfig, KeysConfig, ProviderConfig, ProviderKind};
use crate::event::Version;
use crate::feed::SlowPolicy;
use crate::http::RouteConfig;
use crate::http::application::{ApplicationConfig, ApplicationVersion};
use crate::http::config::{
    CloseStyle, CorsConfig, Delivery, Expired, SourceConfig, SubscribeConfig, TicketsConfig,
    Unauthenticated,
};
use crate::limit::{PerClientConfig, Rate};
use crate::nats::config::{Credentials, Tls};
use crate::net::{ListenConfig, TlsConfig};
use crate::payload::schema::{SchemaOrigin, SchemaRule, SchemasConfig};
use crate::payload::{PayloadFormat, Versions};
use crate::subject::{Allow, BucketName, ClaimPath, Filter};
use crate::telemetry::logs::Format;

/// Replacement of a secret.
const MASKED: &str = "***";

/// Returns the configuration in the shape of the file, as `/config` shows it.
#[must_use]
pub fn effective(config: &Config) -> Value {
    let Config {
        listen,
        admin,
        nats,
        authentication,
        http,
        schemas,
        window_bytes_max,
        feeds_max,
        file_descriptors,
        replays,
        drain,
        presence,
        tracing,
        log,
    } = config;
    let PerClientConfig { fixed, claims } = &http.per_client;
    json!({
        "listen": listen.iter().map(listener).collect::<Vec<_>>(),
        "admin": {
            "address": admin.address,
            "hosts": admin.hosts,
            "control": admin.control.as_ref().map_or(json!("auto"), |path| json!(path)),
            "token": admin.token.is_some().then_some(MASKED),
            "token_file": admin.token_file,
            "tls": admin.tls.as_ref().map(server_tls),
            "tap": admin.tap,
        },
        "nats": nats_value(nats),
        "authentication": {
            "providers": authentication.providers.iter().map(provider).collect::<Vec<_>>(),
            "renew_before": format_duration(http.renew_before),
            "revocations": {
                "bucket": authentication.revocations.bucket.as_ref().map(BucketName::as_str),
                "when_unavailable": authentication.revocations.when_unavailable.as_str(),
            },
            "tickets": tickets(http.tickets.as_ref()),
        },
        "routes": http.routes.iter().map(route).collect::<Vec<_>>(),
        "application": application(http.application.as_ref(), http.subscribe.as_ref()),
        "schemas": schemas_value(schemas),
        "limits": {
            "connections": http.connections_max.map_or(json!("auto"), |count| json!(count)),
            "file_descriptors": {
                "warn": format!("{}%", file_descriptors.warn),
                "reject": format!("{}%", file_descriptors.reject),
            },
            "window_bytes": format_size(*window_bytes_max),
            "feeds": feeds_max,
            "subjects_per_request": http.subjects_per_request_max,
            "per_client": {
                "connections": client_limit(&claims.connections, fixed.connections.into()),
                "filter_sets": client_limit(&claims.filter_sets, fixed.filter_sets.into()),
                "connects": client_limit(&claims.connects, fixed.connects.map(rate).into()),
                "events": client_limit(&claims.events, fixed.events.map(rate).into()),
            },
            "replays": { "running": replays.running, "queued": replays.queued },
        },
        "trusted_proxies": http.trusted_proxies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "forwarded_header": http.forwarded_header.as_str(),
        "drain": {
            "accept_for": format_duration(drain.accept_for),
            "spread": format_duration(drain.spread),
            "timeout": format_duration(drain.timeout),
            "retry": { "min": format_duration(drain.retry_min), "max": format_duration(drain.retry_max) },
        },
        "presence": {
            "bucket": presence.bucket.as_ref().map(BucketName::as_str),
            "max_bytes": format_size(usize::try_from(presence.max_bytes).unwrap_or(usize::MAX)),
        },
        "tracing": {
            "otlp": tracing.otlp.as_ref().map(ToString::to_string),
            "sample": tracing.sample.get(),
        },
        "log": {
            "format": match log.format { Format::Json => "json", Format::Text => "text" },
            "filter": log.filter,
        },
    })
}

/// Limit as it is written: its value, or a list of claims and at last the value.
fn client_limit(claims: &[ClaimPath], fixed: Value) -> Value {
    if claims.is_empty() {
        return fixed;
    }
    let claims = claims
        .iter()
        .map(|claim| json!(format!("{{claim{claim}}}")));
    claims.chain([fixed]).collect()
}

fn schemas_value(config: &SchemasConfig) -> Value {
    let (folder, bucket) = match &config.origin {
        Some(SchemaOrigin::Folder(folder)) => (Some(folder), None),
        Some(SchemaOrigin::Bucket(bucket)) => (None, Some(bucket.as_str())),
        None => (None, None),
    };
    let rule = |rule: &SchemaRule| {
        json!({
            "subjects": rule.subjects.iter().map(Filter::as_str).collect::<Vec<_>>(),
            "version": rule.version.map(Version::get),
            "schema": rule.schema,
        })
    };
    json!({
        "folder": folder,
        "bucket": bucket,
        "validate": config.validate.as_str(),
        "payloads": config.payloads.iter().map(rule).collect::<Vec<_>>(),
    })
}

fn application(
    application: Option<&ApplicationConfig>,
    subscribe: Option<&SubscribeConfig>,
) -> Value {
    let default = ApplicationConfig::new("".into(), ApplicationVersion::Http1);
    let settings = application.unwrap_or(&default);
    let address = application.map(|one| format!("{}://{}", one.version.scheme(), one.authority));
    json!({
        "address": address,
        "connect_timeout": format_duration(settings.connect_timeout),
        "response_timeout": format_duration(settings.response_timeout),
        "idle_timeout": format_duration(settings.idle_timeout),
        "connections": settings.connections,
        "cache": {
            "bytes": format_size(settings.cache.bytes),
            "object_bytes": format_size(settings.cache.object_bytes),
        },
        "subscribe": subscribe.map(self::subscribe),
    })
}

fn subscribe(SubscribeConfig { header, route }: &SubscribeConfig) -> Value {
    let mut value = self::route(route);
    if let Some(keys) = value.as_object_mut() {
        keys.retain(|key, _| !NOT_OF_SUBSCRIBE.contains(&key.as_str()));
        keys.insert("header".into(), json!(header.as_str()));
    }
    let sources = value["sources"].as_array_mut();
    for source in sources.into_iter().flatten() {
        source.as_object_mut().map(|keys| keys.remove("subjects"));
    }
    value
}

/// Keys of a route that `application.subscribe` does not have.
const NOT_OF_SUBSCRIBE: [&str; 4] = ["path", "authenticate", "unauthenticated", "client"];

fn rate(Rate { rate, burst }: Rate) -> Value {
    json!({ "rate": rate, "burst": burst })
}

fn listener(listener: &ListenConfig) -> Value {
    let tls = listener.tls.as_ref().map(|tls| {
        let mut value = server_tls(tls);
        value["session_ticket_keys"] = json!(tls.session_ticket_keys);
        value
    });
    json!({ "address": listener.address, "tls": tls })
}

fn server_tls(tls: &TlsConfig) -> Value {
    let TlsConfig {
        certificate,
        key,
        client_ca,
        session_ticket_keys: _,
    } = tls;
    json!({ "certificate": certificate, "key": key, "client_ca": client_ca })
}

fn nats_value(nats: &crate::nats::Config) -> Value {
    let masked = |there: bool| there.then_some(MASKED);
    let credentials = &nats.credentials;
    let file: Option<&PathBuf> = if let Credentials::File(file) = credentials {
        Some(file)
    } else {
        None
    };
    let user = if let Credentials::Password { user, .. } = credentials {
        Some(user)
    } else {
        None
    };
    let Tls {
        required,
        handshake_first,
        ca,
        certificate,
        key,
    } = nats.tls.clone().unwrap_or_default();
    json!({
        "servers": nats.servers.iter().map(|server| without_userinfo(server)).collect::<Vec<_>>(),
        "credentials": file,
        "user": user,
        "password": masked(user.is_some()),
        "token": masked(matches!(credentials, Credentials::Token(_))),
        "nkey": masked(matches!(credentials, Credentials::Nkey(_))),
        "tls": {
            "required": required,
            "handshake_first": handshake_first,
            "ca": ca,
            "certificate": certificate,
            "key": key,
        },
    })
}

/// Returns an address with its credentials masked.
fn without_userinfo(server: &str) -> String {
    match server.rsplit_once('@') {
        Some((before, host)) => {
            let scheme = before
                .split_once("://")
                .map(|(scheme, _)| format!("{scheme}://"))
                .unwrap_or_default();
            format!("{scheme}{MASKED}@{host}")
        }
        None => server.to_owned(),
    }
}

fn provider(provider: &ProviderConfig) -> Value {
    let (kind, settings) = match &provider.kind {
        ProviderKind::Jwt(jwt) => ("jwt", jwt_provider(jwt)),
        ProviderKind::Certificate => ("certificate", json!({})),
        ProviderKind::Forward(forward) => ("forward", forward_provider(forward)),
    };
    json!({ "name": provider.name, kind: settings })
}

fn jwt_provider(jwt: &JwtConfig) -> Value {
    let (mut discovery, mut jwks, mut file, mut secret, mut ca) = (false, None, None, None, None);
    match &jwt.keys {
        KeysConfig::Discovery { ca: roots, .. } => (discovery, ca) = (true, roots.as_ref()),
        KeysConfig::Jwks { url, ca: roots } => (jwks, ca) = (Some(url.to_string()), roots.as_ref()),
        KeysConfig::File(path) => file = Some(path),
        KeysConfig::Secret(_) => secret = Some(MASKED),
    }
    // Their names are those of RFC 7518.
    let algorithms = jwt.algorithms.iter().map(|used| format!("{used:?}"));
    json!({
        "issuer": jwt.issuer,
        "audience": jwt.audience,
        "keys": {
            "discovery": discovery,
            "jwks": jwks,
            "file": file,
            "secret": secret,
            "ca": ca,
        },
        "algorithms": algorithms.collect::<Vec<_>>(),
        "leeway": format_duration(jwt.leeway),
        "from": jwt.from.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn forward_provider(forward: &ForwardConfig) -> Value {
    let cache = json!({
        "for": format_duration(forward.cache_for),
        "entries": forward.cache_entries,
    });
    json!({
        "url": forward.url.to_string(),
        "ca": forward.ca,
        "send": forward.send.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
        "timeout": format_duration(forward.timeout),
        "cache": (!forward.cache_for.is_zero()).then_some(cache),
    })
}

fn tickets(tickets: Option<&TicketsConfig>) -> Value {
    let none: &[Box<str>] = &[];
    json!({
        "path": tickets.map(|tickets| tickets.path.as_str()),
        "bucket": tickets.map(|tickets| tickets.bucket.as_str()),
        "ttl": format_duration(tickets.map_or(TicketsConfig::TTL, |tickets| tickets.ttl)),
        "authenticate": tickets.map_or(none, |tickets| &tickets.authenticate),
        "cors": cors(tickets.map_or(&CorsConfig::default(), |tickets| &tickets.cors)),
    })
}

fn cors(cors: &CorsConfig) -> Value {
    json!({ "origins": cors.origins, "credentials": cors.credentials })
}

fn route(route: &RouteConfig) -> Value {
    json!({
        "path": route.path.as_str(),
        "authenticate": (!route.authenticate.is_empty()).then_some(&route.authenticate),
        "unauthenticated": match route.unauthenticated {
            Unauthenticated::Auto => "auto",
            Unauthenticated::Status => "status",
            Unauthenticated::Stream => "stream",
        },
        "sources": route.sources.iter().map(source).collect::<Vec<_>>(),
        "client": route.client.as_ref().map(ToString::to_string),
        "event": route.event.as_ref().map(ToString::to_string),
        "framings": route.framings.iter().map(|framing| framing.as_str()).collect::<Vec<_>>(),
        "compression": route.compression.as_ref().map(|compression| json!({
            "algorithms": compression.algorithms.iter().map(|coding| coding.as_str()).collect::<Vec<_>>(),
            "min_rate": format_size(compression.min_rate),
        })),
        "format": route.format.map(PayloadFormat::as_str),
        "versions": route.versions.as_ref().map(versions),
        "heartbeat": format_duration(route.heartbeat),
        "retry": format_duration(route.retry),
        "max_age": format_duration(route.max_age),
        "window": {
            "events": route.window.events,
            "bytes": format_size(route.window.bytes),
            "age": format_duration(route.window.age),
        },
        "checkpoint": route.checkpoint.map(format_duration),
        "last_event_id_query": route.last_event_id_query,
        "begin": route.begin.as_str(),
        "finite": route.finite,
        "begin_by_client": route.begin_by_client.map(|bounds| json!({
            "max_age": format_duration(bounds.max_age),
            "max_events": bounds.max_events,
        })),
        "expired": match route.expired { Expired::Auto => "auto", Expired::Status => "status", Expired::Gap => "gap" },
        "slow": {
            "lag": route.slow.lag,
            "stall_timeout": format_duration(route.slow.stall_timeout),
            "retry": format_duration(route.slow.retry),
            "policy": match route.slow.policy {
                SlowPolicy::Shed => "shed",
                SlowPolicy::Conflate => "conflate",
                SlowPolicy::Disconnect => "disconnect",
            },
        },
        "priority": route.priority.iter().map(|(filter, tier)| json!({
            "subjects": [filter.as_str()],
            "tier": tier.as_str(),
        })).collect::<Vec<_>>(),
        "close": match route.close { CloseStyle::Clean => "clean", CloseStyle::Abort => "abort" },
        "cors": cors(&route.cors),
        "doctor": route.doctor,
    })
}

fn versions(versions: &Versions) -> Value {
    let number = |version: Version| json!(version.get());
    let deprecated = versions.deprecated.iter().map(|(version, deprecation)| {
        let value = json!({
            "since": format_time(deprecation.since),
            "sunset": deprecation.sunset.and_then(format_time),
            "link": deprecation.link,
        });
        (version.to_string(), value)
    });
    let conversions = versions.conversions.iter().map(
        |step| json!({ "from": number(step.from), "to": number(step.to), "patch": step.patch }),
    );
    json!({
        "current": number(versions.current),
        "supported": versions.supported.iter().copied().map(number).collect::<Vec<_>>(),
        "deprecated": deprecated.collect::<Map<_, _>>(),
        "conversions": conversions.collect::<Vec<_>>(),
    })
}

/// Returns a time as in the file.
fn format_time(time: SystemTime) -> Option<String> {
    OffsetDateTime::from(time).format(&Rfc3339).ok()
}

fn source(source: &SourceConfig) -> Value {
    json!({
        "stream": source.stream.as_ref().filter(|_| source.bucket.is_none()),
        "bucket": source.bucket.as_ref().map(BucketName::as_str),
        "identity": source.identity,
        "delivery": match source.delivery { Delivery::Shared => "shared", Delivery::Republish => "republish" },
        "subjects": source.subjects.iter().map(|subject| subject.as_str()).collect::<Vec<_>>(),
        "allow": allow(&source.allow),
    })
}

fn allow(allow: &Allow) -> Vec<String> {
    let filters = allow.filters.iter().map(ToString::to_string);
    let claims = allow.claims.iter().map(|claim| format!("{{claim{claim}}}"));
    filters.chain(claims).collect()
}
