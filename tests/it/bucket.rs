//! KV buckets as sources of routes: keys are subjects, the state comes first, then every change.

use std::collections::BTreeMap;

use async_nats::jetstream::{self, kv, stream};
use futures_util::TryStreamExt as _;
use serde_json::Value;

use testkit::nats::Nats;
use testkit::ndjson::{Reader, Request};
use testkit::sidestream::{Sidestream, config};
use testkit::sse::SseClient;
use testkit::wait::{RECOVERY, eventually};

const ROUTES: &str = r#"routes:
  - path: /prices
    sources: [{ bucket: prices }]
    window: { events: 200 }
  - path: /prices/{currency}
    sources: [{ bucket: prices, subjects: ["{currency}.>"] }]
    event: "{subject.2}"
    window: { events: 200 }
  - path: /live
    sources: [{ bucket: prices, subjects: ["{query.key}"], allow: ["eur.>"] }]
    begin: live
    window: { events: 200 }"#;

type Folded = BTreeMap<String, String>;

async fn create(nats: &Nats) -> kv::Store {
    let config = kv::Config {
        bucket: "prices".to_owned(),
        history: 3,
        ..kv::Config::default()
    };
    nats.jetstream()
        .await
        .create_key_value(config)
        .await
        .unwrap()
}

async fn put(bucket: &kv::Store, key: &str, value: &str) {
    bucket.put(key, value.to_owned().into()).await.unwrap();
}

/// Content of the bucket, read without the sidecar.
async fn stored(bucket: &kv::Store) -> Folded {
    let keys: Vec<String> = bucket.keys().await.unwrap().try_collect().await.unwrap();
    let mut state = Folded::new();
    for key in keys {
        let value = bucket.get(&key).await.unwrap().unwrap();
        state.insert(key, String::from_utf8(value.to_vec()).unwrap());
    }
    state
}

fn fold(state: &mut Folded, line: &Value) {
    let key = line["subject"].as_str();
    match (line["control"].as_str(), line["event"].as_str(), key) {
        (Some("snapshot"), ..) => state.clear(),
        (Some("gap"), ..) => panic!("{line}"),
        (Some(_), ..) | (None, _, None) => {}
        (None, Some("sidestream.removed"), Some(key)) => drop(state.remove(key)),
        (None, _, Some(key)) => {
            let value = line["data"].as_str().unwrap();
            state.insert(key.to_owned(), value.to_owned());
        }
    }
}

async fn open(sidestream: &Sidestream, path: &str, id: &str) -> Reader {
    let url = sidestream.url(path);
    let request = Request {
        last_event_id: id,
        ..Request::new(&url)
    };
    let reader = request.send().await;
    assert_eq!(reader.status(), 200);
    reader
}

async fn until_reported(sidestream: &Sidestream, words: &[&str]) {
    eventually(RECOVERY, "the check of the bucket", || async {
        let health = sidestream.admin_json("/health").await;
        let text = health["checks"]["stream:KV_prices"].to_string();
        words.iter().all(|word| text.contains(word)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn keys_are_subjects_and_the_state_comes_before_the_changes() {
    let nats = Nats::start().await;
    let bucket = create(&nats).await;
    for (key, value) in [
        ("eur.usd", "a"),
        ("eur.chf", "b"),
        ("usd.eur", "c"),
        ("eur.gbp", "d"),
        ("eur.usd", "e"),
    ] {
        put(&bucket, key, value).await;
    }
    bucket.delete("eur.gbp").await.unwrap();
    let sidestream = Sidestream::start(config(&nats, ROUTES)).await;
    let mut all = open(&sidestream, "/prices", "").await;
    let (lines, synced) = all.until_control("synced").await;
    let mut state = Folded::new();
    lines.iter().for_each(|line| fold(&mut state, line));
    assert_eq!(state, stored(&bucket).await);
    assert_eq!(state.len(), 3);
    assert!(synced["id"].is_string());

    // A part of the bucket, as Server-Sent Events with names from the keys.
    let mut euro = SseClient::get(sidestream.url("/prices/eur"))
        .connect()
        .await;
    let events = euro.until(|event| event.name == "sidestream.synced").await;
    let seen: Vec<_> = events[1..events.len() - 1]
        .iter()
        .map(|event| (event.name.as_str(), event.data.as_str()))
        .collect();
    assert_eq!(seen, [("chf", "b"), ("usd", "e")]);

    put(&bucket, "usd.eur", "f").await;
    put(&bucket, "eur.chf", "g").await;
    bucket.purge("eur.usd").await.unwrap();
    let change = euro.next().await;
    assert_eq!((change.name.as_str(), change.data.as_str()), ("chf", "g"));
    let removed = euro.next().await;
    assert_eq!(removed.name, "sidestream.removed");
    let removed: Value = serde_json::from_str(&removed.data).unwrap();
    assert_eq!(removed["subject"], "eur.usd");
    for line in all.events(3).await {
        fold(&mut state, &line);
    }
    assert_eq!(state, stored(&bucket).await);

    // Without the state, within `allow`.
    let mut live = open(&sidestream, "/live?key=eur.*", "").await;
    let (_, position) = live.until_control("position").await;
    put(&bucket, "eur.jpy", "h").await;
    assert_eq!(live.events(1).await[0]["subject"], "eur.jpy");
    let url = sidestream.url("/live?key=usd.eur");
    assert_eq!(Request::new(&url).send().await.status(), 403);
    // From the history of the bucket: older values of a key, as far as it keeps them.
    for number in 0..300 {
        put(
            &bucket,
            &format!("eur.{}", number % 100),
            &format!("v{number}"),
        )
        .await;
    }
    let id = position["id"].as_str().unwrap();
    let mut late = open(&sidestream, "/live?key=eur.*", id).await;
    let events = late.events(301).await;
    assert_eq!(events[0]["data"], "h");
    assert_eq!(
        (&events[300]["subject"], &events[300]["data"]),
        (&"eur.99".into(), &"v299".into())
    );
}

#[tokio::test]
async fn folded_state_equals_the_bucket_through_puts_deletes_and_purges() {
    let nats = Nats::start().await;
    let bucket = create(&nats).await;
    let sidestream = Sidestream::start(config(&nats, ROUTES)).await;
    let writing = {
        let bucket = bucket.clone();
        tokio::spawn(async move {
            let mut rng = fastrand::Rng::with_seed(3);
            for number in 0..5000 {
                let key = format!("key.{}", rng.u32(..500));
                match rng.u8(..10) {
                    0 => bucket.delete(&key).await.unwrap(),
                    1 => bucket.purge(&key).await.unwrap(),
                    _ => put(&bucket, &key, &format!("v{number}")).await,
                }
            }
            put(&bucket, "end", "end").await;
        })
    };
    let clients = (0..8).map(|number| {
        let sidestream = &sidestream;
        async move {
            let (mut state, mut id) = (Folded::new(), String::new());
            let mut rng = fastrand::Rng::with_seed(number);
            while !state.contains_key("end") {
                let mut reader = open(sidestream, "/prices", &id).await;
                for _ in 0..rng.u32(..600) {
                    let line = reader.next().await;
                    fold(&mut state, &line);
                    if let Some(position) = line["id"].as_str() {
                        position.clone_into(&mut id);
                    }
                    if state.contains_key("end") {
                        break;
                    }
                }
            }
            state
        }
    });
    let states = futures_util::future::join_all(clients).await;
    writing.await.unwrap();
    let expected = stored(&bucket).await;
    for state in states {
        assert_eq!(state, expected);
    }
}

#[tokio::test]
async fn a_missing_bucket_is_named_and_a_recreated_one_is_another() {
    let nats = Nats::start().await;
    let sidestream = Sidestream::builder(config(&nats, ROUTES))
        .without_waiting()
        .start()
        .await;
    until_reported(&sidestream, &["no KV bucket prices", "nats kv add prices"]).await;
    assert_eq!(sidestream.admin("/health/ready").await.0, 503);
    let bucket = create(&nats).await;
    put(&bucket, "eur.usd", "first").await;
    until_reported(&sidestream, &["ok"]).await;
    let mut reader = open(&sidestream, "/prices", "").await;
    let (lines, _) = reader.until_control("synced").await;
    assert_eq!(lines.last().unwrap()["data"], "first");
    put(&bucket, "eur.usd", "change").await;
    let id = reader.events(1).await[0]["id"].as_str().unwrap().to_owned();

    let jetstream = nats.jetstream().await;
    jetstream.delete_key_value("prices").await.unwrap();
    until_reported(&sidestream, &["no KV bucket prices"]).await;
    let bucket = create(&nats).await;
    put(&bucket, "eur.usd", "second").await;
    until_reported(&sidestream, &["ok"]).await;
    // The state of the new bucket, not a gap.
    let (lines, _) = reader.until_control("synced").await;
    assert_eq!(lines[0]["control"], "snapshot");
    assert_eq!(lines.last().unwrap()["data"], "second");
    // So does a client that returns.
    let mut again = open(&sidestream, "/prices", &id).await;
    let (lines, _) = again.until_control("synced").await;
    let controls: Vec<_> = lines
        .iter()
        .filter_map(|line| line["control"].as_str())
        .collect();
    assert_eq!(controls, ["open", "snapshot"]);
    assert_eq!(lines.last().unwrap()["data"], "second");
}

#[tokio::test]
async fn a_mirror_is_not_the_bucket() {
    let nats = Nats::start().await;
    create(&nats).await;
    let mirror = stream::Config {
        name: "KV_copy".to_owned(),
        mirror: Some(stream::Source {
            name: "KV_prices".to_owned(),
            ..stream::Source::default()
        }),
        max_messages_per_subject: 1,
        ..stream::Config::default()
    };
    let jetstream: jetstream::Context = nats.jetstream().await;
    jetstream.create_stream(mirror).await.unwrap();
    let routes = "routes: [{ path: /copy, sources: [{ bucket: copy }] }]";
    let sidestream = Sidestream::builder(config(&nats, routes))
        .without_waiting()
        .start()
        .await;
    eventually(RECOVERY, "the check names the mirror", || async {
        let health = sidestream.admin_json("/health").await;
        let text = health["checks"]["stream:KV_copy"].to_string();
        ["$KV.copy.>", "mirror"]
            .iter()
            .all(|word| text.contains(word))
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn listed_permissions_suffice_for_a_bucket() {
    let manual = include_str!("../../docs/nats-permissions.md");
    let (_, after) = manual
        .split_once("With a KV bucket `prices` as a source")
        .unwrap();
    let list = after.split("```").nth(1).unwrap();
    let subjects: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
    assert!(subjects.len() >= 5, "{list}");
    let allowed = format!("{:?}", [&["_INBOX_sse.>"], &subjects[..]].concat());
    let users = format!(
        "accounts {{ A {{ jetstream: enabled, users: [
          {{ user: admin, password: p }},
          {{ user: sidecar, password: p, permissions: {{ publish: {{ allow: {allowed} }}, subscribe: {{ allow: [\"_INBOX_sse.>\"] }} }} }}
        ] }} }}"
    );
    let nats = Nats::builder().config(&users).start().await;
    let options = async_nats::ConnectOptions::with_user_and_password("admin".into(), "p".into());
    let jetstream = jetstream::new(nats.client_with(options).await);
    let bucket = kv::Config {
        bucket: "prices".to_owned(),
        ..kv::Config::default()
    };
    let bucket = jetstream.create_key_value(bucket).await.unwrap();
    put(&bucket, "eur.usd", "1").await;
    let (port, routes) = (nats.port(), ROUTES);
    let sidestream = Sidestream::start(format!(
        "listen: [{{ address: \"127.0.0.1:0\" }}]
admin: {{ address: \"127.0.0.1:0\" }}
nats: {{ servers: [\"nats://sidecar:p@127.0.0.1:{port}\"] }}
{routes}"
    ))
    .await;
    let mut reader = open(&sidestream, "/prices", "").await;
    let (lines, _) = reader.until_control("synced").await;
    assert_eq!(lines.last().unwrap()["subject"], "eur.usd");
    put(&bucket, "eur.usd", "2").await;
    assert_eq!(reader.events(1).await[0]["data"], 2);
}
