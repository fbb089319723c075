//! `begin: latest`: the state of every subject, then every change, whatever is written meanwhile.

mod again;
mod faults;
mod framings;
mod replicas;

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};

use testkit::http1;
use testkit::nats::Nats;
use testkit::ndjson::Request;
use testkit::sidestream::{Sidestream, config, metric};
use testkit::sse::{Event, SseClient};

type Folded = BTreeMap<String, String>;

/// A stream `STATE` with one message per subject, and a sidecar.
struct Fixture {
    nats: Nats,
    jetstream: jetstream::Context,
    sidestream: Sidestream,
}

impl Fixture {
    async fn start() -> Self {
        Self::with(configuration).await
    }

    async fn with(configuration: impl Fn(&Nats) -> String) -> Self {
        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        create_stream(&jetstream).await;
        let sidestream = Sidestream::start(configuration(&nats)).await;
        Self {
            nats,
            jetstream,
            sidestream,
        }
    }

    async fn open(&self, id: &str) -> SseClient {
        open(&self.sidestream, id).await
    }

    /// Number of open event streams.
    async fn streams(&self) -> usize {
        let answer = http1::get(&self.sidestream.url_admin("/metrics")).await;
        metric(&answer.unwrap().body, "sidestream_streams", &[]) as usize
    }
}

async fn create_stream(jetstream: &jetstream::Context) {
    let config = stream::Config {
        name: "STATE".to_owned(),
        subjects: vec!["s.>".to_owned()],
        max_messages_per_subject: 1,
        ..stream::Config::default()
    };
    jetstream.create_stream(config).await.unwrap();
}

fn configuration(nats: &Nats) -> String {
    // The payload names its subject: events have no other trace of it in an event stream.
    config(
        nats,
        "routes: [{ path: /state, sources: [{ stream: STATE, subjects: [\"s.>\"] }], begin: latest, window: { events: 500 }, framings: [sse, ndjson, websocket, long_poll], cors: { origins: [\"*\"] } }]",
    )
}

async fn open(sidestream: &Sidestream, id: &str) -> SseClient {
    let request = SseClient::get(sidestream.url("/state"));
    let request = if id.is_empty() {
        request
    } else {
        request.last_event_id(id)
    };
    let client = request.connect().await;
    assert_eq!(client.status(), 200);
    client
}

/// Publishes `key=value`, or the removal of a key.
async fn put(jetstream: &jetstream::Context, key: u64, value: Option<u64>) {
    let (subject, mut headers) = (format!("s.{key}"), HeaderMap::new());
    let payload = match value {
        Some(value) => format!("{subject}={value}"),
        None => {
            headers.insert("KV-Operation", "DEL");
            String::new()
        }
    };
    let stored = jetstream
        .publish_with_headers(subject, headers, payload.into())
        .await
        .unwrap();
    stored.await.unwrap();
}

/// Applies one event to the state that a client holds.
fn fold(state: &mut Folded, event: &Event) {
    match event.name.as_str() {
        "sidestream.snapshot" => state.clear(),
        "sidestream.removed" => {
            let removed: serde_json::Value = serde_json::from_str(&event.data).unwrap();
            state.remove(removed["subject"].as_str().unwrap());
        }
        "message" => {
            let (key, value) = event.data.split_once('=').unwrap();
            state.insert(key.to_owned(), value.to_owned());
        }
        "sidestream.gap" => panic!("{}", event.data),
        _ => {}
    }
}

/// Applies events until this key is in the state, or the event stream ends.
async fn follow(client: &mut SseClient, state: &mut Folded, id: &mut String, key: &str) {
    while !state.contains_key(key) {
        let Ok(event) = client.advance().await else {
            return;
        };
        fold(state, &event);
        *id = event.id;
    }
}

/// State of the stream, read without the sidecar.
async fn stored(jetstream: &jetstream::Context, keys: u64) -> Folded {
    let stream = jetstream.get_stream("STATE").await.unwrap();
    let mut state = Folded::new();
    for key in 0..keys {
        if let Ok(last) = stream
            .get_last_raw_message_by_subject(&format!("s.{key}"))
            .await
            && let Some((key, value)) = String::from_utf8_lossy(&last.payload).split_once('=')
        {
            state.insert(key.to_owned(), value.to_owned());
        }
    }
    state
}

#[tokio::test]
async fn state_comes_without_ids_then_the_position_then_changes() {
    let fixture = Fixture::start().await;
    fill(&fixture, 3, 1).await;
    put(&fixture.jetstream, 0, Some(2)).await;
    put(&fixture.jetstream, 1, None).await;
    let mut client = fixture.open("").await;
    let events = client
        .until(|event| event.name == "sidestream.synced")
        .await;
    let seen: Vec<_> = events.iter().map(|event| event.data.as_str()).collect();
    assert_eq!(seen, ["{}", "s.2=1", "s.0=2", "{}"]);
    assert_eq!(events[0].name, "sidestream.snapshot");
    assert!(events[..3].iter().all(|event| event.id.is_empty()));
    assert!(!events[3].id.is_empty());
    put(&fixture.jetstream, 2, Some(3)).await;
    assert_eq!(client.next().await.data, "s.2=3");
    // A client that returns within memory gets only what it missed.
    put(&fixture.jetstream, 2, Some(4)).await;
    let id = client.last_event_id().to_owned();
    let mut resumed = fixture.open(&id).await;
    assert_eq!(resumed.next().await.data, "s.2=4");
    // Not the snapshot of the first client, which is shared for a second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let url = fixture.sidestream.url("/state");
    let mut lines = Request::new(&url).send().await;
    let (state, synced) = lines.until_control("synced").await;
    let state: Vec<_> = state
        .iter()
        .filter(|line| line["control"].is_null())
        .map(|line| (line["data"].as_str().unwrap(), line["id"].is_null()))
        .collect();
    assert_eq!(state, [("s.0=2", true), ("s.2=4", true)]);
    assert!(synced["id"].is_string());
}

#[tokio::test]
async fn position_that_has_left_memory_or_the_stream_gets_the_state_again() {
    let fixture = Fixture::start().await;
    put(&fixture.jetstream, 1, Some(1)).await;
    let mut client = fixture.open("").await;
    client
        .until(|event| event.name == "sidestream.synced")
        .await;
    let id = client.last_event_id().to_owned();
    drop(client);
    for value in 0..1000 {
        put(&fixture.jetstream, value % 7, Some(value)).await;
    }
    for id in [&*id, "invalid"] {
        let mut again = fixture.open(id).await;
        let events = again.until(|event| event.name == "sidestream.synced").await;
        let mut state = Folded::new();
        events.iter().for_each(|event| fold(&mut state, event));
        assert_eq!(events[0].name, "sidestream.snapshot", "{id}");
        assert_eq!(state, stored(&fixture.jetstream, 7).await, "{id}");
    }
}

#[tokio::test]
async fn client_that_breaks_off_in_the_state_has_no_position() {
    let fixture = Fixture::start().await;
    for key in 0..3000 {
        put(&fixture.jetstream, key, Some(key)).await;
    }
    let mut client = fixture.open("").await;
    let events = client
        .until(|event| event.name == "sidestream.synced")
        .await;
    assert_eq!(events.len(), 3002);
    let id = client.last_event_id().to_owned();
    // It lags beyond memory, begins the state again, and breaks off.
    for value in 0..600 {
        put(&fixture.jetstream, value, Some(1)).await;
    }
    let mut again = fixture.open(&id).await;
    again.until(|event| event.data == "s.1000=1000").await;
    assert_eq!(again.last_event_id(), "", "the state resets the position");
}

#[tokio::test]
async fn state_that_does_not_fit_into_memory_is_rejected() {
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    testkit::nats::create_stream(&jetstream, "STATE", &["s.>"]).await;
    let value = "x".repeat(10_000);
    for key in 0..200 {
        let stored = jetstream.publish(format!("s.{key}"), value.clone().into());
        stored.await.unwrap().await.unwrap();
    }
    let routes = "routes: [{ path: \"/state/{id}\", sources: [{ stream: STATE, subjects: [\"s.{id}\"] }], begin: latest }, { path: /all, sources: [{ stream: STATE, subjects: [\"s.>\"] }], begin: latest }]
limits: { window_bytes: 2MiB }";
    let sidestream = Sidestream::start(config(&nats, routes)).await;
    let mut large = SseClient::get(sidestream.url("/all")).connect().await;
    assert_eq!(large.status(), 503);
    assert!(large.body().await.contains("state_too_large"));
    let mut one = SseClient::get(sidestream.url("/state/7")).connect().await;
    let events = one.until(|event| event.name == "sidestream.synced").await;
    assert_eq!((events.len(), events[1].data.len()), (3, 10_000));
}

/// Writes the same value to every key.
async fn fill(fixture: &Fixture, keys: u64, value: u64) {
    for key in 0..keys {
        put(&fixture.jetstream, key, Some(value)).await;
    }
}

/// Writes and deletes keys at random, then the key after them: every client waits for that write.
async fn write_at_random(jetstream: jetstream::Context, keys: u64, writes: u64, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    for value in 1..=writes {
        let key = rng.u64(..keys);
        put(&jetstream, key, (rng.u8(..5) > 0).then_some(value)).await;
    }
    put(&jetstream, keys, Some(1)).await;
}

#[tokio::test]
async fn folded_state_of_every_client_equals_the_stream() {
    const KEYS: u64 = 3000;
    let fixture = Fixture::start().await;
    fill(&fixture, KEYS, 0).await;
    let other = Sidestream::start(configuration(&fixture.nats)).await;
    let writing = tokio::spawn(write_at_random(fixture.jetstream.clone(), KEYS, 20_000, 7));
    let end = format!("s.{KEYS}");
    let clients = (0..20).map(|number| {
        let pods = [&fixture.sidestream, &other];
        let end = end.clone();
        async move {
            let (mut id, mut state, mut rng) = (
                String::new(),
                Folded::new(),
                fastrand::Rng::with_seed(number),
            );
            while !state.contains_key(&end) {
                let mut client = open(pods[rng.usize(..2)], &id).await;
                let until = Duration::from_millis(rng.u64(5..1500));
                let reading = follow(&mut client, &mut state, &mut id, &end);
                drop(tokio::time::timeout(until, reading).await);
            }
            state
        }
    });
    let states = futures_util::future::join_all(clients).await;
    writing.await.unwrap();
    let expected = stored(&fixture.jetstream, KEYS + 1).await;
    for state in states {
        assert_eq!(state, expected);
    }
}

#[tokio::test]
async fn stream_that_expires_without_markers_is_a_warning() {
    let fixture = Fixture::start().await;
    let warning = |line: &serde_json::Value| {
        let message = line["message"].as_str().unwrap_or_default();
        message.contains("expire without a marker")
    };
    let synced = async |sidestream: &Sidestream| {
        let mut client = open(sidestream, "").await;
        client
            .until(|event| event.name == "sidestream.synced")
            .await;
    };
    put(&fixture.jetstream, 1, Some(1)).await;
    synced(&fixture.sidestream).await;
    assert!(!fixture.sidestream.log().iter().any(warning));
    let mut stream = fixture.jetstream.get_stream("STATE").await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    config.max_age = Duration::from_secs(3600);
    fixture.jetstream.update_stream(config).await.unwrap();
    let other = Sidestream::start(configuration(&fixture.nats)).await;
    for _ in 0..2 {
        synced(&other).await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    assert_eq!(other.log().iter().filter(|line| warning(line)).count(), 1);
}
