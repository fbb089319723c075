//! Entries of the presence bucket: one per event stream, up to date, while its pod lives.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use async_nats::jetstream::kv;
use serde_json::Value;

use super::{Fixture, configuration, keys, target_of};
use testkit::h2::H2Client;
use testkit::nats::{Cluster, Nats, create_stream};
use testkit::sidestream::{Sidestream, config, config_for};
use testkit::wait::{DEADLINE, RECOVERY, eventually};

#[tokio::test]
async fn an_entry_follows_its_event_stream_and_has_its_end() {
    let fixture = Fixture::with(2).await;
    let mut client = fixture.connect(0, "/one/7?client=42").await;
    // Any pod returns it, not only the one that serves the client.
    let found = fixture
        .until_found(1, "42", 1, |entry| entry["state"] == "active")
        .await
        .remove(0);
    assert_eq!(
        (&found["pod"], &found["route"]),
        (&"pod-0".into(), &"/one/{id}".into())
    );
    assert_eq!(found["subjects"], serde_json::json!(["a.7"]));
    assert_eq!(
        (&found["client"], &found["reason"]),
        (&"42".into(), &Value::Null)
    );
    assert_eq!(found["last_event_id"], client.last_event_id());
    let bucket = fixture.bucket().await;
    let key = keys(&bucket).await.remove(0);
    assert_eq!(key, format!("42.{}", found["connection"].as_str().unwrap()));
    let value: Value = serde_json::from_slice(&bucket.get(&key).await.unwrap().unwrap()).unwrap();
    assert_eq!(
        (&value["pod"], &value["state"]),
        (&"pod-0".into(), &"active".into())
    );

    fixture.publish("a.7", "x").await;
    client.next().await;
    let active_since = found["since"].as_u64().unwrap();
    drop(client);
    let found = fixture
        .until_found(1, "42", 1, |entry| entry["state"] == "closed")
        .await
        .remove(0);
    assert_eq!(found["reason"], "client");
    assert!(found["since"].as_u64().unwrap() >= active_since);
    // Each step is also logged.
    let log = fixture.pods[0].log();
    let states: Vec<_> = log
        .iter()
        .filter(|line| line["client"] == "42")
        .map(|line| line["state"].clone())
        .collect();
    assert_eq!(states, ["connecting", "active", "closed"]);
}

#[tokio::test]
async fn clients_of_all_pods_are_found_by_their_names_and_by_no_others() {
    let fixture = Fixture::with(2).await;
    let names = [
        "42",
        "a.b",
        "*",
        ">",
        "a b/c\\d",
        "grüße ☃",
        "=",
        "%2e",
        &"x.".repeat(128),
    ];
    let mut clients = Vec::new();
    for name in names {
        let query: String = form_urlencoded::byte_serialize(name.as_bytes()).collect();
        for pod in [0, 1] {
            clients.push(
                fixture
                    .connect(pod, &format!("/named?client={query}"))
                    .await,
            );
        }
    }
    for name in names {
        let found = fixture
            .until_found(0, name, 2, |entry| entry["state"] == "active")
            .await;
        let pods: BTreeSet<_> = found
            .iter()
            .map(|entry| entry["pod"].as_str().unwrap())
            .collect();
        assert_eq!(pods, BTreeSet::from(["pod-0", "pod-1"]), "{name:?}");
        assert!(found.iter().all(|entry| entry["client"] == name));
    }
    assert!(fixture.find(1, "4").await.is_empty());
    let keys = keys(&fixture.bucket().await).await;
    assert_eq!(keys.len(), 2 * names.len());
    // One pod only.
    let here = fixture.pods[0].admin_json("/connections?client=42").await;
    assert_eq!(
        (here["total"].as_u64(), here["scope"].as_str()),
        (Some(1), None)
    );
    let (status, body) = fixture.pods[0].admin("/connections?scope=cluster").await;
    assert_eq!(status, 400, "{body}");
    let limited = fixture.pods[0]
        .admin_json("/connections?scope=cluster&client=42&limit=1")
        .await;
    assert_eq!(
        (limited["total"].as_u64(), limited["complete"].as_bool()),
        (Some(1), Some(false))
    );
    let none = fixture.pods[0]
        .admin_json("/connections?scope=cluster&client=42&route=/other")
        .await;
    assert_eq!(none["total"], 0);
}

#[tokio::test]
async fn entries_of_a_crashed_pod_expire_and_those_of_others_remain() {
    let nats = Nats::start().await;
    // A bucket with a short TTL: the pods renew their entries more often.
    let config = kv::Config {
        bucket: "clients".into(),
        max_age: Duration::from_secs(3),
        ..kv::Config::default()
    };
    let bucket = nats
        .jetstream()
        .await
        .create_key_value(config)
        .await
        .unwrap();
    let mut fixture = Fixture::on(nats, 2).await;
    let _clients = [
        fixture.connect(0, "/named?client=42").await,
        fixture.connect(1, "/named?client=42").await,
    ];
    fixture
        .until_found(1, "42", 2, |entry| entry["state"] == "active")
        .await;
    fixture.pods[0].kill9();
    fixture
        .until_found(1, "42", 1, |entry| entry["pod"] == "pod-1")
        .await;
    eventually(
        DEADLINE,
        "the bucket has forgotten the dead pod",
        || async { keys(&bucket).await.len() == 1 },
    )
    .await;
    // The other entry was renewed several times meanwhile.
    fixture
        .until_found(1, "42", 1, |entry| entry["pod"] == "pod-1")
        .await;
}

#[tokio::test]
async fn a_created_bucket_has_a_ttl_and_uses_per_message_ttls_if_the_server_supports_them() {
    let fixture = Fixture::with(1).await;
    let client = fixture.connect(0, "/named?client=42").await;
    fixture
        .until_found(0, "42", 1, |entry| entry["state"] == "active")
        .await;
    let mut stream = fixture.bucket().await.stream;
    let info = stream.info().await.unwrap().clone();
    let config = &info.config;
    assert_eq!(
        (config.max_age, config.max_messages_per_subject),
        (Duration::from_secs(600), 1)
    );
    let can_expire = fixture.nats.client().await.is_server_compatible(2, 11, 0);
    assert_eq!(config.allow_message_ttl, can_expire);
    let ttl = |sequence| {
        let stream = &stream;
        async move {
            let message = stream.get_raw_message(sequence).await.unwrap();
            message.headers.get("Nats-TTL").map(|ttl| ttl.to_string())
        }
    };
    assert_eq!(
        ttl(info.state.last_sequence).await,
        can_expire.then(|| "120s".to_owned())
    );
    drop(client);
    fixture
        .until_found(0, "42", 1, |entry| entry["state"] == "closed")
        .await;
    assert_eq!(
        ttl(info.state.last_sequence + 1).await,
        can_expire.then(|| "60s".to_owned())
    );
}

/// Starts a cluster and waits until it takes three replicas: one that has just started does not know
/// all of its servers. nats-server 2.10 on a busy machine has once not learned of them in 30 s;
/// another cluster then takes its place.
async fn cluster_that_takes_three_replicas() -> (Cluster, async_nats::jetstream::Context) {
    let probe = async_nats::jetstream::stream::Config {
        name: "PROBE".into(),
        num_replicas: 3,
        ..Default::default()
    };
    for _ in 0..3 {
        let cluster = Cluster::start().await;
        let jetstream = async_nats::jetstream::new(cluster.client().await);
        let end = Instant::now() + RECOVERY;
        while Instant::now() < end {
            match jetstream.create_stream(probe.clone()).await {
                Ok(_) => return (cluster, jetstream),
                Err(error) => eprintln!("no three replicas yet: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    panic!("none of three clusters takes three replicas");
}

#[tokio::test]
async fn in_a_cluster_the_bucket_survives_a_server() {
    let (cluster, jetstream) = cluster_that_takes_three_replicas().await;
    let routes =
        "routes: [{ path: /core, sources: [{ subjects: [c] }] }]\npresence: { bucket: clients }";
    let _pod = Sidestream::start(config_for(&cluster.urls(), routes)).await;
    let replicas = eventually(RECOVERY, "the bucket is there", || async {
        let bucket = jetstream.get_key_value("clients").await.ok()?;
        Some(bucket.stream.cached_info().config.num_replicas)
    })
    .await;
    assert_eq!(replicas, 3);
}

#[tokio::test]
async fn a_thousand_clients_cause_one_write_each_and_at_most_a_thousand_per_second() {
    const CLIENTS: u64 = 1000;
    let nats = Nats::start().await;
    create_stream(&nats.jetstream().await, "A", &["a.>"]).await;
    let pod = Sidestream::start(configuration(&nats)).await;
    let bucket = nats.jetstream().await.get_key_value("clients").await;
    let bucket = match bucket {
        Ok(bucket) => bucket,
        Err(_) => {
            eventually(DEADLINE, "the bucket is there", || async {
                nats.jetstream().await.get_key_value("clients").await.ok()
            })
            .await
        }
    };
    let mut stream = bucket.stream;
    let begun = Instant::now();
    let (mut connections, mut answers) = (Vec::new(), Vec::new());
    for batch in 0..CLIENTS / 100 {
        let mut connection = H2Client::connect(pod.url("/")).await;
        for number in 0..100 {
            let target = format!("/plain?batch={batch}&number={number}");
            answers.push(
                connection
                    .request("GET", &target, &[("accept", "text/event-stream")])
                    .await,
            );
        }
        connections.push(connection);
    }
    let mut written = 0;
    eventually(Duration::from_secs(20), "every client has an entry", || {
        let mut stream = stream.clone();
        async move { stream.info().await.unwrap().state.messages == CLIENTS }
    })
    .await;
    let took = begun.elapsed();
    written += stream.info().await.unwrap().state.last_sequence;
    eprintln!("{CLIENTS} clients: {written} writes in {took:?}");
    // Two writes if the first bytes were sent after the first write.
    assert!(written <= CLIENTS + CLIENTS / 10, "{written}");
    assert!(
        took >= Duration::from_millis(CLIENTS - 100),
        "{written} writes in {took:?}"
    );
    assert_eq!(
        pod.metric("sidestream_presence_errors_total", &[]).await,
        0.0
    );
}

#[tokio::test]
async fn without_a_bucket_only_the_pod_itself_is_listed() {
    let nats = Nats::start().await;
    let pod = Sidestream::start(config(
        &nats,
        "routes: [{ path: /a, sources: [{ subjects: [a] }] }]",
    ))
    .await;
    let (status, body) = pod.admin(&target_of("42")).await;
    assert_eq!(status, 404);
    assert!(
        body.contains("presence_not_configured") && body.contains("presence.bucket"),
        "{body}"
    );
    assert_eq!(pod.admin("/connections?client=42&scope=pod").await.0, 200);
}
