//! Reads `admin:`: addresses, the token and TLS of the admin port.

use std::path::PathBuf;

use super::listen::{address, tls};
use crate::admin::Config;
use crate::admin::config::{NOT_A_TOKEN, is_token};
use crate::auth::Secret;
use crate::config::reader::ValueReader;

/// 32 bytes: as long as the shared secret of a token provider. A shorter one can be found by trying.
const TOKEN_BYTES_MIN: usize = 32;

pub(super) fn admin(value: &ValueReader<'_>) -> Option<Config> {
    value.map(|keys| {
        let default = Config::default();
        let token = keys.nullable("token", None, token);
        if keys.is_filled_with_nothing("token") {
            // Not null: an empty variable would open the pages.
            let hint =
                "set it, or write `token: ${NAME:-null}` without quotes if it may be missing";
            keys.error("token", "the variable of the token is empty", Some(hint));
        }
        let token_file = keys.nullable("token_file", None, ValueReader::file);
        if token.is_some() && token_file.is_some() {
            let hint = "remove one of them";
            keys.error(
                "token_file",
                "`token` and `token_file` are both set",
                Some(hint),
            );
        }
        Some(Config {
            address: keys.get_or("address", default.address, address),
            hosts: keys.get_or("hosts", default.hosts, |value| value.list(host_name)),
            control: keys.get_or("control", default.control, |value| value.auto_or(control)),
            token,
            token_file,
            tls: keys.nullable("tls", None, tls),
            tap: keys.get_or("tap", default.tap, ValueReader::boolean),
        })
    })
}

fn token(value: &ValueReader<'_>) -> Option<Secret> {
    let token = value.parsed("a token", |text| {
        if is_token(text) {
            Ok(text.to_owned())
        } else {
            Err(NOT_A_TOKEN)
        }
    })?;
    if token.len() < TOKEN_BYTES_MIN {
        value.warn(
            "the token is shorter than 32 bytes: it can be found by trying",
            "make one with `openssl rand -base64 32`",
        );
    }
    Some(Secret(token))
}

fn host_name(value: &ValueReader<'_>) -> Option<String> {
    value.parsed("a host name", |text| {
        let is_of_a_name =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        match text.strip_suffix('.').unwrap_or(text) {
            "" => Err("the host name is empty"),
            name if name.bytes().all(is_of_a_name) => Ok(name.to_owned()),
            _ => Err("a host name has letters, digits, `-`, `_` and dots, and no port"),
        }
    })
}

fn control(value: &ValueReader<'_>) -> Option<PathBuf> {
    value.parsed("`auto` or a path", |text| match text.len() {
        0 => Err("the path is empty"),
        // unix(7): `sun_path` has 108 bytes, the last of them 0.
        1..=107 => Ok(PathBuf::from(text)),
        _ => Err("the path of a unix socket has at most 107 bytes"),
    })
}

#[cfg(test)]
mod tests {
    use crate::config::load::parse_bytes;
    use crate::config::{Loaded, Problems, effective};

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn admin(keys: &str) -> Result<Loaded, Problems> {
        let text = format!(
            "routes: [{{ path: /a, sources: [{{ subjects: [a] }}] }}]\nadmin: {{ {keys} }}\n"
        );
        let environment = |name: &str| match name {
            "ADMIN_TOKEN" => Some(format!("{TOKEN}\n")),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        parse_bytes(text.as_bytes(), "f", &environment)
    }

    fn problem(keys: &str) -> String {
        admin(keys).expect_err(keys).as_slice()[0].message.clone()
    }

    #[test]
    fn token_from_the_environment_is_masked() {
        let loaded = admin("token: '${ADMIN_TOKEN}'").unwrap();
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        assert_eq!(loaded.config.admin.token.as_ref().unwrap().0, TOKEN);
        assert!(loaded.config.admin.is_protected());
        assert_eq!(effective(&loaded.config)["admin"]["token"], "***");
        assert!(!format!("{loaded:?}").contains(TOKEN));
    }

    #[test]
    fn missing_variable_protects_nothing_only_if_the_default_says_so() {
        for open in ["token: null", "token: ~", "hosts: []"] {
            assert!(!admin(open).unwrap().config.admin.is_protected(), "{open}");
        }
        // Outside of braces, where a text may have some.
        let text = "routes: [{ path: /a, sources: [{ subjects: [a] }] }]\nadmin:\n  token: ${NONE:-null}\n";
        let loaded = parse_bytes(text.as_bytes(), "f", &|_| None).unwrap();
        assert!(!loaded.config.admin.is_protected());
        for empty in ["token: '${EMPTY}'", "token: '${NONE:-}'"] {
            assert_eq!(problem(empty), "the variable of the token is empty");
        }
        assert_eq!(
            problem("token: '${NONE}'"),
            "the environment variable `NONE` is not set"
        );
    }

    #[test]
    fn tokens_that_cannot_be_sent_and_two_origins_are_problems_and_short_ones_a_warning() {
        assert_eq!(
            problem("token: 'two words'"),
            "a token has letters, digits and `-._~+/=` only"
        );
        assert_eq!(
            problem(&format!("token: {TOKEN}, token_file: /token")),
            "`token` and `token_file` are both set"
        );
        let loaded = admin("token: short").unwrap();
        assert_eq!(
            loaded.warnings[0].message,
            "the token is shorter than 32 bytes: it can be found by trying"
        );
    }

    #[test]
    fn token_is_never_quoted() {
        for keys in [
            "token: abcSECRET,defSECRET",
            "token: [abcSECRET]",
            "token: 'abc SECRET!'",
            "tokn: abcSECRET",
            "token_file: /a, token: abcSECRET",
        ] {
            let problems = admin(keys).expect_err(keys).to_string();
            assert!(!problems.contains("SECRET"), "{keys}: {problems}");
        }
    }

    #[test]
    fn tls_has_the_keys_of_a_listener() {
        let loaded = admin("tls: { certificate: /c, key: /k, client_ca: /ca }").unwrap();
        assert!(loaded.config.admin.is_protected());
        assert_eq!(
            effective(&loaded.config)["admin"]["tls"],
            serde_json::json!({ "certificate": "/c", "key": "/k", "client_ca": "/ca" })
        );
        let loaded = admin("tls: { certificate: /c, key: /k }").unwrap();
        assert!(!loaded.config.admin.is_protected());
    }
}
