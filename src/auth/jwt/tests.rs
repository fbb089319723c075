//! Tokens and keys: attacks, times, rotation and outages of a real issuer.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use proptest::prelude::*;
use ring::hmac;
use serde_json::{Value, json};
use testkit::issuer::{Issuer, Mode};
use testkit::wait::{DEADLINE, RECOVERY, eventually};

use super::claims::{Now, identity};
use super::crypto;
use super::key_set::{InvalidKeys, KeySet};
use super::token::{Rejected, verified_claims};
use crate::auth::config::{Config, JwtConfig, KeysConfig, ProviderConfig, TokenSource};
use crate::auth::{AuthFailure, Credentials, Identity, Principal, Providers, Secret};
use crate::lifecycle::health::{Health, Status};
use crate::telemetry::Metrics;

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
            let _: Result<_, _> = verified_claims(&token, &secret_keys(), &[Algorithm::HS256]);
        }
    }

    #[test]
    fn any_bytes_as_keys_get_a_result(bytes in prop::collection::vec(any::<u8>(), 0..300), text in "\\{\"keys\": ?\\[\\{\"kty\":\"(EC|RSA|OKP|oct)\",\"(n|x|crv|kid)\":\"[A-Za-z0-9=-]{0,20}\"\\}\\]\\}") {
        let _: Result<_, _> = KeySet::from_file(&bytes);
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
        identity.expires.map(|expires| expires - now.instant)
    };
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    assert_eq!(ends(json!({ "sub": "a", "exp": 1_000_060 })), seconds(90));
    assert_eq!(ends(json!({ "sub": "a", "exp": 999_971 })), seconds(1));
    assert_eq!(ends(json!({ "sub": "a" })), None);
    assert_eq!(ends(json!({ "sub": "a", "exp": u64::MAX })), None);
}

// --- Provider ---

#[derive(Default)]
struct Request {
    bearer: Option<String>,
    cookies: HashMap<&'static str, String>,
    query: HashMap<&'static str, String>,
}

impl Credentials for Request {
    fn bearer(&self) -> Option<&str> {
        self.bearer.as_deref()
    }

    fn cookie(&self, name: &str) -> Option<&str> {
        self.cookies.get(name).map(String::as_str)
    }

    fn query(&self, name: &str) -> Option<Cow<'_, str>> {
        self.query
            .get(name)
            .map(|value| Cow::Borrowed(value.as_str()))
    }
}

/// Providers of one configuration with the provider `idp`.
struct Fixture {
    providers: Providers,
    health: Health,
    metrics: Arc<Metrics>,
}

impl Fixture {
    fn new(jwt: JwtConfig) -> Self {
        let (health, metrics) = (Health::default(), Arc::new(Metrics::new().unwrap()));
        let providers = Providers::new(&health, &metrics);
        let fixture = Self {
            providers,
            health,
            metrics,
        };
        fixture.apply(jwt);
        fixture
    }

    fn discovering(issuer: &Issuer) -> Self {
        Self::new(discovery(issuer))
    }

    fn apply(&self, jwt: JwtConfig) {
        let name = "idp".into();
        let providers = vec![ProviderConfig { name, jwt }];
        self.providers.apply(&Config { providers });
    }

    async fn authenticate(&self, request: &Request) -> Result<Option<Principal>, AuthFailure> {
        let provider = self.providers.find("idp").unwrap();
        provider.authenticate(request).await
    }

    async fn bearer(&self, token: &str) -> Result<Option<Principal>, AuthFailure> {
        let bearer = Some(token.to_owned());
        let request = Request {
            bearer,
            ..Request::default()
        };
        self.authenticate(&request).await
    }

    async fn accepts(&self, token: &str) -> bool {
        matches!(self.bearer(token).await, Ok(Some(Principal::Identified(_))))
    }

    fn check(&self) -> Option<Status> {
        self.health.report().remove("authentication:idp")
    }

    fn loads(&self, result: &str) -> u64 {
        let loads = &self.metrics.authentication_key_loads_total;
        loads.with_label_values(&["idp", result]).get()
    }

    async fn recovered(&self, token: &str) {
        eventually(RECOVERY, "the token is accepted", || async {
            self.accepts(token).await && self.check() == Some(Status::Ok)
        })
        .await;
    }

    /// Waits until a load fails, and returns the reason that the check shows.
    async fn degraded(&self) -> String {
        eventually(RECOVERY, "the check is degraded", || async {
            match self.check()? {
                Status::Degraded(why) => Some(why),
                _ => None,
            }
        })
        .await
    }
}

fn discovery(issuer: &Issuer) -> JwtConfig {
    let ca = None;
    let keys = KeysConfig::Discovery {
        issuer: issuer.url(),
        ca,
    };
    JwtConfig {
        issuer: Some(issuer.url()),
        ..settings(keys)
    }
}

fn invalid(description: &'static str) -> Result<Option<Principal>, AuthFailure> {
    Err(AuthFailure::Invalid { description })
}

#[tokio::test]
async fn first_place_with_a_token_decides() {
    let mut jwt = settings(KeysConfig::Secret(Secret(SECRET.into())));
    (jwt.issuer, jwt.audience) = (None, Vec::new());
    jwt.from = vec![
        TokenSource::Cookie("__Secure-session".into()),
        TokenSource::Bearer,
        TokenSource::Query("token".into()),
    ];
    let fixture = Fixture::new(jwt);
    let subject = async |request: &Request| match fixture.authenticate(request).await {
        Ok(Some(Principal::Identified(identity))) => identity.subject.to_string(),
        other => format!("{other:?}"),
    };
    let mut request = Request::default();
    assert_eq!(fixture.authenticate(&request).await, Ok(None));
    request.query.insert("token", hs256(r#"{"sub":"query"}"#));
    assert_eq!(subject(&request).await, "query");
    request.bearer = Some(hs256(r#"{"sub":"bearer"}"#));
    assert_eq!(subject(&request).await, "bearer");
    request.cookies.insert("__Secure-session", String::new());
    assert_eq!(subject(&request).await, "bearer");
    request.cookies.insert("__Secure-session", "x".into());
    assert_eq!(
        fixture.authenticate(&request).await,
        invalid("the token is not a signed JWT")
    );
    assert_eq!(fixture.check(), None);
}

#[tokio::test]
async fn rotated_key_is_fetched_once_for_all_that_wait_for_it() {
    let issuer = Issuer::start().await;
    let fixture = Fixture::discovering(&issuer);
    let old = issuer.token(&json!({}));
    // The first request waits for the first load.
    let Ok(Some(Principal::Identified(identity))) = fixture.bearer(&old).await else {
        panic!("the token is valid")
    };
    assert_eq!(
        (&*identity.subject, identity.expires.is_some()),
        ("alice", true)
    );
    assert_eq!(issuer.fetches(), 1);

    issuer.rotate();
    let new = issuer.token(&json!({}));
    // The keys are less than ten seconds old: a client cannot cause a fetch now.
    assert_eq!(
        fixture.bearer(&new).await,
        invalid("the key of the token is unknown")
    );
    assert_eq!(issuer.fetches(), 1);
    tokio::time::sleep(Duration::from_millis(10_100)).await;
    let both = tokio::join!(fixture.accepts(&new), fixture.accepts(&new));
    assert_eq!(both, (true, true));
    assert_eq!(issuer.fetches(), 2);
    assert!(!fixture.accepts(&old).await, "the old key is gone");
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test]
async fn outage_keeps_the_keys_and_a_reload_does_not_lose_them() {
    let issuer = Issuer::start().await;
    let fixture = Fixture::discovering(&issuer);
    let token = issuer.token(&json!({}));
    assert!(fixture.accepts(&token).await);

    issuer.set(Mode::Down);
    issuer.rotate();
    let new = issuer.token(&json!({}));
    tokio::time::sleep(Duration::from_millis(10_100)).await;
    let unavailable = fixture.bearer(&new).await;
    assert!(
        matches!(unavailable, Err(AuthFailure::Unavailable { .. })),
        "{unavailable:?}"
    );
    assert!(
        fixture
            .degraded()
            .await
            .contains("those of the last load are in use")
    );
    assert!(fixture.accepts(&token).await);
    let leeway = Duration::from_secs(1);
    fixture.apply(JwtConfig {
        leeway,
        ..discovery(&issuer)
    });
    assert!(
        fixture.accepts(&token).await,
        "the keys belong to the same origin"
    );

    issuer.set(Mode::Normal);
    fixture.recovered(&new).await;
    assert!(fixture.loads("failed") > 0 && fixture.loads("succeeded") == 2);
}

#[tokio::test]
async fn provider_starts_without_its_issuer_and_recovers() {
    let issuer = Issuer::start().await;
    let token = issuer.token(&json!({}));
    for (mode, reason) in [
        (Mode::Down, "tokens are rejected until they are"),
        (Mode::OtherIssuer, "names another issuer"),
        (Mode::Redirect, "answers 302"),
        (Mode::Oversized, "larger than 256 KiB"),
    ] {
        issuer.set(mode);
        let fixture = Fixture::discovering(&issuer);
        let first = fixture.bearer(&token).await;
        assert!(
            matches!(first, Err(AuthFailure::Unavailable { .. })),
            "{mode:?}: {first:?}"
        );
        let why = fixture.degraded().await;
        assert!(why.contains(reason), "{mode:?}: {why}");
        issuer.set(Mode::Normal);
        fixture.recovered(&token).await;
    }
}

#[tokio::test]
async fn silent_issuer_delays_a_request_by_seconds_only() {
    let issuer = Issuer::start().await;
    issuer.set(Mode::Silent);
    let fixture = Fixture::discovering(&issuer);
    let begun = Instant::now();
    let answer = fixture.bearer(&issuer.token(&json!({}))).await;
    assert!(
        matches!(answer, Err(AuthFailure::Unavailable { .. })),
        "{answer:?}"
    );
    assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
    assert!(fixture.degraded().await.contains("no answer within 5 s"));
}

#[tokio::test]
async fn token_of_either_of_two_keys_with_the_same_id_is_accepted() {
    let issuer = Issuer::start().await;
    let first = issuer.token(&json!({}));
    issuer.add_namesake();
    let second = issuer.token(&json!({}));
    let fixture = Fixture::discovering(&issuer);
    assert!(fixture.accepts(&first).await && fixture.accepts(&second).await);
}

#[tokio::test]
async fn key_file_is_read_again_when_it_changes_and_kept_while_it_is_invalid() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    let rsa = rsa();
    let token = rsa["tokens"]["RS256"].as_str().unwrap();
    let mut jwt = settings(KeysConfig::File(file.clone()));
    (jwt.issuer, jwt.audience) = (None, Vec::new());
    let fixture = Fixture::new(jwt);
    assert!(fixture.degraded().await.contains("No such file"));
    fs::write(&file, rsa["pem"].as_str().unwrap()).unwrap();
    fixture.recovered(token).await;
    fs::write(&file, "-----BEGIN").unwrap();
    assert!(fixture.degraded().await.contains("no public key"));
    assert!(fixture.accepts(token).await);
    fs::write(&file, json!({ "keys": [rsa["jwk"]] }).to_string()).unwrap();
    fixture.recovered(token).await;
}

#[tokio::test]
async fn removed_provider_leaves_no_check_and_no_metric() {
    let issuer = Issuer::start().await;
    let fixture = Fixture::discovering(&issuer);
    assert!(fixture.accepts(&issuer.token(&json!({}))).await);
    fixture.providers.apply(&Config::default());
    assert!(fixture.providers.find("idp").is_none());
    eventually(DEADLINE, "the check is removed", || async {
        fixture.check().is_none()
    })
    .await;
    assert!(!fixture.metrics.render().contains("idp"));
}

#[test]
fn secrets_and_keys_are_not_printed() {
    let jwt = settings(KeysConfig::Secret(Secret(SECRET.into())));
    let shown = format!("{jwt:?} {:?}", secret_keys());
    assert!(!shown.contains(SECRET), "{shown}");
}
