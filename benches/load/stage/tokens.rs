//! Tokens of the clients, and the keys with which the sidecar verifies them.
//!
//! By default every client has a token of its own, as after a drain: the sidecar has seen none of
//! them.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::json;

use crate::Fallible;

/// Signature algorithm of the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Algorithm {
    /// ECDSA on P-256.
    Es256,
    /// HMAC with SHA-256.
    Hs256,
}

/// Issuer of the tokens of one run.
pub(crate) struct Tokens {
    key: SigningKey,
    tokens: Arc<[String]>,
}

enum SigningKey {
    Es256(EcdsaKeyPair),
    Hs256(hmac::Key),
}

/// Secret of the tokens with HS256, on loopback only.
const SECRET: &str = "the load tool signs its tokens with this secret";

/// 1 h: longer than any run.
const LIFE: Duration = Duration::from_secs(3600);

impl Tokens {
    /// Signs a token for each principal.
    pub(crate) fn new(algorithm: Algorithm, principals: usize) -> Fallible<Self> {
        let random = SystemRandom::new();
        let key = match algorithm {
            Algorithm::Es256 => {
                let document =
                    EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
                        .map_err(|_| "no key was made")?;
                let pair = EcdsaKeyPair::from_pkcs8(
                    &ECDSA_P256_SHA256_FIXED_SIGNING,
                    document.as_ref(),
                    &random,
                );
                SigningKey::Es256(pair.map_err(|_| "the key is not valid")?)
            }
            Algorithm::Hs256 => {
                SigningKey::Hs256(hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()))
            }
        };
        let now = SystemTime::UNIX_EPOCH.elapsed()?;
        let tokens = (0..principals).map(|number| key.token(number, now, &random));
        let tokens = tokens.collect::<Fallible<_>>()?;
        Ok(Self { key, tokens })
    }

    /// Returns the tokens by the number of their principal.
    pub(crate) fn of_principals(&self) -> Arc<[String]> {
        Arc::clone(&self.tokens)
    }

    /// Writes the section `authentication` of the configuration, with the provider `load`.
    pub(crate) fn configure(&self, folder: &Path, text: &mut String) -> Fallible<()> {
        let keys = match &self.key {
            SigningKey::Hs256(_) => format!("secret: \"{SECRET}\""),
            SigningKey::Es256(pair) => {
                // An uncompressed point: 4, x, y.
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                let keys = json!({ "keys": [{
                    "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "load",
                    "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
                }] });
                let file = folder.join("keys.json");
                std::fs::write(&file, keys.to_string())?;
                format!("file: {}", file.display())
            }
        };
        writeln!(
            text,
            "authentication:
  providers:
    - name: load
      jwt: {{ issuer: load, audience: [load], keys: {{ {keys} }} }}"
        )?;
        Ok(())
    }
}

impl SigningKey {
    fn token(&self, number: usize, now: Duration, random: &SystemRandom) -> Fallible<String> {
        let algorithm = match self {
            Self::Es256(_) => "ES256",
            Self::Hs256(_) => "HS256",
        };
        let header = json!({ "alg": algorithm, "typ": "JWT", "kid": "load" });
        let claims = json!({
            "iss": "load", "aud": "load", "sub": format!("client-{number}"),
            "iat": now.as_secs(), "exp": (now + LIFE).as_secs(),
            "jti": format!("{number:032x}"), "scope": "openid profile", "name": "A client",
        });
        let [header, claims] =
            [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let message = format!("{header}.{claims}");
        let signature = match self {
            Self::Es256(pair) => {
                let signature = pair.sign(random, message.as_bytes());
                URL_SAFE_NO_PAD.encode(signature.map_err(|_| "no signature was made")?)
            }
            Self::Hs256(key) => URL_SAFE_NO_PAD.encode(hmac::sign(key, message.as_bytes())),
        };
        Ok(format!("{message}.{signature}"))
    }
}
