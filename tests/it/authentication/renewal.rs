//! Clients that renew their tokens under load and through a rolling restart of two pods: each
//! receives every event once.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::browser::Page;
use testkit::certs::Authority;
use testkit::front::{Front, Kind, Ports};
use testkit::nats::{Nats, create_stream, free_port};
use testkit::node::NodeClient;
use testkit::oidc::OidcIssuer;
use testkit::process::Process;
use testkit::sidestream::binary;
use testkit::wait::{RECOVERY, eventually};
use tokio::task::JoinHandle;
use tokio::time::interval;

use crate::front::fixture::Pod;

/// Times of a run.
#[derive(Clone, Copy)]
struct Plan {
    /// Life of a token.
    life: Duration,
    /// Time before the expiry at which clients renew.
    renew_before: Duration,
    /// Time until the publisher stops.
    duration: Duration,
}

/// Number of clients: an EventSource in Chromium, `follow` of `clients/js` in Chromium and in Node, and
/// `sidestream tail`.
const CLIENTS: usize = 4;

/// 10 events in 50 ms: 200 per second.
const BURST: (usize, Duration) = (10, Duration::from_millis(50));

/// Names of control events that the browser reports.
const CONTROL: [&str; 3] = ["sidestream.gap", "sidestream.close", "sidestream.renew"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_renew_through_a_rolling_restart_receive_every_event_once() {
    let plan = Plan {
        life: Duration::from_secs(5),
        renew_before: Duration::from_secs(2),
        duration: Duration::from_secs(20),
    };
    renew(plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: `make test-long`"]
async fn clients_that_renew_for_two_minutes_receive_every_event_once() {
    let plan = Plan {
        life: Duration::from_secs(13),
        renew_before: Duration::from_secs(3),
        duration: Duration::from_secs(120),
    };
    renew(plan).await;
}

async fn renew(plan: Plan) {
    let issuer = Arc::new(OidcIssuer::start().await);
    let life = plan.life.as_secs();
    let minting = Arc::clone(&issuer);
    let page = Page::serve_with_session(Arc::new(move || {
        let issuer = Arc::clone(&minting);
        Box::pin(async move { issuer.token(life, &json!({})).await })
    }))
    .await;
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    let stream = create_stream(&jetstream, "ORDERS", &["orders.>"]).await;
    let ports = [(); 2].map(|()| Ports {
        clients: free_port(),
        admin: free_port(),
    });
    let config = |ports| configuration(&nats, ports, &issuer, &page.origin(), plan);
    let (first, second) = tokio::join!(Pod::start(config(ports[0])), Pod::start(config(ports[1])));
    let mut pods = [first, second];
    let authority = Authority::new();
    let front = Front::start(Kind::Nginx, ports, &authority).await;

    let url = front.url("/orders");
    let browser = page.open_and_follow(&[&url], &[&url], &CONTROL);
    let fetch = NodeClient::follow(&url, &issuer, life);
    let mut tail = Command::new(binary());
    let command = issuer.token_command(life);
    tail.args(["tail", "--json", "--bearer-command", &command, &url]);
    let tail = Process::spawn("tail", &mut tail);
    every_client_is_there(&pods).await;

    let begun = Instant::now();
    let publisher = Publisher::start(&nats).await;
    // A third of the time before, between and after the restarts.
    for pod in 0..2 {
        tokio::time::sleep(plan.duration / 3).await;
        pods[pod].sidestream.terminate();
        assert_eq!(pods[pod].sidestream.wait_exit(RECOVERY).await, 0);
        every_client_is_there(&pods).await;
        pods[pod].restart().await;
    }
    tokio::time::sleep(plan.duration.saturating_sub(begun.elapsed())).await;
    let published = publisher.stop().await;
    eventually(RECOVERY, "all events are stored", || async {
        stream.get_info().await.unwrap().state.messages == published as u64
    })
    .await;
    assert!(
        published as f64 >= 150.0 * plan.duration.as_secs_f64(),
        "{published} events"
    );

    let tailed = || -> Vec<Value> {
        let lines = tail.lines();
        let parsed = lines
            .iter()
            .filter_map(|line| serde_json::from_str(line).ok());
        parsed.collect()
    };
    let named = |mut events: Vec<Value>| {
        for event in &mut events {
            event["name"] = event["event"].take();
        }
        events
    };
    let of_source = |source: usize| -> Vec<Value> {
        let events = browser.events().into_iter();
        events.filter(|event| event["source"] == source).collect()
    };
    let periods = plan.duration.as_secs() / (plan.life - plan.renew_before).as_secs();
    for (client, events) in [
        ("EventSource", &(|| of_source(0)) as &dyn Fn() -> Vec<Value>),
        ("follow in Chromium", &|| of_source(1)),
        ("follow in Node", &|| fetch.events()),
        ("tail", &|| named(tailed())),
    ] {
        eventually(RECOVERY, &format!("{client} has every event"), || async {
            numbers(&events()).contains(&(published as u64 - 1))
        })
        .await;
        let events = events();
        let numbers = numbers(&events);
        let expected = 0..published as u64;
        if !numbers.iter().copied().eq(expected) {
            panic!("{client}: {}", difference(&numbers, published));
        }
        let ids: HashSet<&str> = events.iter().filter_map(|one| one["id"].as_str()).collect();
        assert!(ids.len() >= published, "{client}: ids are unique");
        let count = |name: &str| events.iter().filter(|one| one["name"] == name).count();
        assert_eq!(count("sidestream.gap"), 0, "{client}");
        let renewals = match client {
            "tail" => {
                let lines = tail.lines();
                let renewing = lines.iter().filter(|line| line.contains("with new ones"));
                renewing.count()
            }
            _ => count("sidestream.renew"),
        };
        // A drain begins a period again.
        assert!(
            renewals as u64 + 2 >= periods && renewals >= 3,
            "{client}: {renewals} renewals in {periods} periods"
        );
        println!("{client}: {published} events, {renewals} renewals");
    }
}

/// Returns the numbers of the events that are not control events, in order.
fn numbers(events: &[Value]) -> Vec<u64> {
    let messages = events.iter().filter(|one| one["name"] == "message");
    messages
        .map(|one| {
            let number = one["data"].as_u64();
            let number = number.or_else(|| one["data"].as_str()?.parse().ok());
            number.unwrap_or_else(|| panic!("{one}"))
        })
        .collect()
}

/// Describes the first mistake.
fn difference(numbers: &[u64], published: usize) -> String {
    let wrong = numbers
        .iter()
        .zip(0..)
        .find(|(number, expected)| *number != expected);
    format!(
        "{} of {published} events; first mistake (received, expected): {wrong:?}",
        numbers.len()
    )
}

async fn every_client_is_there(pods: &[Pod; 2]) {
    // Chromium takes seconds to start, more if other tests run.
    eventually(RECOVERY * 4, "every client is there", || async {
        pods[0].streams().await + pods[1].streams().await >= CLIENTS
    })
    .await;
}

fn configuration(
    nats: &Nats,
    ports: Ports,
    issuer: &OidcIssuer,
    origin: &str,
    plan: Plan,
) -> String {
    let (url, issuer) = (nats.url(), issuer.url());
    let Ports { clients, admin } = ports;
    let renew_before = plan.renew_before.as_secs();
    format!(
        "listen: [{{ address: \"127.0.0.1:{clients}\" }}]
admin: {{ address: \"127.0.0.1:{admin}\" }}
nats: {{ servers: [\"{url}\"] }}
trusted_proxies: [\"127.0.0.0/8\"]
drain: {{ accept_for: 500ms, spread: 1s, timeout: 20s, retry: {{ min: 100ms, max: 600ms }} }}
authentication:
  renew_before: {renew_before}s
  providers:
    - name: idp
      jwt:
        issuer: \"{issuer}\"
        audience: [sidestream]
        keys: {{ discovery: true }}
        leeway: 0s
        from: [bearer, \"cookie:session\"]
routes:
  - path: /orders
    authenticate: [idp]
    retry: 500ms
    sources: [{{ stream: ORDERS, subjects: [\"orders.{{claim.sub}}.>\"] }}]
    cors: {{ origins: [\"{origin}\"], credentials: true }}
"
    )
}

/// Publisher of 200 events per second with consecutive numbers.
struct Publisher {
    stop: Arc<AtomicBool>,
    task: JoinHandle<usize>,
}

impl Publisher {
    async fn start(nats: &Nats) -> Self {
        let client = nats.client().await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let (count, period) = BURST;
            let (mut published, mut burst) = (0, interval(period));
            while !stopped.load(Ordering::Relaxed) {
                burst.tick().await;
                for _ in 0..count {
                    let number = published.to_string();
                    let publishing = client.publish("orders.service.paid", number.into());
                    publishing.await.unwrap();
                    published += 1;
                }
            }
            client.flush().await.unwrap();
            published
        });
        Self { stop, task }
    }

    /// Stops; returns the number of events.
    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}
