//! Faults of the bucket, and rejections that spend no ticket.

use std::time::Duration;

use async_nats::jetstream::{kv, stream};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::json;
use testkit::nats::Nats;
use testkit::sidestream::Sidestream;
use testkit::wait::{RECOVERY, eventually};

use super::super::token::{Token, now};
use super::super::{APP_SECRET, Fixture, ROUTES, SECRET, text, token};
use super::{ISSUES, TICKETS, another_pod, buy, get, one_pod, rejected, ticket};

/// Status of the check `tickets`.
async fn check(pod: &Sidestream) -> (String, String) {
    let health = pod.admin_json("/health").await;
    let check = &health["checks"]["tickets"];
    let field = |name: &str| check[name].as_str().unwrap_or_default().to_owned();
    (field("status"), field("message"))
}

async fn until_check(pod: &Sidestream, wanted: &str) {
    let fact = format!("the check `tickets` is {wanted}");
    eventually(RECOVERY, &fact, async || check(pod).await.0 == wanted).await;
}

#[tokio::test]
async fn without_nats_requests_get_503_and_the_check_is_degraded_until_it_is_back() {
    let mut fixture = one_pod().await;
    let unspent = ticket(&fixture.sidestream, &token("alice")).await;
    until_check(&fixture.sidestream, "ok").await;
    fixture.nats.kill9();
    until_check(&fixture.sidestream, "degraded").await;
    let pod = &fixture.sidestream;
    let begun = std::time::Instant::now();
    let unavailable = (503, "authentication_unavailable".to_owned());
    assert_eq!(rejected(get(pod, "/orders", &unspent)).await, unavailable);
    let answer = buy(pod, &token("alice")).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["error"]["code"], "authentication_unavailable");
    assert!(answer.header("retry-after").is_some());
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    let mut browser = get(pod, "/orders", &unspent).browser().connect().await;
    assert_eq!(browser.status(), 200);
    assert_eq!(browser.next().await.name, "sidestream.close");
    assert!(pod.metric(ISSUES, &[("result", "unavailable")]).await >= 1.0);

    fixture.nats.restart().await;
    until_check(&fixture.sidestream, "ok").await;
    let pod = &fixture.sidestream;
    let again = ticket(pod, &token("alice")).await;
    assert_eq!(get(pod, "/orders", &again).connect().await.status(), 200);
}

#[tokio::test]
async fn deleted_bucket_is_created_again_while_a_client_waits() {
    let fixture = one_pod().await;
    let other = another_pod(&fixture).await;
    let lost = ticket(&fixture.sidestream, &token("alice")).await;
    fixture.jetstream.delete_key_value("tickets").await.unwrap();
    let bought = ticket(&fixture.sidestream, &token("alice")).await;
    assert_eq!(
        get(&other, "/orders", &bought).connect().await.status(),
        200
    );
    let invalid = (401, "invalid_token".to_owned());
    assert_eq!(rejected(get(&other, "/orders", &lost)).await, invalid);
    until_check(&fixture.sidestream, "ok").await;
    let stream = fixture.jetstream.get_stream("KV_tickets").await.unwrap();
    let config = &stream.cached_info().config;
    assert_eq!(config.storage, stream::StorageType::Memory);
    assert_eq!(config.max_age, Duration::from_secs(30));
    assert_eq!(config.discard, stream::DiscardPolicy::New);
    assert!(config.max_bytes > 0);
}

#[tokio::test]
async fn full_bucket_and_large_claims_are_rejections_of_their_own() {
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    let small = stream::Config {
        name: "KV_tickets".into(),
        subjects: vec!["$KV.tickets.>".into()],
        max_messages_per_subject: 1,
        max_bytes: 2048,
        discard: stream::DiscardPolicy::New,
        allow_rollup: true,
        storage: stream::StorageType::Memory,
        ..Default::default()
    };
    jetstream.create_stream(small).await.unwrap();
    let routes = "routes: [{ path: /core, authenticate: [idp], sources: [{ subjects: [c] }] }]\n";
    let pod = Sidestream::builder(text(&nats, routes, TICKETS))
        .env("JWT_SECRET", SECRET)
        .env("APP_SECRET", APP_SECRET)
        .start()
        .await;
    let large = Token::of("alice").claim("roles", "x".repeat(8500)).signed();
    let answer = buy(&pod, &large).await;
    assert_eq!(answer.status, 403);
    assert_eq!(answer.json()["error"]["code"], "claims_too_large");
    let mut tickets = Vec::new();
    let full = loop {
        let answer = buy(&pod, &token("alice")).await;
        if answer.status != 200 {
            break answer;
        }
        tickets.push(answer.json()["ticket"].as_str().unwrap().to_owned());
        assert!(tickets.len() < 50, "the bucket is never full");
    };
    assert_eq!(full.status, 503);
    assert_eq!(full.json()["error"]["code"], "tickets_full");
    assert!(!tickets.is_empty());
    let redeemed = get(&pod, "/core", &tickets[0]).connect().await;
    assert_eq!(redeemed.status(), 200, "a full bucket redeems tickets");
    until_check(&pod, "degraded").await;
    let (_, reason) = check(&pod).await;
    assert!(reason.contains("the bucket is full"), "{reason}");
}

#[tokio::test]
async fn documented_permissions_suffice_and_a_missing_one_degrades_the_check() {
    let page = include_str!("../../../../docs/nats-permissions.md");
    let section = page
        .split("With `authentication.tickets.bucket: tickets`")
        .nth(1)
        .unwrap();
    let listed = section.split("```text\n").nth(1).unwrap();
    let permissions: Vec<&str> = (listed.split("```").next().unwrap().lines())
        .filter_map(|line| line.split('"').nth(1))
        .collect();
    assert_eq!(permissions.len(), 4);
    let user = |name: &str, permissions: &[&str]| {
        let publish = permissions.join("\", \"");
        format!(
            "{{ user: {name}, password: x, permissions: {{ publish: {{ allow: [\"{publish}\", \"_INBOX_sse.>\"] }},
                subscribe: {{ allow: [\"_INBOX_sse.>\", \"c\"] }} }} }}"
        )
    };
    let config = format!(
        "authorization {{ users: [ {}, {} ] }}",
        user("full", &permissions),
        user("reader", &permissions[1..])
    );
    let nats = Nats::builder().config(&config).start().await;
    let start = |user: &str| {
        let routes =
            "routes: [{ path: /core, authenticate: [idp], sources: [{ subjects: [c] }] }]\n";
        let credentials = format!("\n  user: {user}\n  password: x\nauthentication:");
        let text = text(&nats, routes, TICKETS).replacen("\nauthentication:", &credentials, 1);
        Sidestream::builder(text)
            .env("JWT_SECRET", SECRET)
            .env("APP_SECRET", APP_SECRET)
            .start()
    };
    let full = start("full").await;
    let bought = ticket(&full, &token("alice")).await;
    assert_eq!(get(&full, "/core", &bought).connect().await.status(), 200);
    let reader = start("reader").await;
    for _ in 0..10 {
        assert_eq!(buy(&reader, &token("alice")).await.status, 503);
    }
    until_check(&reader, "degraded").await;
    let (_, reason) = check(&reader).await;
    assert!(reason.contains("$KV.tickets.>"), "{reason}");
    assert_eq!(reader.admin("/health/ready").await.0, 200);
    let is_violation = |line: &&serde_json::Value| line["message"] == "NATS permission violation";
    let lines = reader.log().iter().filter(is_violation).count();
    assert!(lines <= 2, "one attempt in five seconds: {lines}");
}

#[tokio::test]
async fn request_that_the_pod_has_no_room_for_does_not_spend_its_ticket() {
    let limited = format!("limits: {{ connections: 1 }}\n{ROUTES}");
    let fixture = Fixture::with(&limited, TICKETS).await;
    let other = another_pod(&fixture).await;
    let bought = ticket(&other, &token("alice")).await;
    let _open = fixture.get("/open").connect().await;
    let pod = &fixture.sidestream;
    let no_room = (503, "too_many_connections".to_owned());
    assert_eq!(rejected(get(pod, "/orders", &bought)).await, no_room);
    let answer = buy(pod, &token("alice")).await;
    assert_eq!(answer.json()["error"]["code"], "too_many_connections");
    assert_eq!(
        get(&other, "/orders", &bought).connect().await.status(),
        200
    );
}

#[tokio::test]
async fn draining_pod_issues_tickets_for_the_others() {
    let drain = format!("drain: {{ accept_for: 20s, spread: 0s, timeout: 30s }}\n{ROUTES}");
    let mut fixture = Fixture::with(&drain, TICKETS).await;
    let other = another_pod(&fixture).await;
    let _open = fixture.get("/open").connect().await;
    fixture.sidestream.terminate();
    let labels = [("phase", "accepting")];
    let phase = "sidestream_drain_phase";
    (fixture
        .sidestream
        .until_metric(phase, &labels, |value| value == 1.0))
    .await;
    let bought = ticket(&fixture.sidestream, &token("alice")).await;
    assert_eq!(
        get(&other, "/orders", &bought).connect().await.status(),
        200
    );
}

#[tokio::test]
async fn entry_in_the_bucket_has_no_ticket() {
    let fixture = one_pod().await;
    let bought = ticket(&fixture.sidestream, &token("alice")).await;
    let bucket: kv::Store = fixture.jetstream.get_key_value("tickets").await.unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, bought.as_bytes());
    let key = BASE64.encode(digest);
    let entry = bucket
        .get(&key)
        .await
        .unwrap()
        .expect("the key is the SHA-256 of the ticket");
    let text = String::from_utf8(entry.to_vec()).unwrap();
    assert!(text.contains("alice") && !text.contains(&bought), "{text}");
    get(&fixture.sidestream, "/orders", &bought).connect().await;
    assert_eq!(bucket.get(&key).await.unwrap(), None);
}

#[tokio::test]
async fn revoked_token_buys_no_ticket_and_the_tickets_that_it_bought_are_worthless() {
    let revocations = format!("{TICKETS}  revocations: {{ bucket: revoked }}\n");
    let fixture = Fixture::with(ROUTES, &revocations).await;
    let pod = &fixture.sidestream;
    let token = Token::of("alice").claim("jti", "42").signed();
    let unspent = ticket(pod, &token).await;
    let spent = ticket(pod, &token).await;
    let mut client = get(pod, "/orders", &spent).connect().await;
    assert_eq!(client.status(), 200);
    let bucket = eventually(RECOVERY, "the bucket exists", async || {
        fixture.jetstream.get_key_value("revoked").await.ok()
    });
    let key = format!("jti.{}", BASE64.encode("42"));
    let entry = json!({ "at": now(), "until": now() + 3600 }).to_string();
    bucket.await.put(key, entry.into()).await.unwrap();
    let end = client.until(|event| event.name == "sidestream.close").await;
    let data = &end.last().unwrap().data;
    assert!(data.contains("\"revoked\""), "{data}");
    let (status, code) = rejected(get(pod, "/orders", &unspent)).await;
    assert_eq!((status, &*code), (401, "revoked"));
    let answer = buy(pod, &token).await;
    assert_eq!(answer.json()["error"]["code"], "revoked");
}
