//! Revocation and kick: by command and by application, in open event streams and at their return.

use std::time::{Duration, Instant};

use async_nats::jetstream::kv;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};
use testkit::h2::H2Client;
use testkit::http1;
use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, run};
use testkit::sse::SseClient;
use testkit::sse_parser::Event;
use testkit::wait::{DEADLINE, RECOVERY, eventually, within};

use super::token::{SECRET, Token, now};
use super::{APP_SECRET, Fixture, bearer, open_h2, text};

pub(super) const REVOCATIONS: &str = "  revocations: { bucket: revoked }\n";

const ROUTES: &str = "trusted_proxies: [127.0.0.1]
routes:
  - path: /mine
    authenticate: [idp, app]
    client: \"{claim.name}\"
    sources: [{ stream: ORDERS, subjects: [\"orders.>\"] }]
  - path: /open
    client: \"{query.name}\"
    sources: [{ stream: ORDERS, subjects: [\"orders.>\"] }]
";

/// A route on core NATS, so that event streams outlast a restart of the server.
pub(super) const CORE: &str = "trusted_proxies: [127.0.0.1]
routes:
  - path: /core
    authenticate: [idp]
    sources: [{ subjects: [\"news.>\"] }]
";

/// 1 s from the write of an entry to the end of an event stream.
pub(super) const WITHIN: Duration = Duration::from_secs(1);

async fn fixture() -> Fixture {
    Fixture::with(ROUTES, REVOCATIONS).await
}

/// Token of a subject that is the name of the client too, with its own ids of token and session.
/// It was issued before every revocation of a test.
pub(super) fn token(subject: &str) -> Token {
    Token::of(subject)
        .claim("iat", now() - 60)
        .claim("name", format!("client of {subject}"))
        .claim("jti", format!("token of {subject}"))
        .claim("sid", format!("session of {subject}"))
}

pub(super) async fn pod(nats: &Nats, routes: &str) -> Sidestream {
    Sidestream::builder(text(nats, routes, REVOCATIONS))
        .env("JWT_SECRET", SECRET)
        .env("APP_SECRET", APP_SECRET)
        .start()
        .await
}

/// Runs a command that must succeed. The secrets of the configuration are not in its environment.
async fn command(fixture: &Fixture, arguments: &[&str]) -> String {
    let file = fixture.sidestream.config_file();
    let config = ["--config", file.to_str().unwrap()];
    let arguments = [arguments, &config].concat();
    let output = run(&arguments, fixture.sidestream.folder()).await;
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

pub(super) async fn bucket(fixture: &Fixture) -> kv::Store {
    fixture.jetstream.get_key_value("revoked").await.unwrap()
}

/// Writes an entry as an application does.
pub(super) async fn write(bucket: &kv::Store, kind: &str, value: &str) {
    let key = format!("{kind}.{}", BASE64.encode(value));
    let entry = json!({ "at": now(), "until": now() + 3600 }).to_string();
    bucket.put(key, entry.into()).await.unwrap();
}

pub(super) fn reason(close: &Event) -> Value {
    assert_eq!(close.name, "sidestream.close");
    serde_json::from_str::<Value>(&close.data).unwrap()["reason"].clone()
}

/// Status of a request with a token, without its event stream.
async fn status(sidestream: &Sidestream, path: &str, token: &str) -> u16 {
    let bearer = bearer(token);
    let headers = [("Authorization", bearer.as_str())];
    let answer = http1::request("HEAD", &sidestream.url(path), &headers).await;
    answer.unwrap().status
}

/// Status and code of a request with a token that is either accepted or rejected for good.
async fn answer(sidestream: &Sidestream, path: &str, token: &str) -> (u16, String) {
    let status = status(sidestream, path, token).await;
    if status == 200 {
        return (status, String::new());
    }
    let bearer = bearer(token);
    let headers = [("Authorization", bearer.as_str())];
    let url = sidestream.url(path);
    let answer = http1::request("GET", &url, &headers).await.unwrap();
    let code = answer.json()["error"]["code"].clone();
    (status, code.as_str().unwrap().to_owned())
}

fn revoked() -> (u16, String) {
    (401, "revoked".to_owned())
}

async fn until_accepted(sidestream: &Sidestream, path: &str, token: &str) {
    eventually(DEADLINE, "the token is accepted", async || {
        status(sidestream, path, token).await == 200
    })
    .await;
}

#[tokio::test]
async fn each_kind_ends_its_event_streams_and_rejects_their_return() {
    let fixture = fixture().await;
    let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
    let mut other = open_h2(&mut connection, "/mine", &token("other").signed()).await;
    let mut all = Vec::new();
    for (subject, option, value) in [
        ("a", "--jti", "token of a"),
        ("b", "--sid", "session of b"),
        ("c", "--sub", "c"),
        ("d", "--client", "client of d"),
    ] {
        let credentials = token(subject).signed();
        let mut stream = open_h2(&mut connection, "/mine", &credentials).await;
        let mut second = fixture.open("/mine", &credentials).await;
        let said = command(&fixture, &["revoke", option, value, "--for", "1h"]).await;
        assert!(
            said.starts_with("revoked ") && said.contains(value),
            "{said}"
        );
        let close = stream.next_within(DEADLINE).await.unwrap();
        assert_eq!(reason(&close), "revoked", "{option}");
        assert!((15_000..=45_000).contains(&stream.retry().unwrap()));
        stream.closed().await;
        let close = second.next_within(DEADLINE).await.unwrap();
        assert_eq!(reason(&close), "revoked", "{option}");
        let rejected = answer(&fixture.sidestream, "/mine", &credentials).await;
        assert_eq!(rejected, revoked(), "{option}");
        all.push(credentials);
    }
    assert!(!connection.going_away());
    fixture.publish("orders.1.paid", "1").await;
    assert_eq!(other.next().await.data, "1");

    // Credentials that are issued later are valid for a subject and a client, not for a session.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let later = |subject| token(subject).claim("iat", now()).signed();
    assert_eq!(
        answer(&fixture.sidestream, "/mine", &later("a")).await,
        revoked()
    );
    assert_eq!(
        answer(&fixture.sidestream, "/mine", &later("b")).await,
        revoked()
    );
    assert_eq!(
        answer(&fixture.sidestream, "/mine", &later("c")).await.0,
        200
    );
    assert_eq!(
        answer(&fixture.sidestream, "/mine", &later("d")).await.0,
        200
    );
    let unknown = token("c").claim("iat", Value::Null).signed();
    assert_eq!(
        answer(&fixture.sidestream, "/mine", &unknown).await,
        revoked()
    );

    // Another pod reads the bucket before it is ready.
    let second = pod(&fixture.nats, ROUTES).await;
    for credentials in all {
        assert_eq!(answer(&second, "/mine", &credentials).await, revoked());
    }
    until_accepted(&second, "/mine", &token("other").signed()).await;
    let labels = [("kind", "sub")];
    let ended = fixture
        .sidestream
        .metric("sidestream_revocation_streams_ended_total", &labels);
    assert_eq!(ended.await, 2.0);
    assert_eq!(second.metric("sidestream_revocations", &[]).await, 4.0);
}

#[tokio::test]
async fn rejection_has_a_challenge_and_browsers_an_event_stream_that_ends() {
    let fixture = fixture().await;
    let credentials = token("alice").signed();
    command(&fixture, &["revoke", "--sub", "alice"]).await;
    eventually(DEADLINE, "the token is rejected", async || {
        answer(&fixture.sidestream, "/mine", &credentials).await == revoked()
    })
    .await;
    let bearer = bearer(&credentials);
    let headers = [("Authorization", bearer.as_str())];
    let url = fixture.sidestream.url("/mine");
    let rejected = http1::request("GET", &url, &headers).await.unwrap();
    let challenge = rejected.header("www-authenticate").unwrap();
    let expected = r#"Bearer realm="sidestream", error="invalid_token", error_description="the credentials are revoked""#;
    assert_eq!(challenge, expected);
    let cookie = format!("session={credentials}");
    let request = fixture.get("/mine").browser().header("Cookie", &cookie);
    let mut browser = request.connect().await;
    assert_eq!(browser.status(), 200);
    assert_eq!(reason(&browser.next().await), "unauthenticated");
    assert!(browser.retry().unwrap() >= 15_000);
    let log = fixture.sidestream.output().join("\n");
    assert!(!log.contains(&BASE64.encode("alice")), "the log has a key");
    // Undone by deletion.
    let key = format!("sub.{}", BASE64.encode("alice"));
    bucket(&fixture).await.delete(key).await.unwrap();
    until_accepted(&fixture.sidestream, "/mine", &credentials).await;
}

#[tokio::test]
async fn client_of_a_route_without_authentication_is_revoked_by_its_name() {
    let fixture = fixture().await;
    let open = async |name: &str| {
        let mut client = fixture.get(&format!("/open?name={name}")).connect().await;
        client.positioned().await;
        client
    };
    let mut alice = open("alice").await;
    let mut bob = open("bob").await;
    command(&fixture, &["revoke", "--client", "alice"]).await;
    let close = alice.next_within(DEADLINE).await.unwrap();
    assert_eq!(reason(&close), "revoked");
    let returned = fixture.get("/open?name=alice").connect().await;
    assert_eq!(returned.status(), 401);
    fixture.publish("orders.1.paid", "1").await;
    assert_eq!(bob.next().await.data, "1");
}

#[tokio::test]
async fn kicked_client_returns_and_misses_nothing() {
    let fixture = fixture().await;
    let mut other = fixture.open("/open?name=bob", "").await;
    let mut alice = fixture.open("/open?name=alice", "").await;
    let said = command(&fixture, &["kick", "--client", "alice"]).await;
    assert!(said.starts_with("kicked client alice"), "{said}");
    let close = alice.next_within(DEADLINE).await.unwrap();
    assert_eq!(reason(&close), "kicked");
    assert!(alice.retry().unwrap() <= 4500, "the retry of the route");
    alice.closed().await;
    fixture.publish("orders.1.paid", "1").await;
    let request = fixture
        .get("/open?name=alice")
        .last_event_id(alice.last_event_id());
    let mut again = request.connect().await;
    assert_eq!(again.next().await.data, "1");
    // Another pod does not end event streams for a kick before its start, and neither does this one
    // a second time.
    let second = pod(&fixture.nats, ROUTES).await;
    let mut elsewhere = SseClient::get(second.url("/open?name=alice"))
        .connect()
        .await;
    elsewhere.positioned().await;
    fixture.publish("orders.2.paid", "2").await;
    assert_eq!(again.next().await.data, "2");
    assert_eq!(elsewhere.next().await.data, "2");
    assert_eq!(other.take(2).await[1].data, "2");
}

#[tokio::test]
async fn malformed_entries_are_counted_and_ignored() {
    let fixture = fixture().await;
    let bucket = bucket(&fixture).await;
    for (key, value) in [
        ("nonsense", "{}"),
        ("sub.Yw", "no json"),
        ("sub.YQ", r#"{"at":1795961031000,"until":1795964631000}"#),
        ("aud.YQ", r#"{"at":1,"until":4000000000}"#),
    ] {
        bucket.put(key, value.into()).await.unwrap();
    }
    write(&bucket, "sub", "b").await;
    let labels = [("reason", "malformed")];
    let name = "sidestream_revocation_entries_ignored_total";
    let ignored = fixture
        .sidestream
        .until_metric(name, &labels, |count| count == 4.0);
    ignored.await;
    eventually(DEADLINE, "the valid entry counts", async || {
        answer(&fixture.sidestream, "/mine", &token("b").signed()).await == revoked()
    })
    .await;
    let accepted = answer(&fixture.sidestream, "/mine", &token("a").signed()).await;
    assert_eq!(accepted.0, 200);
}

#[tokio::test]
async fn deleted_bucket_is_made_again_and_known_revocations_stay() {
    let fixture = fixture().await;
    command(&fixture, &["revoke", "--sub", "a"]).await;
    let is_revoked = async |subject: &str| {
        answer(&fixture.sidestream, "/mine", &token(subject).signed()).await == revoked()
    };
    eventually(DEADLINE, "the first is revoked", async || {
        is_revoked("a").await
    })
    .await;
    fixture.jetstream.delete_key_value("revoked").await.unwrap();
    let made = eventually(RECOVERY, "the bucket is made again", async || {
        fixture.jetstream.get_key_value("revoked").await.ok()
    })
    .await;
    assert!(is_revoked("a").await);
    write(&made, "sub", "b").await;
    eventually(DEADLINE, "the second is revoked", async || {
        is_revoked("b").await
    })
    .await;
    assert!(is_revoked("a").await);
}

/// A server that denies the bucket to its only user.
async fn without_bucket(when: &str) -> (Nats, Sidestream) {
    let permissions = "authorization: { users: [{ user: sidecar, password: secret, permissions: {
        publish: { deny: [\"$JS.API.STREAM.*.KV_revoked\"] }, subscribe: { allow: \">\" } } }] }\n";
    let nats = Nats::builder().config(permissions).start().await;
    let revocations = format!("  revocations: {{ bucket: revoked, when_unavailable: {when} }}\n");
    let config = text(&nats, CORE, &revocations);
    let config = config.replace("nats://", "nats://sidecar:secret@");
    let sidestream = Sidestream::builder(config)
        .env("JWT_SECRET", SECRET)
        .env("APP_SECRET", APP_SECRET)
        .without_waiting()
        .start()
        .await;
    (nats, sidestream)
}

#[tokio::test]
async fn unreadable_bucket_delays_readiness_and_rejects_only_if_configured() {
    let (rejecting, allowing) = tokio::join!(without_bucket("reject"), without_bucket("allow"));
    for ((_nats, sidestream), expected) in [(rejecting, 503), (allowing, 200)] {
        let ready = async || sidestream.admin("/health/ready").await.0;
        let begun = Instant::now();
        eventually(RECOVERY, "the pod is ready", async || ready().await == 200).await;
        if expected == 503 {
            assert!(
                begun.elapsed() >= Duration::from_secs(5),
                "{:?}",
                begun.elapsed()
            );
        }
        let check = sidestream.admin_json("/health").await["checks"]["revocations"].clone();
        assert_eq!(check["status"], "degraded", "{check}");
        let (status, code) = answer(&sidestream, "/core", &token("a").signed()).await;
        assert_eq!(status, expected);
        if expected == 503 {
            assert_eq!(code, "authentication_unavailable");
        }
    }
}

#[tokio::test]
async fn commands_reject_values_and_configurations_that_cannot_work() {
    let fixture = Fixture::with(ROUTES, "").await;
    let file = fixture.sidestream.config_file();
    let file = file.to_str().unwrap();
    let long = "x".repeat(1025);
    for (arguments, code, error) in [
        (vec!["revoke", "--config", file], 64, "required"),
        (
            vec!["revoke", "--sub", "a", "--jti", "b"],
            64,
            "cannot be used with",
        ),
        (vec!["revoke", "--sub", &long], 64, "1025 bytes"),
        (vec!["kick", "--client", &long[..257]], 64, "256 bytes"),
        (vec!["revoke", "--sub", "a", "--for", "1x"], 64, "--for"),
        (
            vec!["revoke", "--sub", "a", "--config", file],
            64,
            "authentication.revocations.bucket",
        ),
        (
            vec!["kick", "--client", "a", "--config", "missing.yaml"],
            64,
            "file not found",
        ),
    ] {
        let output = run(&arguments, fixture.sidestream.folder()).await;
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(error), "{arguments:?}: {said}");
    }
    let unreachable = fixture.sidestream.folder().join("unreachable.yaml");
    let config = "nats: { servers: [\"nats://127.0.0.1:1\"] }\nauthentication: { revocations: { bucket: b } }\n";
    std::fs::write(&unreachable, config).unwrap();
    let arguments = ["kick", "--client", "a", "--config", "unreachable.yaml"];
    let ended = tokio::process::Command::new(testkit::sidestream::binary())
        .args(arguments)
        .current_dir(fixture.sidestream.folder())
        .output();
    let output = within(RECOVERY, "the command ends", ended).await.unwrap();
    assert_eq!(output.status.code(), Some(69), "{output:?}");
}

/// Subjects that a block of docs/nats-permissions.md lists after a sentence.
fn documented(sentence: &str) -> String {
    let page = include_str!("../../../docs/nats-permissions.md");
    let (_, rest) = page.split_once(sentence).unwrap();
    let (_, block) = rest.split_once("```text\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let lines = block.lines().map(|line| line.split('#').next().unwrap());
    lines.map(|line| format!("{line}\n")).collect()
}

#[tokio::test]
async fn the_documented_permissions_suffice() {
    let user = |name: &str, publish: &str| {
        format!(
            "{{ user: {name}, password: x, permissions: {{ publish: {{ allow: [{publish} \"_INBOX_sse.>\"] }},
                subscribe: {{ allow: [\"_INBOX_sse.>\", \"news.>\"] }} }} }}"
        )
    };
    let pod = user(
        "pod",
        &documented("With `authentication.revocations.bucket: revocations`"),
    );
    let command = user("command", &documented("The user of `sidestream revoke`"));
    let users = format!("authorization {{ users: [ {pod}, {command} ] }}");
    let nats = Nats::builder().config(&users).start().await;
    let config = |user: &str| {
        let text = text(&nats, CORE, "  revocations: { bucket: revocations }\n");
        text.replace("nats://", &format!("nats://{user}:x@"))
    };
    let sidestream = Sidestream::builder(config("pod"))
        .env("JWT_SECRET", SECRET)
        .env("APP_SECRET", APP_SECRET)
        .file("command.yaml", config("command"))
        .start()
        .await;
    let check = async |name: &str| {
        let health = sidestream.admin_json("/health").await;
        health["checks"][name]["status"].clone()
    };
    assert_eq!(check("revocations").await, "ok");
    let credentials = token("alice").signed();
    until_accepted(&sidestream, "/core", &credentials).await;
    let arguments = ["revoke", "--sub", "alice", "--config", "command.yaml"];
    let output = run(&arguments, sidestream.folder()).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    eventually(DEADLINE, "the token is rejected", async || {
        answer(&sidestream, "/core", &credentials).await == revoked()
    })
    .await;
    for name in ["revocations", "nats"] {
        assert_ne!(check(name).await, "failing");
    }
    let log = sidestream.output().join("\n");
    assert!(!log.contains("NATS denies"), "{log}");
}

#[tokio::test]
async fn expired_entries_are_erased_from_the_bucket() {
    let fixture = fixture().await;
    let bucket = bucket(&fixture).await;
    write(&bucket, "sub", "valid").await;
    for number in 0..5 {
        let entry = json!({ "at": now() - 7200, "until": now() - 3600 }).to_string();
        let key = format!("jti.{}", BASE64.encode(format!("expired {number}")));
        bucket.put(key, entry.into()).await.unwrap();
    }
    let _second = pod(&fixture.nats, ROUTES).await;
    eventually(DEADLINE, "one entry is left", async || {
        let mut stream = fixture.jetstream.get_stream("KV_revoked").await.unwrap();
        stream.info().await.unwrap().state.messages == 1
    })
    .await;
    let valid = answer(&fixture.sidestream, "/mine", &token("valid").signed()).await;
    assert_eq!(valid, revoked());
}

#[tokio::test]
async fn client_that_does_not_read_cannot_delay_its_end() {
    let fixture = fixture().await;
    let data = "x".repeat(64 * 1024);
    let mut times = Vec::new();
    // A busy machine may delay one of them; a client that waits for its peer delays each.
    for name in ["a", "b", "c"] {
        let credentials = token(name).signed();
        let request = fixture.get("/mine").receive_buffer(4096);
        let request = request.header("Authorization", &bearer(&credentials));
        let mut client = request.connect().await;
        client.positioned().await;
        for _ in 0..200 {
            fixture.publish("orders.1.paid", data.clone()).await;
        }
        write(&bucket(&fixture).await, "sub", name).await;
        let written = Instant::now();
        let labels = [("route", "/mine"), ("reason", "revoked")];
        let expected = times.len() as f64 + 1.0;
        let closed =
            fixture
                .sidestream
                .until_metric("sidestream_streams_closed_total", &labels, |count| {
                    count == expected
                });
        closed.await;
        times.push(written.elapsed());
        if written.elapsed() <= WITHIN {
            return;
        }
    }
    panic!("none ended within {WITHIN:?}: {times:?}");
}

#[tokio::test]
async fn another_bucket_needs_a_restart_and_the_answer_without_it_does_not() {
    let fixture = fixture().await;
    let changed = "  revocations: { bucket: other, when_unavailable: reject }\n";
    let config = text(&fixture.nats, ROUTES, changed);
    fixture.sidestream.rewrite_config(&config);
    let applied = fixture
        .sidestream
        .until_message("configuration applied")
        .await;
    let restart = applied["restart"].to_string();
    assert!(
        restart.contains("authentication.revocations.bucket"),
        "{restart}"
    );
    let config = fixture.sidestream.admin_json("/config").await;
    let revocations = &config["effective"]["authentication"]["revocations"];
    assert_eq!(revocations["when_unavailable"], "reject", "{config}");
    write(&bucket(&fixture).await, "sub", "alice").await;
    eventually(DEADLINE, "the bucket of the start counts", async || {
        answer(&fixture.sidestream, "/mine", &token("alice").signed()).await == revoked()
    })
    .await;
}
