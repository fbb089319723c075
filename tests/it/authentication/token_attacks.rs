//! Tokens that an attacker can make: each is rejected with its status, code and reason.

mod content;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD as BASE64};
use ring::hmac;
use serde_json::{Value, json};
use testkit::h2::H2Client;
use testkit::http1;
use testkit::issuer::Issuer;

use super::token::now;
use super::{Fixture, bearer};

/// Public RSA key as JWK and PEM.
const RSA: &str = include_str!("../../fixtures/jwt/rsa.json");

/// Reasons in the challenge.
const NOT_A_JWT: &str = "the token is not a signed JWT";
const ALGORITHM: &str = "the signature algorithm of the token is not accepted";
const OTHER_ALGORITHM: &str = "the key of the token has another algorithm";
const UNKNOWN_KEY: &str = "the key of the token is unknown";
const SIGNATURE: &str = "the signature of the token is invalid";
const CONTENT: &str = "the content of the token is invalid";

/// Name of an attack, its token, and the reason of the rejection.
type Attack = (String, String, &'static str);

/// A sidecar whose provider has the keys of an issuer: one P-256 key, and an RSA key `rsa`.
struct Target {
    fixture: Fixture,
    issuer: Issuer,
    /// Another issuer, with keys of the attacker. Nothing may be fetched from it.
    evil: Issuer,
}

impl Target {
    async fn start() -> Self {
        let (issuer, evil) = (Issuer::start().await, Issuer::start().await);
        issuer.publish(rsa()["jwk"].clone());
        let provider = format!(
            "    - name: oidc
      jwt: {{ issuer: \"{}\", audience: [sidestream], keys: {{ discovery: true }}, leeway: 0s }}
routes:
  - path: /orders
    authenticate: [oidc]
    sources: [{{ stream: ORDERS, subjects: [\"orders.{{claim.sub}}.>\"] }}]
",
            issuer.url()
        );
        let fixture = Fixture::with(&provider, "").await;
        let target = Self {
            fixture,
            issuer,
            evil,
        };
        let valid = target.issuer.token(&json!({}));
        target.fixture.open("/orders", &valid).await;
        target
    }

    fn header(&self) -> Value {
        json!({ "alg": "ES256", "kid": "key-1" })
    }

    /// Claims of a valid token.
    fn claims(&self) -> Value {
        json!({
            "iss": self.issuer.url(), "aud": "sidestream", "sub": "alice",
            "iat": now(), "exp": now() + 300,
        })
    }

    /// Token with these claims in place of those of a valid one; the signature is valid.
    fn with(&self, changes: &Value) -> String {
        self.issuer.token(changes)
    }

    /// Token with this header and a valid signature.
    fn with_header(&self, header: &Value) -> String {
        self.issuer.sign(header, &self.claims().to_string())
    }

    /// Token with these bytes as claims and a valid signature.
    fn with_bytes(&self, claims: &[u8]) -> String {
        let header = self.header().to_string();
        self.issuer.sign_bytes(header.as_bytes(), claims)
    }

    /// Token with this header, the claims of a valid token and any signature.
    fn unsigned(&self, header: &Value, signature: &str) -> String {
        let encode = |part: String| BASE64.encode(part);
        let (header, claims) = (
            encode(header.to_string()),
            encode(self.claims().to_string()),
        );
        format!("{header}.{claims}.{signature}")
    }

    /// Asserts that each token is rejected over HTTP/1.1 and HTTP/2 with 401 `invalid_token` and its
    /// reason, and that the sidecar does nothing else.
    async fn rejects(&self, attacks: Vec<Attack>) {
        let url = self.fixture.sidestream.url("/orders");
        let mut connection = H2Client::connect(self.fixture.sidestream.url("/")).await;
        let count = attacks.len() as f64 * 2.0;
        let mut wrong = Vec::new();
        for (attack, token, reason) in attacks {
            let bearer = bearer(&token);
            let headers = [("authorization", bearer.as_str())];
            let answer = http1::request("GET", &url, &headers).await.unwrap();
            let code = answer.json()["error"]["code"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let challenge = answer.header("www-authenticate").unwrap_or_default();
            let expected = format!(
                "Bearer realm=\"sidestream\", error=\"invalid_token\", error_description=\"{reason}\""
            );
            if (answer.status, &*code, &challenge) != (401, "invalid_token", &expected) {
                wrong.push(format!("{attack}: {} {code} {challenge}", answer.status));
            }
            assert!(!answer.body.contains(&token), "{attack}");
            let mut over_h2 = connection.request("GET", "/orders", &headers).await;
            assert_eq!(over_h2.status(), answer.status, "{attack}");
            let challenge_h2 = over_h2.header("www-authenticate");
            assert_eq!(challenge_h2, Some(&*challenge), "{attack}");
            assert_eq!(over_h2.body().await, answer.body, "{attack}");
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        let rejected = self
            .fixture
            .sidestream
            .metric("sidestream_refusals_total", &[("code", "invalid_token")]);
        assert_eq!(rejected.await, count);
        assert_eq!(self.evil.fetches(), 0, "a URL in a token is never fetched");
        let log = self.fixture.sidestream.output().join("\n");
        assert!(!log.contains("eyJ"), "no token is logged");
        let valid = self.issuer.token(&json!({}));
        self.fixture.open("/orders", &valid).await;
    }
}

fn rsa() -> Value {
    serde_json::from_str(RSA).unwrap()
}

/// Signs with an HMAC.
fn hmac(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let algorithm = match header["alg"].as_str() {
        Some("HS384") => hmac::HMAC_SHA384,
        Some("HS512") => hmac::HMAC_SHA512,
        _ => hmac::HMAC_SHA256,
    };
    let encode = |part: &Value| BASE64.encode(part.to_string());
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = hmac::sign(&hmac::Key::new(algorithm, secret), message.as_bytes());
    format!("{message}.{}", BASE64.encode(signature))
}

fn attack(name: impl Into<String>, token: impl Into<String>, reason: &'static str) -> Attack {
    (name.into(), token.into(), reason)
}

#[tokio::test]
async fn tokens_without_a_signature_of_the_issuer_are_rejected() {
    let target = Target::start().await;
    let mut attacks = Vec::new();
    let valid = target.issuer.token(&json!({}));
    let (message, signature) = valid.rsplit_once('.').unwrap();
    for alg in ["none", "None", "NONE", "nOnE", "", "null", "HS257"] {
        for signature in ["", signature] {
            let token = target.unsigned(&json!({ "alg": alg, "kid": "key-1" }), signature);
            attacks.push(attack(format!("alg {alg:?}"), token, NOT_A_JWT));
        }
    }
    for alg in [json!(null), json!(["ES256"]), json!({}), json!(256)] {
        let token = target.with_header(&json!({ "alg": alg, "kid": "key-1" }));
        attacks.push(attack(format!("alg {alg}"), token, NOT_A_JWT));
    }
    attacks.push(attack(
        "no alg",
        target.with_header(&json!({ "kid": "key-1" })),
        NOT_A_JWT,
    ));

    // Public keys as the secret of an HMAC, in each form that an attacker has.
    let rsa = rsa();
    let pem = rsa["pem"].as_str().unwrap();
    let spki: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let spki = STANDARD.decode(spki).unwrap();
    let ec = target.issuer.public_key();
    let decoded = |key: &Value, name: &str| BASE64.decode(key[name].as_str().unwrap()).unwrap();
    let point = [&[4][..], &decoded(&ec, "x"), &decoded(&ec, "y")].concat();
    let secrets = [
        ("PEM", pem.as_bytes().to_vec()),
        ("PEM without the last newline", pem.trim().into()),
        ("PEM with CRLF", pem.replace('\n', "\r\n").into()),
        ("SPKI", spki.clone()),
        ("PKCS#1", spki[24..].to_vec()),
        ("modulus", decoded(&rsa["jwk"], "n")),
        ("JWK of RSA", rsa["jwk"].to_string().into()),
        ("JWK of P-256", ec.to_string().into()),
        (
            "JWKS",
            json!({ "keys": [ec, rsa["jwk"]] }).to_string().into(),
        ),
        ("point", point),
        ("nothing", Vec::new()),
    ];
    for (name, secret) in &secrets {
        for alg in ["HS256", "HS384", "HS512"] {
            for kid in ["rsa", "key-1"] {
                let header = json!({ "alg": alg, "kid": kid });
                let token = hmac(&header, &target.claims(), secret);
                attacks.push(attack(format!("{alg} by {name}, {kid}"), token, ALGORITHM));
            }
        }
        // The header lies about the algorithm.
        for (alg, kid) in [("RS256", "rsa"), ("PS256", "rsa"), ("ES256", "key-1")] {
            let token = hmac(&json!({ "alg": alg, "kid": kid }), &target.claims(), secret);
            attacks.push(attack(format!("HMAC by {name} as {alg}"), token, SIGNATURE));
        }
    }
    for (alg, kid) in [("RS256", "key-1"), ("EdDSA", "key-1"), ("ES256", "rsa")] {
        let token = target.with_header(&json!({ "alg": alg, "kid": kid }));
        attacks.push(attack(format!("{alg} by {kid}"), token, OTHER_ALGORITHM));
    }
    attacks.push(attack(
        "an algorithm that the provider does not accept",
        target.with_header(&json!({ "alg": "ES384", "kid": "key-1" })),
        ALGORITHM,
    ));

    // Signatures.
    let bytes = BASE64.decode(signature).unwrap();
    let zeros = BASE64.encode([0; 64]);
    let der = [
        &[0x30, 0x44, 0x02, 0x20][..],
        &bytes[..32],
        &[0x02, 0x20],
        &bytes[32..],
    ]
    .concat();
    let longer = [&bytes[..], &[0]].concat();
    let evil = target
        .evil
        .sign(&target.header(), &target.claims().to_string());
    let (header, _) = message.split_once('.').unwrap();
    let eve = BASE64.encode(target.claims().to_string().replace("alice", "eve"));
    for (name, token) in [
        ("empty signature", format!("{message}.")),
        ("zeros", format!("{message}.{zeros}")),
        ("DER", format!("{message}.{}", BASE64.encode(der))),
        (
            "short",
            format!("{message}.{}", BASE64.encode(&bytes[..63])),
        ),
        ("long", format!("{message}.{}", BASE64.encode(longer))),
        (
            "swapped halves",
            format!(
                "{message}.{}",
                BASE64.encode([&bytes[32..], &bytes[..32]].concat())
            ),
        ),
        ("another key", evil),
        (
            "signature of other claims",
            format!("{header}.{eve}.{signature}"),
        ),
        ("detached", format!("{header}..{signature}")),
    ] {
        attacks.push(attack(name, token, SIGNATURE));
    }
    target.rejects(attacks).await;
}

#[tokio::test]
async fn headers_of_a_token_do_not_name_the_key_that_verifies_it() {
    let target = Target::start().await;
    let mut attacks = Vec::new();
    for kid in [
        "key-2",
        "KEY-1",
        "key-1 ",
        "key-1\0",
        "",
        "*",
        "/dev/null",
        "../../../../../../dev/null",
        "..\\..\\..\\dev\\null",
        "file:///dev/null",
        "%2e%2e%2fdev%2fnull",
        "https://evil.example.com/keys",
        "' UNION SELECT 'secret",
        "$(id)",
    ] {
        let header = json!({ "alg": "ES256", "kid": kid });
        let token = target.with_header(&header);
        attacks.push(attack(format!("kid {kid:?}"), token, UNKNOWN_KEY));
        let header = json!({ "alg": "HS256", "kid": kid });
        let token = hmac(&header, &target.claims(), b"");
        attacks.push(attack(
            format!("kid {kid:?}, empty secret"),
            token,
            ALGORITHM,
        ));
    }
    let long = json!({ "alg": "ES256", "kid": "k".repeat(4000) });
    attacks.push(attack("a long kid", target.with_header(&long), UNKNOWN_KEY));
    for kid in [json!(1), json!(["key-1"]), json!({ "kid": "key-1" })] {
        let token = target.with_header(&json!({ "alg": "ES256", "kid": kid }));
        attacks.push(attack(format!("kid {kid}"), token, NOT_A_JWT));
    }

    // The attacker's own key, in the token or at a URL.
    let claims = target.claims().to_string();
    let (url, key) = (
        format!("{}/jwks", target.evil.url()),
        target.evil.public_key(),
    );
    for (name, value) in [
        ("jwk", key),
        ("jku", json!(url)),
        ("x5u", json!(url)),
        ("jku", json!("file:///etc/passwd")),
    ] {
        for (kid, reason) in [("key-1", SIGNATURE), ("evil", UNKNOWN_KEY)] {
            let mut header = json!({ "alg": "ES256", "kid": kid });
            header[name] = value.clone();
            let token = target.evil.sign(&header, &claims);
            attacks.push(attack(format!("{name}, kid {kid}"), token, reason));
        }
    }

    // Extensions that change the meaning of the token.
    for extra in [
        json!({ "crit": ["exp"] }),
        json!({ "crit": ["b64"], "b64": false }),
        json!({ "crit": ["evil"], "evil": true }),
    ] {
        let mut header = target.header();
        header
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let token = target.with_header(&header);
        attacks.push(attack(extra.to_string(), token, CONTENT));
    }
    let twice = br#"{"alg":"ES256","kid":"evil","kid":"key-1"}"#;
    attacks.push(attack(
        "duplicated kid",
        target.issuer.sign_bytes(twice, claims.as_bytes()),
        NOT_A_JWT,
    ));
    let twice = br#"{"alg":"none","kid":"key-1","alg":"ES256"}"#;
    attacks.push(attack(
        "duplicated alg",
        target.issuer.sign_bytes(twice, claims.as_bytes()),
        NOT_A_JWT,
    ));
    let deep = format!(
        "{{\"alg\":\"ES256\",\"kid\":\"key-1\",\"x\":{}{}}}",
        "[".repeat(1000),
        "]".repeat(1000)
    );
    attacks.push(attack(
        "header of 1,000 levels",
        target.issuer.sign_bytes(deep.as_bytes(), claims.as_bytes()),
        NOT_A_JWT,
    ));
    target.rejects(attacks).await;

    // A URL in a token that is otherwise valid changes nothing.
    let mut header = target.header();
    header["jku"] = json!(url);
    let token = target.with_header(&header);
    target.fixture.open("/orders", &token).await;
    assert_eq!(target.evil.fetches(), 0);
}
