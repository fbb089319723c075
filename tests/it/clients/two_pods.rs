//! The client library with two pods that restart in turn, behind nginx: no event is missing, and
//! none is there twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use testkit::certs::Authority;
use testkit::front::{Front, Kind, Ports};
use testkit::nats::{Nats, create_stream, free_port};
use testkit::node::{NodeClient, Tabs};
use testkit::wait::{RECOVERY, eventually};
use tokio::task::JoinHandle;
use tokio::time::interval;

use crate::front::fixture::Pod;

/// 100 events per second.
const PERIOD: Duration = Duration::from_millis(10);

/// Name of the last event.
pub(super) const END: &str = "END";

/// Life of the tabs.
const STEPS: [&str; 21] = [
    "open",
    "open",
    "open",
    "events:100",
    "freeze:0",
    "events:100",
    "thaw:0",
    "events:100",
    "crash:0",
    "events:100",
    "reload:1",
    "events:100",
    "back:2",
    "events:100",
    "open",
    "reload:2",
    "reload:1",
    "freeze:2",
    "events:100",
    "thaw:2",
    "end",
];

/// Steps after which three tabs are open and receive events.
const ALL_OPEN: usize = 3;
const TAB_CRASHED: usize = 8;
const LAST_BUT_END: usize = 19;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tabs_with_one_connection_receive_every_event_once_through_crashes_and_drains() {
    let mut pods = TwoPods::start().await;
    let publisher = Publisher::start(&pods.nats).await;
    let options = json!({ "shared": true, "keepPosition": true, "heartbeatMs": 1000 });
    let tabs = Tabs::start(&pods.front.url("/orders"), &options, &STEPS);

    tabs.until_done(ALL_OPEN).await;
    pods.one_event_stream().await;
    pods.restart(0).await;
    tabs.until_done(TAB_CRASHED).await;
    pods.restart(1).await;
    tabs.until_done(LAST_BUT_END).await;
    pods.one_event_stream().await;
    let published = publisher.stop().await;
    tabs.until_done(STEPS.len() - 1).await;

    let reports = tabs.reports();
    let crashed: Vec<String> = reports
        .iter()
        .filter(|report| report["tab"] == 0 && report["kind"] == "event")
        .map(|report| report["data"].as_str().unwrap().to_owned())
        .collect();
    assert!(crashed.len() >= 100, "{}", crashed.len());
    assert_consecutive("the crashed tab", &crashed);
    let logs: Vec<&Value> = reports.iter().filter(|one| one["kind"] == "log").collect();
    assert_eq!(logs.len(), 3);
    for log in logs {
        let tab = format!("tab {}", log["tab"]);
        let mut events: Vec<String> = serde_json::from_value(log["events"].clone()).unwrap();
        assert_eq!(events.pop().as_deref(), Some(END), "{tab}");
        assert_consecutive(&tab, &events);
        assert_eq!(
            events.last().unwrap(),
            &(published - 1).to_string(),
            "{tab}"
        );
    }
    let from_cache = |one: &&Value| one["kind"] == "pageshow" && one["persisted"] == true;
    assert_eq!(reports.iter().filter(from_cache).count(), 1);
    assert!(reports.iter().all(|one| one["kind"] != "exception"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_in_node_receive_every_event_once_through_drains() {
    let mut pods = TwoPods::start().await;
    let url = pods.front.url("/orders");
    let clients = ["sse", "ndjson", "long_poll"].map(|framing| {
        let options = json!({ "framings": [framing] });
        (framing, NodeClient::source(&url, &options))
    });
    for (framing, client) in &clients {
        let is_open = |reports: &[Value]| reports.iter().any(|one| one["kind"] == "open");
        client.until(&format!("{framing} is open"), is_open).await;
    }
    let publisher = Publisher::start(&pods.nats).await;
    for pod in [0, 1, 0] {
        tokio::time::sleep(Duration::from_secs(1)).await;
        pods.restart(pod).await;
    }
    let published = publisher.stop().await;
    for (framing, client) in &clients {
        let has_ended = |reports: &[Value]| reports.iter().any(|one| one["data"] == END);
        client
            .until(&format!("{framing} has ended"), has_ended)
            .await;
        let events: Vec<String> = client
            .events()
            .iter()
            .map(|event| event["data"].as_str().unwrap().to_owned())
            .collect();
        let expected: Vec<String> = (0..published)
            .map(|number| number.to_string())
            .chain([END.to_owned()])
            .collect();
        assert_eq!(events, expected, "{framing}");
    }
}

/// Fails unless each number is one more than the one before it.
fn assert_consecutive(client: &str, events: &[String]) {
    let numbers: Vec<usize> = events
        .iter()
        .map(|event| {
            event
                .parse()
                .unwrap_or_else(|_| panic!("{client}: {event}"))
        })
        .collect();
    for pair in numbers.windows(2) {
        assert_eq!(
            pair[1],
            pair[0] + 1,
            "{client}: {} after {}",
            pair[1],
            pair[0]
        );
    }
}

/// Two pods behind nginx.
pub(super) struct TwoPods {
    pub(super) nats: Nats,
    pub(super) ports: [Ports; 2],
    pub(super) pods: [Pod; 2],
    pub(super) front: Front,
}

impl TwoPods {
    pub(super) async fn start() -> Self {
        let nats = Nats::start().await;
        create_stream(&nats.jetstream().await, "ORDERS", &["orders.>"]).await;
        let ports = [(); 2].map(|()| Ports {
            clients: free_port(),
            admin: free_port(),
        });
        let (first, second) = tokio::join!(
            Pod::start(configuration(&nats, ports[0])),
            Pod::start(configuration(&nats, ports[1]))
        );
        let front = Front::start(Kind::Nginx, ports, &Authority::new()).await;
        Self {
            nats,
            ports,
            pods: [first, second],
            front,
        }
    }

    /// Number of open event streams.
    async fn streams(&self) -> usize {
        self.pods[0].streams().await + self.pods[1].streams().await
    }

    async fn one_event_stream(&self) {
        eventually(RECOVERY, "one event stream is open", || async {
            (self.streams().await == 1).then_some(())
        })
        .await;
    }

    /// Drains a pod and starts it again.
    pub(super) async fn restart(&mut self, pod: usize) {
        let pod = &mut self.pods[pod];
        pod.sidestream.terminate();
        assert_eq!(pod.sidestream.wait_exit(RECOVERY).await, 0);
        pod.restart().await;
    }
}

fn configuration(nats: &Nats, ports: Ports) -> String {
    let url = nats.url();
    let Ports { clients, admin } = ports;
    format!(
        "listen: [{{ address: \"127.0.0.1:{clients}\" }}]
admin: {{ address: \"127.0.0.1:{admin}\" }}
nats: {{ servers: [\"{url}\"] }}
trusted_proxies: [\"127.0.0.0/8\"]
drain: {{ accept_for: 500ms, spread: 500ms, timeout: 20s, retry: {{ min: 100ms, max: 600ms }} }}
routes:
  - path: /orders
    retry: 300ms
    heartbeat: 1s
    framings: [sse, ndjson, websocket, long_poll]
    sources: [{{ stream: ORDERS, subjects: [\"orders.>\"] }}]
    cors: {{ origins: [\"*\"] }}
  - path: /run
    retry: 300ms
    heartbeat: 1s
    begin: first
    finite: true
    sources: [{{ stream: ORDERS, subjects: [\"orders.run\"] }}]
    cors: {{ origins: [\"*\"] }}
"
    )
}

/// Publisher of consecutive numbers.
pub(super) struct Publisher {
    stop: Arc<AtomicBool>,
    task: JoinHandle<usize>,
}

impl Publisher {
    pub(super) async fn start(nats: &Nats) -> Self {
        let client = nats.client().await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let (mut published, mut period) = (0, interval(PERIOD));
            while !stopped.load(Ordering::Relaxed) {
                period.tick().await;
                let number = published.to_string();
                client.publish("orders.1", number.into()).await.unwrap();
                published += 1;
            }
            client.publish("orders.1", END.into()).await.unwrap();
            client.flush().await.unwrap();
            published
        });
        Self { stop, task }
    }

    /// Publishes the last event; returns the number of events before it.
    pub(super) async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}
