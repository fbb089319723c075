//! The latest state over WebSocket, as long polls, and in the tabs of the client library.

use std::time::Duration;

use serde_json::Value;

use testkit::http1;
use testkit::ndjson::{self, Version};
use testkit::node::{NodeClient, Tabs};
use testkit::sidestream::{Sidestream, config};
use testkit::wait::{RECOVERY, eventually};
use testkit::websocket::Request;

use super::{Fixture, Folded, configuration, fill, put, stored, write_at_random};

const JSON: &str = "application/json";

/// Applies one object to the state that a client holds.
fn fold(state: &mut Folded, object: &Value) {
    match (object["control"].as_str(), object["event"].as_str()) {
        (Some("snapshot"), _) => {
            assert_eq!(object["id"], "", "the state resets the position");
            state.clear();
        }
        (Some("gap"), _) => panic!("{object}"),
        (Some(_), _) => {}
        (None, Some("sidestream.removed")) => {
            state.remove(object["data"]["subject"].as_str().unwrap());
        }
        (None, _) => {
            let (key, value) = object["data"].as_str().unwrap().split_once('=').unwrap();
            assert_eq!(object["subject"], key);
            state.insert(key.to_owned(), value.to_owned());
        }
    }
}

/// Polls once: the answer, which is an object.
async fn poll(sidestream: &Sidestream, path: &str, id: &str) -> Option<Value> {
    let headers = [("Accept", JSON), ("Last-Event-ID", id)];
    let count = if id.is_empty() { 1 } else { 2 };
    let answer = http1::request("GET", &sidestream.url(path), &headers[..count]).await;
    let answer = answer.ok().filter(|answer| answer.status == 200)?;
    Some(serde_json::from_str(&answer.body).unwrap())
}

fn controls(objects: &[Value]) -> Vec<&str> {
    let controls = objects.iter();
    controls
        .filter_map(|object| object["control"].as_str())
        .collect()
}

#[tokio::test]
async fn websocket_has_the_state_then_the_position_then_changes() {
    let fixture = Fixture::start().await;
    fill(&fixture, 2000, 1).await;
    put(&fixture.jetstream, 0, Some(2)).await;
    put(&fixture.jetstream, 1, None).await;
    for (is_h2, number) in [(false, 10), (true, 20)] {
        let request = |id: &str| Request {
            is_h2,
            ..Request::new(
                fixture
                    .sidestream
                    .url(&format!("/state?last_event_id={id}")),
            )
        };
        let mut socket = request("").open().await;
        let (before, synced) = socket.until_control("synced").await;
        assert_eq!(controls(&before), ["open", "snapshot"]);
        assert!(before[2..].iter().all(|object| object["id"].is_null()));
        let mut state = Folded::new();
        before.iter().for_each(|object| fold(&mut state, object));
        assert_eq!(state, stored(&fixture.jetstream, 2000).await);
        assert!(!synced["id"].as_str().unwrap().is_empty());
        put(&fixture.jetstream, 2, Some(number)).await;
        let change = socket.object().await;
        assert_eq!(change["data"], format!("s.2={number}"));
        let id = change["id"].as_str().unwrap().to_owned();
        drop(socket);
        // Within memory only what is missing, and later the state again.
        put(&fixture.jetstream, 2, Some(number + 1)).await;
        let change = request(&id).open().await.events(1).await;
        assert_eq!(change[0]["data"], format!("s.2={}", number + 1));
        for value in 0..600 {
            put(&fixture.jetstream, 3, Some(value)).await;
        }
        let (before, _) = request(&id).open().await.until_control("synced").await;
        assert_eq!(controls(&before), ["open", "snapshot"]);
    }
}

#[tokio::test]
async fn long_poll_has_the_whole_state_in_one_answer_then_changes() {
    let fixture = Fixture::start().await;
    let pod = &fixture.sidestream;
    // More events and bytes than another answer has.
    fill(&fixture, 3000, 10_u64.pow(15)).await;
    put(&fixture.jetstream, 1, None).await;
    let answer = poll(pod, "/state", "").await.unwrap();
    let events = answer["events"].as_array().unwrap();
    assert_eq!(controls(events), ["snapshot", "synced"]);
    assert_eq!(events.len(), 3001);
    assert_eq!(events[0]["control"], "snapshot");
    assert_eq!(events[3000]["id"], answer["id"]);
    assert!(events[1..3000].iter().all(|event| event["id"].is_null()));
    let mut state = Folded::new();
    events.iter().for_each(|object| fold(&mut state, object));
    assert_eq!(state, stored(&fixture.jetstream, 3000).await);

    // Clients that poll at the same time have the same bytes, on every protocol.
    let url = pod.url("/state");
    let polls = [Version::Http11, Version::H2, Version::Http11].map(|version| {
        let request = ndjson::Request {
            version,
            accept: JSON,
            ..ndjson::Request::new(&url)
        };
        async move { request.send().await.body().await }
    });
    let bodies = futures_util::future::join_all(polls).await;
    assert!(bodies.iter().all(|body| *body == bodies[0]));
    assert_eq!(bodies[0].matches("\"subject\"").count(), 2999);

    let id = answer["id"].as_str().unwrap();
    put(&fixture.jetstream, 2, Some(3)).await;
    put(&fixture.jetstream, 3, None).await;
    let answer = poll(pod, "/state", id).await.unwrap();
    let events = answer["events"].as_array().unwrap();
    assert_eq!(events[0]["data"], "s.2=3");
    assert_eq!(events[1]["event"], "sidestream.removed");
    assert_eq!((events.len(), &events[1]["id"]), (2, &answer["id"]));
    // Beyond memory, the state again.
    for value in 0..600 {
        put(&fixture.jetstream, 4, Some(value)).await;
    }
    let answer = poll(pod, "/state", id).await.unwrap();
    let events = answer["events"].as_array().unwrap();
    assert_eq!(controls(events), ["snapshot", "synced"]);
}

#[tokio::test]
async fn state_that_does_not_fit_into_one_answer_is_rejected_as_a_long_poll_only() {
    let fixture = Fixture::start().await;
    let value = "x".repeat(10_000);
    for key in 0..70 {
        let stored = fixture
            .jetstream
            .publish(format!("s.{key}"), value.clone().into());
        stored.await.unwrap().await.unwrap();
    }
    let routes = "routes: [{ path: /state, sources: [{ stream: STATE, subjects: [\"s.>\"] }], begin: latest, framings: [sse, websocket, long_poll] }]
limits: { window_bytes: 2MiB }";
    let pod = Sidestream::start(config(&fixture.nats, routes)).await;
    for _ in 0..2 {
        let headers = [("Accept", JSON)];
        let answer = http1::request("GET", &pod.url("/state"), &headers).await;
        let answer = answer.unwrap();
        assert_eq!(answer.status, 503);
        assert!(answer.body.contains("state_too_large"), "{}", answer.body);
    }
    let mut socket = Request::new(pod.url("/state")).open().await;
    let (before, _) = socket.until_control("synced").await;
    assert_eq!(before.len(), 72);
}

/// Applies the messages of a WebSocket until this key is in the state.
async fn follow(pod: &Sidestream, state: &mut Folded, id: &mut String, key: &str) {
    let url = pod.url(&format!("/state?last_event_id={id}"));
    let mut socket = Request::new(url).open().await;
    while !state.contains_key(key) {
        let object = socket.object().await;
        fold(state, &object);
        if let Some(position) = object["id"].as_str() {
            position.clone_into(id);
        }
    }
}

#[tokio::test]
async fn folded_state_equals_the_stream_while_clients_change_the_framing() {
    const KEYS: u64 = 2000;
    let fixture = Fixture::start().await;
    fill(&fixture, KEYS, 0).await;
    let other = Sidestream::start(configuration(&fixture.nats)).await;
    let writing = tokio::spawn(write_at_random(fixture.jetstream.clone(), KEYS, 10_000, 11));
    let end = format!("s.{KEYS}");
    let clients = (0..12).map(|number| {
        let pods = [&fixture.sidestream, &other];
        let end = &end;
        async move {
            let (mut id, mut state) = (String::new(), Folded::new());
            let mut rng = fastrand::Rng::with_seed(number);
            while !state.contains_key(end) {
                let pod = pods[rng.usize(..2)];
                if rng.bool() {
                    let Some(answer) = poll(pod, "/state?wait=1s", &id).await else {
                        continue;
                    };
                    let events = answer["events"].as_array().unwrap();
                    events.iter().for_each(|object| fold(&mut state, object));
                    answer["id"].as_str().unwrap().clone_into(&mut id);
                    continue;
                }
                let reading = follow(pod, &mut state, &mut id, end);
                let until = Duration::from_millis(rng.u64(5..1500));
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
async fn client_library_has_the_state_in_every_framing() {
    let fixture = Fixture::start().await;
    for key in 0..100 {
        put(&fixture.jetstream, key, Some(key)).await;
    }
    let url = fixture.sidestream.url("/state");
    let clients = ["sse", "ndjson", "long_poll"].map(|framing| {
        let options = serde_json::json!({ "framings": [framing] });
        NodeClient::source(&url, &options)
    });
    for client in &clients {
        let has_state = |reports: &[Value]| reports.iter().any(|one| one["data"] == "s.99=99");
        client.until("the client has the state", has_state).await;
    }
    put(&fixture.jetstream, 5, Some(6)).await;
    for client in &clients {
        let has_change = |reports: &[Value]| reports.iter().any(|one| one["data"] == "s.5=6");
        client.until("the client has the change", has_change).await;
        let events = client.events();
        let ids: Vec<&str> = events
            .iter()
            .filter(|event| event["name"] == "message")
            .map(|event| event["id"].as_str().unwrap())
            .collect();
        assert_eq!(ids.len(), 101);
        assert!(ids[..100].iter().all(|id| id.is_empty()));
        assert!(!ids[100].is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tab_that_joins_a_shared_connection_has_the_state_then_shares_it() {
    let fixture = Fixture::start().await;
    fill(&fixture, 50, 1).await;
    for (round, framing) in ["sse", "websocket", "long_poll"].iter().enumerate() {
        // Each round has a URL of its own, and so a group of its own.
        let url = fixture.sidestream.url(&format!("/state?group={framing}"));
        let options =
            serde_json::json!({ "shared": true, "heartbeatMs": 1000, "framings": [framing] });
        // The second tab resumes, without a state; the last one joins it.
        let steps = [
            "open", "open", "events:1", "crash:0", "events:1", "open", "events:1", "end",
        ];
        let tabs = Tabs::start(&url, &options, &steps);
        let values = [1, 2, 3].map(|number| 10 * (round as u64 + 1) + number);
        for ((step, tab), value) in [(1, 1), (3, 1), (5, 2)].into_iter().zip(values) {
            tabs.until_done(step).await;
            eventually(RECOVERY, "the tab has the state", || async {
                let reports = tabs.reports();
                let mut of_tab = reports.iter().filter(|one| one["tab"] == tab);
                of_tab.any(|one| one["data"] == "s.49=1").then_some(())
            })
            .await;
            put(&fixture.jetstream, 7, Some(value)).await;
        }
        tabs.until_done(6).await;
        if *framing != "long_poll" {
            eventually(RECOVERY, "the tabs share one connection", || async {
                (fixture.streams().await == 1).then_some(())
            })
            .await;
        }
        let stored = fixture.jetstream.publish("s.end", "END".into());
        stored.await.unwrap().await.unwrap();
        tabs.until_done(7).await;
        let last = format!("s.7={}", values[2]);
        for log in tabs.reports().iter().filter(|one| one["kind"] == "log") {
            let events: Vec<String> = serde_json::from_value(log["events"].clone()).unwrap();
            let state: Folded = events
                .iter()
                .filter_map(|event| event.split_once('='))
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
            let tab = format!("{framing}, tab {}", log["tab"]);
            assert_eq!(state.len(), 50, "{tab}");
            let changes = events.iter().filter(|event| **event == last).count();
            assert_eq!(changes, 1, "{tab}");
        }
        let stream = fixture.jetstream.get_stream("STATE").await.unwrap();
        stream.purge().filter("s.end").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tab_that_joins_one_from_the_back_forward_cache_has_the_state() {
    let fixture = Fixture::start().await;
    put(&fixture.jetstream, 1, Some(1)).await;
    let options = serde_json::json!({ "shared": true, "heartbeatMs": 1000 });
    let steps = ["open", "events:1", "back:0", "open", "events:1", "end"];
    let tabs = Tabs::start(&fixture.sidestream.url("/state"), &options, &steps);
    tabs.until_done(3).await;
    eventually(RECOVERY, "the second tab has the state", || async {
        let reports = tabs.reports();
        let mut second = reports.iter().filter(|one| one["tab"] == 1);
        second.any(|one| one["data"] == "s.1=1").then_some(())
    })
    .await;
    for value in 2..4 {
        put(&fixture.jetstream, 1, Some(value)).await;
    }
    let stored = fixture.jetstream.publish("s.end", "END".into());
    stored.await.unwrap().await.unwrap();
    tabs.until_done(5).await;
    let reports = tabs.reports();
    let from_cache = |one: &&Value| one["kind"] == "pageshow" && one["persisted"] == true;
    assert_eq!(reports.iter().filter(from_cache).count(), 1);
}
