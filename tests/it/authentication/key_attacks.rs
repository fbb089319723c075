//! Issuers whose keys cannot be used: requests are rejected within seconds, and the pod stays as it
//! is.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use testkit::http1;
use testkit::issuer::{Issuer, Mode};
use testkit::wait::{RECOVERY, eventually};

use super::{Fixture, bearer};

/// Behaviour of an issuer, and the reason in the health check.
const FAULTS: [(Mode, &str); 17] = [
    (Mode::Down, "tokens are rejected until they are"),
    (Mode::Silent, "no answer within 5 s"),
    (Mode::Drip, "no answer within 5 s"),
    (Mode::Endless, "larger than 256 KiB"),
    (Mode::Oversized, "larger than 256 KiB"),
    // The target is on this machine.
    (Mode::Redirect, "answers 302"),
    (Mode::Status(500), "answers 500"),
    (Mode::Status(204), "answers 204"),
    (Mode::OtherIssuer, "names another issuer"),
    (Mode::KeysAt("file:///etc/passwd"), "invalid `jwks_uri`"),
    (Mode::KeysAt("http://a:b@127.0.0.1/"), "invalid `jwks_uri`"),
    (Mode::KeysAt("/jwks"), "invalid `jwks_uri`"),
    (Mode::KeysAt(""), "invalid `jwks_uri`"),
    (Mode::Keys("<html>"), "not a JSON Web Key Set"),
    (Mode::Keys("{\"keys\":[]}"), "no public key for signatures"),
    // A published secret is not a secret: it verifies nothing.
    (
        Mode::Keys(
            "{\"keys\":[{\"kty\":\"oct\",\"alg\":\"HS256\",\"kid\":\"key-1\",\"k\":\"c2VjcmV0\"}]}",
        ),
        "no public key for signatures",
    ),
    (Mode::Keys(NESTED), "not a JSON Web Key Set"),
];

/// The parser of JSON stops at the first level that is too deep.
const NESTED: &str = concat!(
    "{\"keys\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
);

/// 24 MiB: less than the answers of all issuers together.
const GROWTH_BYTES_MAX: u64 = 24 << 20;

/// One provider and one route per issuer.
fn routes(issuers: &[Issuer]) -> String {
    let providers: String = (issuers.iter().enumerate())
        .map(|(number, issuer)| {
            let url = issuer.url();
            format!(
                "    - name: oidc-{number}
      jwt: {{ issuer: \"{url}\", audience: [sidestream], keys: {{ discovery: true }} }}\n"
            )
        })
        .collect();
    let routes: String = (0..issuers.len())
        .map(|number| {
            format!(
                "  - path: /orders-{number}
    authenticate: [oidc-{number}]
    sources: [{{ stream: ORDERS, subjects: [\"orders.{{claim.sub}}.>\"] }}]\n"
            )
        })
        .collect();
    format!("{providers}routes:\n{routes}")
}

async fn check(fixture: &Fixture, number: usize) -> Value {
    let health = fixture.sidestream.admin_json("/health").await;
    health["checks"][format!("authentication:oidc-{number}")].clone()
}

/// Sends a request with a token of the issuer; returns status, code and `Retry-After`.
async fn request(fixture: &Fixture, number: usize, issuer: &Issuer) -> (u16, String, String) {
    let bearer = bearer(&issuer.token(&json!({})));
    let url = fixture.sidestream.url(&format!("/orders-{number}"));
    let headers = [("Authorization", bearer.as_str())];
    let answer = http1::request("HEAD", &url, &headers).await.unwrap();
    let problem = http1::request("GET", &url, &headers).await.unwrap();
    assert_eq!(answer.status, problem.status);
    let code = problem.json()["error"]["code"].as_str().unwrap().to_owned();
    let retry_after = problem.header("retry-after").unwrap_or_default();
    (problem.status, code, retry_after)
}

#[tokio::test]
async fn unusable_keys_are_a_503_within_seconds_and_a_degraded_check() {
    let issuers = join_all(FAULTS.map(|_| Issuer::start())).await;
    for (issuer, (mode, _)) in issuers.iter().zip(FAULTS) {
        issuer.set(mode);
    }
    let fixture = Fixture::with(&routes(&issuers), "").await;
    let resident = fixture.sidestream.resident_bytes();
    let requests = issuers.iter().enumerate().map(async |(number, issuer)| {
        let (mode, reason) = FAULTS[number];
        let begun = Instant::now();
        let (status, code, retry_after) = request(&fixture, number, issuer).await;
        assert_eq!(
            (status, &*code),
            (503, "authentication_unavailable"),
            "{mode:?}"
        );
        let seconds: u64 = retry_after.parse().unwrap();
        assert!((1..=10).contains(&seconds), "{mode:?}: {seconds}");
        // Two requests, each at most as long as a load.
        let time = begun.elapsed();
        assert!(time < Duration::from_secs(15), "{mode:?}: {time:?}");
        let check = check(&fixture, number).await;
        assert_eq!(check["status"], "degraded", "{mode:?}");
        assert!(
            check.to_string().contains(&reason.replace('"', "\\\"")),
            "{mode:?}: {check}"
        );
    });
    join_all(requests).await;
    let growth = fixture.sidestream.resident_bytes_peak() - resident;
    assert!(growth < GROWTH_BYTES_MAX, "{growth}");
    let is_redirect = |(mode, _): &(Mode, &str)| *mode == Mode::Redirect;
    let redirecting = FAULTS.iter().position(is_redirect).unwrap();
    assert_eq!(
        issuers[redirecting].fetches(),
        0,
        "a redirect is not followed"
    );

    // All of them recover by themselves.
    issuers.iter().for_each(|issuer| issuer.set(Mode::Normal));
    let recoveries = issuers.iter().enumerate().map(async |(number, issuer)| {
        let bearer = bearer(&issuer.token(&json!({})));
        let path = format!("/orders-{number}");
        eventually(RECOVERY, "the token is accepted", || async {
            let request = fixture.get(&path).header("Authorization", &bearer);
            request.connect().await.status() == 200
        })
        .await;
        assert_eq!(check(&fixture, number).await["status"], "ok");
    });
    join_all(recoveries).await;
}

#[tokio::test]
async fn keys_that_become_unusable_do_not_replace_the_known_ones() {
    let issuers = join_all(FAULTS.map(|_| Issuer::start())).await;
    let fixture = Fixture::with(&routes(&issuers), "").await;
    let tokens: Vec<String> = issuers
        .iter()
        .map(|issuer| issuer.token(&json!({})))
        .collect();
    let open = |number: usize, token: String| {
        let path = format!("/orders-{number}");
        let request = fixture.get(&path).header("Authorization", &bearer(&token));
        async move { request.connect().await.status() }
    };
    for (number, token) in tokens.iter().enumerate() {
        assert_eq!(open(number, token.clone()).await, 200);
    }
    tokio::time::sleep(Duration::from_millis(10_100)).await;
    for (issuer, (mode, _)) in issuers.iter().zip(FAULTS) {
        issuer.set(mode);
        issuer.rotate();
    }
    let rejections = issuers.iter().enumerate().map(async |(number, issuer)| {
        let (mode, _) = FAULTS[number];
        let (status, code, _) = request(&fixture, number, issuer).await;
        assert_eq!(
            (status, &*code),
            (503, "authentication_unavailable"),
            "{mode:?}"
        );
        let check = check(&fixture, number).await;
        assert_eq!(check["status"], "degraded", "{mode:?}");
        let text = check.to_string();
        assert!(
            text.contains("those of the last load are in use"),
            "{mode:?}: {text}"
        );
        assert_eq!(open(number, tokens[number].clone()).await, 200, "{mode:?}");
    });
    join_all(rejections).await;
}
