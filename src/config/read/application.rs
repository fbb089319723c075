//! Reads `application:`: the application that receives requests for paths without a route.

use hyper::header::HeaderName;

use super::routes::{self, LocatedRoute};
use crate::config::reader::ValueReader;
use crate::http::application::{ApplicationConfig, ApplicationVersion, CacheConfig};
use crate::http::config::SubscribeConfig;

/// Keys of `application`.
#[derive(Default)]
pub(super) struct Application {
    /// `None`: there is no application.
    pub(super) config: Option<ApplicationConfig>,
    /// `None`: it asks for no event streams.
    pub(super) subscribe: Option<Subscribe>,
}

/// `application.subscribe`, with its locations.
pub(super) struct Subscribe {
    pub(super) header: HeaderName,
    pub(super) route: LocatedRoute,
}

pub(super) fn application(value: &ValueReader<'_>) -> Option<Application> {
    value.map(|keys| {
        let address = keys.nullable("address", None, |value| {
            value.parsed("an address", ApplicationConfig::parse_address)
        });
        let default = ApplicationConfig::new("".into(), ApplicationVersion::Http1);
        let connect_timeout = keys.get_or(
            "connect_timeout",
            default.connect_timeout,
            ValueReader::positive_duration,
        );
        let response_timeout = keys.get_or(
            "response_timeout",
            default.response_timeout,
            ValueReader::positive_duration,
        );
        let idle_timeout = keys.get_or(
            "idle_timeout",
            default.idle_timeout,
            ValueReader::positive_duration,
        );
        let connections = keys.get_or("connections", default.connections, ValueReader::count);
        if connections > CONNECTIONS_MAX {
            keys.error(
                "connections",
                "`connections` is more than 100000",
                Some("requests in progress need a file descriptor each"),
            );
        }
        let cache = keys.get_or("cache", default.cache, cache);
        let subscribe = keys.nullable("subscribe", None, subscribe);
        if subscribe.is_some() && address.is_none() && !keys.has("address") {
            let hint = "set `address`, or remove `subscribe`";
            keys.error(
                "subscribe",
                "there is no application that asks for event streams",
                Some(hint),
            );
        }
        let config = address.map(|(authority, version)| ApplicationConfig {
            authority,
            version,
            connect_timeout,
            response_timeout,
            idle_timeout,
            connections,
            cache,
        });
        Some(Application { config, subscribe })
    })
}

fn subscribe(value: &ValueReader<'_>) -> Option<Subscribe> {
    value.map(|keys| {
        let header = keys.get_or("header", SubscribeConfig::HEADER, header);
        let route = routes::subscribe(keys)?;
        Some(Subscribe { header, route })
    })
}

/// Reads the name of the header. Its prefix ensures that no client sends it to the application and
/// that no client receives it.
fn header(value: &ValueReader<'_>) -> Option<HeaderName> {
    value.parsed("the name of a header", |text| {
        let name: Option<HeaderName> = text.parse().ok();
        name.filter(|name| name.as_str().starts_with("sidestream-"))
            .filter(|name| !matches!(name.as_str(), "sidestream-client" | "sidestream-expires"))
            .ok_or("the header begins with `Sidestream-`, and is not `Sidestream-Client` or `Sidestream-Expires`")
    })
}

fn cache(value: &ValueReader<'_>) -> Option<CacheConfig> {
    value.map(|keys| {
        let default = CacheConfig::default();
        let object_bytes = keys.get_or(
            "object_bytes",
            default.object_bytes,
            ValueReader::positive_size,
        );
        Some(CacheConfig {
            bytes: keys.get_or("bytes", default.bytes, ValueReader::size),
            object_bytes,
        })
    })
}

/// 100,000 requests: more than the ports of one address.
const CONNECTIONS_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use crate::config::load::parse_bytes;
    use crate::config::{Loaded, Problems, effective};

    fn loaded(application: &str) -> Result<Loaded, Problems> {
        let text = format!(
            "routes: [{{ path: /a, sources: [{{ subjects: [a] }}] }}]\napplication: {application}\n"
        );
        parse_bytes(text.as_bytes(), "f", &|_| None)
    }

    #[test]
    fn absent_keys_have_their_defaults() {
        let shown =
            |application| effective(&loaded(application).unwrap().config)["application"].clone();
        let default = serde_json::json!({
            "address": "http://127.0.0.1:3000", "connect_timeout": "1s", "response_timeout": "1m",
            "idle_timeout": "90s", "connections": 256,
            "cache": { "bytes": "64MiB", "object_bytes": "4MiB" }, "subscribe": null,
        });
        assert_eq!(shown("{ address: 'http://127.0.0.1:3000' }"), default);
        assert_eq!(
            shown("{ address: null }")["address"],
            serde_json::Value::Null
        );
    }

    #[test]
    fn wrong_values_are_problems() {
        for (application, message) in [
            (
                "{ address: '127.0.0.1:3000' }",
                "an address is written as `http://127.0.0.1:3000` or `h2c://127.0.0.1:3000`",
            ),
            (
                "{ address: 'https://a' }",
                "the application is beside the sidecar: use `http://`",
            ),
            (
                "{ subscribe: { sources: [{ allow: [a] }] } }",
                "there is no application that asks for event streams",
            ),
            (
                "{ address: 'http://a', subscribe: { header: X-A, sources: [{ allow: [a] }] } }",
                "the header begins with `Sidestream-`, and is not `Sidestream-Client` or `Sidestream-Expires`",
            ),
            (
                "{ address: 'http://a', subscribe: { sources: [{ allow: ['{claim.a}'] }] } }",
                "variables are not allowed here",
            ),
            (
                "{ address: 'http://a', subscribe: { sources: [{ allow: [a] }], framings: [websocket] } }",
                "the application answers a request, and a WebSocket has no answer",
            ),
            (
                "{ address: 'http://a', subscribe: { sources: [{ allow: [a] }], framings: [grpc_web] } }",
                "a gRPC call names the path of a route, and the application has none",
            ),
            ("{ connections: 0 }", "`connections` must be more than 0"),
            (
                "{ connections: 100001 }",
                "`connections` is more than 100000",
            ),
        ] {
            let problems = loaded(application).expect_err(application);
            assert_eq!(problems.as_slice()[0].message, message, "{application}");
        }
    }

    #[test]
    fn routes_may_be_absent_if_the_application_opens_event_streams() {
        let problem = |routes: &str, application: &str| {
            let text = format!("application: {{ address: 'http://a', {application} }}\n{routes}");
            let problems = parse_bytes(text.as_bytes(), "f", &|_| None).err();
            problems.map(|problems| problems.as_slice()[0].message.clone())
        };
        let subscribe = "subscribe: { sources: [{ stream: A, allow: ['a.>'] }] }";
        assert_eq!(problem("", subscribe), None);
        assert_eq!(problem("routes: []", subscribe), None);
        let empty = Some("`routes` is empty".to_owned());
        assert_eq!(problem("routes: []", ""), empty);
        let missing = Some("`routes` is missing in the file".to_owned());
        assert_eq!(problem("", ""), missing);
        let other = "routes: [{ path: /a, sources: [{ stream: A, subjects: [a], identity: b }] }]";
        assert!(problem(other, subscribe).is_some());
    }

    #[test]
    fn subscribe_has_the_keys_of_a_route_that_depend_on_no_request() {
        let shown = |subscribe: &str| {
            let text = format!("{{ address: 'http://a', subscribe: {{ {subscribe} }} }}");
            loaded(&text)
                .map(|loaded| effective(&loaded.config)["application"]["subscribe"].clone())
        };
        let sources = "sources: [{ stream: A, allow: ['a.>'] }]";
        let all = shown(&format!("{sources}, heartbeat: 5s, framings: [ndjson]")).unwrap();
        assert_eq!(all["header"], "sidestream-subscribe");
        assert_eq!(all["heartbeat"], "5s");
        assert_eq!(all["framings"], serde_json::json!(["ndjson"]));
        let source = serde_json::json!({
            "stream": "A", "bucket": null, "identity": null, "delivery": "shared", "allow": ["a.>"],
        });
        assert_eq!(all["sources"], serde_json::json!([source]));
        for key in [
            "path: /a",
            "authenticate: [a]",
            "unauthenticated: auto",
            "client: a",
        ] {
            assert!(shown(&format!("{sources}, {key}")).is_err(), "{key}");
        }
        for sources in [
            "sources: []",
            "sources: [{ allow: [] }]",
            "sources: [{ subjects: [a] }]",
        ] {
            assert!(shown(sources).is_err(), "{sources}");
        }
    }
}
