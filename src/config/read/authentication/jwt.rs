//! Reads `jwt:` of a provider: signed tokens.

use hyper::Uri;

use super::checks::{is_token, is_unprotected, report_unless_one};
use crate::auth::Secret;
use crate::auth::config::{JwtConfig, KeysConfig, TokenSource, parse_url};
use crate::config::reader::ValueReader;
use crate::config::reader::map::MapReader;

/// 32 bytes: RFC 7518, section 3.2. A shorter secret can be found by trying.
const SECRET_BYTES_MIN: usize = 32;

pub(super) fn jwt(value: &ValueReader<'_>) -> Option<JwtConfig> {
    value.map(|keys| {
        let issuer = keys.nullable("issuer", None, ValueReader::text);
        let audience = keys.get("audience", |value| value.list(ValueReader::text));
        let key_origin = keys.require("keys", |value| key_origin(value, issuer.as_deref()));
        let algorithms = keys.get("algorithms", |value| {
            value.some(|value| value.one_of(&JwtConfig::ALGORITHMS))
        });
        let leeway = keys.get_or("leeway", JwtConfig::LEEWAY, ValueReader::duration);
        let from = keys.get_or("from", vec![TokenSource::Bearer], |value| {
            value.some(token_source)
        });
        let key_origin = key_origin?;
        if matches!(key_origin, KeysConfig::Discovery { .. }) {
            check_issuer(keys, issuer.as_deref());
        }
        if audience.is_none() && !matches!(key_origin, KeysConfig::Secret(_)) {
            keys.warn(
                "audience",
                "`audience` is not set: tokens that the issuer made for other services are accepted too",
                "name this service, or write `audience: []` if that is intended",
            );
        }
        let algorithms = algorithms.unwrap_or_else(|| key_origin.default_algorithms());
        if !algorithms.iter().all(|algorithm| key_origin.allow(*algorithm)) {
            let (message, hint) = match key_origin {
                KeysConfig::Secret(_) => ("a secret has the algorithms `HS256`, `HS384` and `HS512` only", "remove `algorithms`, or use public keys"),
                _ => ("`HS256`, `HS384` and `HS512` need `keys.secret`", "a public key is not a secret: remove them"),
            };
            keys.error("algorithms", message, Some(hint));
        }
        Some(JwtConfig {
            issuer,
            audience: audience.unwrap_or_default(),
            keys: key_origin,
            algorithms,
            leeway,
            from,
        })
    })
}

/// Reads `keys`: exactly one origin.
fn key_origin(value: &ValueReader<'_>, issuer: Option<&str>) -> Option<KeysConfig> {
    value.map(|keys| {
        let discovery = keys.nullable("discovery", None, ValueReader::boolean);
        let jwks = keys.nullable("jwks", None, url);
        let file = keys.nullable("file", None, ValueReader::file);
        let secret = keys.nullable("secret", None, secret);
        let ca = keys.nullable("ca", None, ValueReader::file);
        let mut origins = vec!["jwks", "file", "secret"];
        origins.retain(|key| keys.has(key));
        if discovery == Some(true) {
            origins.insert(0, "discovery");
        }
        let hint = "use one of `discovery: true`, `jwks`, `file` and `secret`";
        report_unless_one(keys, &origins, "`keys` names no keys", hint);
        if ca.is_some() && !matches!(origins.first(), Some(&("discovery" | "jwks"))) {
            keys.error("ca", "`ca` needs `discovery` or `jwks`", None);
        }
        match (discovery, jwks, file, secret) {
            // Without an issuer, the caller reports it.
            (Some(true), ..) => Some(KeysConfig::Discovery {
                issuer: issuer.unwrap_or_default().to_owned(),
                ca,
            }),
            (_, Some(url), ..) => Some(KeysConfig::Jwks { url, ca }),
            (_, _, Some(file), _) => Some(KeysConfig::File(file)),
            (.., Some(secret)) => Some(KeysConfig::Secret(secret)),
            _ => None,
        }
    })
}

/// Checks the issuer as the URL of its discovery document.
fn check_issuer(keys: &MapReader<'_>, issuer: Option<&str>) {
    let Some(issuer) = issuer else {
        if !keys.has("issuer") {
            keys.error("keys", "`discovery` needs `issuer`", None);
        }
        return;
    };
    match parse_url(issuer) {
        Err(fault) => keys.error("issuer", fault, None),
        // OpenID Connect Discovery 1.0, section 3.
        Ok(url) if url.query().is_some() => {
            keys.error("issuer", "the URL of an issuer has no query", None);
        }
        Ok(url) if is_unprotected(&url) => keys.warn("issuer", UNPROTECTED, USE_HTTPS),
        Ok(_) => {}
    }
}

const UNPROTECTED: &str =
    "the keys are fetched without TLS: anyone on the path can replace them and sign tokens";
const USE_HTTPS: &str = "use `https://`";

fn url(value: &ValueReader<'_>) -> Option<Uri> {
    let url = value.parsed("a URL", parse_url)?;
    if is_unprotected(&url) {
        value.warn(UNPROTECTED, USE_HTTPS);
    }
    Some(url)
}

fn secret(value: &ValueReader<'_>) -> Option<Secret> {
    let secret = value.text()?;
    if secret.len() < SECRET_BYTES_MIN {
        value.warn(
            "the secret is shorter than 32 bytes: it can be found by trying",
            "make one with `openssl rand -base64 32`",
        );
    }
    Some(Secret(secret))
}

fn token_source(value: &ValueReader<'_>) -> Option<TokenSource> {
    let source = value.parsed("a place of a token", |text| match text.split_once(':') {
        None if text == "bearer" => Ok(TokenSource::Bearer),
        Some(("cookie", name)) if is_token(name) => Ok(TokenSource::Cookie(name.to_owned())),
        Some(("query", name)) if is_token(name) => Ok(TokenSource::Query(name.to_owned())),
        _ => Err("the place of a token is `bearer`, `cookie:NAME` or `query:NAME`"),
    })?;
    if matches!(source, TokenSource::Query(_)) {
        value.warn(
            "the token is part of the URL: browsers, proxies and logs keep URLs",
            "use `bearer` or a cookie if the clients can send one",
        );
    }
    Some(source)
}

#[cfg(test)]
mod tests {
    use crate::config::load::parse_bytes;
    use crate::config::{Loaded, Problems, effective};

    const ROUTES: &str = "routes: [{ path: /a, sources: [{ subjects: [a] }] }]\n";
    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn provider(jwt: &str) -> Result<Loaded, Problems> {
        let text = format!(
            "{ROUTES}authentication:\n  providers:\n    - name: idp\n      jwt: {{ {jwt} }}\n"
        );
        let environment = |name: &str| (name == "JWT_SECRET").then(|| SECRET.to_owned());
        parse_bytes(text.as_bytes(), "f", &environment)
    }

    fn problem(jwt: &str) -> String {
        let problems = provider(jwt).expect_err(jwt);
        problems.as_slice()[0].message.clone()
    }

    fn warnings(jwt: &str) -> Vec<String> {
        let loaded = provider(jwt).unwrap_or_else(|problems| panic!("{jwt}: {problems}"));
        let warnings = loaded.warnings.iter();
        warnings.map(|problem| problem.message.clone()).collect()
    }

    #[test]
    fn complete_providers_have_no_warning() {
        for jwt in [
            "keys: { secret: '${JWT_SECRET}' }",
            "keys: { secret: '${JWT_SECRET}', discovery: false, jwks: null }, algorithms: [HS512]",
            "issuer: 'https://id.example.com/', audience: [a], keys: { discovery: true, ca: /ca.pem }",
            "issuer: 'http://127.0.0.1:8080', audience: [], keys: { discovery: true }",
            "issuer: other, audience: [a], keys: { jwks: 'https://id.example.com/jwks?a=b' }",
            "audience: [], keys: { jwks: 'http://[::1]:80/' }, from: ['cookie:__Secure-session', bearer]",
            "audience: [], keys: { file: /keys.pem }, algorithms: [RS512, ES384], leeway: 0",
        ] {
            assert!(warnings(jwt).is_empty(), "{jwt}: {:?}", warnings(jwt));
        }
    }

    #[test]
    fn secret_is_masked_and_absent_keys_have_their_defaults() {
        let loaded = provider("keys: { secret: '${JWT_SECRET}' }").unwrap();
        let shown = effective(&loaded.config)["authentication"]["providers"][0].clone();
        let expected = serde_json::json!({ "name": "idp", "jwt": {
            "issuer": null, "audience": [],
            "keys": { "discovery": false, "jwks": null, "file": null, "secret": "***", "ca": null },
            "algorithms": ["HS256"], "leeway": "30s", "from": ["bearer"],
        } });
        assert_eq!(shown, expected);
        assert!(!format!("{loaded:?}").contains(SECRET));
    }

    #[test]
    fn contradictions_are_problems() {
        for (jwt, message) in [
            (
                "issuer: a",
                "`keys` is missing in `authentication.providers[0].jwt`",
            ),
            ("keys: {}", "`keys` names no keys"),
            ("keys: { discovery: false }", "`keys` names no keys"),
            ("keys: { discovery: true }", "`discovery` needs `issuer`"),
            (
                "keys: { file: a, secret: b }",
                "`secret` and `file` are both set",
            ),
            (
                "issuer: 'https://a', keys: { discovery: true, jwks: 'https://a' }",
                "`jwks` and `discovery` are both set",
            ),
            (
                "keys: { file: a, ca: b }",
                "`ca` needs `discovery` or `jwks`",
            ),
            (
                "issuer: a, keys: { discovery: true }",
                "a URL is written as `https://host/path`",
            ),
            (
                "issuer: 'https://a/?b', keys: { discovery: true }",
                "the URL of an issuer has no query",
            ),
            (
                "keys: { jwks: 'ftp://a/b' }",
                "a URL is written as `https://host/path`",
            ),
            (
                "keys: { jwks: 'https://me:pw@a/b' }",
                "the URL has no user name, no password and no fragment",
            ),
            (
                "audience: [], keys: { file: a }, algorithms: [RS256, HS256]",
                "`HS256`, `HS384` and `HS512` need `keys.secret`",
            ),
            (
                "keys: { secret: '${JWT_SECRET}' }, algorithms: [RS256]",
                "a secret has the algorithms `HS256`, `HS384` and `HS512` only",
            ),
            ("keys: { file: a }, algorithms: []", "`algorithms` is empty"),
            ("keys: { file: a }, from: []", "`from` is empty"),
            (
                "keys: { file: a }, from: ['cookie:']",
                "the place of a token is `bearer`, `cookie:NAME` or `query:NAME`",
            ),
        ] {
            assert_eq!(problem(jwt), message, "{jwt}");
        }
        assert!(
            problem("keys: { file: a }, algorithms: [none]")
                .starts_with("an item of `algorithms` must be `RS256` or")
        );
    }

    #[test]
    fn names_are_unique_and_short() {
        let problems = |names: [&str; 2]| {
            let provider =
                |name| format!("{{ name: '{name}', jwt: {{ keys: {{ secret: {SECRET} }} }} }}");
            let providers = names.map(provider).join(", ");
            let text = format!("{ROUTES}authentication: {{ providers: [{providers}] }}\n");
            parse_bytes(text.as_bytes(), "f", &|_| None)
                .map_or_else(|problems| problems.as_slice().len(), |_| 0)
        };
        assert_eq!(problems(["a", "b.c-D_1"]), 0);
        assert_eq!(problems(["a", "a"]), 1);
        assert_eq!(problems(["", "a b"]), 2);
        assert_eq!(problems(["a", &"x".repeat(65)]), 1);
    }

    #[test]
    fn unsafe_settings_are_warnings() {
        for (jwt, message) in [
            (
                "keys: { file: a }",
                "`audience` is not set: tokens that the issuer made for other services are accepted too",
            ),
            (
                "keys: { secret: short }",
                "the secret is shorter than 32 bytes: it can be found by trying",
            ),
            (
                "audience: [], keys: { jwks: 'http://id.example.com/jwks' }",
                super::UNPROTECTED,
            ),
            (
                "issuer: 'http://id.example.com', audience: [], keys: { discovery: true }",
                super::UNPROTECTED,
            ),
            (
                "keys: { secret: '${JWT_SECRET}' }, from: ['query:token']",
                "the token is part of the URL: browsers, proxies and logs keep URLs",
            ),
        ] {
            assert_eq!(warnings(jwt), [message], "{jwt}");
        }
    }
}
