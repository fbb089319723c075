//! Reads `nats:`: the servers, who we are to them, and TLS.

use async_nats::ServerAddr;

use super::super::walk::{Keys, Place};
use crate::nats::config::{Config, Credentials, Secret, Tls};

pub(super) fn nats(place: &Place<'_>) -> Option<Config> {
    place.map(|keys| {
        let default = Config::default();
        Some(Config {
            servers: keys.or("servers", default.servers, all_servers),
            credentials: credentials(keys),
            tls: keys.nullable("tls", Some(default.tls), tls).flatten(),
        })
    })
}

/// 1000 addresses, however they are written: many times the largest cluster. Each attempt to connect goes through them.
const SERVERS_MAX: usize = 1000;

fn all_servers(place: &Place<'_>) -> Option<Vec<String>> {
    let servers = place.some(servers)?.concat();
    if servers.len() > SERVERS_MAX {
        place.problem(
            format!(
                "`servers` has {} addresses, at most {SERVERS_MAX} are read",
                servers.len()
            ),
            None,
        );
        return None;
    }
    Some(servers)
}

/// One address, or several in one text with commas between them, as all NATS clients take them.
fn servers(place: &Place<'_>) -> Option<Vec<String>> {
    place.parsed("an address", |text| {
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
            Err("the address of a NATS server is written as `nats://host:4222` or `tls://host:4222`, several with commas between them")
        }
    })
}

fn credentials(keys: &mut Keys<'_>) -> Credentials {
    let file = keys.nullable("credentials", None, Place::file);
    let user = keys.nullable("user", None, Place::text);
    let password = keys.nullable("password", None, Place::text);
    let token = keys.nullable("token", None, Place::text);
    let nkey = keys.nullable("nkey", None, seed);
    let ways: Vec<&str> = ["credentials", "user", "token", "nkey"]
        .into_iter()
        .filter(|key| keys.has(key))
        .collect();
    if let [first, others @ ..] = &ways[..] {
        for other in others {
            let message = format!("`{other}` stands beside `{first}`");
            keys.problem(
                other,
                message,
                Some(
                    "say in one way only who we are: credentials, user and password, token or nkey",
                ),
            );
        }
    }
    if keys.has("user") && !keys.has("password") {
        keys.problem(
            "user",
            "`user` has no `password`",
            Some("NATS knows no user without one; for a token there is `token`"),
        );
    }
    if keys.has("password") && !keys.has("user") {
        keys.problem("password", "`password` has no `user`", None);
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

fn seed(place: &Place<'_>) -> Option<String> {
    place.parsed("the seed of an nkey", |text| {
        // 32 bytes with prefix and checksum in base32, as `nk -gen user` prints them.
        let sound = text.len() == 58
            && text.starts_with("SU")
            && text
                .bytes()
                .all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7'));
        if sound {
            Ok(text.to_owned())
        } else {
            Err("the seed of a user's nkey begins with `SU` and has 58 characters")
        }
    })
}

fn tls(place: &Place<'_>) -> Option<Option<Tls>> {
    place.map(|keys| {
        let required = keys.nullable("required", None, Place::boolean);
        let handshake_first = keys.or("handshake_first", false, Place::boolean);
        let ca = keys.nullable("ca", None, Place::file);
        let certificate = keys.nullable("certificate", None, Place::file);
        let key = keys.nullable("key", None, Place::file);
        for (one, other) in [("certificate", "key"), ("key", "certificate")] {
            if keys.has(one) && !keys.has(other) {
                keys.problem(
                    one,
                    format!("`{one}` has no `{other}`"),
                    Some("mutual TLS needs both"),
                );
            }
        }
        if required == Some(false) && (handshake_first || ca.is_some() || certificate.is_some()) {
            let hint = "leave `required` out: files and `handshake_first` ask for TLS";
            keys.problem(
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
        // Defaults ask for nothing: as if the key were not there.
        Some(Some(tls).filter(|tls| *tls != Tls::default()))
    })
}
