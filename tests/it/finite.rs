//! Finite event streams: `Sidestream-End`, `sidestream.end`, and 204 for a client that has everything.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream;

use testkit::browser::Page;
use testkit::h2::H2Client;
use testkit::http1::End;
use testkit::nats::{Nats, create_stream, store, store_with};
use testkit::ndjson::Request;
use testkit::sidestream::{Sidestream, config, run};
use testkit::sse::{Event, SseClient};
use testkit::wait::DEADLINE;

/// A stream `RUNS`, and a sidecar with a finite route and one that is not.
struct Fixture {
    nats: Nats,
    jetstream: jetstream::Context,
    sidestream: Sidestream,
}

impl Fixture {
    async fn start() -> Self {
        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        create_stream(&jetstream, "RUNS", &["runs.>"]).await;
        let sidestream = Sidestream::start(configuration(&nats)).await;
        Self {
            nats,
            jetstream,
            sidestream,
        }
    }

    async fn publish(&self, subject: &str, text: &str) {
        store(&self.jetstream, subject, text.to_owned()).await;
    }

    /// Publishes a message with the header `Sidestream-End` and this value.
    async fn publish_end(&self, subject: &str, text: &str, value: &str) {
        let mut headers = HeaderMap::new();
        headers.insert("Sidestream-End", value);
        store_with(&self.jetstream, subject, headers, text.to_owned()).await;
    }

    async fn open(&self, target: &str) -> SseClient {
        SseClient::get(self.sidestream.url(target)).connect().await
    }

    async fn resume(&self, target: &str, id: &str) -> SseClient {
        SseClient::get(self.sidestream.url(target))
            .last_event_id(id)
            .connect()
            .await
    }
}

fn configuration(nats: &Nats) -> String {
    let source = "sources: [{ stream: RUNS, subjects: [\"runs.{id}.>\"] }]";
    config(
        nats,
        &format!(
            "routes:
  - {{ path: \"/runs/{{id}}\", {source}, begin: first, finite: true, retry: 100ms }}
  - {{ path: \"/abort/{{id}}\", {source}, begin: first, finite: true, close: abort }}
  - {{ path: \"/small/{{id}}\", {source}, begin: first, finite: true, window: {{ events: 3 }} }}
  - {{ path: \"/endless/{{id}}\", {source}, begin: first }}"
        ),
    )
}

/// Reads to the end: the events, the last of which is `sidestream.end`, and how the body ended.
async fn read_to_end(client: &mut SseClient) -> (Vec<Event>, End) {
    let events = client.until(|event| event.name == "sidestream.end").await;
    let end = client.closed().await;
    (events, end)
}

fn texts(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.data.as_str()).collect()
}

#[tokio::test]
async fn event_stream_ends_after_the_message_with_the_header_and_204_follows() {
    let fixture = Fixture::start().await;
    let mut live = fixture.open("/runs/7").await;
    fixture.publish("runs.7.token", "one").await;
    assert_eq!(live.next().await.data, "one");
    fixture.publish("runs.7.token", "two").await;
    fixture.publish("runs.8.token", "other").await;
    fixture.publish_end("runs.7.done", "three", "true").await;
    for client in [&mut live, &mut fixture.open("/runs/7").await] {
        let (events, end) = read_to_end(client).await;
        let seen = texts(&events);
        assert_eq!(&seen[seen.len() - 3..], ["two", "three", "{}"]);
        assert_eq!(end, End::Terminated);
        let [.., last, end] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!(
            last.id, end.id,
            "the end has the position of the last event"
        );
    }
    let id = live.last_event_id().to_owned();
    for _ in 0..2 {
        let mut finished = fixture.resume("/runs/7", &id).await;
        assert_eq!(finished.status(), 204);
        assert_eq!(finished.header("content-length"), None);
        assert_eq!(finished.body().await, "");
    }
    let mut connection = H2Client::connect(fixture.sidestream.url("/runs/7")).await;
    let headers = [("accept", "text/event-stream"), ("last-event-id", &*id)];
    assert_eq!(
        connection
            .request("GET", "/runs/7", &headers)
            .await
            .status(),
        204
    );
    let finished = [("route", "/runs/{id}")];
    let count = fixture
        .sidestream
        .metric("sidestream_finished_total", &finished);
    assert_eq!(count.await, 3.0);
    let ended = [("route", "/runs/{id}"), ("reason", "end")];
    fixture
        .sidestream
        .until_metric("sidestream_streams_closed_total", &ended, |count| {
            count == 2.0
        })
        .await;
}

#[tokio::test]
async fn client_that_broke_off_receives_the_rest_and_then_the_end() {
    let fixture = Fixture::start().await;
    for number in 1..=40 {
        fixture.publish("runs.7.token", &number.to_string()).await;
    }
    fixture.publish_end("runs.7.done", "end", "true").await;
    // From memory, and from the stream.
    for target in ["/runs/7", "/small/7"] {
        let mut first = fixture.open(target).await;
        let events = first.take(10).await;
        drop(first);
        let mut rest = fixture.resume(target, &events[9].id).await;
        let (events, _) = read_to_end(&mut rest).await;
        let seen = texts(&events);
        assert_eq!((seen[0], seen.len()), ("11", 32), "{target}");
        assert_eq!(seen[30..], ["end", "{}"]);
    }
}

#[tokio::test]
async fn position_between_the_end_and_now_is_at_the_end_too() {
    let fixture = Fixture::start().await;
    fixture.publish("runs.7.token", "one").await;
    fixture.publish_end("runs.7.done", "end", "true").await;
    // Other subjects move the stream on, and memory away from the end.
    for number in 0..50 {
        fixture.publish("runs.8.token", &number.to_string()).await;
    }
    let mut client = fixture.open("/small/7").await;
    let (events, _) = read_to_end(&mut client).await;
    assert_eq!(texts(&events), ["one", "end", "{}"]);
    let end = client.last_event_id().to_owned();
    assert_eq!(fixture.resume("/small/7", &end).await.status(), 204);
    let tag = end.split('-').next().unwrap();
    let later = fixture.resume("/small/7", &format!("{tag}-30")).await;
    assert_eq!(later.status(), 204);
}

#[tokio::test]
async fn run_that_goes_on_after_its_end_is_read_further() {
    let fixture = Fixture::start().await;
    fixture.publish("runs.7.token", "one").await;
    fixture.publish_end("runs.7.done", "end", "true").await;
    let mut client = fixture.open("/runs/7").await;
    read_to_end(&mut client).await;
    let id = client.last_event_id().to_owned();
    fixture.publish("runs.7.token", "again").await;
    let mut resumed = fixture.resume("/runs/7", &id).await;
    assert_eq!(resumed.status(), 200);
    assert_eq!(resumed.next().await.data, "again");
    fixture
        .publish_end("runs.7.done", "second end", "true")
        .await;
    let (events, _) = read_to_end(&mut resumed).await;
    assert_eq!(texts(&events), ["second end", "{}"]);
    assert_eq!(fixture.resume("/runs/7", &id).await.status(), 200);
    let id = resumed.last_event_id().to_owned();
    assert_eq!(fixture.resume("/runs/7", &id).await.status(), 204);
}

#[tokio::test]
async fn header_means_nothing_on_other_routes_and_with_other_values() {
    let fixture = Fixture::start().await;
    fixture.publish_end("runs.7.done", "end", "true").await;
    fixture.publish_end("runs.9.done", "no end", "1").await;
    let mut endless = fixture.open("/endless/7").await;
    let event = endless.next().await;
    assert_eq!(event.data, "end");
    fixture.publish("runs.7.token", "more").await;
    assert_eq!(endless.next().await.data, "more");
    let resumed = fixture.resume("/endless/7", &event.id).await;
    assert_eq!(resumed.status(), 200);
    let mut other = fixture.open("/runs/9").await;
    assert_eq!(other.next().await.data, "no end");
    fixture.publish("runs.9.token", "more").await;
    assert_eq!(other.next().await.data, "more");
}

#[tokio::test]
async fn end_is_regular_in_json_lines_and_with_close_abort() {
    let fixture = Fixture::start().await;
    fixture.publish("runs.7.token", "1").await;
    fixture.publish_end("runs.7.done", "2", "true").await;
    let url = fixture.sidestream.url("/abort/7");
    let mut reader = Request::new(&url).send().await;
    let (lines, end) = reader.until_control("end").await;
    let events: Vec<_> = lines
        .iter()
        .filter(|line| line["control"].is_null())
        .collect();
    assert_eq!(events.len(), 2);
    assert_eq!(end["id"], events[1]["id"]);
    let (rest, closed) = reader.read_to_end().await;
    assert_eq!(rest.len(), 0);
    assert_eq!(closed, End::Terminated);
    let mut client = fixture.open("/abort/7").await;
    assert_eq!(read_to_end(&mut client).await.1, End::Terminated);
}

#[tokio::test]
async fn tail_exits_with_0_at_the_end_and_after_it() {
    let fixture = Fixture::start().await;
    fixture.publish("runs.7.token", "one").await;
    fixture.publish_end("runs.7.done", "two", "true").await;
    let url = fixture.sidestream.url("/runs/7");
    let folder = fixture.sidestream.folder();
    let output = run(&["tail", "--json", &url], folder).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 2);
    let mut client = fixture.open("/runs/7").await;
    read_to_end(&mut client).await;
    let id = client.last_event_id();
    let output = run(&["tail", "--last-event-id", id, &url], folder).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stdout.is_empty());
}

#[tokio::test]
async fn five_tabs_that_reload_during_rolling_restarts_see_one_text_and_one_204_each() {
    let fixture = Fixture::start().await;
    let Fixture {
        nats,
        jetstream,
        sidestream,
    } = fixture;
    let publishing = tokio::spawn(async move {
        for number in 0..300 {
            store(&jetstream, "runs.7.token", number.to_string()).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut headers = HeaderMap::new();
        headers.insert("Sidestream-End", "true");
        store_with(&jetstream, "runs.7.done", headers, "end").await;
    });
    let pods = tokio::sync::watch::channel(sidestream.url("/runs/7"));
    let tabs: Vec<_> = (0..5)
        .map(|number| tokio::spawn(tab(pods.1.clone(), number)))
        .collect();
    let mut running = sidestream;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let next = Sidestream::start(configuration(&nats)).await;
        pods.0.send(next.url("/runs/7")).unwrap();
        running.terminate();
        running.wait_exit(DEADLINE).await;
        running = next;
    }
    publishing.await.unwrap();
    let mut expected: Vec<String> = (0..300).map(|one| one.to_string()).collect();
    expected.push("end".to_owned());
    for tab in tabs {
        assert_eq!(tab.await.unwrap(), expected);
    }
}

#[tokio::test]
async fn eventsource_of_chromium_stops_after_the_end() {
    let page = Page::serve().await;
    let fixture = Fixture::start().await;
    let routes = format!(
        "routes:
  - path: /runs
    sources: [{{ stream: RUNS, subjects: [\"runs.7.>\"] }}]
    begin: first
    finite: true
    retry: 100ms
    cors: {{ origins: [\"{}\"] }}",
        page.origin()
    );
    let sidestream = Sidestream::start(config(&fixture.nats, &routes)).await;
    fixture.publish("runs.7.token", "one").await;
    fixture.publish_end("runs.7.done", "two", "true").await;
    let browser = page.open(&[&sidestream.url("/runs")], &["sidestream.end"]);
    let reports = browser
        .until("the EventSource is closed for good", |reports| {
            reports
                .iter()
                .any(|report| report["kind"] == "error" && report["state"] == 2)
        })
        .await;
    let seen: Vec<_> = reports
        .iter()
        .filter(|report| report["kind"] == "event")
        .map(|report| report["data"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(seen, ["one", "two", "{}"]);
    let finished = [("route", "/runs")];
    let count = sidestream.metric("sidestream_finished_total", &finished);
    assert_eq!(count.await, 1.0);
}

/// Reloads about every second, each time with its position, until 204; returns what it has read.
async fn tab(pod: tokio::sync::watch::Receiver<String>, number: u64) -> Vec<String> {
    let (mut id, mut text) = (String::new(), Vec::new());
    loop {
        let url = pod.borrow().clone();
        let request = SseClient::get(&url).browser();
        let request = if id.is_empty() {
            request
        } else {
            request.last_event_id(&id)
        };
        let Ok(mut client) = request.try_connect().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if client.status() == 204 {
            return text;
        }
        let reload = Duration::from_millis(900 + number * 50);
        let reading = async {
            while let Ok(event) = client.advance().await {
                assert_ne!(event.name, "sidestream.gap", "{}", event.data);
                if event.name == "message" {
                    text.push(event.data);
                }
                id = event.id;
            }
        };
        drop(tokio::time::timeout(reload, reading).await);
    }
}
