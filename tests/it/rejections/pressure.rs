//! Load levels of a pod that is really short of a resource: cause, effect on clients, recovery.

use std::time::Duration;

use async_nats::jetstream::stream;
use rustix::process::Signal;
use serde_json::Value;

use super::descriptors::delivered_and_missed_telemetry;
use super::table::assert_passing;
use testkit::nats::Nats;
use testkit::proxy::{Fault, Proxy};
use testkit::sidestream::{Sidestream, config_for, metric};
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};

/// Two levels down, 3 s each, plus the time to process the backlog on a busy machine.
const FALL_MAX: Duration = Duration::from_secs(40);

/// `/flood` causes the load, and `/orders` shows its effect: twenty normal events at once, then
/// about one per ten seconds.
const ROUTES: &str = "
routes:
  - path: /flood
    sources: [{ stream: FLOOD, subjects: [\"flood.>\"] }]
  - path: /orders/{id}
    client: \"{query.client}\"
    sources: [{ subjects: [\"orders.{id}.>\"] }]
    priority: [{ subjects: [\"orders.*.telemetry\"], tier: telemetry }]
";

/// Load levels, as in the metric.
const LEVELS: [&str; 4] = ["none", "thin", "shed", "reject"];

/// Pod with a throttled connection to NATS.
struct Pressed {
    nats: Nats,
    proxy: Proxy,
    sidestream: Sidestream,
    jetstream: async_nats::jetstream::Context,
}

impl Pressed {
    async fn start(rest: &str) -> Self {
        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        let flood = stream::Config {
            name: "FLOOD".into(),
            subjects: vec!["flood.>".into()],
            storage: stream::StorageType::Memory,
            ..Default::default()
        };
        jetstream.create_stream(flood).await.unwrap();
        let proxy = Proxy::to_port(nats.port()).await;
        let servers = [format!("nats://{}", proxy.address())];
        let sidestream = Sidestream::start(config_for(&servers, &format!("{ROUTES}{rest}"))).await;
        Self {
            nats,
            proxy,
            sidestream,
            jetstream,
        }
    }

    async fn client(&self, name: &str) -> SseClient {
        let url = self.sidestream.url(&format!("/orders/1?client={name}"));
        let mut client = SseClient::get(url).connect().await;
        assert_eq!(client.status(), 200);
        client.positioned().await;
        client
    }

    /// Publishes to the stream, not through the throttled connection.
    async fn flood(&self, events: usize, bytes: usize) {
        let (client, payload) = (
            self.jetstream.client(),
            bytes::Bytes::from("x".repeat(bytes)),
        );
        for _ in 0..events {
            client.publish("flood.x", payload.clone()).await.unwrap();
        }
        client.flush().await.unwrap();
    }

    async fn level(&self) -> u64 {
        let (_, metrics) = self.sidestream.admin("/metrics").await;
        let is_in_force = |level: &&str| {
            metric(&metrics, "sidestream_pressure_level", &[("level", *level)]) == 1.0
        };
        LEVELS.iter().position(is_in_force).unwrap() as u64
    }

    async fn until_level(&self, level: u64, most: Duration) {
        let labels = [("level", LEVELS[level as usize])];
        self.sidestream
            .until_metric_within(most, "sidestream_pressure_level", &labels, |value| {
                value == 1.0
            })
            .await;
    }

    /// Asserts that the body of `/health` has the level and that the pod is ready.
    async fn assert_reported(&self, level: u64) {
        let health = self.sidestream.admin_json("/health").await;
        let check = &health["checks"]["pressure"];
        let message = check["message"].as_str().unwrap_or_default();
        assert!(
            check["status"] == "degraded" && message.starts_with(&format!("level {level}: ")),
            "{health}"
        );
        assert_eq!(self.sidestream.admin("/health/ready").await.0, 200);
    }

    /// All changes until now: from, to, and the measure that caused it.
    fn changes(&self) -> Vec<(u64, u64, String)> {
        let told = |line: &Value| {
            let number = |key: &str| line[key].as_u64().unwrap();
            let measure = line["measure"].as_str().unwrap_or_default().to_owned();
            (line["message"] == "pressure").then(|| (number("from"), number("to"), measure))
        };
        self.sidestream.log().iter().filter_map(told).collect()
    }

    /// Stops the process repeatedly, as an exhausted CPU quota does.
    async fn hold_up(&mut self, each: Duration, level: u64) {
        for _ in 0..30 {
            self.sidestream.signal(Signal::STOP);
            tokio::time::sleep(each).await;
            self.sidestream.signal(Signal::CONT);
            if self.level().await >= level {
                return;
            }
        }
        panic!(
            "thirty times {each:?} did not raise the level to {level}: {:?}",
            self.changes()
        );
    }
}

/// Number of normal events that are delivered at once.
async fn given_at_once(pressed: &Pressed, client: &mut SseClient, count: usize) -> usize {
    let publisher = pressed.nats.client().await;
    for number in 0..count {
        publisher
            .publish("orders.1.a", number.to_string().into())
            .await
            .unwrap();
    }
    publisher.flush().await.unwrap();
    let mut given = 0;
    while client
        .next_within(Duration::from_millis(500))
        .await
        .is_some()
    {
        given += 1;
    }
    given
}

#[tokio::test]
async fn a_nats_backlog_thins_telemetry_and_rates_rejects_no_client_and_recovers() {
    let limits = "limits: { per_client: { events: { rate: 1, burst: 40 } } }";
    let pressed = Pressed::start(limits).await;
    let (mut watching, mut paced) = (
        pressed.client("watching").await,
        pressed.client("paced").await,
    );
    pressed.until_level(0, DEADLINE).await;
    // About three thousand messages per second.
    pressed.proxy.set(Fault {
        bytes_per_second: 500_000,
        ..Fault::default()
    });
    pressed.flood(70_000, 8).await;
    pressed.until_level(2, DEADLINE).await;
    pressed.assert_reported(2).await;
    assert_eq!(
        delivered_and_missed_telemetry(&pressed.nats, &mut watching, 20).await,
        (0, 20),
        "no telemetry, and a gap"
    );
    // Each normal event costs two of forty tokens. Events of the other client also arrived here.
    paced.until(|event| event.data == "end").await;
    let given = given_at_once(&pressed, &mut paced, 40).await;
    assert!(
        (15..=24).contains(&given),
        "half of what was left of forty: {given}"
    );
    pressed.client("new").await;
    assert_eq!(pressed.level().await, 2, "it still lags");

    pressed.proxy.set(Fault::default());
    pressed.until_level(0, FALL_MAX).await;
    // A client with all its tokens.
    let mut later = pressed.client("later").await;
    let (given, missed) = delivered_and_missed_telemetry(&pressed.nats, &mut later, 5).await;
    assert_eq!((given, missed), (5, 0), "nothing is thinned");
    let pending = "NATS backlog".to_owned();
    let changes = pressed.changes();
    let levels: Vec<_> = changes.iter().map(|(from, to, _)| (*from, *to)).collect();
    assert_eq!(
        levels,
        [(0, 1), (1, 2), (2, 1), (1, 0)],
        "step by step, every change is logged"
    );
    let causes: Vec<_> = changes
        .iter()
        .map(|(.., measure)| measure.as_str())
        .collect();
    assert_eq!(
        causes,
        [&*pending, &*pending, "", ""],
        "and what asks for it, while anything does"
    );
    assert!(
        pressed
            .sidestream
            .metric("sidestream_throttled_total", &[("limit", "events")])
            .await
            >= 1.0
    );
    let spared = pressed
        .sidestream
        .metric("sidestream_shed_events_total", &[("tier", "telemetry")])
        .await;
    assert_eq!(spared, 40.0, "twenty for each of two clients");
}

#[tokio::test]
async fn windows_near_their_memory_limit_thin_telemetry_until_they_are_evicted() {
    const BOUND: f64 = 4.0 * 1024.0 * 1024.0;
    // Large events: the window also counts the overhead per event, the metric does not.
    const EVENT: usize = 10_000;
    let pressed = Pressed::start("limits: { window_bytes: 4MiB }").await;
    let mut watching = pressed.client("watching").await;
    let mut taken = 0.0;
    // Close to the limit first, then slowly: above the limit, half of the window is evicted.
    loop {
        let held = pressed
            .sidestream
            .metric("sidestream_window_bytes", &[])
            .await;
        let is_close = held > 0.93 * BOUND;
        if is_close
            && tokio::time::timeout(
                Duration::from_millis(1200),
                pressed.until_level(1, DEADLINE),
            )
            .await
            .is_ok()
        {
            break;
        }
        let events = if is_close { 3 } else { 20 };
        pressed.flood(events, EVENT).await;
        taken += events as f64;
        assert!(
            taken < 2000.0,
            "the level never rises: {held} bytes are held"
        );
        let source = [("source", "FLOOD")];
        pressed
            .sidestream
            .until_metric("sidestream_events_received_total", &source, |received| {
                received >= taken
            })
            .await;
    }
    pressed.assert_reported(1).await;
    let (given, missed) = delivered_and_missed_telemetry(&pressed.nats, &mut watching, 20).await;
    assert!(
        given >= 1 && missed >= 10 && given + missed == 20,
        "thinned to ten a second: {given}, {missed}"
    );
    pressed.client("new").await;
    // New events replace the oldest half.
    pressed.flood(30, EVENT).await;
    pressed.until_level(0, FALL_MAX).await;
    assert_eq!(
        delivered_and_missed_telemetry(&pressed.nats, &mut watching, 5).await,
        (5, 0)
    );
    let memory = "memory of windows".to_owned();
    assert_eq!(pressed.changes()[0], (0, 1, memory));
}

#[tokio::test]
async fn event_loop_lag_thins_telemetry_until_it_ends() {
    let mut pressed = Pressed::start("").await;
    let mut watching = pressed.client("watching").await;
    pressed.until_level(0, DEADLINE).await;
    pressed.hold_up(Duration::from_millis(600), 1).await;
    let (given, missed) = delivered_and_missed_telemetry(&pressed.nats, &mut watching, 20).await;
    assert!(
        given >= 1 && missed >= 10 && given + missed == 20,
        "thinned to ten a second: {given}, {missed}"
    );
    pressed.assert_reported(1).await;
    pressed.until_level(0, FALL_MAX).await;
    let late = "event-loop lag".to_owned();
    assert_eq!(pressed.changes()[0], (0, 1, late));
}

#[tokio::test]
#[ignore = "takes half a minute of standstill"]
async fn extreme_event_loop_lag_rejects_new_event_streams_until_it_ends() {
    let mut pressed = Pressed::start("").await;
    let mut watching = pressed.client("watching").await;
    pressed.hold_up(Duration::from_millis(3300), 3).await;
    assert_passing(&pressed.sidestream, "/orders/1", "overloaded", "overload").await;
    assert_eq!(
        delivered_and_missed_telemetry(&pressed.nats, &mut watching, 20).await,
        (0, 20),
        "open clients are served"
    );
    pressed.assert_reported(3).await;
    eventually(FALL_MAX, "later clients are served", || async {
        SseClient::get(pressed.sidestream.url("/orders/1"))
            .connect()
            .await
            .status()
            == 200
    })
    .await;
    pressed.until_level(0, FALL_MAX).await;
}
