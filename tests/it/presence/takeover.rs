//! Handover by presence: a drained client without a position continues at its recorded one, once.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sidestream::lifecycle::shutdown;
use sidestream::presence::{Claim, ClaimRequest};
use sidestream::subject::BucketName;

use super::{Fixture, is_silent};
use crate::upstream::Upstream;
use testkit::h2::H2Client;
use testkit::nats::Nats;
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_millis() as u64
}

/// Asserts that the event stream was closed by a drain and that the client has every event.
async fn read_to_end(client: &mut SseClient) -> Vec<String> {
    client.closed_within(DEADLINE).await;
    client
        .rest()
        .into_iter()
        .map(|event| event.data)
        .filter(|data| !data.contains("reason"))
        .collect()
}

/// Gap of a client if another connection of its name has claimed the recorded position.
const CLAIMED: &str = r#"{"reason":"claimed","missed":null,"resume":"live"}"#;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

/// Connects a client without a position; returns when it has one, alone or in a gap.
async fn come_back(fixture: &Fixture, pod: usize, target: &str) -> SseClient {
    let mut client = SseClient::get(fixture.pods[pod].url(target))
        .connect()
        .await;
    assert_eq!(client.status(), 200);
    client
        .until_seen("its position", |parser| !parser.last_event_id().is_empty())
        .await;
    client
}

async fn assert_claimed(client: &mut SseClient) {
    let gap = client.next().await;
    assert_eq!(
        (&*gap.name, json(&gap.data)),
        ("sidestream.gap", json(CLAIMED))
    );
}

#[tokio::test]
async fn a_client_without_a_position_continues_at_the_position_of_the_drained_pod_once() {
    let mut fixture = Fixture::with(2).await;
    let mut client = fixture.connect(0, "/named?client=42").await;
    let mut connection = H2Client::connect(fixture.pods[0].url("/")).await;
    let mut other = connection
        .request(
            "GET",
            "/named?client=43",
            &[("accept", "text/event-stream")],
        )
        .await;
    other.positioned().await;
    for number in 1..=3 {
        fixture.publish("a.1", &number.to_string()).await;
    }
    fixture.drain(0).await;
    assert_eq!(read_to_end(&mut client).await, ["1", "2", "3"]);
    other.closed().await;
    let left = fixture
        .until_found(1, "42", 1, |entry| entry["state"] == "reconnecting")
        .await
        .remove(0);
    assert_eq!(
        (&left["reason"], &left["pod"]),
        (&"drain".into(), &"pod-0".into())
    );
    assert_eq!(left["last_event_id"], client.last_event_id());
    fixture.publish("a.1", "4").await;
    fixture.publish("a.2", "5").await;

    for (name, id) in [
        ("42", client.last_event_id()),
        ("43", other.last_event_id()),
    ] {
        let mut back = fixture.connect(1, &format!("/named?client={name}")).await;
        let begun = back.wire().starts_with(
            format!("retry: 3000\nevent: sidestream.position\ndata: {{}}\nid: {id}\n\n").as_bytes(),
        );
        assert!(begun, "{}", String::from_utf8_lossy(back.wire()));
        // A second client of that name begins live, with a gap, because its position is unknown.
        let mut second = come_back(&fixture, 1, &format!("/named?client={name}")).await;
        assert_eq!(
            back.take(2)
                .await
                .iter()
                .map(|event| &*event.data)
                .collect::<Vec<_>>(),
            ["4", "5"]
        );
        assert_claimed(&mut second).await;
        assert!(is_silent(&mut second).await && is_silent(&mut back).await);
        fixture
            .until_found(1, name, 3, |entry| entry["state"] != "reconnecting")
            .await;
    }
    assert_eq!(
        fixture.pods[1]
            .metric("sidestream_resumes_total", &[("outcome", "window")])
            .await,
        2.0
    );
    assert_eq!(
        fixture.pods[1]
            .metric("sidestream_presence_errors_total", &[])
            .await,
        0.0
    );
    let log = fixture.pods[1].log();
    let taken = log
        .iter()
        .filter(|line| line["message"] == "event stream opened" && line["taken_over"] == true);
    assert!(taken.clone().all(|line| line["state"] == "reconnecting"));
    assert_eq!(taken.count(), 2);
}

#[tokio::test]
async fn one_of_many_clients_that_reconnect_at_once_to_two_pods_claims_the_position() {
    let mut fixture = Fixture::with(3).await;
    let mut client = fixture.connect(0, "/named?client=42").await;
    fixture.drain(0).await;
    read_to_end(&mut client).await;
    fixture.publish("a.1", "missed").await;
    let back = (0..20).map(|number| come_back(&fixture, 1 + number % 2, "/named?client=42"));
    let mut back = futures_util::future::join_all(back).await;
    fixture.publish("a.1", "new").await;
    let mut resumed = 0;
    for client in &mut back {
        let first = client.next().await;
        if first.data == "missed" {
            resumed += 1;
        } else {
            assert_eq!(json(&first.data), json(CLAIMED), "{first:?}");
        }
        assert_eq!(client.next().await.data, "new");
    }
    assert_eq!(resumed, 1);
}

#[tokio::test]
async fn two_positions_of_one_client_are_claimed_in_the_order_of_their_drain() {
    let mut fixture = Fixture::with(2).await;
    let mut windows = [
        fixture.connect(0, "/named?client=42").await,
        fixture.connect(0, "/named?client=42").await,
    ];
    fixture.drain(0).await;
    for window in &mut windows {
        read_to_end(window).await;
    }
    fixture.publish("a.1", "missed").await;
    for _ in 0..2 {
        let mut back = fixture.connect(1, "/named?client=42").await;
        assert_eq!(back.next().await.data, "missed");
    }
    assert_claimed(&mut come_back(&fixture, 1, "/named?client=42").await).await;
}

#[tokio::test]
async fn a_position_is_not_claimed_on_another_route_for_other_subjects_without_a_name_or_with_another_position()
 {
    let mut fixture = Fixture::with(2).await;
    fixture.publish("a.1", "first").await;
    let mut clients = Vec::new();
    for target in [
        "/named?client=a",
        "/one/1?client=b",
        "/plain",
        "/plain?client=d",
        "/named",
        "/named?client=f",
    ] {
        clients.push(fixture.connect(0, target).await);
    }
    fixture.drain(0).await;
    for client in &mut clients {
        read_to_end(client).await;
    }
    fixture.publish("a.1", "missed").await;
    fixture.publish("a.2", "missed").await;
    for target in [
        "/other?client=a",
        "/one/2?client=b",
        "/plain",
        "/plain?client=d",
        "/named",
        "/named?client=nobody",
        "/named?client=",
    ] {
        assert!(
            is_silent(&mut fixture.connect(1, target).await).await,
            "{target}"
        );
    }
    // The position of the client itself counts, and removes the recorded one.
    let request = SseClient::get(fixture.pods[1].url("/named?client=f"))
        .last_event_id(clients[5].last_event_id());
    let mut back = request.connect().await;
    assert_eq!(
        back.take(2)
            .await
            .iter()
            .map(|event| &*event.data)
            .collect::<Vec<_>>(),
        ["missed", "missed"]
    );
    fixture
        .until_found(1, "f", 2, |entry| entry["state"] != "reconnecting")
        .await;
    assert!(is_silent(&mut fixture.connect(1, "/named?client=f").await).await);
    // Matching positions remain.
    let mut back = fixture.connect(1, "/named?client=a").await;
    assert_eq!(back.next().await.data, "missed");
    let mut back = fixture.connect(1, "/one/1?client=b").await;
    assert_eq!(back.next().await.data, "missed");
}

#[tokio::test]
async fn one_of_many_concurrent_claims_succeeds() {
    let nats = Nats::start().await;
    let bucket = BucketName::parse("clients").unwrap();
    let pods = [
        Upstream::connect(&nats.url()).await,
        Upstream::connect(&nats.url()).await,
    ];
    let (_signal, watch) = shutdown::channel();
    let registries = pods
        .each_ref()
        .map(|pod| pod.nats.presence(&bucket, 1 << 20, watch.clone()));
    let jetstream = nats.jetstream().await;
    let store = eventually(DEADLINE, "the bucket is there", || async {
        jetstream.get_key_value("clients").await.ok()
    });
    let (store, now) = (store.await, now());
    let left = json!({ "pod": "gone", "route": "/r", "subjects": ["a"], "state": "reconnecting", "since": now,
        "last_event_id": "3fa9c1-7", "reason": "drain", "expires": now + 60_000 });
    for client in 0..10 {
        let client = client.to_string();
        let wanted = ClaimRequest::new(client.clone(), "/r".into(), vec!["a".into()]);
        for registry in &registries {
            // A pod that has not opened the bucket finds no position.
            eventually(DEADLINE, "the registry can be read", || async {
                registry.find("0", 1).await.is_ok()
            })
            .await;
        }
        store
            .put(format!("{client}.x-1.position"), left.to_string().into())
            .await
            .unwrap();
        let looks = (0..20).map(|number| registries[number % 2].claim_position(wanted.clone()));
        let claims = futures_util::future::join_all(looks).await;
        let granted: Vec<_> = claims
            .iter()
            .filter(|claim| matches!(claim, Claim::Granted(_)))
            .collect();
        let [Claim::Granted(taken)] = granted[..] else {
            panic!("{claims:?}")
        };
        assert_eq!(taken.entry.last_event_id, "3fa9c1-7");
        // All other clients must assume that their position was lost.
        assert_eq!(
            claims.iter().filter(|claim| **claim == Claim::Lost).count(),
            19,
            "{claims:?}"
        );
    }
}

#[tokio::test]
async fn a_client_that_did_not_read_its_last_events_leaves_no_position() {
    let mut fixture = Fixture::with(2).await;
    let request = SseClient::get(fixture.pods[0].url("/named?client=42")).receive_buffer(4096);
    let mut client = request.connect().await;
    // More than its socket buffer.
    for letter in ["x", "y"] {
        fixture.publish("a.1", &letter.repeat(900_000)).await;
    }
    let pod = &fixture.pods[0];
    eventually(
        DEADLINE,
        "the first event is half-way, the second waits",
        || async {
            pod.admin_json("/connections?client=42").await["connections"][0]["lag"]["events"] == 1
        },
    )
    .await;
    fixture.pods[0].terminate();
    fixture.pods[0]
        .until_log("it gets GOAWAY or a close event", |line| {
            line["phase"] == "lingering"
        })
        .await;
    // Once the first event is read, the second event and the end are sent; the client reads
    // neither.
    assert!(client.next().await.data.starts_with('x'));
    assert_eq!(fixture.pods[0].wait_exit(DEADLINE).await, 0);
    fixture
        .until_found(1, "42", 1, |entry| entry["state"] == "closed")
        .await;
    assert!(is_silent(&mut fixture.connect(1, "/named?client=42").await).await);
}

#[tokio::test]
async fn an_unused_claim_is_released() {
    let nats = Nats::start().await;
    let fixture = Fixture::on_with(nats, 1, "limits: { feeds: 1 }").await;
    let occupant = fixture.connect(0, "/one/1?client=a").await;
    let begin = occupant.last_event_id().to_owned();
    fixture.publish("a.2", "missed").await;
    let now = now();
    let left = json!({ "pod": "gone", "route": "/one/{id}", "subjects": ["a.2"], "state": "reconnecting", "since": now,
        "last_event_id": begin, "reason": "drain", "expires": now + 60_000 });
    fixture
        .bucket()
        .await
        .put("b.x-1.position", left.to_string().into())
        .await
        .unwrap();
    let refused = SseClient::get(fixture.pods[0].url("/one/2?client=b"))
        .connect()
        .await;
    assert_eq!(refused.status(), 503);
    let found = fixture.find(0, "b").await.remove(0);
    assert_eq!(
        (&found["state"], &found["since"]),
        (&"reconnecting".into(), &now.into())
    );
    drop(occupant);
    let mut back = eventually(DEADLINE, "there is room for the client", || async {
        let back = SseClient::get(fixture.pods[0].url("/one/2?client=b"))
            .connect()
            .await;
        (back.status() == 200).then_some(back)
    })
    .await;
    assert_eq!(back.next().await.data, "missed");
}

#[tokio::test]
async fn positions_older_than_a_minute_or_without_a_drain_are_not_claimed() {
    let fixture = Fixture::with(1).await;
    let begin = fixture
        .connect(0, "/named?client=0")
        .await
        .last_event_id()
        .to_owned();
    fixture.publish("a.1", "missed").await;
    let bucket = fixture.bucket().await;
    let now = now();
    let left = |since: u64, state: &str, reason: Value, id: &str| {
        json!({ "pod": "gone", "route": "/named", "subjects": ["a.>"], "state": state, "since": since,
            "last_event_id": id, "reason": reason, "expires": now + 60_000 })
        .to_string()
    };
    for (client, value, is_taken) in [
        (
            "old",
            left(now - 61_000, "reconnecting", "drain".into(), &begin),
            false,
        ),
        ("killed", left(now, "active", Value::Null, &begin), false),
        ("left", left(now, "closed", "client".into(), &begin), false),
        (
            "resuming",
            left(now, "reconnecting", Value::Null, &begin),
            false,
        ),
        ("foreign", "no json".to_owned(), false),
        (
            "fresh",
            left(now - 30_000, "reconnecting", "drain".into(), &begin),
            true,
        ),
    ] {
        bucket
            .put(format!("{client}.x-1.position"), value.into())
            .await
            .unwrap();
        let mut back = fixture.connect(0, &format!("/named?client={client}")).await;
        assert_eq!(is_silent(&mut back).await, !is_taken, "{client}");
    }
    // An invalid position is reported like any other.
    let value = left(now, "reconnecting", "drain".into(), "nonsense");
    bucket.put("odd.x-1.position", value.into()).await.unwrap();
    let mut back = SseClient::get(fixture.pods[0].url("/named?client=odd"))
        .connect()
        .await;
    assert_eq!(back.next().await.name, "sidestream.gap");
}

#[tokio::test]
async fn a_stolen_position_is_a_gap_for_every_client_that_returns_for_it() {
    let mut fixture = Fixture::with(2).await;
    let mut victim = fixture.connect(0, "/named?client=42").await;
    let mut other = fixture.connect(0, "/one/1?client=42").await;
    fixture.drain(0).await;
    read_to_end(&mut victim).await;
    read_to_end(&mut other).await;
    fixture.publish("a.1", "missed").await;
    let mut thief = fixture.connect(1, "/named?client=42").await;
    assert_eq!(thief.next().await.data, "missed");
    let gaps = fixture.pods[1]
        .metric("sidestream_gaps_total", &[("reason", "claimed")])
        .await;
    // The first claim does not use up the report for the others.
    for _ in 0..3 {
        let mut back = come_back(&fixture, 1, "/named?client=42").await;
        assert_claimed(&mut back).await;
        fixture.publish("a.1", "live").await;
        assert_eq!(back.next().await.data, "live");
    }
    assert_eq!(
        fixture.pods[1]
            .metric("sidestream_gaps_total", &[("reason", "claimed")])
            .await,
        gaps + 3.0
    );
    // The position for other subjects of the same name remains.
    assert_eq!(
        fixture
            .connect(1, "/one/1?client=42")
            .await
            .next()
            .await
            .data,
        "missed"
    );
}

#[tokio::test]
async fn only_a_later_position_of_the_same_stream_removes_the_recorded_one() {
    let mut fixture = Fixture::with(2).await;
    fixture.publish("a.1", "1").await;
    let mut older = fixture.connect(0, "/named?client=0").await;
    fixture.publish("a.1", "2").await;
    older.next().await;
    let mut victim = fixture.connect(0, "/named?client=42").await;
    fixture.drain(0).await;
    read_to_end(&mut victim).await;
    let recorded = victim.last_event_id().to_owned();
    let [tag, sequence, check] = recorded.split('-').collect::<Vec<_>>()[..] else {
        panic!("{recorded}")
    };
    let false_check = if check == "0000" { "0001" } else { "0000" };
    for id in [
        "nonsense".to_owned(),
        "aaaaaa-9".to_owned(),
        format!("aaaaaa-{sequence}-{check}"),
        format!("{tag}-0"),
        format!("{tag}-1"),
        format!("{tag}-999999"),
        format!("{tag}-18446744073709551615"),
        format!("{tag}-{sequence}-{false_check}"),
        format!("{recorded}.aaaaaa-1").replace(&format!("{tag}-{sequence}"), &format!("{tag}-1")),
    ] {
        let request = SseClient::get(fixture.pods[1].url("/named?client=42")).last_event_id(&id);
        let mut attacker = request.browser().connect().await;
        attacker
            .until_seen("its position", |parser| !parser.last_event_id().is_empty())
            .await;
    }
    // A later removal of the position of another client has completed, so earlier ones have, too.
    let request = SseClient::get(fixture.pods[1].url("/named?client=0")).last_event_id(&recorded);
    let _back = request.connect().await;
    fixture
        .until_found(1, "0", 2, |entry| entry["state"] != "reconnecting")
        .await;
    fixture.publish("a.1", "missed").await;
    assert_eq!(
        fixture
            .connect(1, "/named?client=42")
            .await
            .next()
            .await
            .data,
        "missed"
    );
}

#[tokio::test]
async fn many_event_streams_under_a_name_do_not_block_its_position() {
    let mut fixture = Fixture::with(2).await;
    let mut victim = fixture.connect(0, "/named?client=42").await;
    let mut crowd = H2Client::connect(fixture.pods[1].url("/")).await;
    let mut held = Vec::new();
    for number in 0..100 {
        let target = format!("/chosen?client=42&subject=a.{number}");
        let mut stream = crowd
            .request("GET", &target, &[("accept", "text/event-stream")])
            .await;
        stream.positioned().await;
        held.push(stream);
    }
    fixture
        .until_found(1, "42", 101, |entry| entry["state"] == "active")
        .await;
    fixture.drain(0).await;
    read_to_end(&mut victim).await;
    fixture.publish("a.x", "missed").await;
    assert_eq!(
        fixture
            .connect(1, "/named?client=42")
            .await
            .next()
            .await
            .data,
        "missed"
    );
}

#[tokio::test]
async fn more_positions_of_one_name_than_are_read_are_a_gap() {
    let fixture = Fixture::with(1).await;
    let begin = fixture
        .connect(0, "/named?client=0")
        .await
        .last_event_id()
        .to_owned();
    let (bucket, now) = (fixture.bucket().await, now());
    let left = json!({ "pod": "gone", "route": "/other", "subjects": ["a.>"], "state": "reconnecting", "since": now,
        "last_event_id": begin, "reason": "drain", "expires": now + 60_000 });
    for number in 0..65 {
        bucket
            .put(
                format!("crowd.x-{number}.position"),
                left.to_string().into(),
            )
            .await
            .unwrap();
    }
    assert_claimed(&mut come_back(&fixture, 0, "/named?client=crowd").await).await;
}

#[tokio::test]
async fn a_client_of_many_subjects_has_a_small_entry_and_resumes_all_of_them() {
    let mut fixture = Fixture::with(2).await;
    let subjects = |count: usize| {
        (0..count)
            .map(|number| format!("&subject=a.{number}"))
            .collect::<String>()
    };
    let target = format!("/chosen?client=42{}", subjects(16));
    let mut client = fixture.connect(0, &target).await;
    let found = fixture
        .until_found(1, "42", 1, |entry| entry["state"] == "active")
        .await
        .remove(0);
    assert_eq!(
        (
            found["subjects"].as_array().unwrap().len(),
            found["subjects_total"].as_u64()
        ),
        (4, Some(16))
    );
    fixture.drain(0).await;
    read_to_end(&mut client).await;
    fixture.publish("a.15", "missed").await;
    // Fifteen of them are different subjects.
    assert!(
        is_silent(
            &mut fixture
                .connect(1, &format!("/chosen?client=42{}", subjects(15)))
                .await
        )
        .await
    );
    assert_eq!(
        fixture.connect(1, &target).await.next().await.data,
        "missed"
    );
}
