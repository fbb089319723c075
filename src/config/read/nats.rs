//! Reads `nats:`: servers, credentials and TLS.

use async_nats::ServerAddr;

use crate::config::reader::ValueReader;
use crate::config::reader::map::MapReader;
use crate::nats::config::{Config, Credentials, Secret, Tls};

pub(super) fn nats(value: &ValueReader<'_>) -> Option<Config> {
    value.map(|keys| {
        let default = Config::default();
        Some(Config {
            servers: keys.get_or("servers", default.servers, all_servers),
            credentials: credentials(keys),
            tls: keys.nullable("tls", Some(default.tls), tls).flatten(),
        })
    })
}

/// 1000 addresses in all items together: many times the largest cluster. Each attempt to connect
/// tries all of them.
const SERVERS_MAX: usize = 1000;

fn all_servers(value: &ValueReader<'_>) -> Option<Vec<String>> {
    let servers = value.some(servers)?.concat();
    if servers.len() > SERVERS_MAX {
        value.error(
            format!(
                "`servers` has {} addresses, the maximum is {SERVERS_MAX}",
                servers.len()
            ),
            None,
        );
        return None;
    }
    Some(servers)
}

/// Reads one address, or several separated by commas, as all NATS clients accept them.
fn servers(value: &ValueReader<'_>) -> Option<Vec<String>> {
    value.parsed("an address", |text| {
        let is_address = |text: &str| {
            text.parse::<ServerAddr>().is_ok_and(|address| {
                let url = address.into_inner();
                matches!(url.scheme(), "nats" | "tls") && url.has_host() && matches!(url.path(), "" | "/")
            })
        };
        let addresses: Vec<String> = text.split(',').map(|address| address.trim().to_owned()).collect();
        if addresses.iter().all(|address| is_address(address)) {
            Ok(addresses)
        } else {
            Err("the address of a NATS server is written as `nats://host:4222` or `tls://host:4222`, several separated by commas")
        }
    })
}

fn credentials(keys: &mut MapReader<'_>) -> Credentials {
    let file = keys.nullable("credentials", None, ValueReader::file);
    let user = keys.nullable("user", None, ValueReader::text);
    let password = keys.nullable("password", None, ValueReader::text);
    let token = keys.nullable("token", None, ValueReader::text);
    let nkey = keys.nullable("nkey", None, seed);
    let ways: Vec<&str> = ["credentials", "user", "token", "nkey"]
        .into_iter()
        .filter(|key| keys.has(key))
        .collect();
    if let [first, others @ ..] = &ways[..] {
        for other in others {
            let message = format!("`{other}` and `{first}` are both set");
            keys.error(
                other,
                message,
                Some(
                    "use one kind of credentials: `credentials`, `user` and `password`, `token` or `nkey`",
                ),
            );
        }
    }
    if keys.has("user") && !keys.has("password") {
        keys.error(
            "user",
            "`user` has no `password`",
            Some("set `password`, or use `token` for a token"),
        );
    }
    if keys.has("password") && !keys.has("user") {
        keys.error("password", "`password` has no `user`", None);
    }
    match (file, user, password, token, nkey) {
        (Some(file), ..) => Credentials::File(file),
        (_, Some(user), Some(password), ..) => Credentials::Password {
            user,
            password: Secret(password),
        },
        (.., Some(token), _) => Credentials::Token(Secret(token)),
        (.., Some(nkey)) => Credentials::Nkey(Secret(nkey)),
        _ => Credentials::None,
    }
}

fn seed(value: &ValueReader<'_>) -> Option<String> {
    value.parsed("the seed of an nkey", |text| {
        // 32 bytes with prefix and checksum in base32, as `nk -gen user` prints them.
        let is_valid = text.len() == 58
            && text.starts_with("SU")
            && text
                .bytes()
                .all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7'));
        if is_valid {
            Ok(text.to_owned())
        } else {
            Err("the seed of a user's nkey begins with `SU` and has 58 characters")
        }
    })
}

fn tls(value: &ValueReader<'_>) -> Option<Option<Tls>> {
    value.map(|keys| {
        let required = keys.nullable("required", None, ValueReader::boolean);
        let handshake_first = keys.get_or("handshake_first", false, ValueReader::boolean);
        let ca = keys.nullable("ca", None, ValueReader::file);
        let certificate = keys.nullable("certificate", None, ValueReader::file);
        let key = keys.nullable("key", None, ValueReader::file);
        for (one, other) in [("certificate", "key"), ("key", "certificate")] {
            if keys.has(one) && !keys.has(other) {
                keys.error(
                    one,
                    format!("`{one}` has no `{other}`"),
                    Some("mutual TLS needs both"),
                );
            }
        }
        if required == Some(false) && (handshake_first || ca.is_some() || certificate.is_some()) {
            let hint = "remove `required`: files and `handshake_first` require TLS";
            keys.error(
                "required",
                "`required: false` contradicts the other keys of `tls`",
                Some(hint),
            );
        }
        let tls = Tls {
            required,
            handshake_first,
            ca,
            certificate,
            key,
        };
        // A section with defaults only is the same as no section.
        Some(Some(tls).filter(|tls| *tls != Tls::default()))
    })
}
