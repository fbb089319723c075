//! Beginnings of event streams without an id: live, first, `since`, `last`.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use testkit::nats::{Nats, create_stream, store};
use testkit::ndjson::Request;
use testkit::sidestream::{Sidestream, config};
use testkit::sse::SseClient;
use testkit::wait::{RECOVERY, eventually};

/// A stream `A`, and a sidecar whose routes have a window of ten events.
struct Fixture {
    nats: Nats,
    jetstream: jetstream::Context,
    stream: stream::Stream,
    sidestream: Sidestream,
}

const WINDOW: &str = "window: { events: 10 }";
const BY_CLIENT: &str = "begin_by_client: { max_age: 1h, max_events: 500 }";

impl Fixture {
    /// Starts with `count` messages in the stream, numbered like their sequences. Message `n` has
    /// the subject `a.(n % 50)`.
    async fn with(count: u64) -> Self {
        Self::with_config(count, stream::Config::default(), "").await
    }

    async fn with_config(count: u64, config: stream::Config, routes: &str) -> Self {
        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        let stream = jetstream
            .create_stream(stream::Config {
                name: "A".to_owned(),
                subjects: vec!["a.>".to_owned()],
                ..config
            })
            .await
            .unwrap();
        let client = nats.client().await;
        for number in 1..=count {
            let subject = format!("a.{}", number % 50);
            client
                .publish(subject, number.to_string().into())
                .await
                .unwrap();
        }
        client.flush().await.unwrap();
        eventually(RECOVERY, "all messages are stored", || async {
            stream.get_info().await.unwrap().state.last_sequence == count
        })
        .await;
        let sidestream = Sidestream::start(configuration(&nats, routes)).await;
        Self {
            nats,
            jetstream,
            stream,
            sidestream,
        }
    }

    /// Publishes a text and waits until it is stored.
    async fn publish(&self, subject: &str, text: &str) {
        store(&self.jetstream, subject, text.to_owned()).await;
    }

    async fn open(&self, target: &str) -> SseClient {
        let client = SseClient::get(self.sidestream.url(target)).connect().await;
        assert_eq!(client.status(), 200, "{target}");
        client
    }

    /// Payloads of the first `count` events of a new event stream.
    async fn read(&self, target: &str, count: usize) -> Vec<String> {
        let mut client = self.open(target).await;
        let events = client.take(count).await;
        events.into_iter().map(|event| event.data).collect()
    }

    /// Status and code of a rejected request.
    async fn rejection(&self, target: &str) -> (u16, String) {
        let mut client = SseClient::get(self.sidestream.url(target)).connect().await;
        let status = client.status();
        let body: serde_json::Value = serde_json::from_str(&client.body().await).unwrap();
        (status, body["error"]["code"].as_str().unwrap().to_owned())
    }

    async fn begins(&self, begin: &str) -> f64 {
        self.sidestream
            .metric("sidestream_begins_total", &[("begin", begin)])
            .await
    }
}

fn configuration(nats: &Nats, routes: &str) -> String {
    let all = format!("sources: [{{ stream: A, subjects: [\"a.>\"] }}], {WINDOW}");
    let one = format!("sources: [{{ stream: A, subjects: [\"a.{{id}}\"] }}], {WINDOW}");
    config(
        nats,
        &format!(
            "routes:
  - {{ path: /live, {all} }}
  - {{ path: /first, {all}, begin: first }}
  - {{ path: /all, {all}, {BY_CLIENT} }}
  - {{ path: \"/one/{{id}}\", {one}, {BY_CLIENT} }}
  - {{ path: /two, sources: [{{ stream: A, subjects: [\"a.7\", \"a.9\"] }}], {WINDOW}, {BY_CLIENT} }}
{routes}"
        ),
    )
}

fn texts(numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    numbers.into_iter().map(|one| one.to_string()).collect()
}

#[tokio::test]
async fn event_stream_begins_with_the_first_event_and_goes_on_live() {
    let fixture = Fixture::with(700).await;
    let mut client = fixture.open("/first").await;
    let events = client.take(700).await;
    let seen: Vec<String> = events.iter().map(|event| event.data.clone()).collect();
    assert_eq!(seen, texts(1..=700));
    fixture.publish("a.1", "live").await;
    assert_eq!(client.next().await.data, "live");
    assert_eq!(fixture.begins("first").await, 1.0);
    // An id wins over `begin`.
    let mut resumed = SseClient::get(fixture.sidestream.url("/first"))
        .last_event_id(&events[449].id)
        .connect()
        .await;
    assert_eq!(resumed.next().await.data, "451");
    assert_eq!(fixture.begins("first").await, 1.0);
}

#[tokio::test]
async fn first_position_is_the_one_before_the_first_event() {
    let fixture = Fixture::with(100).await;
    fixture.stream.purge().sequence(41).await.unwrap();
    let mut client = fixture.open("/first").await;
    client.positioned().await;
    let id = client.last_event_id().to_owned();
    assert_eq!(id.split('-').nth(1), Some("40"), "{id}");
    assert_eq!(client.next().await.data, "41");
    let mut again = SseClient::get(fixture.sidestream.url("/first"))
        .last_event_id(&id)
        .connect()
        .await;
    assert_eq!(again.next().await.data, "41", "its first id resumes there");
}

#[tokio::test]
async fn last_events_come_from_memory_or_from_the_stream() {
    let fixture = Fixture::with(2000).await;
    // In memory, beyond it, and all that there is.
    assert_eq!(fixture.read("/all?last=4", 4).await, texts(1997..=2000));
    assert_eq!(fixture.read("/all?last=300", 300).await, texts(1701..=2000));
    // Every 50th message has the subject.
    let of_7: Vec<u64> = (0..40).map(|round| 7 + round * 50).collect();
    let last_30 = texts(of_7[10..].iter().copied());
    assert_eq!(fixture.read("/one/7?last=30", 30).await, last_30);
    assert_eq!(fixture.read("/one/7?last=400", 40).await, texts(of_7));
    let of_two = texts((0..40).flat_map(|round| [7 + round * 50, 9 + round * 50]));
    assert_eq!(fixture.read("/two?last=25", 25).await, of_two[55..]);
    // They go on live, without an event twice.
    let mut client = fixture.open("/one/7?last=2").await;
    client.take(2).await;
    fixture.publish("a.7", "live").await;
    assert_eq!(client.next().await.data, "live");
    let mut none = fixture.open("/all?last=0").await;
    fixture.publish("a.7", "next").await;
    assert_eq!(none.next().await.data, "next");
    eventually(RECOVERY, "no consumer is left of the searches", || async {
        fixture
            .stream
            .get_info()
            .await
            .unwrap()
            .state
            .consumer_count
            == 1
    })
    .await;
}

#[tokio::test]
async fn burst_long_ago_does_not_disturb_the_last_events() {
    // 5,000 messages of one subject, then 5,000 of another: the search passes from silence into a
    // crowd.
    let fixture = Fixture::with(0).await;
    let client = fixture.nats.client().await;
    for number in 0..10_000_u64 {
        let subject = if number < 5000 { "a.7" } else { "a.8" };
        client
            .publish(subject, number.to_string().into())
            .await
            .unwrap();
    }
    client.flush().await.unwrap();
    eventually(RECOVERY, "all messages are stored", || async {
        fixture.stream.get_info().await.unwrap().state.last_sequence == 10_000
    })
    .await;
    assert_eq!(fixture.read("/one/7?last=50", 50).await, texts(4950..5000));
    assert_eq!(
        fixture.read("/one/7?last=500", 500).await,
        texts(4500..5000)
    );
}

#[tokio::test]
async fn events_since_a_time_or_a_duration_are_exact() {
    let fixture = Fixture::with(300).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let between = OffsetDateTime::now_utc();
    tokio::time::sleep(Duration::from_millis(50)).await;
    for number in 301..=340_u64 {
        fixture.publish("a.7", &number.to_string()).await;
    }
    let since = between.format(&Rfc3339).unwrap();
    let target = format!("/all?since={since}");
    assert_eq!(fixture.read(&target, 40).await, texts(301..=340));
    assert_eq!(fixture.read("/all?since=1h", 340).await, texts(1..=340));
    let target = format!("/one/7?since={since}");
    assert_eq!(fixture.read(&target, 40).await, texts(301..=340));
    // A time to come, as by a clock that is ahead, and now: live.
    let later = (OffsetDateTime::now_utc() + Duration::from_secs(30))
        .format(&Rfc3339)
        .unwrap();
    let mut future = fixture.open(&format!("/all?since={later}")).await;
    fixture.publish("a.7", "next").await;
    assert_eq!(future.next().await.data, "next");
    assert_eq!(fixture.begins("since").await, 4.0);
}

#[tokio::test]
async fn deleted_messages_do_not_move_the_beginning() {
    let fixture = Fixture::with(200).await;
    for sequence in (100..=200).filter(|sequence| sequence % 3 != 0) {
        fixture.stream.delete_message(sequence).await.unwrap();
    }
    let left = texts((1..=200).filter(|one| *one < 100 || one % 3 == 0));
    assert_eq!(
        fixture.read("/all?last=20", 20).await,
        left[left.len() - 20..]
    );
    assert_eq!(
        fixture.read("/all?last=80", 80).await,
        left[left.len() - 80..]
    );
    assert_eq!(fixture.read("/all?since=1h", left.len()).await, left);
}

#[tokio::test]
async fn beginning_that_is_not_valid_or_not_allowed_is_rejected() {
    let fixture = Fixture::with(20).await;
    for target in [
        "/all?since=yesterday",
        "/all?last=many",
        "/all?since=5m&last=1",
    ] {
        let code = fixture.rejection(target).await;
        assert_eq!(code, (400, "bad_begin".to_owned()), "{target}");
    }
    for target in [
        "/all?since=2h",
        "/all?last=501",
        "/all?since=2020-01-01T00:00:00Z",
    ] {
        let code = fixture.rejection(target).await;
        assert_eq!(code, (400, "begin_out_of_range".to_owned()), "{target}");
    }
    // A route without `begin_by_client` does not read them.
    let mut live = fixture.open("/live?since=yesterday&last=many").await;
    fixture.publish("a.1", "next").await;
    assert_eq!(live.next().await.data, "next");
}

#[tokio::test]
async fn browser_that_asks_for_a_time_too_long_ago_receives_a_gap() {
    let fixture = Fixture::with(20).await;
    let mut client = SseClient::get(fixture.sidestream.url("/all?since=2020-01-01T00:00:00Z"))
        .browser()
        .connect()
        .await;
    assert_eq!(client.status(), 200);
    let gap = client.next().await;
    assert_eq!(gap.name, "sidestream.gap");
    assert!(gap.data.contains(r#""reason":"expired""#), "{}", gap.data);
    assert!(!gap.id.is_empty(), "the client can resume after it");
    assert_eq!(client.next().await.data, "1");
}

#[tokio::test]
async fn id_of_a_browser_wins_over_the_url_that_it_repeats() {
    let fixture = Fixture::with(100).await;
    let mut client = fixture.open("/all?last=50").await;
    let events = client.take(50).await;
    drop(client);
    for target in [
        "/all?last=50",
        "/all?since=2020-01-01T00:00:00Z",
        "/all?last=x",
    ] {
        let mut resumed = SseClient::get(fixture.sidestream.url(target))
            .last_event_id(&events[20].id)
            .connect()
            .await;
        assert_eq!(resumed.status(), 200, "{target}");
        assert_eq!(resumed.next().await.data, events[21].data, "{target}");
    }
}

#[tokio::test]
async fn beginning_is_the_same_in_json_lines_and_on_a_republished_stream() {
    let republish = stream::Republish {
        source: ">".to_owned(),
        destination: "copy.>".to_owned(),
        headers_only: false,
    };
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    jetstream
        .create_stream(stream::Config {
            name: "R".to_owned(),
            subjects: vec!["r.>".to_owned()],
            republish: Some(republish),
            ..stream::Config::default()
        })
        .await
        .unwrap();
    create_stream(&jetstream, "OTHER", &["other.>"]).await;
    for number in 1..=60_u64 {
        let subject = format!("r.{}", number % 2);
        store(&jetstream, subject, number.to_string()).await;
    }
    let source = "sources: [{ stream: R, delivery: republish, subjects: [\"r.1\"] }]";
    let routes = format!("routes: [{{ path: /r, {source}, begin: first, {BY_CLIENT} }}]");
    let sidestream = Sidestream::start(config(&nats, &routes)).await;
    let odd = |first: u64| texts((first..=60).filter(|one| one % 2 == 1));
    for (target, expected) in [
        ("/r", odd(1)),
        ("/r?last=7", odd(47)),
        ("/r?since=1h", odd(1)),
    ] {
        let url = sidestream.url(target);
        let mut reader = Request::new(&url).send().await;
        let events = reader.events(expected.len()).await;
        let seen: Vec<String> = events
            .iter()
            .map(|event| event["data"].to_string())
            .collect();
        assert_eq!(seen, expected, "{target}");
        let mut client = SseClient::get(&url).connect().await;
        let events = client.take(expected.len()).await;
        let seen: Vec<String> = events.into_iter().map(|event| event.data).collect();
        assert_eq!(seen, expected, "{target}");
    }
}

#[tokio::test]
async fn stream_that_discards_old_messages_all_the_time_begins_without_a_gap() {
    let config = stream::Config {
        max_messages: 400,
        ..stream::Config::default()
    };
    let fixture = Fixture::with_config(400, config, "").await;
    let client = fixture.nats.client().await;
    let publishing = tokio::spawn(async move {
        for number in 401_u64.. {
            let subject = format!("a.{}", number % 50);
            if client
                .publish(subject, number.to_string().into())
                .await
                .is_err()
            {
                return;
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    });
    for _ in 0..20 {
        let mut client = fixture.open("/first").await;
        let first = client.next().await;
        assert_eq!(first.name, "message", "{}", first.data);
        let mut expected: u64 = first.data.parse().unwrap();
        for event in client.take(200).await {
            expected += 1;
            assert_eq!(event.data, expected.to_string());
        }
    }
    publishing.abort();
}

#[tokio::test]
async fn many_clients_begin_at_once_within_the_limits_of_replays() {
    let fixture = Fixture::with(3000).await;
    let clients = (0..200).map(|_| fixture.read("/one/7?last=30", 30));
    let seen = futures_util::future::join_all(clients).await;
    let expected = texts((30..60).map(|round| 7 + round * 50));
    assert!(seen.iter().all(|one| *one == expected));
    for metric in ["sidestream_replays_running", "sidestream_replays_queued"] {
        fixture
            .sidestream
            .until_metric(metric, &[], |value| value == 0.0)
            .await;
    }
}
