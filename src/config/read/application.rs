//! Reads `application:`: the application that receives requests for paths without a route.

use crate::config::reader::ValueReader;
use crate::http::application::{ApplicationConfig, ApplicationVersion};

pub(super) fn application(value: &ValueReader<'_>) -> Option<Option<ApplicationConfig>> {
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
        Some(address.map(|(authority, version)| ApplicationConfig {
            authority,
            version,
            connect_timeout,
            response_timeout,
            idle_timeout,
            connections,
        }))
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
}
