//! Tokens with other bytes than a JWT has, and claims of other issuers, audiences and times.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD as BASE64};
use serde_json::{Value, json};
use testkit::h2::H2Client;
use testkit::http1;

use super::super::bearer;
use super::super::token::now;
use super::{Attack, CONTENT, NOT_A_JWT, SIGNATURE, Target, attack};

/// Reasons in the challenge.
const ISSUER: &str = "the token has another issuer";
const AUDIENCE: &str = "the token is for another audience";
const EXPIRED: &str = "the token has expired";
const NOT_YET: &str = "the token is not valid yet";
const FUTURE: &str = "the token was issued in the future";
const EXP: &str = "the `exp` claim of the token is not a time";
const NBF: &str = "the `nbf` claim of the token is not a time";
const IAT: &str = "the `iat` claim of the token is not a time";
const SUBJECT: &str = "the token has no `sub` claim";

#[tokio::test]
async fn malformed_tokens_are_rejected() {
    let target = Target::start().await;
    let valid = target.issuer.token(&json!({}));
    let parts: Vec<&str> = valid.split('.').collect();
    let [header, claims, signature] = parts[..] else {
        panic!("{valid}")
    };
    let standard = |text: &str| STANDARD.encode(BASE64.decode(text).unwrap());
    let mut attacks: Vec<Attack> = [
        ("one part", header.to_owned()),
        ("two parts", format!("{header}.{claims}")),
        ("four parts", format!("{valid}.")),
        ("JWE", format!("{header}.a.b.c.d")),
        ("dots", "..".to_owned()),
        (
            "truncated header",
            format!("{}.{claims}.{signature}", &header[..header.len() - 2]),
        ),
        ("padded header", format!("{header}=.{claims}.{signature}")),
        (
            "space in the token",
            format!("{header} .{claims}.{signature}"),
        ),
        ("two tokens", format!("{valid} {valid}")),
        ("list", format!("{valid}, Bearer {valid}")),
        ("quoted", format!("\"{valid}\"")),
        ("percent-encoded", valid.replace('.', "%2E")),
        ("scheme twice", format!("Bearer {valid}")),
        (
            "JSON serialization",
            json!({ "payload": claims, "signatures": [] }).to_string(),
        ),
    ]
    .map(|(name, token)| attack(name, token, NOT_A_JWT))
    .into();
    for (name, claims, reason) in [
        (
            "truncated claims",
            claims[..claims.len() - 1].to_owned(),
            SIGNATURE,
        ),
        ("padded claims", format!("{claims}="), SIGNATURE),
        ("claims after a space", format!(" {claims}"), SIGNATURE),
        (
            "claims in another alphabet",
            standard(claims) + "+/",
            SIGNATURE,
        ),
    ] {
        let token = format!("{header}.{claims}.{signature}");
        attacks.push(attack(name, token, reason));
    }
    for (name, signature) in [
        ("padded signature", format!("{signature}==")),
        ("truncated signature", signature[..85].to_owned()),
        (
            "text after the signature",
            format!("{signature}\t{signature}"),
        ),
    ] {
        let token = format!("{header}.{claims}.{signature}");
        attacks.push(attack(name, token, CONTENT));
    }

    // Claims that are not an object of JSON in UTF-8.
    let json = target.claims().to_string();
    let open = &json.as_bytes()[..json.len() - 1];
    let with = |extra: &str| format!("{}{extra}}}", json.trim_end_matches('}'));
    let utf16: Vec<u8> = json.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let nested = |open: &str, close: &str| {
        with(&format!(
            ",\"x\":{}1{}",
            open.repeat(1000),
            close.repeat(1000)
        ))
    };
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("list", format!("[{json}]").into()),
        ("text", "\"alice\"".into()),
        ("null", "null".into()),
        ("cut", json[..json.len() - 1].into()),
        ("two objects", format!("{json}{json}").into()),
        ("NUL after it", format!("{json}\0").into()),
        ("byte order mark", format!("\u{feff}{json}").into()),
        ("UTF-16", utf16),
        ("invalid UTF-8", [open, b",\"x\":\"\xff\"}"].concat()),
        ("overlong UTF-8", [open, b",\"x\":\"\xc0\xae\"}"].concat()),
        ("lone surrogate", with(",\"x\":\"\\ud800\"").into()),
        ("comment", format!("{json}//").into()),
        ("duplicated sub", with(",\"sub\":\"eve\"").into()),
        (
            "duplicated sub, escaped",
            with(",\"\\u0073ub\":\"eve\"").into(),
        ),
        ("duplicated exp", with(",\"exp\":99999999999").into()),
        (
            "duplicate within",
            with(",\"a\":[{\"b\":{\"c\":1,\"c\":2}}]").into(),
        ),
        ("1,000 lists", nested("[", "]").into()),
        ("1,000 objects", nested("{\"a\":", "}").into()),
        ("a number without an end", with(",\"x\":1e999").into()),
        ("NaN", with(",\"x\":NaN").into()),
    ] {
        attacks.push(attack(name, target.with_bytes(&bytes), CONTENT));
    }
    target.rejects(attacks).await;

    // Not ASCII: no credentials at all.
    let url = target.fixture.sidestream.url("/orders");
    for token in [
        valid.replace('.', "\u{ff0e}"),
        valid.replacen('e', "\u{435}", 1),
    ] {
        let bearer = bearer(&token);
        let headers = [("Authorization", bearer.as_str())];
        let answer = http1::request("GET", &url, &headers).await.unwrap();
        assert_eq!(answer.status, 401);
        assert_eq!(answer.json()["error"]["code"], "unauthenticated");
    }
    // Larger than a request head.
    let large = target.with(&json!({ "x": "x".repeat(64 << 10) }));
    let bearer = bearer(&large);
    let headers = [("authorization", bearer.as_str())];
    let answer = http1::request("GET", &url, &headers).await.unwrap();
    assert_eq!(answer.status, 431);
    let connection = H2Client::connect(target.fixture.sidestream.url("/")).await;
    let over_h2 = connection.try_request("GET", "/orders", &headers).await;
    assert_eq!(over_h2.unwrap().status(), 431);
    target.fixture.open("/orders", &valid).await;
}

#[tokio::test]
async fn claims_of_other_issuers_audiences_and_times_are_rejected() {
    let target = Target::start().await;
    let url = target.issuer.url();
    let (past, future) = (now() - 10, now() + 60);
    let mut attacks = Vec::new();
    let table: &[(&str, &'static str, Vec<Value>)] = &[
        (
            "iss",
            ISSUER,
            vec![
                Value::Null,
                json!(""),
                json!(1),
                json!([url]),
                json!({ "iss": url }),
                json!(format!("{url}/")),
                json!(format!("{url}.evil.example")),
                json!(format!(" {url}")),
                json!(url.replace("http", "HTTP")),
                json!(url.replace("127.0.0.1", "127.0.0.\u{661}")),
                json!(target.evil.url()),
            ],
        ),
        (
            "aud",
            AUDIENCE,
            vec![
                Value::Null,
                json!(""),
                json!([]),
                json!(1),
                json!({ "sidestream": true }),
                json!([["sidestream"]]),
                json!(["other", 1, null]),
                json!("Sidestream"),
                json!("sidestream "),
                json!("sidestream,other"),
                json!("side\u{200b}stream"),
                json!("sidestre\u{430}m"),
            ],
        ),
        (
            "exp",
            EXPIRED,
            vec![
                json!(past),
                json!(0),
                json!(0.5),
                json!(past as f64 + 0.5),
                json!(-0.0),
            ],
        ),
        (
            "exp",
            EXP,
            vec![
                json!(-1),
                json!(i64::MIN),
                json!(1e20),
                json!(1e308),
                json!(-1e308),
                json!("9999999999"),
                json!(future.to_string()),
                json!(true),
            ],
        ),
        (
            "nbf",
            NOT_YET,
            vec![json!(future), json!(future as f64 + 0.5), json!(u64::MAX)],
        ),
        (
            "nbf",
            NBF,
            vec![json!(-1), json!(1e308), json!("0"), json!(false)],
        ),
        ("iat", FUTURE, vec![json!(future), json!(1e18)]),
        (
            "iat",
            IAT,
            vec![json!("0"), json!(-1), json!(1e308), json!([])],
        ),
        (
            "sub",
            SUBJECT,
            vec![Value::Null, json!(""), json!(7), json!(true)],
        ),
        // The library has a type for these claims.
        (
            "exp",
            CONTENT,
            vec![json!([future]), json!({ "at": future })],
        ),
        ("nbf", CONTENT, vec![json!([0])]),
        (
            "sub",
            CONTENT,
            vec![json!(["alice"]), json!({ "sub": "alice" })],
        ),
    ];
    for (claim, reason, values) in table {
        for value in values {
            let token = target.with(&json!({ *claim: value }));
            attacks.push(attack(format!("{claim}: {value}"), token, reason));
        }
        // Explicit null is not the absence of the claim.
        let mut claims = target.claims();
        claims[*claim] = Value::Null;
        let token = target.with_bytes(claims.to_string().as_bytes());
        let reason = match *reason {
            EXPIRED => EXP,
            NOT_YET => NBF,
            FUTURE => IAT,
            CONTENT => continue,
            other => other,
        };
        attacks.push(attack(format!("{claim} of null"), token, reason));
    }
    let mut homoglyph = target.claims();
    let members = homoglyph.as_object_mut().unwrap();
    let subject = members.remove("sub").unwrap();
    members.insert("\u{455}ub".into(), subject);
    let token = target.with_bytes(homoglyph.to_string().as_bytes());
    attacks.push(attack("sub in another script", token, SUBJECT));
    target.rejects(attacks).await;
    // Valid ones, so that the checks above are not too strict.
    for claims in [
        json!({ "exp": u64::MAX, "nbf": 0, "iat": 0 }),
        json!({ "exp": 1e15, "nbf": past as f64 + 0.5 }),
        json!({ "exp": null, "iat": null }),
        json!({ "aud": ["other", "sidestream"] }),
    ] {
        target.fixture.open("/orders", &target.with(&claims)).await;
    }
}
