//! Tokens, keys and claims: attacks, forms, times.

mod provider;

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use proptest::prelude::*;
use ring::hmac;
use serde_json::{Value, json};

use super::claims::identity;
use super::crypto;
use super::key_set::{InvalidKeys, KeySet};
use super::token::{Rejected, verified_claims};
use crate::auth::clock::Now;
use crate::auth::config::{JwtConfig, KeysConfig, TokenSource};
use crate::auth::{Identity, Secret};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Public RSA key as JWK and PEM, and a token for each RSA algorithm.
const RSA: &str = include_str!("../../../tests/fixtures/jwt/rsa.json");

fn rsa() -> Value {
    serde_json::from_str(RSA).unwrap()
}

fn signed(header: &str, claims: &str, secret: &[u8]) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let message = format!("{}.{}", part(header), part(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let signature = hmac::sign(&key, message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn hs256(claims: &str) -> String {
    signed(r#"{"alg":"HS256"}"#, claims, SECRET.as_bytes())
}

fn secret_keys() -> KeySet {
    crypto::install();
    KeySet::of_secret(&Secret(SECRET.into()))
}

fn rsa_keys() -> KeySet {
    crypto::install();
    KeySet::from_jwks(json!({ "keys": [rsa()["jwk"]] }).to_string().as_bytes()).unwrap()
}

/// Message of a token that the secret's provider rejects.
fn rejected(token: &str) -> &'static str {
    match verified_claims(token, &secret_keys(), &[Algorithm::HS256]) {
        Err(Rejected::Invalid(message)) => message,
        other => panic!("{token}: {other:?}"),
    }
}

// --- Signatures ---

#[test]
fn every_rsa_algorithm_is_verified_by_jwk_and_by_pem() {
    let rsa = rsa();
    let pem = KeySet::from_file(rsa["pem"].as_str().unwrap().as_bytes()).unwrap();
    for (name, token) in rsa["tokens"].as_object().unwrap() {
        let (token, algorithm) = (token.as_str().unwrap(), name.parse().unwrap());
        for keys in [&rsa_keys(), &pem] {
            let claims = verified_claims(token, keys, &[algorithm]).unwrap();
            assert_eq!(claims["sub"], "alice", "{name}");
            let changed = token.replacen(".ey", ".eY", 1);
            assert!(
                verified_claims(&changed, keys, &[algorithm]).is_err(),
                "{name}"
            );
        }
    }
}

#[test]
fn public_key_is_never_the_secret_of_an_hmac() {
    let rsa = rsa();
    let pem = rsa["pem"].as_str().unwrap();
    let der = pem
        .lines()
        .filter(|line| !line.starts_with('-'))
        .collect::<String>();
    let der = base64::engine::general_purpose::STANDARD
        .decode(der)
        .unwrap();
    for secret in [pem.as_bytes(), pem.trim().as_bytes(), &der] {
        let token = signed(r#"{"alg":"HS256","kid":"rsa"}"#, r#"{"sub":"eve"}"#, secret);
        for algorithms in [
            &[Algorithm::RS256][..],
            // The configuration rejects this pair; the key does it too.
            &[Algorithm::RS256, Algorithm::HS256],
        ] {
            let result = verified_claims(&token, &rsa_keys(), algorithms);
            assert!(matches!(result, Err(Rejected::Invalid(_))), "{result:?}");
        }
    }
}

#[test]
fn algorithm_of_a_key_must_be_that_of_the_token() {
    crypto::install();
    let rsa = rsa();
    let mut jwk = rsa["jwk"].clone();
    jwk["alg"] = "RS512".into();
    let keys = KeySet::from_jwks(json!({ "keys": [jwk] }).to_string().as_bytes()).unwrap();
    let all = [Algorithm::RS256, Algorithm::RS512];
    let token = |name: &str| rsa["tokens"][name].as_str().unwrap().to_owned();
    assert!(verified_claims(&token("RS512"), &keys, &all).is_ok());
    assert_eq!(
        verified_claims(&token("RS256"), &keys, &all),
        Err(Rejected::Invalid(
            "the key of the token has another algorithm"
        ))
    );
}

#[test]
fn unusable_tokens_are_rejected() {
    let none = |alg: &str| {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!(
            "{}.{}.",
            part(&format!(r#"{{"alg":"{alg}"}}"#)),
            part(r#"{"sub":"eve"}"#)
        )
    };
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        assert_eq!(rejected(&none(alg)), "the token is not a signed JWT");
    }
    let good = hs256(r#"{"sub":"alice"}"#);
    assert!(verified_claims(&good, &secret_keys(), &[Algorithm::HS256]).is_ok());
    let unsigned = good.rsplit_once('.').unwrap().0;
    let header = |header: &str| signed(header, r#"{"sub":"eve"}"#, SECRET.as_bytes());
    let deep = format!(r#"{{"sub":{}1{}}}"#, "[".repeat(1000), "]".repeat(1000));
    for (token, message) in [
        (String::new(), "the token is not a signed JWT"),
        ("a.b.c".into(), "the token is not a signed JWT"),
        (unsigned.into(), "the token is not a signed JWT"),
        (
            format!("{unsigned}."),
            "the signature of the token is invalid",
        ),
        (
            header(r#"{"alg":"HS384"}"#),
            "the signature algorithm of the token is not accepted",
        ),
        (
            header(r#"{"alg":"HS256","alg":"HS256"}"#),
            "the token is not a signed JWT",
        ),
        (
            header(&format!(r#"{{"alg":"HS256","x":{}}}"#, "[".repeat(1000))),
            "the token is not a signed JWT",
        ),
        (
            header(r#"{"alg":"HS256","kid":1}"#),
            "the token is not a signed JWT",
        ),
        (
            header(r#"{"alg":"HS256","crit":["exp"]}"#),
            "the content of the token is invalid",
        ),
        (
            signed(r#"{"alg":"HS256"}"#, "{}", b"another"),
            "the signature of the token is invalid",
        ),
        (hs256("[]"), "the content of the token is invalid"),
        (hs256("null"), "the content of the token is invalid"),
        (
            hs256(r#"{"sub":"a","sub":"b"}"#),
            "the content of the token is invalid",
        ),
        (
            hs256(r#"{"a":{"b":1,"b":2}}"#),
            "the content of the token is invalid",
        ),
        (hs256(&deep), "the content of the token is invalid"),
        (
            hs256(&format!(r#"{{"sub":"{}"}}"#, "x".repeat(64 << 10))),
            "the token is longer than 16 KiB",
        ),
    ] {
        assert_eq!(rejected(&token), message, "{token:.80}");
    }
}

proptest! {
    #[test]
    fn any_text_is_rejected(token in prop_oneof![any::<String>(), "[A-Za-z0-9_.-]{0,80}", "ey[A-Za-z0-9]{0,20}\\.[A-Za-z0-9]{0,20}\\.[A-Za-z0-9]{0,20}"]) {
        prop_assert!(verified_claims(&token, &secret_keys(), &[Algorithm::HS256]).is_err());
        prop_assert!(verified_claims(&token, &rsa_keys(), &[Algorithm::RS256]).is_err());
    }

    #[test]
    fn signed_text_of_any_form_gets_a_result(header in any::<String>(), claims in any::<String>()) {
        let known = signed(r#"{"alg":"HS256"}"#, &claims, SECRET.as_bytes());
        for token in [signed(&header, &claims, SECRET.as_bytes()), known] {
            drop(verified_claims(&token, &secret_keys(), &[Algorithm::HS256]));
        }
    }

    #[test]
    fn any_bytes_as_keys_get_a_result(bytes in prop::collection::vec(any::<u8>(), 0..300), text in "\\{\"keys\": ?\\[\\{\"kty\":\"(EC|RSA|OKP|oct)\",\"(n|x|crv|kid)\":\"[A-Za-z0-9=-]{0,20}\"\\}\\]\\}") {
        drop(KeySet::from_file(&bytes));
        prop_assert_eq!(KeySet::from_jwks(text.as_bytes()).unwrap_err(), InvalidKeys::NoneUsable);
    }
}

// --- Keys ---

#[test]
fn only_keys_for_signatures_are_used() {
    let rsa = rsa()["jwk"].clone();
    let with = |name: &str, value: Value| {
        let mut key = rsa.clone();
        key[name] = value;
        key
    };
    let short = URL_SAFE_NO_PAD.encode([255; 128]);
    let skipped = json!([
        with("use", "enc".into()),
        with("key_ops", json!(["encrypt"])),
        with("alg", "RSA-OAEP".into()),
        with("alg", "none".into()),
        with("n", short.into()),
        with("n", "%".into()),
        with("kid", 1.into()),
        { "kty": "oct", "k": "c2VjcmV0", "kid": "rsa" },
        { "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" },
        { "kty": "OKP", "crv": "Ed25519", "x": "AA" },
        { "kty": "new" }, "text", null,
    ]);
    let keys = |keys: &Value| KeySet::from_jwks(json!({ "keys": keys }).to_string().as_bytes());
    assert_eq!(keys(&skipped).unwrap_err(), InvalidKeys::NoneUsable);
    let mut one_more = skipped;
    one_more.as_array_mut().unwrap().push(rsa.clone());
    assert_eq!(keys(&one_more).unwrap().len(), 1);
    assert_eq!(
        keys(&json!(vec![rsa; 65])).unwrap_err(),
        InvalidKeys::TooMany
    );
    for bytes in ["", "[]", "{}", r#"{"keys":{}}"#, "<html>"] {
        let invalid = KeySet::from_jwks(bytes.as_bytes()).unwrap_err();
        assert_eq!(invalid, InvalidKeys::NotAKeySet, "{bytes}");
    }
}

#[test]
fn key_is_selected_by_its_id() {
    let rsa = rsa();
    let mut other = rsa["jwk"].clone();
    other["kid"] = "other".into();
    let keys = json!({ "keys": [other] }).to_string();
    let keys = KeySet::from_jwks(keys.as_bytes()).unwrap();
    for id in ["rsa", "", "../../etc/passwd", "OTHER"] {
        assert!(keys.candidates(Some(id)).is_empty(), "{id}");
    }
    assert_eq!(keys.candidates(Some("other")).len(), 1);
    assert_eq!(keys.candidates(None).len(), 1);
    let token = rsa["tokens"]["RS256"].as_str().unwrap();
    crypto::install();
    assert_eq!(
        verified_claims(token, &keys, &[Algorithm::RS256]),
        Err(Rejected::UnknownKey)
    );
}

// --- Claims ---

fn settings(keys: KeysConfig) -> JwtConfig {
    JwtConfig {
        issuer: Some("https://id.example.com".into()),
        audience: vec!["sidestream".into(), "other".into()],
        algorithms: keys.default_algorithms(),
        keys,
        leeway: Duration::from_secs(30),
        from: vec![TokenSource::Bearer],
    }
}

fn checked(changes: &Value) -> Result<Identity, &'static str> {
    let mut claims =
        json!({ "iss": "https://id.example.com", "aud": "sidestream", "sub": "alice" });
    let members = claims.as_object_mut().unwrap();
    members.extend(changes.as_object().unwrap().clone());
    let members = std::mem::take(members);
    let now = Now {
        wall: Duration::from_secs(1_000_000),
        instant: Instant::now(),
    };
    let settings = settings(KeysConfig::Secret(Secret(SECRET.into())));
    identity("idp", &settings, members, now)
}

#[test]
fn claims_decide_the_identity() {
    for claims in [
        json!({}),
        json!({ "aud": ["a", "other"] }),
        json!({ "exp": 1_000_000 - 29 }),
        json!({ "exp": 1e15, "nbf": 1_000_000.5, "iat": 1_000_030 }),
        json!({ "exp": u64::MAX }),
    ] {
        let identity = checked(&claims).unwrap_or_else(|error| panic!("{claims}: {error}"));
        assert_eq!((&*identity.provider, &*identity.subject), ("idp", "alice"));
    }
    for (claims, message) in [
        (
            json!({ "iss": "https://id.example.com/" }),
            "the token has another issuer",
        ),
        (json!({ "iss": null }), "the token has another issuer"),
        (
            json!({ "iss": ["https://id.example.com"] }),
            "the token has another issuer",
        ),
        (
            json!({ "aud": "Sidestream" }),
            "the token is for another audience",
        ),
        (json!({ "aud": [] }), "the token is for another audience"),
        (
            json!({ "aud": { "sidestream": 1 } }),
            "the token is for another audience",
        ),
        (json!({ "exp": 1_000_000 - 30 }), "the token has expired"),
        (json!({ "exp": 0 }), "the token has expired"),
        (
            json!({ "exp": "2000000" }),
            "the `exp` claim of the token is not a time",
        ),
        (
            json!({ "exp": -1 }),
            "the `exp` claim of the token is not a time",
        ),
        (
            json!({ "exp": null }),
            "the `exp` claim of the token is not a time",
        ),
        (
            json!({ "exp": 1e300 }),
            "the `exp` claim of the token is not a time",
        ),
        (json!({ "nbf": 1_000_031 }), "the token is not valid yet"),
        (
            json!({ "nbf": true }),
            "the `nbf` claim of the token is not a time",
        ),
        (
            json!({ "iat": 1_000_031 }),
            "the token was issued in the future",
        ),
        (
            json!({ "iat": [] }),
            "the `iat` claim of the token is not a time",
        ),
        (json!({ "sub": null }), "the token has no `sub` claim"),
        (json!({ "sub": "" }), "the token has no `sub` claim"),
        (json!({ "sub": 7 }), "the token has no `sub` claim"),
    ] {
        assert_eq!(checked(&claims).unwrap_err(), message, "{claims}");
    }
}

#[test]
fn end_of_an_identity_is_the_expiry_plus_the_leeway() {
    let now = Now {
        wall: Duration::from_secs(1_000_000),
        instant: Instant::now(),
    };
    let mut settings = settings(KeysConfig::Secret(Secret(SECRET.into())));
    (settings.issuer, settings.audience) = (None, Vec::new());
    let ends = |claims: Value| {
        let claims = claims.as_object().unwrap().clone();
        let identity = identity("idp", &settings, claims, now).unwrap();
        identity.expires.map(|expiry| expiry.end - now.instant)
    };
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    assert_eq!(ends(json!({ "sub": "a", "exp": 1_000_060 })), seconds(90));
    assert_eq!(ends(json!({ "sub": "a", "exp": 999_971 })), seconds(1));
    assert_eq!(ends(json!({ "sub": "a" })), None);
    assert_eq!(ends(json!({ "sub": "a", "exp": u64::MAX })), None);
}

#[test]
fn secrets_and_keys_are_not_printed() {
    let jwt = settings(KeysConfig::Secret(Secret(SECRET.into())));
    let shown = format!("{jwt:?} {:?}", secret_keys());
    assert!(!shown.contains(SECRET), "{shown}");
}
