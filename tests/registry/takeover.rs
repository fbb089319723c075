//! A client that keeps no position and was sent away by a drain goes on where it was: once, and only it.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sidestream::lifecycle::drain;
use sidestream::registry::{Bucket, Wanted};

use crate::support::h2::H2Client;
use crate::support::nats::Nats;
use crate::support::sse::SseClient;
use crate::support::upstream::Upstream;
use crate::support::wait::{DEADLINE, eventually};
use crate::{Stage, is_silent};

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// The ends of a client's event stream are told, and it has everything.
async fn read_to_end(client: &mut SseClient) -> Vec<String> {
    client.closed_within(DEADLINE).await;
    client.rest().into_iter().map(|event| event.data).filter(|data| !data.contains("reason")).collect()
}

#[tokio::test]
async fn a_client_without_a_position_goes_on_where_the_drained_pod_left_it_and_only_once() {
    let mut stage = Stage::with(2).await;
    let mut client = stage.connect(0, "/named?client=42").await;
    let mut connection = H2Client::connect(stage.pods[0].url("/")).await;
    let mut other = connection.request("GET", "/named?client=43", &[("accept", "text/event-stream")]).await;
    other.until_seen("its position", |parser| parser.positions() > 0).await;
    for number in 1..=3 {
        stage.publish("a.1", &number.to_string()).await;
    }
    stage.drain(0).await;
    assert_eq!(read_to_end(&mut client).await, ["1", "2", "3"]);
    other.closed().await;
    let left = stage.until_found(1, "42", 1, |entry| entry["state"] == "reconnecting").await.remove(0);
    assert_eq!((&left["reason"], &left["pod"]), (&"drain".into(), &"pod-0".into()));
    assert_eq!(left["last_event_id"], client.last_event_id());
    stage.publish("a.1", "4").await;
    stage.publish("a.2", "5").await;

    for (name, id) in [("42", client.last_event_id()), ("43", other.last_event_id())] {
        let mut back = stage.connect(1, &format!("/named?client={name}")).await;
        let begun = back
            .wire()
            .starts_with(format!("retry: 3000\nevent: sidestream.position\ndata: {{}}\nid: {id}\n\n").as_bytes());
        assert!(begun, "{}", String::from_utf8_lossy(back.wire()));
        // A second one of that name is new: it begins live.
        let mut second = stage.connect(1, &format!("/named?client={name}")).await;
        assert_eq!(back.take(2).await.iter().map(|event| &*event.data).collect::<Vec<_>>(), ["4", "5"]);
        assert!(is_silent(&mut second).await && is_silent(&mut back).await);
        stage.until_found(1, name, 3, |entry| entry["state"] != "reconnecting").await;
    }
    assert_eq!(stage.pods[1].metric("sidestream_resumes_total", &[("outcome", "window")]).await, 2.0);
    assert_eq!(stage.pods[1].metric("sidestream_registry_errors_total", &[]).await, 0.0);
    let log = stage.pods[1].log();
    let taken = log.iter().filter(|line| line["message"] == "event stream opened" && line["taken_over"] == true);
    assert!(taken.clone().all(|line| line["state"] == "reconnecting"));
    assert_eq!(taken.count(), 2);
}

#[tokio::test]
async fn of_many_that_come_back_at_once_to_two_pods_exactly_one_takes_over() {
    let mut stage = Stage::with(3).await;
    let mut client = stage.connect(0, "/named?client=42").await;
    stage.drain(0).await;
    read_to_end(&mut client).await;
    stage.publish("a.1", "missed").await;
    let back = (0..20).map(|number| stage.connect(1 + number % 2, "/named?client=42"));
    let mut back = futures_util::future::join_all(back).await;
    stage.publish("a.1", "new").await;
    let mut firsts: Vec<String> = Vec::new();
    for client in &mut back {
        firsts.push(client.next().await.data);
    }
    firsts.sort();
    assert_eq!(firsts[0], "missed");
    assert!(firsts[1..].iter().all(|data| data == "new"), "{firsts:?}");
}

#[tokio::test]
async fn two_windows_of_one_client_are_taken_over_in_the_order_in_which_they_were_sent_away() {
    let mut stage = Stage::with(2).await;
    let mut windows = [stage.connect(0, "/named?client=42").await, stage.connect(0, "/named?client=42").await];
    stage.drain(0).await;
    for window in &mut windows {
        read_to_end(window).await;
    }
    stage.publish("a.1", "missed").await;
    for _ in 0..2 {
        let mut back = stage.connect(1, "/named?client=42").await;
        assert_eq!(back.next().await.data, "missed");
    }
    assert!(is_silent(&mut stage.connect(1, "/named?client=42").await).await);
}

#[tokio::test]
async fn nobody_takes_over_to_another_route_other_subjects_without_a_name_or_with_a_position_of_its_own() {
    let mut stage = Stage::with(2).await;
    stage.publish("a.1", "first").await;
    let mut clients = Vec::new();
    for target in ["/named?client=a", "/one/1?client=b", "/plain", "/plain?client=d", "/named", "/named?client=f"] {
        clients.push(stage.connect(0, target).await);
    }
    let first = {
        let id = clients[0].last_event_id().to_owned();
        format!("{}-0", id.split('-').next().unwrap())
    };
    stage.drain(0).await;
    for client in &mut clients {
        read_to_end(client).await;
    }
    stage.publish("a.1", "missed").await;
    stage.publish("a.2", "missed").await;
    for target in [
        "/other?client=a",
        "/one/2?client=b",
        "/plain",
        "/plain?client=d",
        "/named",
        "/named?client=nobody",
        "/named?client=",
    ] {
        assert!(is_silent(&mut stage.connect(1, target).await).await, "{target}");
    }
    // Its own position counts, and what was left for it is gone then.
    let request = SseClient::get(stage.pods[1].url("/named?client=f")).last_event_id(&first);
    let mut back = request.connect().await;
    assert_eq!(back.take(2).await.iter().map(|event| &*event.data).collect::<Vec<_>>(), ["first", "missed"]);
    stage.until_found(1, "f", 2, |entry| entry["state"] != "reconnecting").await;
    assert!(is_silent(&mut stage.connect(1, "/named?client=f").await).await);
    // Those that fit are still there.
    let mut back = stage.connect(1, "/named?client=a").await;
    assert_eq!(back.next().await.data, "missed");
    let mut back = stage.connect(1, "/one/1?client=b").await;
    assert_eq!(back.next().await.data, "missed");
}

#[tokio::test]
async fn of_many_that_look_at_the_same_moment_the_bucket_lets_one_through() {
    let nats = Nats::start().await;
    let bucket = Bucket::parse("clients").unwrap();
    let pods = [Upstream::connect(&nats.url()).await, Upstream::connect(&nats.url()).await];
    let (_signal, watch) = drain::channel();
    let registries = pods.each_ref().map(|pod| pod.nats.registry(&bucket, watch.clone()));
    let jetstream = nats.jetstream().await;
    let store = eventually(DEADLINE, "the bucket is there", || async { jetstream.get_key_value("clients").await.ok() });
    let (store, now) = (store.await, now());
    let left = json!({ "pod": "gone", "route": "/r", "subjects": ["a"], "state": "reconnecting", "since": now,
        "last_event_id": "3fa9c1-7", "reason": "drain", "expires": now + 60_000 });
    for client in 0..10 {
        let client = client.to_string();
        let wanted =
            Wanted { client: client.clone(), route: "/r".into(), subjects: vec!["a".into()], last_event_id: None };
        for registry in &registries {
            // Whoever has not opened the bucket yet finds nothing.
            eventually(DEADLINE, "the registry can be read", || async { registry.find("0", 1).await.is_ok() }).await;
        }
        store.put(format!("{client}.x-1"), left.to_string().into()).await.unwrap();
        let looks = (0..20).map(|number| registries[number % 2].take_over(wanted.clone()));
        let taken: Vec<_> = futures_util::future::join_all(looks).await.into_iter().flatten().collect();
        assert_eq!(taken.len(), 1, "{taken:?}");
        assert_eq!(taken[0].entry.last_event_id, "3fa9c1-7");
    }
}

#[tokio::test]
async fn a_client_that_did_not_take_its_last_events_leaves_no_position() {
    let mut stage = Stage::with(2).await;
    let request = SseClient::get(stage.pods[0].url("/named?client=42")).receive_buffer(4096);
    let mut client = request.connect().await;
    // More than its socket takes.
    for letter in ["x", "y"] {
        stage.publish("a.1", &letter.repeat(900_000)).await;
    }
    let pod = &stage.pods[0];
    eventually(DEADLINE, "the first event is half-way, the second waits", || async {
        pod.admin_json("/connections?client=42").await["connections"][0]["lag"]["events"] == 1
    })
    .await;
    stage.pods[0].terminate();
    stage.pods[0].until_log("it is told to end", |line| line["phase"] == "lingering").await;
    // With the first one taken the second is handed out, and the end: and then nothing is taken any more.
    assert!(client.next().await.data.starts_with('x'));
    assert_eq!(stage.pods[0].wait_exit(DEADLINE).await, 0);
    stage.until_found(1, "42", 1, |entry| entry["state"] == "closed").await;
    assert!(is_silent(&mut stage.connect(1, "/named?client=42").await).await);
}

#[tokio::test]
async fn what_was_taken_over_in_vain_is_left_again() {
    let nats = Nats::start().await;
    let stage = Stage::on_with(nats, 1, "limits: { feeds: 1 }").await;
    let occupant = stage.connect(0, "/one/1?client=a").await;
    let begin = occupant.last_event_id().to_owned();
    stage.publish("a.2", "missed").await;
    let now = now();
    let left = json!({ "pod": "gone", "route": "/one/{id}", "subjects": ["a.2"], "state": "reconnecting", "since": now,
        "last_event_id": begin, "reason": "drain", "expires": now + 60_000 });
    stage.bucket().await.put("b.x-1", left.to_string().into()).await.unwrap();
    let refused = SseClient::get(stage.pods[0].url("/one/2?client=b")).connect().await;
    assert_eq!(refused.status(), 503);
    let found = stage.find(0, "b").await.remove(0);
    assert_eq!((&found["state"], &found["since"]), (&"reconnecting".into(), &now.into()));
    drop(occupant);
    let mut back = eventually(DEADLINE, "there is room for the client", || async {
        let back = SseClient::get(stage.pods[0].url("/one/2?client=b")).connect().await;
        (back.status() == 200).then_some(back)
    })
    .await;
    assert_eq!(back.next().await.data, "missed");
}

#[tokio::test]
async fn what_was_left_more_than_a_minute_ago_or_by_no_drain_is_nobodys() {
    let stage = Stage::with(1).await;
    let begin = stage.connect(0, "/named?client=0").await.last_event_id().to_owned();
    stage.publish("a.1", "missed").await;
    let bucket = stage.bucket().await;
    let now = now();
    let left = |since: u64, state: &str, reason: Value, id: &str| {
        json!({ "pod": "gone", "route": "/named", "subjects": ["a.>"], "state": state, "since": since,
            "last_event_id": id, "reason": reason, "expires": now + 60_000 })
        .to_string()
    };
    for (client, value, is_taken) in [
        ("old", left(now - 61_000, "reconnecting", "drain".into(), &begin), false),
        ("killed", left(now, "active", Value::Null, &begin), false),
        ("left", left(now, "closed", "client".into(), &begin), false),
        ("resuming", left(now, "reconnecting", Value::Null, &begin), false),
        ("foreign", "no json".to_owned(), false),
        ("fresh", left(now - 30_000, "reconnecting", "drain".into(), &begin), true),
    ] {
        bucket.put(format!("{client}.x-1"), value.into()).await.unwrap();
        let mut back = stage.connect(0, &format!("/named?client={client}")).await;
        assert_eq!(is_silent(&mut back).await, !is_taken, "{client}");
    }
    // A position that is none is told like any other.
    let value = left(now, "reconnecting", "drain".into(), "nonsense");
    bucket.put("odd.x-1", value.into()).await.unwrap();
    let mut back = SseClient::get(stage.pods[0].url("/named?client=odd")).connect().await;
    assert_eq!(back.next().await.name, "sidestream.gap");
}
