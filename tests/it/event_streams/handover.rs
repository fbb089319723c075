//! Handover on the wire: the order of bytes and frames, the end of a response, and the reaction of clients.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::reader::{Reader, Via};
use super::{Fixture, Setting, json, publish_numbers, sequence};
use testkit::h2::H2Client;
use testkit::h2_tap::{DATA, GOAWAY, RST_STREAM};
use testkit::http1::End;
use testkit::node::NodeClient;
use testkit::transport::Connector;
use testkit::wait::{DEADLINE, RECOVERY, eventually, within};

/// RFC 9113, 6.1.
const END_STREAM: u8 = 0x1;
/// RFC 9113, 7: CANCEL.
const CANCEL: u32 = 0x8;

const QUICK: &str =
    "drain: { accept_for: 0s, spread: 200ms, timeout: 5s, retry: { min: 600ms, max: 900ms } }";

#[tokio::test]
async fn on_http_2_goaway_is_first_then_pending_events_then_the_position_with_the_end() {
    let mut fixture = Fixture::with_rest(QUICK).await;
    // A small window: most events are still pending when the drain begins.
    let mut connection = H2Client::builder()
        .stream_window(500)
        .connect(fixture.sidestream.url("/"))
        .await;
    let mut stream = connection.get("/orders/mine").await;
    stream.positioned().await;
    for number in 1..=40 {
        fixture
            .publish("orders.mine.x", format!("{number:0>60}"))
            .await;
    }
    let passed = fixture
        .publish("orders.other.x", "not for this client")
        .await;
    fixture.sidestream.terminate();
    connection.goaway().await;
    let before_goaway = connection
        .frames()
        .iter()
        .filter(|frame| frame.kind == DATA)
        .count();

    assert_eq!(stream.closed().await, End::Terminated);
    let mut events = stream.rest();
    let close = events.pop().unwrap();
    assert_eq!(&*close.name, "sidestream.close");
    let numbers: Vec<u32> = events
        .iter()
        .map(|event| event.data.parse().unwrap())
        .collect();
    assert_eq!(
        numbers,
        (1..=40).collect::<Vec<_>>(),
        "every pending event is delivered"
    );
    assert_eq!(
        sequence(stream.last_event_id(), 0),
        passed,
        "the checkpoint passes what was not for this client"
    );
    assert_eq!(
        stream.retry(),
        Some(json(&close.data)["retry"].as_u64().unwrap())
    );

    assert_eq!(connection.ended().await, "closed", "FIN, no reset");
    let frames = connection.frames();
    let goaway = frames
        .iter()
        .position(|frame| frame.kind == GOAWAY)
        .unwrap();
    let data: Vec<_> = frames
        .iter()
        .skip(goaway)
        .filter(|frame| frame.kind == DATA && frame.id == stream.id())
        .collect();
    assert!(
        data.len() > 1 && before_goaway < 40,
        "events came after GOAWAY: {frames:?}"
    );
    let (last, others) = data.split_last().unwrap();
    assert!(
        last.flags & END_STREAM != 0 && last.length > 0,
        "the end is on the last bytes: {last:?}"
    );
    assert!(
        others
            .iter()
            .all(|frame| frame.flags & END_STREAM == 0 && frame.length > 0)
    );
    assert!(
        !frames.iter().any(|frame| frame.kind == RST_STREAM),
        "{frames:?}"
    );
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
}

/// Sends a request and reads until the server closes; this side closes nothing.
async fn raw(fixture: &mut Fixture) -> Vec<u8> {
    let url = fixture.sidestream.url("/orders").parse().unwrap();
    let mut transport = Connector::default().connect(&url).await.unwrap();
    transport
        .write_all(b"GET /orders HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|window| window == b"id: ") {
        transport.read_buf(&mut bytes).await.unwrap();
    }
    fixture.publish("orders.1.x", "the last event").await;
    fixture.sidestream.terminate();
    let end = within(
        DEADLINE,
        "the server ends the connection",
        transport.read_to_end(&mut bytes),
    )
    .await;
    end.expect("it ends with FIN, not with a reset");
    // The connection is half open now. The sidecar must not reset it either when it closes
    // completely.
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    assert!(transport.error().is_none(), "no reset follows the end");
    bytes
}

#[tokio::test]
async fn on_http_1_1_a_clean_end_is_the_last_chunk_then_fin_without_a_reset() {
    let mut fixture = Fixture::with_rest(QUICK).await;
    let text = String::from_utf8(raw(&mut fixture).await).unwrap();
    assert!(text.ends_with("\n\n\r\n0\r\n\r\n"), "{text}");
    let at = |wanted: &str| {
        text.rfind(wanted)
            .unwrap_or_else(|| panic!("{wanted:?} in {text:?}"))
    };
    let order = [
        "data: the last event",
        "retry: ",
        "event: sidestream.close",
        "data: {\"reason\":\"drain\"",
        "\nid: ",
    ];
    assert!(order.map(at).is_sorted(), "{text}");
}

#[tokio::test]
async fn an_aborted_end_lacks_only_the_last_chunk() {
    let mut fixture = Fixture::with(Setting {
        route: "close: abort",
        rest: QUICK,
        ..Setting::default()
    })
    .await;
    let text = String::from_utf8(raw(&mut fixture).await).unwrap();
    assert!(
        text.ends_with("\n\n\r\n") && !text.ends_with("0\r\n\r\n"),
        "{text}"
    );
    assert!(
        text.contains("data: the last event") && text.contains("event: sidestream.close"),
        "{text}"
    );
}

#[tokio::test]
async fn with_abort_every_protocol_ends_as_a_broken_connection_after_all_events() {
    let mut fixture = Fixture::with(Setting {
        route: "close: abort",
        rest: QUICK,
        ..Setting::default()
    })
    .await;
    let mut readers = Vec::new();
    for via in Via::ALL {
        let mut reader = fixture.open(via, "/orders").await;
        reader.positioned().await;
        readers.push((via, reader));
    }
    // More than one frame, and more than the first window of a stream.
    for number in 0..30 {
        fixture
            .publish("orders.1.x", format!("{number} {}", "x".repeat(9000)))
            .await;
    }
    fixture.sidestream.terminate();
    for (via, reader) in &mut readers {
        let (events, end) = reader.read_to_end().await;
        let expected = match via {
            // Its body ends with the connection.
            Via::Http10 => End::Closed,
            Via::Http11 | Via::Tls11 => End::Truncated,
            Via::H2 | Via::TlsH2 => End::StreamReset(CANCEL),
        };
        assert_eq!(end, expected, "{via:?}");
        assert_eq!(events.len(), 31, "{via:?}: thirty events and the close");
        assert_eq!(events[30].name, "sidestream.close", "{via:?}");
        assert_eq!(reader.last_event_id(), events[29].id, "{via:?}");
        let Some(connection) = reader.connection() else {
            continue;
        };
        assert_eq!(connection.ended().await, "closed", "{via:?}");
        let kinds: Vec<u8> = connection.frames().iter().map(|frame| frame.kind).collect();
        let at = |kind: u8| kinds.iter().rposition(|known| *known == kind).unwrap();
        assert!(
            kinds.iter().position(|kind| *kind == GOAWAY).unwrap() < at(RST_STREAM),
            "{kinds:?}"
        );
        assert!(at(DATA) < at(RST_STREAM), "{kinds:?}");
    }
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    let drained = fixture
        .sidestream
        .log()
        .into_iter()
        .filter(|line| line["reason"] == "drain")
        .count();
    assert_eq!(
        drained,
        Via::ALL.len(),
        "in the log it is a hand-over like any other"
    );
}

#[tokio::test]
async fn a_connection_at_its_maximum_age_is_handed_over_with_all_its_streams() {
    let fixture = Fixture::with_route("max_age: 1500ms, retry: 2s").await;
    let begun = Instant::now();
    let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
    let mut other = H2Client::connect(fixture.sidestream.url("/")).await;
    let mut streams = Vec::new();
    for path in ["/orders", "/news", "/both", "/orders/1"] {
        streams.push(connection.get(path).await);
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    // Younger than the others, and younger than the connection.
    streams.push(connection.get("/orders").await);
    let mut apart = other.get("/orders").await;
    connection.goaway().await;
    let goaway = begun.elapsed();
    // At most a fifth earlier.
    assert!(goaway >= Duration::from_millis(1200), "{goaway:?}");
    for stream in &mut streams {
        assert_eq!(stream.closed().await, End::Terminated);
        let close = stream.rest().pop().unwrap();
        assert_eq!(json(&close.data)["reason"], "age");
    }
    assert!(
        begun.elapsed() < goaway + Duration::from_secs(1),
        "they end together"
    );
    assert_eq!(connection.ended().await, "closed");
    let frames = connection.frames();
    let first = |wanted: fn(u8, u8) -> bool| {
        frames
            .iter()
            .position(|frame| wanted(frame.kind, frame.flags))
            .unwrap()
    };
    assert!(
        first(|kind, _| kind == GOAWAY)
            < first(|kind, flags| kind == DATA && flags & END_STREAM != 0),
        "{frames:?}"
    );
    assert!(
        !other.going_away(),
        "another connection has an age of its own"
    );
    fixture.publish("orders.1.x", "and goes on").await;
    assert_eq!(apart.next().await.data, "and goes on");
}

#[tokio::test]
async fn the_next_connection_resets_the_drawn_retry() {
    let mut fixture = Fixture::with(Setting {
        route: "retry: 4s",
        rest: QUICK,
        ..Setting::default()
    })
    .await;
    let mut reader = fixture.open(Via::Http11, "/orders").await;
    reader.positioned().await;
    assert_eq!(reader.retry(), Some(4000));
    fixture.sidestream.terminate();
    reader.read_to_end().await;
    assert!(
        (600..=900).contains(&reader.retry().unwrap()),
        "{:?}",
        reader.retry()
    );
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    let id = reader.last_event_id().to_owned();
    let text = super::config(
        &fixture.nats,
        &fixture.authority,
        Setting {
            route: "retry: 4s",
            ..Setting::default()
        },
    );
    fixture.sidestream = testkit::sidestream::Sidestream::start(text).await;
    let mut again = fixture.resume(Via::Http11, "/orders", &id).await;
    again
        .until_seen("the first bytes", |parser| parser.retry().is_some())
        .await;
    assert_eq!(
        again.retry(),
        Some(4000),
        "a client that reconnects later does not wait the drain's time"
    );
}

#[tokio::test]
async fn a_replay_that_outlasts_the_drain_ends_at_its_position() {
    let rest = "drain: { accept_for: 0s, spread: 200ms, timeout: 8s }";
    let setting = Setting {
        route: "window: { events: 20 }",
        rest,
        ..Setting::default()
    };
    let mut fixture = Fixture::with(setting).await;
    let begun = fixture
        .open(Via::Http11, "/orders")
        .await
        .positioned()
        .await;
    // 20 MiB, of which the window has 200 KiB.
    const COUNT: u64 = 2000;
    let mut acks = Vec::new();
    for number in 1..=COUNT {
        let payload = format!("{number} {}", "x".repeat(10 * 1024));
        acks.push(
            fixture
                .jetstream
                .publish("orders.1.x", payload.into())
                .await
                .unwrap(),
        );
        if acks.len() == 100 {
            for ack in acks.drain(..) {
                ack.await.unwrap();
            }
        }
    }
    let mut readers = Vec::new();
    for via in [Via::Http11, Via::H2] {
        readers.push(fixture.resume(via, "/orders", &begun).await);
    }
    fixture
        .sidestream
        .until_metric("sidestream_replays_running", &[], |running| running > 0.0)
        .await;
    for reader in &mut readers {
        reader.take(50).await;
    }
    fixture.sidestream.terminate();
    let mut left = Vec::new();
    for mut reader in readers {
        let (events, end) = reader.read_to_end().await;
        assert_eq!(end, End::Terminated, "no client is cut");
        let numbers = numbers(&events);
        assert_eq!(numbers, (51..51 + numbers.len() as u64).collect::<Vec<_>>());
        let last = numbers.last().copied().unwrap_or(50);
        assert!(last < COUNT, "it did not get everything");
        assert_eq!(
            sequence(reader.last_event_id(), 0),
            sequence(&begun, 0) + last,
            "it ends at its position"
        );
        left.push((reader.last_event_id().to_owned(), last));
    }
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
    fixture.sidestream = testkit::sidestream::Sidestream::start(super::config(
        &fixture.nats,
        &fixture.authority,
        setting,
    ))
    .await;
    for (id, last) in left {
        let mut reader: Reader = fixture.resume(Via::Http11, "/orders", &id).await;
        let rest = reader.take(usize::try_from(COUNT - last).unwrap()).await;
        assert_eq!(numbers(&rest), (last + 1..=COUNT).collect::<Vec<_>>());
    }
}

/// Numbers at the beginning of events; control events have no number.
fn numbers(events: &[testkit::sse::Event]) -> Vec<u64> {
    let data = events
        .iter()
        .filter(|event| !event.name.starts_with("sidestream."));
    data.map(|event| event.data.split(' ').next().unwrap().parse().unwrap())
        .collect()
}

/// Number of connections of the client, and whether it has reported `done`.
fn connections_and_done(client: &NodeClient) -> (usize, bool) {
    let reports = client.reports();
    let opened = reports
        .iter()
        .filter(|report| report["kind"] == "open")
        .count();
    (
        opened,
        reports.iter().any(|report| report["kind"] == "done"),
    )
}

#[tokio::test]
async fn fetch_event_source_stops_at_a_clean_end_and_continues_after_an_abort_or_with_two_lines() {
    let clean = Fixture::with_route("max_age: 500ms, retry: 100ms").await;
    let abort = Fixture::with_route("max_age: 500ms, retry: 100ms, close: abort").await;
    let stops = NodeClient::fetch_event_source(&clean.sidestream.url("/orders"));
    let comes_back =
        NodeClient::fetch_event_source_with_two_lines(&clean.sidestream.url("/orders"));
    let aborted = NodeClient::fetch_event_source(&abort.sidestream.url("/orders"));
    eventually(RECOVERY, "a clean end is the end of everything", || async {
        connections_and_done(&stops) == (1, true)
    })
    .await;
    for (fixture, client) in [(&clean, comes_back), (&abort, aborted)] {
        let publishing = publish_numbers(&fixture.jetstream, "x", Duration::from_millis(5));
        let fact = "it has lived four times and seen a hundred events";
        let seen = || {
            let events = client
                .events()
                .into_iter()
                .filter(|event| event["name"] == "message" && event["data"] != "");
            events
                .map(|event| event["data"].as_str().unwrap().parse::<u64>().unwrap())
                .collect::<Vec<_>>()
        };
        eventually(RECOVERY, fact, || async {
            connections_and_done(&client).0 >= 4 && seen().len() > 100
        })
        .await;
        publishing.abort();
        let seen = seen();
        assert_eq!(
            seen,
            (seen[0]..).take(seen.len()).collect::<Vec<_>>(),
            "every event once, in order"
        );
        assert!(!connections_and_done(&client).1, "it never ends");
    }
}

#[tokio::test]
async fn lagging_clients_are_closed_last() {
    let rest = "drain: { accept_for: 0s, spread: 3s, timeout: 10s }";
    let mut fixture = Fixture::with_rest(rest).await;
    // Opened first, so that only its lag can make it last.
    let mut connection = H2Client::builder()
        .stream_window(500)
        .connect(fixture.sidestream.url("/"))
        .await;
    let mut behind = connection.get("/orders/1").await;
    behind.positioned().await;
    for number in 1..=40 {
        fixture
            .publish("orders.1.x", format!("{number:0>60}"))
            .await;
    }
    let mut others = Vec::new();
    for _ in 0..4 {
        let mut reader = fixture.open(Via::Http11, "/orders/2").await;
        reader.positioned().await;
        others.push(reader);
    }
    fixture.sidestream.terminate();
    for reader in &mut others[..2] {
        reader.read_to_end().await;
    }
    // If it had been first, it would be closing already and waiting for its window.
    let open = fixture
        .sidestream
        .admin_json("/connections?route=/orders/%7Bid%7D")
        .await;
    let entries = open["connections"].as_array().unwrap();
    let late = entries
        .iter()
        .find(|entry| entry["subjects"][0] == "orders.1.>")
        .unwrap();
    assert_eq!(late["state"], "active", "{open}");
    for reader in &mut others[2..] {
        reader.read_to_end().await;
    }
    assert_eq!(behind.closed().await, End::Terminated);
    assert_eq!(
        behind.rest().len(),
        41,
        "it gets everything that waited, and the close"
    );
    assert_eq!(fixture.sidestream.wait_exit(DEADLINE).await, 0);
}
