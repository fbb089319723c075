//! Replays: few matches, idle subjects, moves between sidecars, invalid headers, slow readers.

use std::time::Duration;

use tokio::time::timeout;

use super::reader::{Reader, Via, summary};
use super::{Fixture, SUBJECTS, configuration, last, texts};
use testkit::nats::{Nats, create_stream, publish_raw, store};
use testkit::proxy::{Fault, Proxy};
use testkit::sidestream::Sidestream;
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, RECOVERY, eventually, within};

#[tokio::test]
async fn a_filter_that_matches_little_is_replayed_exactly() {
    let fixture = Fixture::with(1000).await;
    let start = format!("{}-0", fixture.tag().await);
    for via in Via::ALL {
        let mut reader = fixture.resume(via, "/one/7", &start).await;
        let expected: Vec<String> = (0..20)
            .map(|round| (7 + round * SUBJECTS).to_string())
            .collect();
        let mut events = Vec::new();
        while events.len() < expected.len() {
            events.push(reader.next().await);
        }
        assert_eq!(events.iter().map(summary).collect::<Vec<_>>(), expected);
        // From a matching message, and from one in between.
        let mut middle = fixture.resume(via, "/one/7", &events[9].id).await;
        let tag = start.split('-').next().unwrap();
        let mut between = fixture.resume(via, "/one/7", &format!("{tag}-500")).await;
        for expected in &expected[10..] {
            assert_eq!(
                (
                    &summary(&middle.next().await),
                    &summary(&between.next().await)
                ),
                (expected, expected)
            );
        }
    }
    fixture.until_no_replay_runs().await;
}

#[tokio::test]
async fn checkpoints_move_an_idle_client_past_purged_messages() {
    let route = "  - { path: /silent, sources: [{ stream: A, subjects: [\"a.silent\"] }], window: { events: 20 }, checkpoint: 200ms }";
    let fixture = Fixture::with_routes(100, route).await;
    let start = format!("{}-10", fixture.tag().await);
    let mut client = SseClient::get(fixture.sidestream.url("/silent"))
        .last_event_id(&start)
        .connect()
        .await;
    fixture.fill(200).await;
    let at = |id: &str| id.split('-').nth(1).map(str::to_owned);
    let fact = "a checkpoint at the end of the stream";
    client
        .until_seen(fact, |parser| {
            at(parser.last_event_id()).as_deref() == Some("300")
        })
        .await;
    let id = client.last_event_id().to_owned();
    drop(client);
    fixture.stream.purge().sequence(301).await.unwrap();
    for via in Via::ALL {
        let mut reader = fixture.resume(via, "/silent", &id).await;
        assert_eq!(reader.status(), 200);
        fixture.publish("a.silent", "heard").await;
        assert_eq!(summary(&reader.next().await), "heard");
    }
}

#[tokio::test]
async fn a_client_that_moves_between_two_sidecars_gets_every_event_once() {
    let fixture = Fixture::with(300).await;
    let other = Sidestream::start(configuration(&fixture.nats, "")).await;
    let sidecars = [&fixture.sidestream, &other];
    let mut id = format!("{}-0", fixture.tag().await);
    let jetstream = fixture.nats.jetstream().await;
    let publishing = tokio::spawn(async move {
        for number in 301..=1500 {
            store(&jetstream, super::subject(number), number.to_string()).await;
        }
    });
    let mut seen: Vec<String> = Vec::new();
    let mut moves = 0;
    while seen.len() < 1500 {
        // First in the archive, then at the head, which the other sidecar may not have reached yet.
        let via = Via::ALL[moves % 2];
        let mut reader = Reader::open(
            sidecars[moves / 2 % 2],
            via,
            "/all",
            &[("last-event-id", &id)],
        )
        .await;
        assert_eq!(reader.status(), 200, "{id}");
        for _ in 0..(37 + moves % 90).min(1500 - seen.len()) {
            let event = reader.next().await;
            seen.push(summary(&event));
            id = event.id;
        }
        moves += 1;
    }
    publishing.await.unwrap();
    assert_eq!(seen, texts(1, 1500));
}

#[tokio::test]
async fn a_position_ahead_of_a_lagging_sidecar_is_accepted() {
    let fixture = Fixture::with(300).await;
    let ids = fixture.ids().await;
    // The connections of the sidecar to NATS are slower than the client.
    let proxy = Proxy::to_port(fixture.nats.port()).await;
    let far = format!("nats://{}", proxy.address());
    let text = configuration(&fixture.nats, "").replace(&fixture.nats.url(), &far);
    let late = Sidestream::start(text).await;
    proxy.set(Fault {
        delay: Duration::from_millis(150),
        ..Fault::default()
    });
    let mut near = fixture.resume(Via::Http1, "/all", &ids[299]).await;
    for number in 301..=305 {
        // The sidecar reads the state of the stream and caches it for a while.
        let past = Reader::open(&late, Via::Http1, "/all", &[("last-event-id", &ids[100])]).await;
        assert_eq!(past.status(), 200);
        fixture.publish("a.1", &number.to_string()).await;
        let event = near.next().await;
        assert_eq!(summary(&event), number.to_string());
        let mut moved = Reader::open(&late, Via::H2, "/all", &[("last-event-id", &event.id)]).await;
        let next = format!("after {number}");
        fixture.publish("a.end", &next).await;
        assert_eq!(summary(&near.next().await), next);
        assert_eq!(
            summary(&moved.next().await),
            next,
            "neither a gap nor an event twice"
        );
    }
}

#[tokio::test]
async fn a_message_with_invalid_headers_in_the_archive_delays_no_replay() {
    let fixture = Fixture::with(100).await;
    let headers = b"NATS/1.0\r\nX-Bad: \xff\xfe\r\n\r\n";
    publish_raw(fixture.nats.port(), b"a.0", headers, b"poison").await;
    fixture.fill(199).await;
    let start = format!("{}-20", fixture.tag().await);
    let expected = [texts(21, 100), vec!["poison".to_owned()], texts(102, 300)].concat();
    let mut readers = Vec::new();
    for via in Via::ALL {
        readers.push(fixture.resume(via, "/all", &start).await);
    }
    fixture.publish("a.end", "end").await;
    for mut reader in readers {
        assert_eq!(
            within(RECOVERY, "the reader is live", reader.until("end")).await,
            expected
        );
    }
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_nats_reconnects_total", &[])
            .await,
        0.0
    );
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_gaps_total", &[])
            .await,
        0.0
    );
    fixture.until_no_replay_runs().await;
}

#[tokio::test]
async fn a_slow_reader_of_the_archive_delays_no_client_and_misses_nothing() {
    let fixture = Fixture::with(0).await;
    let client = fixture.nats.client().await;
    let filling = "x".repeat(2000);
    for number in 1..=2000 {
        client
            .publish(super::subject(number), format!("{number} {filling}").into())
            .await
            .unwrap();
    }
    client.flush().await.unwrap();
    eventually(RECOVERY, "all is stored", || async {
        last(&fixture.stream).await == 2000
    })
    .await;
    let start = format!("{}-0", fixture.tag().await);
    let url = fixture.sidestream.url("/all");
    let number = |data: &str| data.split(' ').next().unwrap().parse::<u64>().unwrap();
    let (hurry, hurried) = tokio::sync::watch::channel(false);
    let mut ends = Vec::new();
    for _ in 0..6 {
        let mut client = SseClient::get(&url)
            .last_event_id(&start)
            .receive_buffer(4096)
            .connect()
            .await;
        let mut hurried = hurried.clone();
        ends.push(tokio::spawn(async move {
            for expected in 1..=2000 {
                // Slow, not stalled: ten events per second until the other clients have everything.
                drop(
                    timeout(
                        Duration::from_millis(100),
                        hurried.wait_for(|hurries| *hurries),
                    )
                    .await,
                );
                assert_eq!(number(&client.next().await.data), expected);
            }
        }));
    }
    fixture
        .sidestream
        .until_metric("sidestream_replays_running", &[], |running| running >= 1.0)
        .await;
    for via in Via::ALL {
        let mut reader = fixture.resume(via, "/all", &start).await;
        let all = async {
            for expected in 1..=2000 {
                assert_eq!(number(&reader.next().await.data), expected);
            }
        };
        within(DEADLINE, "the others have everything", all).await;
    }
    hurry.send(true).unwrap();
    for end in ends {
        end.await.unwrap();
    }
    fixture.until_no_replay_runs().await;
}

#[tokio::test]
async fn a_message_that_is_too_large_is_the_same_gap_in_a_replay_as_live() {
    let nats = Nats::builder()
        .config("max_payload: 16777216\nmax_pending: 67108864")
        .start()
        .await;
    let jetstream = nats.jetstream().await;
    let stream = create_stream(&jetstream, "A", &["a.>"]).await;
    let sidestream = Sidestream::start(configuration(&nats, "")).await;
    let fixture = Fixture {
        nats,
        jetstream,
        stream,
        sidestream,
    };
    let mut live = SseClient::get(fixture.sidestream.url("/all"))
        .connect()
        .await;
    live.positioned().await;
    let start = live.last_event_id().to_owned();
    fixture.fill(2).await;
    fixture
        .jetstream
        .publish("a.1", vec![b'x'; 9 << 20].into())
        .await
        .unwrap()
        .await
        .unwrap();
    let gap = r#"{"reason":"upstream","missed":1,"resume":"live"}"#.to_owned();
    let expected: Vec<String> = texts(1, 2)
        .into_iter()
        .chain([gap])
        .chain(texts(4, 33))
        .collect();
    let mut seen = Vec::new();
    // More than the window can hold, one after the other.
    for _ in 0..3 {
        fixture.fill(10).await;
        let count = if seen.is_empty() { 13 } else { 10 };
        seen.extend(live.take(count).await.into_iter().map(|event| event.data));
    }
    assert_eq!(seen, expected);
    let mut resumed = SseClient::get(fixture.sidestream.url("/gap"))
        .last_event_id(&start)
        .connect()
        .await;
    let seen: Vec<String> = resumed
        .take(expected.len())
        .await
        .into_iter()
        .map(|event| event.data)
        .collect();
    assert_eq!(seen, expected);
}
