//! Reads `forward:` of a provider: an HTTP endpoint that decides.

use std::time::Duration;

use hyper::Uri;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderName, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

use super::checks::is_unprotected;
use crate::auth::config::{ForwardConfig, parse_url};
use crate::config::reader::ValueReader;

/// 64 header fields, as in the head of a request.
const SEND_MAX: usize = 64;

/// 30 s: a client whose call takes longer is gone.
const TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// 100,000 answers: 100 MiB if each has 1 KiB.
const ENTRIES_MAX: u32 = 100_000;

pub(super) fn forward(value: &ValueReader<'_>) -> Option<ForwardConfig> {
    value.map(|keys| {
        let url = keys.require("url", url);
        let ca = keys.nullable("ca", None, ValueReader::file);
        let send = keys.get_or("send", ForwardConfig::SEND.to_vec(), |value| {
            value.list_of(SEND_MAX, header_name)
        });
        let timeout = keys.get_or("timeout", ForwardConfig::TIMEOUT, timeout);
        let default = Cache {
            lifetime: ForwardConfig::CACHE_FOR,
            entries: ForwardConfig::CACHE_ENTRIES,
        };
        let cache = keys.nullable("cache", Some(default), cache);
        let (cache_for, cache_entries) =
            cache.map_or((Duration::ZERO, 1), |cache| (cache.lifetime, cache.entries));
        let url = url?;
        if ca.is_some() && url.scheme_str() == Some("http") {
            keys.error("ca", "`ca` needs a URL with `https`", None);
        }
        Some(ForwardConfig {
            url,
            ca,
            send,
            timeout,
            cache_for,
            cache_entries,
        })
    })
}

/// Values of `cache`.
struct Cache {
    lifetime: Duration,
    entries: u32,
}

fn cache(value: &ValueReader<'_>) -> Option<Cache> {
    value.map(|keys| {
        let lifetime = keys.get_or("for", ForwardConfig::CACHE_FOR, ValueReader::duration);
        let entries = keys.get_or("entries", ForwardConfig::CACHE_ENTRIES, entries);
        Some(Cache { lifetime, entries })
    })
}

fn url(value: &ValueReader<'_>) -> Option<Uri> {
    let url = value.parsed("a URL", parse_url)?;
    if is_unprotected(&url) {
        value.warn(
            "the credentials of clients are sent without TLS: anyone on the path can read them",
            "use `https://`, or an endpoint in this pod (`http://127.0.0.1:PORT`)",
        );
    }
    Some(url)
}

fn entries(value: &ValueReader<'_>) -> Option<u32> {
    let entries = value.count()?;
    let within = u32::try_from(entries)
        .ok()
        .filter(|entries| *entries <= ENTRIES_MAX);
    if within.is_none() {
        value.error("`entries` is at most 100000", None);
    }
    within
}

fn timeout(value: &ValueReader<'_>) -> Option<Duration> {
    let timeout = value.positive_duration()?;
    if timeout > TIMEOUT_MAX {
        value.error("`timeout` is at most 30 s", None);
        return None;
    }
    Some(timeout)
}

fn header_name(value: &ValueReader<'_>) -> Option<HeaderName> {
    value.parsed("the name of a header", |text| {
        let name: HeaderName = text
            .parse()
            .map_err(|_| "the text is not the name of a header")?;
        if is_of_the_connection(&name) {
            return Err("the header belongs to one connection: it is not forwarded");
        }
        if name == HOST || name == FORWARDED || name.as_str().starts_with("x-forwarded-") {
            return Err("Sidestream itself names the request in `X-Forwarded-*`");
        }
        if name.as_str().starts_with("sidestream-") {
            return Err("headers that begin with `Sidestream-` are those of the answer");
        }
        Ok(name)
    })
}

/// Returns whether a header is for the next hop only (RFC 9110, 7.6.1).
fn is_of_the_connection(name: &HeaderName) -> bool {
    const NAMES: [HeaderName; 9] = [
        CONNECTION,
        CONTENT_LENGTH,
        EXPECT,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    NAMES.contains(name) || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

#[cfg(test)]
mod tests {
    use crate::config::load::parse_bytes;
    use crate::config::{Loaded, Problems, effective};

    fn provider(forward: &str) -> Result<Loaded, Problems> {
        let text = format!(
            "routes: [{{ path: /a, authenticate: [app], sources: [{{ subjects: [a] }}] }}]\n\
             authentication:\n  providers:\n    - name: app\n      forward: {{ {forward} }}\n"
        );
        parse_bytes(text.as_bytes(), "f", &|_| None)
    }

    fn problem(forward: &str) -> String {
        let problems = provider(forward).expect_err(forward);
        problems.as_slice()[0].message.clone()
    }

    #[test]
    fn absent_keys_have_their_defaults() {
        let shown = |forward: &str| {
            let loaded = provider(forward).unwrap_or_else(|problems| panic!("{problems}"));
            assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
            effective(&loaded.config)["authentication"]["providers"][0]["forward"].clone()
        };
        assert_eq!(
            shown("url: 'http://127.0.0.1:3000/authorize'"),
            serde_json::json!({
                "url": "http://127.0.0.1:3000/authorize", "ca": null,
                "send": ["authorization", "cookie"], "timeout": "2s",
                "cache": { "for": "10s", "entries": 10000 },
            })
        );
        let all = "url: 'https://app.example/authorize?rd=a', ca: /ca.pem, send: [X-Api-Key], \
                   timeout: 500ms, cache: { for: 1m, entries: 5 }";
        assert_eq!(
            shown(all),
            serde_json::json!({
                "url": "https://app.example/authorize?rd=a", "ca": "/ca.pem",
                "send": ["x-api-key"], "timeout": "500ms", "cache": { "for": "1m", "entries": 5 },
            })
        );
        assert_eq!(
            shown("url: 'http://[::1]/', cache: null")["cache"],
            serde_json::Value::Null
        );
    }

    #[test]
    fn contradictions_are_problems() {
        const URL: &str = "url: 'http://127.0.0.1:3000/'";
        let hop = "the header belongs to one connection: it is not forwarded";
        let own = "Sidestream itself names the request in `X-Forwarded-*`";
        for (forward, message) in [
            (
                "timeout: 1s",
                "`url` is missing in `authentication.providers[0].forward`",
            ),
            ("url: /authorize", "a URL is written as `https://host/path`"),
            (
                "url: 'http://me:pw@127.0.0.1/'",
                "the URL has no user name, no password and no fragment",
            ),
            (
                &format!("{URL}, ca: /ca.pem"),
                "`ca` needs a URL with `https`",
            ),
            (&format!("{URL}, send: [Connection]"), hop),
            (&format!("{URL}, send: [keep-alive]"), hop),
            (&format!("{URL}, send: [transfer-encoding]"), hop),
            (&format!("{URL}, send: [X-Forwarded-For]"), own),
            (&format!("{URL}, send: [host]"), own),
            (&format!("{URL}, send: [forwarded]"), own),
            (
                &format!("{URL}, send: [Sidestream-Claim-Sub]"),
                "headers that begin with `Sidestream-` are those of the answer",
            ),
            (
                &format!("{URL}, send: ['a b']"),
                "the text is not the name of a header",
            ),
            (
                &format!("{URL}, timeout: 0"),
                "`timeout` must be more than 0",
            ),
            (&format!("{URL}, timeout: 31s"), "`timeout` is at most 30 s"),
            (
                &format!("{URL}, cache: {{ entries: 100001 }}"),
                "`entries` is at most 100000",
            ),
        ] {
            assert_eq!(problem(forward), message, "{forward}");
        }
    }

    #[test]
    fn endpoint_elsewhere_without_tls_is_a_warning() {
        let loaded = provider("url: 'http://app.example/authorize'").unwrap();
        assert_eq!(
            loaded.warnings[0].message,
            "the credentials of clients are sent without TLS: anyone on the path can read them"
        );
    }
}
