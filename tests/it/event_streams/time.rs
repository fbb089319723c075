//! Timers of an event stream: heartbeats, checkpoints and maximum age.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::reader::Via;
use super::{Fixture, json, publish_numbers, sequence};
use testkit::h2::{H2Client, H2Stream};
use testkit::sse::SseClient;

#[tokio::test]
async fn a_heartbeat_of_an_idle_stream_is_one_comment_and_one_newline() {
    let fixture = Fixture::with_route("heartbeat: 100ms").await;
    let mut client = SseClient::get(fixture.sidestream.url("/orders"))
        .connect()
        .await;
    client
        .until_seen("the client has heard two heartbeats", |parser| {
            parser.comments().len() == 2
        })
        .await;
    let expected = format!(
        "retry: 3000\nevent: sidestream.position\ndata: {{}}\nid: {}\n\n: hb\n: hb\n",
        client.last_event_id()
    );
    assert_eq!(String::from_utf8_lossy(client.wire()), expected);
    for via in Via::ALL {
        let mut reader = fixture.open(via, "/news").await;
        reader
            .until_seen("the client has heard a heartbeat", |parser| {
                !parser.comments().is_empty()
            })
            .await;
    }
}

#[tokio::test]
async fn a_stream_with_events_sends_no_heartbeat() {
    let fixture = Fixture::with_route("heartbeat: 1s").await;
    let mut reader = fixture.open(Via::Http11, "/orders").await;
    let begun = Instant::now();
    let mut pauses = Duration::ZERO;
    while begun.elapsed() < Duration::from_millis(2500) {
        let before = Instant::now();
        fixture.publish("orders.1.x", "x").await;
        reader.next().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        pauses = pauses.max(before.elapsed());
    }
    // If the machine was suspended, the stream was idle.
    assert!(
        reader.comments() == 0 || pauses > Duration::from_millis(400),
        "{} heartbeats",
        reader.comments()
    );
}

/// Waits until an event stream has heard another heartbeat.
trait Hear: Send + 'static {
    fn hear(&mut self) -> impl Future<Output = ()> + Send;
}

impl Hear for SseClient {
    async fn hear(&mut self) {
        let heard = self.comments();
        self.until_seen("another heartbeat", |parser| {
            parser.comments().len() > heard
        })
        .await;
    }
}

impl Hear for H2Stream {
    async fn hear(&mut self) {
        let heard = self.comments();
        self.until_seen("another heartbeat", |parser| {
            parser.comments().len() > heard
        })
        .await;
    }
}

/// Returns the most heartbeats that arrive within 100 ms of each other, before an event and after it.
async fn most_heartbeats_together(fixture: &Fixture, mut streams: Vec<impl Hear>) -> [usize; 2] {
    let mut most = [0; 2];
    for (round, most) in most.iter_mut().enumerate() {
        if round == 1 {
            fixture.publish("orders.1.x", "the same to all").await;
        }
        let mut beats = JoinSet::new();
        for mut stream in streams.drain(..) {
            beats.spawn(async move {
                stream.hear().await;
                (Instant::now(), stream)
            });
        }
        let mut times = Vec::new();
        for (time, stream) in beats.join_all().await {
            times.push(time);
            streams.push(stream);
        }
        let together = |time: &Instant| {
            let end = *time + Duration::from_millis(100);
            let near = times.iter().filter(|other| (*time..end).contains(*other));
            near.count()
        };
        *most = times.iter().map(together).max().unwrap();
    }
    most
}

#[tokio::test]
async fn heartbeats_of_connections_that_open_together_are_spread() {
    let fixture = Fixture::with_route("heartbeat: 1s").await;
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(
            SseClient::get(fixture.sidestream.url("/orders"))
                .connect()
                .await,
        );
    }
    for most in most_heartbeats_together(&fixture, streams).await {
        assert!(most <= 25, "{most} of 50 heartbeats within 100 ms");
    }
}

#[tokio::test]
async fn heartbeats_of_one_http2_connection_are_written_together() {
    let fixture = Fixture::with_route("heartbeat: 4s").await;
    let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(connection.get("/orders").await);
    }
    for most in most_heartbeats_together(&fixture, streams).await {
        assert!(most >= 45, "only {most} of 50 heartbeats within 100 ms");
    }
}

#[tokio::test]
async fn a_closed_stream_does_not_stop_the_heartbeats_of_its_connection() {
    let fixture = Fixture::with_route("heartbeat: 200ms").await;
    let mut connection = H2Client::connect(fixture.sidestream.url("/")).await;
    let (mut gone, mut stays) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        gone.push(connection.get("/orders").await);
        stays.push(connection.get("/orders").await);
    }
    gone.into_iter().for_each(|stream| stream.reset());
    for stream in &mut stays {
        let heard = stream.comments();
        stream
            .until_seen("three more heartbeats", |parser| {
                parser.comments().len() >= heard + 3
            })
            .await;
    }
}

#[tokio::test]
async fn an_idle_client_gets_checkpoints_of_its_source() {
    let fixture = Fixture::with_route("checkpoint: 300ms").await;
    for via in [Via::Http11, Via::H2] {
        let mut reader = fixture.open(via, "/orders/mine").await;
        let begun = reader.positioned().await;
        let passed = fixture
            .publish("orders.other.x", "not for this client")
            .await;
        assert!(passed > sequence(&begun, 0));
        let fact = "the client has the position of an event that was not for it";
        reader
            .until_seen(fact, |parser| sequence(parser.last_event_id(), 0) == passed)
            .await;
    }
}

#[tokio::test]
async fn the_close_event_has_the_position_and_is_the_last_block_even_without_checkpoints() {
    for checkpoint in ["30s", "null"] {
        let route = format!("max_age: 300ms, checkpoint: {checkpoint}");
        let fixture = Fixture::with_route(&route).await;
        let mut client = SseClient::get(fixture.sidestream.url("/orders/mine"))
            .connect()
            .await;
        client
            .until_seen("the opening", |parser| parser.retry().is_some())
            .await;
        let passed = fixture
            .publish("orders.other.x", "not for this client")
            .await;
        client.closed().await;
        let (id, retry) = (client.last_event_id(), client.retry().unwrap());
        assert_eq!(
            sequence(id, 0),
            passed,
            "checkpoint: {checkpoint}: the close moves the client to the head"
        );
        let close = format!(
            "retry: {retry}\nevent: sidestream.close\ndata: {{\"reason\":\"age\",\"retry\":{retry}}}\nid: {id}\n\n"
        );
        let wire = String::from_utf8_lossy(client.wire()).into_owned();
        assert!(wire.ends_with(&close), "checkpoint: {checkpoint}: {wire}");
    }
}

#[tokio::test]
async fn a_client_that_is_handed_over_at_max_age_gets_every_event_once() {
    let fixture = Fixture::with_route("max_age: 400ms").await;
    let publishing = publish_numbers(&fixture.jetstream, "x", Duration::from_millis(5));
    for via in Via::ALL {
        let mut reader = fixture.open(via, "/orders").await;
        let first = sequence(&reader.positioned().await, 0);
        let (begun, mut lives, mut numbers) = (Instant::now(), 0, Vec::new());
        while lives < 4 {
            let (mut events, end) = reader.read_to_end().await;
            assert_eq!(end, via.proper_end(), "{via:?}");
            let close = events.pop().unwrap();
            assert_eq!(
                (&*close.name, &json(&close.data)["reason"]),
                ("sidestream.close", &"age".into())
            );
            assert_eq!(json(&close.data)["retry"].as_u64(), reader.retry());
            numbers.extend(
                events
                    .into_iter()
                    .map(|event| event.data.parse::<u64>().unwrap()),
            );
            let id = reader.last_event_id().to_owned();
            assert!(
                sequence(&id, 0) >= *numbers.last().unwrap(),
                "the close event has the position: {id}"
            );
            reader = fixture.resume(via, "/orders", &id).await;
            lives += 1;
        }
        // The first bytes may contain the first events.
        assert!(
            numbers[0] <= first + 1,
            "{via:?}: {} after {first}",
            numbers[0]
        );
        let expected: Vec<u64> = (numbers[0]..).take(numbers.len()).collect();
        assert_eq!(numbers, expected, "{via:?}");
        assert!(
            begun.elapsed() > Duration::from_millis(4 * 320),
            "a fifth sooner at the earliest"
        );
    }
    publishing.abort();
    let aged = fixture
        .sidestream
        .metric("sidestream_streams_closed_total", &[("reason", "age")])
        .await;
    assert!(aged >= 20.0, "{aged}");
    let lost = fixture
        .sidestream
        .metric("sidestream_gaps_total", &[])
        .await;
    assert_eq!(lost, 0.0);
}
