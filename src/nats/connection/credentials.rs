//! Connection options for each kind of credentials.
//!
//! User and password, token and nkey seed are passed to the client library. A `.creds` file is read
//! at every connect in an authentication callback, so that a rotated file is used without a
//! restart.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_nats::{Auth, AuthError, ConnectOptions, ServerAddr};

use crate::nats::config::{Credentials, Secret};

/// Returns connection options with these credentials. Without credentials, those in the server
/// addresses are used.
pub(super) fn options(credentials: &Credentials, servers: &[ServerAddr]) -> ConnectOptions {
    match credentials {
        Credentials::None => match servers.iter().find(|server| server.has_user_pass()) {
            Some(server) => in_address(server),
            None => ConnectOptions::new(),
        },
        Credentials::File(path) => from_file(path.clone()),
        Credentials::Password {
            user,
            password: Secret(password),
        } => ConnectOptions::with_user_and_password(user.clone(), password.clone()),
        Credentials::Token(Secret(token)) => ConnectOptions::with_token(token.clone()),
        Credentials::Nkey(Secret(seed)) => ConnectOptions::with_nkey(seed.clone()),
    }
}

/// Credentials from an address: `nats://name:password@host`, or `nats://token@host` as NATS reads
/// it.
fn in_address(server: &ServerAddr) -> ConnectOptions {
    let user = decoded(server.username().unwrap_or_default());
    match server.password() {
        Some(password) => ConnectOptions::with_user_and_password(user, decoded(password)),
        None => ConnectOptions::with_token(user),
    }
}

/// Percent-decodes a part of an address (`p%40ss` is `p@ss`).
fn decoded(part: &str) -> String {
    percent_encoding::percent_decode_str(part)
        .decode_utf8_lossy()
        .into_owned()
}

/// Reads the credentials file at every connect, so that a rotated file is used without a restart.
fn from_file(path: PathBuf) -> ConnectOptions {
    let path: Arc<Path> = path.into();
    ConnectOptions::with_auth_callback(move |nonce| {
        let path = Arc::clone(&path);
        async move {
            let sign = async {
                let text = tokio::fs::read_to_string(&path).await?;
                let (jwt, seed) = parse(&text)?;
                let pair = nkeys::KeyPair::from_seed(seed).map_err(io::Error::other)?;
                let signature = pair.sign(&nonce).map_err(io::Error::other)?;
                let mut auth = Auth::new();
                auth.jwt = Some(jwt.to_owned());
                auth.signature = Some(signature);
                Ok::<Auth, io::Error>(auth)
            };
            sign.await.map_err(|error| {
                AuthError::new(format!("credentials file {}: {error}", path.display()))
            })
        }
    })
}

/// Returns the JWT and the seed: the first line after each of the two `-----BEGIN` lines.
fn parse(text: &str) -> io::Result<(&str, &str)> {
    let mut sections = text.split("-----BEGIN ").skip(1).filter_map(|section| {
        section
            .lines()
            .skip(1)
            .map(str::trim)
            .find(|line| !line.is_empty())
    });
    match (sections.next(), sections.next()) {
        (Some(jwt), Some(seed)) => Ok((jwt, seed)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "expected a user JWT and an nkey seed",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "-----BEGIN NATS USER JWT-----\r\neyJ0.x-_y.z=\r\n------END NATS USER JWT------\r\n\r\n\
        ************************* IMPORTANT *************************\r\nNKEY Seed printed below\r\n\r\n\
        -----BEGIN USER NKEY SEED-----\nSUAI\n------END USER NKEY SEED------\n";

    #[test]
    fn credentials_in_an_address_are_percent_decoded() {
        for (address, user, password) in [
            ("nats://me:p%40ss%3aw%2Frd@h", "me", "p@ss:w/rd"),
            ("nats://m%C3%A9:%25@h", "m\u{e9}", "%"),
            ("nats://a:b+c@h", "a", "b+c"),
        ] {
            let address: ServerAddr = address.parse().unwrap();
            assert_eq!(decoded(address.username().unwrap()), user);
            assert_eq!(decoded(address.password().unwrap()), password);
        }
    }

    #[test]
    fn credentials_file_contains_a_jwt_and_a_seed() {
        assert_eq!(parse(FILE).unwrap(), ("eyJ0.x-_y.z=", "SUAI"));
        for broken in ["", "x", "-----BEGIN NATS USER JWT-----", &FILE[..80]] {
            assert!(parse(broken).is_err(), "{broken:?}");
        }
    }
}
