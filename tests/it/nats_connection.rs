//! Connections to NATS: every kind of credentials, TLS, permissions, and lame duck mode.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::upstream::{Reader, Seen, Upstream};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::{FutureExt as _, StreamExt as _};
use nkeys::KeyPair;
use serde_json::json;
use sidestream::feed::GapReason;
use sidestream::nats::config::{Credentials, Secret, Tls};
use testkit::certs::{Authority, Identity};
use testkit::nats::{Cluster, Nats, create_stream, publish};
use testkit::wait::{RECOVERY, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

fn password(user: &str, password: &str) -> Credentials {
    Credentials::Password {
        user: user.into(),
        password: Secret(password.into()),
    }
}

/// Connects with the right credentials, and with wrong ones, whose error must not contain the
/// secret.
async fn assert_authenticates(nats: &Nats, right: Credentials, wrong: Credentials) {
    let upstream = Upstream::connect_with(&nats.url(), right, None).await;
    upstream.until_ok("nats").await;
    let refused = Upstream::connect_with(&nats.url(), wrong, None).await;
    let why = refused
        .until_reported("nats", &["authorization violation"])
        .await;
    assert!(!why.contains("wrong"), "{why}");
    assert!(!refused.health.is_ready());
}

async fn server(config: &str) -> Nats {
    Nats::builder()
        .without_jetstream()
        .config(config)
        .start()
        .await
}

#[tokio::test]
async fn user_and_password_are_accepted_and_wrong_ones_are_reported() {
    let nats = server("authorization { user: a, password: right }").await;
    assert_authenticates(&nats, password("a", "right"), password("a", "wrong")).await;
    // Also in the address, as NATS clients accept it.
    let url = nats.url().replace("nats://", "nats://a:right@");
    Upstream::connect(&url).await.until_ok("nats").await;
}

#[tokio::test]
async fn a_token_is_accepted_and_a_wrong_one_is_reported() {
    let nats = server("authorization { token: right }").await;
    assert_authenticates(
        &nats,
        Credentials::Token(Secret("right".into())),
        Credentials::Token(Secret("wrong".into())),
    )
    .await;
}

#[tokio::test]
async fn an_nkey_is_accepted_and_a_wrong_one_is_reported() {
    let (right, other) = (KeyPair::new_user(), KeyPair::new_user());
    let nats = server(&format!(
        "authorization {{ users = [ {{ nkey: {} }} ] }}",
        right.public_key()
    ))
    .await;
    let nkey = |pair: &KeyPair| Credentials::Nkey(Secret(pair.seed().unwrap()));
    assert_authenticates(&nats, nkey(&right), nkey(&other)).await;
}

#[tokio::test]
async fn a_credentials_file_is_read_at_every_connect() {
    let (operator, account, user) = (
        KeyPair::new_operator(),
        KeyPair::new_account(),
        KeyPair::new_user(),
    );
    let operator_token = token(&operator, &operator.public_key(), "operator", json!({}));
    let account_token = token(
        &operator,
        &account.public_key(),
        "account",
        json!({ "limits": { "subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1, "payload": -1, "wildcards": true } }),
    );
    let user_token = token(
        &account,
        &user.public_key(),
        "user",
        json!({ "subs": -1, "data": -1, "payload": -1 }),
    );
    let config = format!(
        "operator: {operator_token}\nresolver: MEMORY\nresolver_preload: {{ {}: {account_token} }}",
        account.public_key()
    );
    let nats = server(&config).await;
    let file = nats.folder().join("user.creds");
    let credentials = Credentials::File(file.clone());

    // The file is missing, then has the seed of another user, then is right; without a restart.
    let upstream = Upstream::connect_with(&nats.url(), credentials, None).await;
    upstream.until_reported("nats", &["user.creds"]).await;
    write_credentials(&file, &user_token, &KeyPair::new_user());
    upstream
        .until_reported("nats", &["authorization violation"])
        .await;
    write_credentials(&file, &user_token, &user);
    upstream.until_ok("nats").await;
}

fn write_credentials(file: &PathBuf, token: &str, pair: &KeyPair) {
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
        -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        pair.seed().unwrap()
    );
    std::fs::write(file, text).unwrap();
}

/// Token in the format of NATS (JWT v2, signed with ed25519).
fn token(issuer: &KeyPair, subject: &str, kind: &str, claims: serde_json::Value) -> String {
    let mut nats = claims;
    nats["type"] = json!(kind);
    nats["version"] = json!(2);
    let body = json!({ "jti": subject, "iat": 1_700_000_000, "iss": issuer.public_key(), "name": kind, "sub": subject, "nats": nats });
    let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!(
        "{}.{}",
        encode(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })),
        encode(&body)
    );
    format!(
        "{signed}.{}",
        URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap())
    )
}

#[tokio::test]
async fn tls_is_used_if_configured_and_an_unknown_authority_is_reported() {
    let authority = Authority::new();
    let identity = authority.server("nats");
    let config = format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}",
        identity.certificate, identity.key
    );
    let nats = server(&config).await;
    let trusting = |authority: &Authority| {
        Some(Tls {
            ca: Some(authority.file()),
            ..Tls::default()
        })
    };
    let upstream =
        Upstream::connect_with(&nats.url(), Credentials::None, trusting(&authority)).await;
    upstream.until_ok("nats").await;
    let other = Authority::new();
    let refused = Upstream::connect_with(&nats.url(), Credentials::None, trusting(&other)).await;
    refused.until_reported("nats", &["certificate"]).await;
}

#[tokio::test]
async fn a_self_signed_certificate_is_accepted_as_its_own_authority_or_explained_in_an_error() {
    let authority = Authority::new();
    for (name, is_authority) in [("plain", false), ("authority", true)] {
        let identity = authority.self_signed(name, is_authority);
        let nats = server(&tls_of(&identity)).await;
        let tls = Tls {
            ca: Some(identity.certificate.clone()),
            ..Tls::default()
        };
        let upstream = Upstream::connect_with(&nats.url(), Credentials::None, Some(tls)).await;
        if is_authority {
            upstream
                .until_reported(
                    "nats",
                    &["CaUsedAsEndEntity", "basicConstraints=critical,CA:FALSE"],
                )
                .await;
        } else {
            upstream.until_ok("nats").await;
        }
    }
}

#[tokio::test]
async fn a_missing_or_wrong_tls_file_is_named_in_the_error() {
    let authority = Authority::new();
    let nats = server(&tls_of(&authority.server("nats"))).await;
    let missing = authority.folder().join("missing.crt");
    let tls = Tls {
        ca: Some(missing.clone()),
        ..Tls::default()
    };
    let upstream = Upstream::connect_with(&nats.url(), Credentials::None, Some(tls)).await;
    upstream
        .until_reported(
            "nats",
            &["`nats.tls.ca`", missing.to_str().unwrap(), "No such file"],
        )
        .await;

    let key = authority.server("nats").key;
    let tls = Tls {
        ca: Some(authority.file()),
        certificate: Some(key.clone()),
        key: Some(key.clone()),
        ..Tls::default()
    };
    let upstream = Upstream::connect_with(&nats.url(), Credentials::None, Some(tls)).await;
    upstream
        .until_reported(
            "nats",
            &[
                "`nats.tls.certificate`",
                key.to_str().unwrap(),
                "no PEM certificate",
            ],
        )
        .await;
}

#[tokio::test]
async fn tls_handshake_first_is_supported() {
    let authority = Authority::new();
    let config = tls_of(&authority.server("nats")).replace('}', ", handshake_first: true }");
    let nats = server(&config).await;
    let tls = Tls {
        ca: Some(authority.file()),
        handshake_first: true,
        ..Tls::default()
    };
    let upstream = Upstream::connect_with(&nats.url(), Credentials::None, Some(tls)).await;
    upstream.until_ok("nats").await;
    let tls = Tls {
        ca: Some(authority.file()),
        ..Tls::default()
    };
    let late = Upstream::connect_with(&nats.url(), Credentials::None, Some(tls)).await;
    late.until_reported("nats", &["set `nats.tls.handshake_first: true`"])
        .await;
}

#[tokio::test]
async fn a_clear_text_password_to_another_host_is_a_warning_and_required_tls_prevents_it() {
    let nats = server("authorization { user: a, password: \"p@ss:w/rd\" }").await;
    // This address reaches loopback without its name.
    let remote = format!("nats://0.0.0.0:{}", nats.port());
    let upstream = Upstream::connect_with(&remote, password("a", "p@ss:w/rd"), None).await;
    let why = upstream
        .until_reported(
            "nats",
            &[
                "password",
                "clear text",
                "0.0.0.0",
                "nats.tls.required: true",
            ],
        )
        .await;
    assert!(!why.contains("p@ss"), "{why}");
    assert!(upstream.health.is_ready());

    // Credentials in the address are decoded.
    let escaped = nats.url().replace("nats://", "nats://a:p%40ss%3Aw%2Frd@");
    Upstream::connect(&escaped).await.until_ok("nats").await;

    let accepted = Tls {
        required: Some(false),
        ..Tls::default()
    };
    Upstream::connect_with(&remote, password("a", "p@ss:w/rd"), Some(accepted))
        .await
        .until_ok("nats")
        .await;

    let (between, sent) = listen_between(nats.port()).await;
    let required = Tls {
        required: Some(true),
        ..Tls::default()
    };
    let upstream =
        Upstream::connect_with(&between, password("a", "p@ss:w/rd"), Some(required)).await;
    upstream.until_reported("nats", &["down"]).await;
    eventually(RECOVERY, "something is sent", || async {
        !sent.lock().unwrap().is_empty()
    })
    .await;
    let sent = String::from_utf8_lossy(&sent.lock().unwrap()).into_owned();
    assert!(
        !sent.contains("CONNECT") && !sent.contains("p@ss"),
        "{sent}"
    );
    assert!(!upstream.health.is_ready());
}

/// Proxy that records what the client sends; returns its address and the record.
async fn listen_between(port: u16) -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("nats://{}", listener.local_addr().unwrap());
    let read = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&read);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let heard = Arc::clone(&heard);
            tokio::spawn(async move {
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let answers =
                    tokio::spawn(
                        async move { tokio::io::copy(&mut from_server, &mut to_client).await },
                    );
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = from_client.read(&mut bytes).await {
                    heard.lock().unwrap().extend_from_slice(&bytes[..count]);
                    if to_server.write_all(&bytes[..count]).await.is_err() {
                        break;
                    }
                }
                answers.abort();
            });
        }
    });
    (address, read)
}

/// TLS part of the configuration of a server.
fn tls_of(identity: &Identity) -> String {
    format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}",
        identity.certificate, identity.key
    )
}

#[tokio::test]
async fn a_client_certificate_is_sent_if_the_server_requests_it() {
    let authority = Authority::new();
    let identity = authority.server("nats");
    let config = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        identity.certificate,
        identity.key,
        authority.file()
    );
    let nats = server(&config).await;
    let client = authority.client("sidestream");
    let tls = Tls {
        ca: Some(authority.file()),
        certificate: Some(client.certificate),
        key: Some(client.key),
        ..Tls::default()
    };
    let upstream = Upstream::connect_with(&nats.url(), Credentials::None, Some(tls)).await;
    upstream.until_ok("nats").await;
    let tls = Tls {
        ca: Some(authority.file()),
        ..Tls::default()
    };
    let refused = Upstream::connect_with(&nats.url(), Credentials::None, Some(tls)).await;
    refused.until_reported("nats", &["down"]).await;
}

#[tokio::test]
async fn the_least_permissions_suffice_and_a_missing_one_is_named() {
    let allowed = |stream: &str| {
        [
            "STREAM.INFO.S",
            "STREAM.MSG.GET.S",
            "CONSUMER.CREATE.S.>",
            "CONSUMER.DELETE.S.*",
            "CONSUMER.MSG.NEXT.S.*",
        ]
        .map(|subject| {
            format!(
                "\"$JS.API.{}\"",
                subject.replace(".S", &format!(".{stream}"))
            )
        })
        .join(", ")
    };
    let user = |name: &str, publish: &str| {
        format!(
            "{{ user: {name}, password: p, permissions: {{ publish: {{ allow: [{publish}] }}, subscribe: {{ allow: [\"_INBOX_sse.>\"] }} }} }}"
        )
    };
    let config = format!(
        "accounts {{ A {{ jetstream: enabled, users: [ {{ user: admin, password: p }}, {}, {}, {} ] }} }}",
        user("least", &allowed("A")),
        user("less", "\"$JS.API.STREAM.INFO.A\""),
        user(
            "mute",
            "\"$JS.API.STREAM.INFO.A\", \"$JS.API.CONSUMER.CREATE.A.>\""
        ),
    );
    let nats = Nats::builder().config(&config).start().await;
    let admin = async_nats::ConnectOptions::with_user_and_password("admin".into(), "p".into());
    let jetstream = async_nats::jetstream::new(nats.client_with(admin).await);
    create_stream(&jetstream, "A", &["a.>"]).await;
    let upstream = Upstream::connect_with(&nats.url(), password("least", "p"), None).await;
    let log = upstream.tail("A", &["a.x", "a.y"]);
    upstream.until_ok("stream:A").await;
    let mut reader = Reader::of_log(&log, &["a.>"]).await;
    publish(&jetstream, "a.x", ["1".into()]).await;
    reader.until_seen(1).await;

    let less = Upstream::connect_with(&nats.url(), password("less", "p"), None).await;
    less.tail("A", &["a.x", "a.y"]);
    less.until_reported(
        "stream:A",
        &["stream A", "$JS.API.CONSUMER.CREATE.A", "permission"],
    )
    .await;
    let mute = Upstream::connect_with(&nats.url(), password("mute", "p"), None).await;
    mute.tail("A", &["a.x", "a.y"]);
    mute.until_reported(
        "stream:A",
        &["stream A", "$JS.API.CONSUMER.MSG.NEXT.A", "permission"],
    )
    .await;
}

#[tokio::test]
async fn the_documented_permissions_suffice_and_protect_the_inboxes() {
    let page = include_str!("../../docs/nats-permissions.md");
    let mut blocks = page
        .split("```nats\npermissions: {")
        .skip(1)
        .filter_map(|rest| rest.split("```").next());
    let (sidecar, others) = (blocks.next().unwrap(), blocks.next().unwrap());
    let config = format!(
        "accounts {{ A {{ jetstream: enabled, users: [
            {{ user: admin, password: p }}
            {{ user: sidecar, password: p, permissions: {{ {sidecar} }}
            {{ user: other, password: p, permissions: {{ {others} }}
        ] }} }}"
    );
    let nats = Nats::builder().config(&config).start().await;
    let user =
        |name: &str| async_nats::ConnectOptions::with_user_and_password(name.into(), "p".into());
    let jetstream = async_nats::jetstream::new(nats.client_with(user("admin")).await);
    create_stream(&jetstream, "ORDERS", &["orders.>"]).await;
    let upstream = Upstream::connect_with(&nats.url(), password("sidecar", "p"), None).await;
    let log = upstream.tail("ORDERS", &["orders.>"]);
    upstream.until_ok("stream:ORDERS").await;
    let mut stored = Reader::of_log(&log, &["orders.>"]).await;
    let core = upstream.core();
    let mut live = Reader::of_core(&core, &["announcements.>"]).await;

    let other = nats.client_with(user("other")).await;
    let mut spy = nats
        .client_with(user("admin"))
        .await
        .subscribe("_INBOX_sse.>")
        .await
        .unwrap();
    other
        .publish("_INBOX_sse.x.y", "forged".into())
        .await
        .unwrap();
    other
        .publish("announcements.x", "news".into())
        .await
        .unwrap();
    other.publish("orders.x", "1".into()).await.unwrap();
    other.flush().await.unwrap();
    live.until_seen(1).await;
    stored.until_seen(1).await;
    eventually(
        RECOVERY,
        "the server has refused the message to an inbox",
        || {
            std::future::ready(
                nats.log().iter().any(|line| {
                    line.contains("Publish Violation") && line.contains("_INBOX_sse.x.y")
                }),
            )
        },
    )
    .await;
    while let Some(Some(message)) = spy.next().now_or_never() {
        assert_ne!(message.payload, "forged");
    }
    upstream.until_ok("nats").await;
}

#[tokio::test]
async fn a_server_in_lame_duck_mode_is_left_and_only_core_subjects_have_a_gap() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let jetstream = async_nats::jetstream::new(client.clone());
    let config = async_nats::jetstream::stream::Config {
        name: "A".into(),
        subjects: vec!["a.>".into()],
        num_replicas: 3,
        ..Default::default()
    };
    eventually(RECOVERY, "the stream is created", || async {
        jetstream.create_stream(config.clone()).await.is_ok()
    })
    .await;
    let first = cluster.node(0).url();
    let upstream = Upstream::connect(&first).await;
    let log = upstream.tail("A", &["a.>"]);
    // A connection learns the other servers from this one.
    upstream.until_ok("nats").await;
    upstream.until_ok("stream:A").await;
    let mut stored = Reader::of_log(&log, &["a.>"]).await;
    let core = upstream.core();
    let mut live = Reader::of_core(&core, &["b.>"]).await;
    publish(&jetstream, "a.x", ["1".into()]).await;
    stored.until_seen(1).await;
    cluster.node(0).lame_duck();
    // All four connections move. Messages that are stored meanwhile arrive in order.
    eventually(RECOVERY, "every connection has been made again", || {
        std::future::ready(upstream.metrics.nats_reconnects_total.get() >= 4)
    })
    .await;
    upstream.until_ok("nats").await;
    publish(&jetstream, "a.x", ["2".into(), "3".into()]).await;
    stored.until_seen(3).await;
    assert_eq!(stored.data(), ["1", "2", "3"]);
    assert_eq!(stored.gaps(), []);
    live.until_seen(1).await;
    assert_eq!(live.seen[0], Seen::Gap(GapReason::Upstream, None));
}
