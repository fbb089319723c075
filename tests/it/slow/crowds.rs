//! Many clients: some that never read beside many that do, bursts, and mass reconnects.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::fixture::Fixture;
use testkit::sse::SseClient;
use testkit::wait::{eventually, within};

/// Far more time than the largest of these tests needs.
const LONG_DEADLINE: Duration = Duration::from_secs(120);

/// Maximum number of bytes that are sent to a client that never reads: two socket buffers and one
/// write batch.
const SENT_BYTES_MAX: f64 = 1024.0 * 1024.0;

/// Clients that read continuously, with their statistics; numbers must be consecutive.
struct Crowd {
    seen: Arc<Seen>,
    readers: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    events: AtomicU64,
    faults: AtomicU64,
    /// Microseconds from publishing to reading, of the oldest event of each read.
    latency: std::sync::Mutex<Option<Histogram<u64>>>,
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap()
}

impl Crowd {
    /// `after`: the `Last-Event-ID` of the clients.
    async fn open(
        fixture: &Fixture,
        path: &str,
        clients: usize,
        after: &str,
        began: Instant,
    ) -> Self {
        let (seen, mut readers) = (Arc::new(Seen::default()), JoinSet::new());
        let authority = fixture.sidestream.url("").replace("http://", "");
        for _ in 0..clients {
            let mut socket = TcpStream::connect(&authority).await.unwrap();
            let id = if after.is_empty() {
                String::new()
            } else {
                format!("Last-Event-ID: {after}\r\n")
            };
            let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\n{id}\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            readers.spawn(follow(socket, Arc::clone(&seen), began));
        }
        let route = [("route", path)];
        let opened = clients as f64;
        fixture
            .sidestream
            .until_metric("sidestream_streams", &route, |streams| streams == opened)
            .await;
        Self { seen, readers }
    }

    async fn until_seen(&self, events: u64) {
        let all = || async { self.seen.events.load(Ordering::Relaxed) >= events };
        eventually(LONG_DEADLINE, &format!("{events} events are read"), all).await;
        assert_eq!(self.seen.events.load(Ordering::Relaxed), events);
        assert_eq!(
            self.seen.faults.load(Ordering::Relaxed),
            0,
            "nothing is missing, doubled or out of order"
        );
    }

    fn measure(&self) {
        *self.seen.latency.lock().unwrap() = Some(Histogram::new(3).unwrap());
    }

    /// p50 and p99 since `measure`.
    fn latency(&self) -> (Duration, Duration) {
        let latency = self.seen.latency.lock().unwrap().take().unwrap();
        let at = |quantile| Duration::from_micros(latency.value_at_quantile(quantile));
        (at(0.5), at(0.99))
    }

    async fn close(mut self) {
        self.readers.shutdown().await;
    }
}

/// Reads `data: NUMBER MICROSECONDS ...` lines until the connection ends.
async fn follow(mut socket: TcpStream, seen: Arc<Seen>, began: Instant) {
    let (mut buffer, mut held, mut last) = (vec![0; 64 * 1024], 0, None::<u64>);
    while let Ok(read @ 1..) = socket.read(&mut buffer[held..]).await {
        let (mut rest, mut oldest, mut events) = (&buffer[..held + read], None, 0);
        while let Some(end) = memchr::memchr(b'\n', rest) {
            if let Some(data) = rest[..end].strip_prefix(b"data: ".as_slice()) {
                if data == b"{}" {
                    rest = &rest[end + 1..];
                    continue; // a position without an event
                }
                let mut words = std::str::from_utf8(data).unwrap().split(' ');
                let Some(number) = words.next().and_then(|word| word.parse::<u64>().ok()) else {
                    seen.faults.fetch_add(1, Ordering::Relaxed); // a control event
                    rest = &rest[end + 1..];
                    continue;
                };
                oldest = oldest.or(words.next().and_then(|word| word.parse::<u64>().ok()));
                let follows = last.is_none_or(|last| number == last + 1);
                seen.faults
                    .fetch_add(u64::from(!follows), Ordering::Relaxed);
                last = Some(number);
                events += 1;
            }
            rest = &rest[end + 1..];
        }
        if let (Some(published), Some(latency)) = (oldest, &mut *seen.latency.lock().unwrap()) {
            latency
                .record(micros(began).saturating_sub(published))
                .unwrap();
        }
        seen.events.fetch_add(events, Ordering::Relaxed);
        let (from, left) = (held + read - rest.len(), rest.len());
        buffer.copy_within(from..from + left, 0);
        held = left;
    }
}

/// Publishes at a rate for a while; returns the number of events.
async fn publish(
    fixture: &Fixture,
    first: u64,
    rate: u64,
    lasting: Duration,
    bytes: usize,
    began: Instant,
) -> u64 {
    let (start, client) = (Instant::now(), fixture.jetstream.client());
    let (mut number, text) = (first, "x".repeat(bytes));
    while start.elapsed() < lasting {
        let due = first + rate * micros(start) / 1_000_000;
        while number < due {
            client
                .publish(
                    "orders.1.x",
                    format!("{number} {} {text}", micros(began)).into(),
                )
                .await
                .unwrap();
            number += 1;
        }
        client.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    number - first
}

/// Size of a scenario.
struct Scenario {
    readers: usize,
    stalled: usize,
    /// Events per second.
    rate: u64,
    lasting: Duration,
    bytes: usize,
    stalled_path: &'static str,
}

/// Measures the latency of readers without and with stalled clients, and asserts the guarantees of
/// both.
async fn measure_beside_stalled_clients(scenario: Scenario) {
    let Scenario {
        readers,
        stalled,
        rate,
        lasting,
        bytes,
        stalled_path,
    } = scenario;
    let (fixture, began) = (Fixture::start().await, Instant::now());
    let crowd = Crowd::open(&fixture, "/usual", readers, "", began).await;
    let warm = publish(&fixture, 0, rate, Duration::from_millis(500), bytes, began).await;
    crowd.until_seen(warm * readers as u64).await;
    crowd.measure();
    let mut published = warm + publish(&fixture, warm, rate, lasting, bytes, began).await;
    crowd.until_seen(published * readers as u64).await;
    let without = crowd.latency();

    let before_bytes = fixture.sidestream.resident_bytes_at_rest().await;
    let mut sleepers = Vec::new();
    for _ in 0..stalled {
        sleepers.push(fixture.lazy(stalled_path).await);
    }
    crowd.measure();
    published += publish(&fixture, published, rate, lasting, bytes, began).await;
    crowd.until_seen(published * readers as u64).await;
    let with = crowd.latency();
    let each = fixture
        .sidestream
        .resident_bytes()
        .saturating_sub(before_bytes)
        / stalled as u64;
    let closed = [("route", stalled_path), ("reason", "slow")];
    let all = stalled as f64;
    fixture
        .sidestream
        .until_metric("sidestream_streams_closed_total", &closed, |ended| {
            ended == all
        })
        .await;
    let closed = |line: &&serde_json::Value| line["message"] == "event stream closed";
    let handed = fixture
        .sidestream
        .log()
        .iter()
        .filter(closed)
        .map(|line| line["bytes"].as_f64().unwrap())
        .fold(0.0, f64::max);
    println!(
        "{readers} readers, {rate}/s: p50 {:?}, p99 {:?}; beside {stalled} that never read: p50 {:?}, p99 {:?}; \
         each of those was handed at most {handed} bytes, resident memory grew by {each} a stalled client",
        without.0, without.1, with.0, with.1
    );
    assert!(
        handed < SENT_BYTES_MAX,
        "{handed} bytes were sent to a client that never reads"
    );
    // The machine is shared: this bound only excludes that readers wait for stalled clients.
    let noise = Duration::from_millis(100);
    assert!(
        with.0 < without.0 * 2 + noise && with.1 < without.1 * 2 + noise,
        "{without:?} without, {with:?} with"
    );
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_streams", &[("route", "/usual")])
            .await,
        readers as f64
    );
    crowd.close().await;
}

#[tokio::test]
async fn stalled_clients_do_not_delay_readers() {
    let stalled_path = "/strict";
    let lasting = Duration::from_millis(1500);
    measure_beside_stalled_clients(Scenario {
        readers: 45,
        stalled: 5,
        rate: 300,
        lasting,
        bytes: 2000,
        stalled_path,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute of both cores"]
async fn a_hundred_stalled_clients_do_not_delay_nine_hundred_readers() {
    let (stalled_path, lasting) = ("/past", Duration::from_secs(10));
    let scenario = Scenario {
        readers: 900,
        stalled: 100,
        rate: 2000,
        lasting,
        bytes: 128,
        stalled_path,
    };
    measure_beside_stalled_clients(scenario).await;
}

async fn assert_no_client_was_slow(fixture: &Fixture) {
    for (name, label) in [
        ("sidestream_gaps_total", None),
        ("sidestream_streams_closed_total", Some(("reason", "slow"))),
    ] {
        assert_eq!(
            fixture.sidestream.metric(name, label.as_slice()).await,
            0.0,
            "{name}"
        );
    }
}

async fn burst(readers: usize, events: u64) {
    let (mut fixture, began) = (Fixture::start().await, Instant::now());
    let crowd = Crowd::open(&fixture, "/usual", readers, "", began).await;
    within(
        LONG_DEADLINE,
        "the burst is published",
        fixture.publish(events, 128),
    )
    .await;
    crowd.until_seen(events * readers as u64).await;
    assert_no_client_was_slow(&fixture).await;
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_streams", &[("route", "/usual")])
            .await,
        readers as f64
    );
}

#[tokio::test]
async fn a_burst_does_not_make_clients_slow() {
    burst(20, 2000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute of both cores"]
async fn a_burst_of_five_thousand_events_does_not_make_five_hundred_clients_slow() {
    burst(500, 5000).await;
}

async fn replay(readers: usize, events: u64) {
    let (mut fixture, began) = (Fixture::start().await, Instant::now());
    let mut first = SseClient::get(fixture.sidestream.url("/past"))
        .connect()
        .await;
    first
        .until_seen("the client has a position", |parser| {
            !parser.last_event_id().is_empty()
        })
        .await;
    let id = first.last_event_id().to_owned();
    drop(first);
    fixture
        .sidestream
        .until_metric("sidestream_streams", &[("route", "/past")], |streams| {
            streams == 0.0
        })
        .await;
    within(
        LONG_DEADLINE,
        "the past is published",
        fixture.publish(events, 128),
    )
    .await;
    let crowd = Crowd::open(&fixture, "/past", readers, &id, began).await;
    crowd.until_seen(events * readers as u64).await;
    assert_no_client_was_slow(&fixture).await;
    fixture
        .sidestream
        .until_metric("sidestream_replay_seconds_count", &[], |replays| {
            replays >= 1.0
        })
        .await;
    assert!(
        fixture
            .sidestream
            .metric("sidestream_replay_seconds_sum", &[])
            .await
            > 0.0
    );
}

#[tokio::test]
async fn a_replay_does_not_make_clients_slow() {
    replay(20, 1500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute of both cores"]
async fn five_hundred_replays_of_two_thousand_events_do_not_make_clients_slow() {
    replay(500, 2000).await;
}

#[tokio::test]
async fn a_slow_resuming_client_is_not_shed_before_it_has_caught_up() {
    let mut fixture = Fixture::start().await;
    let first = fixture.lazy("/shed").await;
    let id = first.last_event_id().to_owned();
    drop(first);
    fixture.publish(1500, 500).await;
    let back = SseClient::get(fixture.sidestream.url("/shed"))
        .last_event_id(&id)
        .receive_buffer(4096);
    let mut back = back.connect().await;
    fixture.until_slow("/shed").await;
    assert!(
        fixture.connection("/shed").await["lag"]["events"]
            .as_u64()
            .unwrap()
            > 1000,
        "more than its lag waits"
    );
    // Longer than the interval of the slow client check.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let events = back.take(1500).await;
    assert!(
        super::fixture::Tally::of(&events, 0, "slow")
            .missed
            .is_empty()
    );
    assert_no_client_was_slow(&fixture).await;
}
