//! Provider with a real issuer: places of a token, rotation, outages, files, TLS.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::HeaderMap;
use serde_json::json;
use testkit::certs::Authority;
use testkit::issuer::{Issuer, Mode};
use testkit::wait::{DEADLINE, RECOVERY, eventually};

use super::{SECRET, hs256, rsa, settings};
use crate::auth::config::{
    Config, JwtConfig, KeysConfig, ProviderConfig, ProviderKind, TokenSource,
};
use crate::auth::provider::Target;
use crate::auth::{AuthFailure, Credentials, Principal, Providers, Secret};
use crate::lifecycle::health::{Health, Status};
use crate::telemetry::Metrics;

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

    fn certificate(&self) -> Option<&[u8]> {
        None
    }

    fn headers(&self) -> &HeaderMap {
        unreachable!("tokens are found by name")
    }

    fn target(&self) -> Target<'_> {
        unreachable!("tokens do not depend on the target")
    }

    fn admit_call(&self) -> Result<(), Duration> {
        unreachable!("tokens are verified without a call")
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
        let kind = ProviderKind::Jwt(jwt);
        let providers = vec![ProviderConfig { name, kind }];
        self.providers.apply(&Config {
            providers,
            ..Config::default()
        });
    }

    async fn authenticate(&self, request: &Request) -> Result<Option<Principal>, AuthFailure> {
        let provider = self.providers.find("idp").unwrap();
        provider.authenticate(request, true).await
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
async fn keys_are_fetched_over_tls_from_a_trusted_issuer_only() {
    let authority = Authority::new();
    let issuer = Issuer::start_tls(&authority.server("issuer")).await;
    let token = issuer.token(&json!({}));
    let trusting = |authority: &Authority| {
        let (issuer, ca) = (issuer.url(), Some(authority.file()));
        Fixture::new(JwtConfig {
            issuer: Some(issuer.clone()),
            ..settings(KeysConfig::Discovery { issuer, ca })
        })
    };
    let fixture = trusting(&authority);
    assert!(fixture.accepts(&token).await);

    let stranger = Authority::new();
    let other = trusting(&stranger);
    assert!(!other.accepts(&token).await);
    let why = other.degraded().await;
    assert!(why.contains("invalid peer certificate"), "{why}");

    issuer.set(Mode::Downgrade);
    let downgraded = trusting(&authority);
    assert!(!downgraded.accepts(&token).await);
    let why = downgraded.degraded().await;
    assert!(why.contains("names a `jwks_uri` without TLS"), "{why}");
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
