//! Revocation and kick: by command and by application, in open event streams and at their return.

use std::time::{Duration, Instant};

use async_nats::jetstream::kv;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};
use testkit::h2::{H2Client, H2Stream};
use testkit::http1;
use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, run};
use testkit::sse::SseClient;
use testkit::sse_parser::Event;
use testkit::wait::{DEADLINE, RECOVERY, eventually, within};
use tokio::task::JoinSet;

use super::token::{SECRET, Token, now};
use super::{APP_SECRET, Fixture, bearer, open_h2, text};

const REVOCATIONS: &str = "  revocations: { bucket: revoked }\n";

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
const CORE: &str = "trusted_proxies: [127.0.0.1]
routes:
  - path: /core
    authenticate: [idp]
    sources: [{ subjects: [\"news.>\"] }]
";

/// 1 s from the write of an entry to the end of an event stream.
const WITHIN: Duration = Duration::from_secs(1);

async fn fixture() -> Fixture {
    Fixture::with(ROUTES, REVOCATIONS).await
}

/// Token of a subject that is the name of the client too, with its own ids of token and session.
fn token(subject: &str) -> Token {
    Token::of(subject)
        .claim("name", format!("client of {subject}"))
        .claim("jti", format!("token of {subject}"))
        .claim("sid", format!("session of {subject}"))
}

async fn pod(nats: &Nats, routes: &str) -> Sidestream {
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

async fn bucket(fixture: &Fixture) -> kv::Store {
    fixture.jetstream.get_key_value("revoked").await.unwrap()
}

/// Writes an entry as an application does.
async fn write(bucket: &kv::Store, kind: &str, value: &str) {
    let key = format!("{kind}.{}", BASE64.encode(value));
    let entry = json!({ "at": now(), "until": now() + 3600 }).to_string();
    bucket.put(key, entry.into()).await.unwrap();
}

fn reason(close: &Event) -> Value {
    assert_eq!(close.name, "sidestream.close");
    serde_json::from_str::<Value>(&close.data).unwrap()["reason"].clone()
}

/// Status and code of a request with a token.
async fn answer(sidestream: &Sidestream, path: &str, token: &str) -> (u16, String) {
    let bearer = bearer(token);
    let headers = [("Authorization", bearer.as_str())];
    let url = sidestream.url(path);
    let status = http1::request("HEAD", &url, &headers).await.unwrap().status;
    if status == 200 {
        return (status, String::new());
    }
    let answer = http1::request("GET", &url, &headers).await.unwrap();
    let code = answer.json()["error"]["code"].clone();
    (status, code.as_str().unwrap().to_owned())
}

fn revoked() -> (u16, String) {
    (401, "revoked".to_owned())
}

async fn until_accepted(sidestream: &Sidestream, path: &str, token: &str) {
    eventually(DEADLINE, "the token is accepted", async || {
        answer(sidestream, path, token).await.0 == 200
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
        let close = stream.next_within(WITHIN).await.unwrap();
        assert_eq!(reason(&close), "revoked", "{option}");
        assert!((15_000..=45_000).contains(&stream.retry().unwrap()));
        stream.closed().await;
        let close = second.next_within(WITHIN).await.unwrap();
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
    let later = |subject| token(subject).signed();
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
        client
            .until_seen("its position", |parser| parser.positions() > 0)
            .await;
        client
    };
    let mut alice = open("alice").await;
    let mut bob = open("bob").await;
    command(&fixture, &["revoke", "--client", "alice"]).await;
    let close = alice.next_within(WITHIN).await.unwrap();
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
    let close = alice.next_within(WITHIN).await.unwrap();
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
    elsewhere
        .until_seen("its position", |parser| parser.positions() > 0)
        .await;
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
        ("sub.YQ", "no json"),
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

/// Numbered event streams of `/core` on a pod, each with a token of its own, and some others.
struct Crowd {
    /// Ends with the time of the end.
    revoked: JoinSet<(usize, Instant, Value)>,
    others: Vec<H2Stream>,
    _connections: Vec<H2Client>,
}

impl Crowd {
    async fn open(sidestream: &Sidestream, numbers: impl Iterator<Item = usize>) -> Self {
        let mut crowd = Self {
            revoked: JoinSet::new(),
            others: Vec::new(),
            _connections: Vec::new(),
        };
        let mut connection = H2Client::connect(sidestream.url("/")).await;
        for (index, number) in numbers.enumerate() {
            if index % 100 == 99 {
                let next = H2Client::connect(sidestream.url("/")).await;
                crowd
                    ._connections
                    .push(std::mem::replace(&mut connection, next));
            }
            let mut stream = open_h2(&mut connection, "/core", &numbered(number)).await;
            crowd.revoked.spawn(async move {
                // Without a deadline: it is silent until its turn.
                let close = loop {
                    let event = stream.advance().await.unwrap();
                    if event.name == "sidestream.close" {
                        break event;
                    }
                };
                let ended = Instant::now();
                stream.closed().await;
                (number, ended, reason(&close))
            });
            if index % 10 == 0 {
                let other = token(&format!("other {number}")).signed();
                crowd
                    .others
                    .push(open_h2(&mut connection, "/core", &other).await);
            }
        }
        crowd._connections.push(connection);
        crowd
    }
}

fn numbered(number: usize) -> String {
    Token::of("crowd")
        .claim("jti", format!("token {number}"))
        .signed()
}

/// Revokes tokens one by one over two pods and a restart of NATS.
async fn tokens_end_one_by_one(count: usize) {
    let mut fixture = Fixture::with(CORE, REVOCATIONS).await;
    let second = pod(&fixture.nats, CORE).await;
    let mut crowds = [
        Crowd::open(&fixture.sidestream, (0..count).step_by(2)).await,
        Crowd::open(&second, (1..count).step_by(2)).await,
    ];
    let mut written = Vec::with_capacity(count);
    let store = bucket(&fixture).await;
    for number in 0..count / 2 {
        write(&store, "jti", &format!("token {number}")).await;
        written.push(Instant::now());
    }
    tokio::time::sleep(WITHIN).await;
    fixture.nats.restart().await;
    fixture.jetstream = fixture.nats.jetstream().await;
    for sidestream in [&fixture.sidestream, &second] {
        eventually(RECOVERY, "the pod follows the bucket again", async || {
            let health = sidestream.admin_json("/health").await;
            health["checks"]["revocations"]["status"] == "ok"
        })
        .await;
    }
    let store = bucket(&fixture).await;
    for number in count / 2..count {
        write(&store, "jti", &format!("token {number}")).await;
        written.push(Instant::now());
    }
    let mut slowest = Duration::ZERO;
    for crowd in &mut crowds {
        while let Some(ended) = within(DEADLINE, "all end", crowd.revoked.join_next()).await {
            let (number, ended, reason) = ended.unwrap();
            assert_eq!(reason, "revoked");
            slowest = slowest.max(ended.saturating_duration_since(written[number]));
        }
    }
    println!("{count} event streams ended within {slowest:?}");
    assert!(slowest <= WITHIN, "{slowest:?}");
    let none_returns = async |sidestream: &Sidestream| {
        for number in 0..count {
            // Failures of one address are limited.
            let address = format!("10.1.{}.{}", number / 250, number % 250);
            let bearer = bearer(&numbered(number));
            let headers = [
                ("Authorization", bearer.as_str()),
                ("X-Forwarded-For", &address),
            ];
            let url = sidestream.url("/core");
            let rejected = http1::request("GET", &url, &headers).await.unwrap();
            let code = rejected.json()["error"]["code"].clone();
            assert_eq!((rejected.status, code), (401, "revoked".into()), "{number}");
        }
    };
    none_returns(&fixture.sidestream).await;
    none_returns(&second).await;
    let client = fixture.nats.client().await;
    client.publish("news.1", "on".into()).await.unwrap();
    client.flush().await.unwrap();
    for crowd in &mut crowds {
        for other in &mut crowd.others {
            let is_own = |event: &Event| !event.name.starts_with("sidestream.");
            let events = other.until(is_own).await;
            assert_eq!(events.last().unwrap().data, "on");
        }
    }
    drop((crowds, second));
    fixture.sidestream.terminate();
    for _ in 0..2 {
        let restarted = pod(&fixture.nats, CORE).await;
        none_returns(&restarted).await;
    }
}

#[tokio::test]
async fn two_hundred_tokens_end_within_a_second_over_two_pods_and_a_restart_of_nats() {
    tokens_end_one_by_one(200).await;
}

#[tokio::test]
#[ignore = "takes a minute"]
async fn a_thousand_tokens_end_within_a_second_over_two_pods_and_a_restart_of_nats() {
    tokens_end_one_by_one(1000).await;
}
