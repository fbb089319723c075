//! `begin: latest` while pods and nats-servers fail at random: the state that every client folds is
//! the state of the stream.
//!
//! The clients have no code for gaps. They discard their state at `sidestream.snapshot`, and apply
//! events and `sidestream.removed`; they reconnect with the id that they have, as an `EventSource`
//! does. Writers put, delete and purge keys, and purge old markers. Faults and clients are seeded.

use std::collections::VecDeque;
use std::future::IntoFuture;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::{self, consumer, stream};
use futures_util::StreamExt as _;
use hyper::Uri;
use tokio::time::{sleep, timeout, timeout_at};

use testkit::http1::{Response, head};
use testkit::nats::{Cluster, Nats};
use testkit::sidestream::{Sidestream, config_for};
use testkit::sse_parser::{Event, Parser};
use testkit::transport::Connector;
use testkit::wait::{RECOVERY, eventually, within};

/// Keys are in groups: half of the clients read one of them.
const GROUPS: u32 = 10;

/// 40 s: age at which the markers of removed keys are purged. A pod needs up to 10 s to notice that
/// its consumer is silent, and misses removals whose markers are gone by then.
const MARKER_AGE: Duration = Duration::from_secs(40);

/// One run of the test.
#[derive(Clone, Copy)]
struct Load {
    seed: u64,
    keys: u32,
    /// Messages that the stream keeps for each subject.
    history: i64,
    writes_per_second: u32,
    clients: u32,
    /// Markers of removed keys are purged. Not while servers are killed: one that recovers its store
    /// may bring back the value before a purged marker.
    purges_markers: bool,
    faults_for: Duration,
}

/// Servers under test.
enum Servers {
    One(Box<Nats>),
    Three(Cluster),
}

/// State that clients and faults share.
struct World {
    /// Addresses of the pods.
    pods: Mutex<Vec<String>>,
    /// The faults are over.
    is_calm: AtomicBool,
    reconnects: AtomicU32,
    rejections: AtomicU32,
    snapshots: AtomicU32,
    gaps: AtomicU32,
    /// Times from requests to `sidestream.synced`.
    synced_after: Mutex<Vec<Duration>>,
}

/// Values by key that one client, or the stream, has; 0 if the key does not exist.
#[derive(Clone, PartialEq, Eq)]
struct Folded {
    values: Vec<u32>,
    is_synced: bool,
}

/// One client.
struct Client {
    /// Group that it reads; `None`: every key.
    group: Option<u32>,
    state: Folded,
    last_event_id: String,
    rng: fastrand::Rng,
}

// === impl Servers ===

impl Servers {
    fn urls(&self) -> Vec<String> {
        match self {
            Self::One(nats) => vec![nats.url()],
            Self::Three(cluster) => cluster.urls(),
        }
    }

    async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(match self {
            Self::One(nats) => nats.client().await,
            Self::Three(cluster) => cluster.client().await,
        })
    }

    /// Kills a server, or pauses one of three so that it lags.
    async fn fail(&mut self, load: Load, rng: &mut fastrand::Rng) {
        let duration = Duration::from_millis(rng.u64(..1500));
        match self {
            Self::One(nats) => {
                nats.kill9();
                sleep(duration).await;
                nats.restart().await;
            }
            Self::Three(cluster) => {
                let node = cluster.node(rng.usize(..3));
                if load.purges_markers || rng.bool() {
                    node.pause();
                    sleep(duration * 3).await;
                    node.resume();
                } else {
                    node.kill9();
                    sleep(duration).await;
                    node.restart().await;
                }
            }
        }
    }
}

// === impl Folded ===

impl Folded {
    fn new(keys: u32) -> Self {
        Self {
            values: vec![0; (keys + GROUPS) as usize],
            is_synced: false,
        }
    }

    fn apply(&mut self, event: &Event, world: &World) {
        match event.name.as_str() {
            "sidestream.snapshot" => {
                self.values.fill(0);
                self.is_synced = false;
                world.snapshots.fetch_add(1, Ordering::Relaxed);
            }
            "sidestream.synced" => self.is_synced = true,
            "sidestream.removed" => {
                let removed: serde_json::Value = serde_json::from_str(&event.data).unwrap();
                self.values[key_of(removed["subject"].as_str().unwrap())] = 0;
            }
            "message" => {
                let (key, value) = event.data.split_once('=').unwrap();
                self.values[key.parse::<usize>().unwrap()] = value.parse().unwrap();
            }
            // No code for gaps: it only counts them.
            "sidestream.gap" => drop(world.gaps.fetch_add(1, Ordering::Relaxed)),
            _ => {}
        }
    }
}

fn subject(key: u32) -> String {
    format!("s.{}.{key}", key % GROUPS)
}

fn key_of(subject: &str) -> usize {
    subject.rsplit('.').next().unwrap().parse().unwrap()
}

// === impl Client ===

impl Client {
    fn new(number: u32, load: Load) -> Self {
        Self {
            group: (number % 2 == 1).then_some(number / 2 % GROUPS),
            state: Folded::new(load.keys),
            last_event_id: String::new(),
            rng: fastrand::Rng::with_seed(load.seed + u64::from(number)),
        }
    }

    /// Follows the state over reconnects until it has the last writes.
    async fn run(mut self, world: Arc<World>) -> Self {
        while !self.is_complete() {
            let pod = {
                let pods = world.pods.lock().unwrap();
                pods[self.rng.usize(..pods.len())].clone()
            };
            let began = Instant::now();
            let opened = timeout(RECOVERY, self.open(&pod)).await;
            if let Ok(Ok(response)) = opened {
                if response.status == 200 {
                    self.follow(response, &world, began).await;
                } else {
                    world.rejections.fetch_add(1, Ordering::Relaxed);
                }
            }
            world.reconnects.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(self.rng.u64(50..500))).await;
        }
        self
    }

    async fn open(&self, pod: &str) -> std::io::Result<Response> {
        let group = self
            .group
            .map_or_else(|| "*".to_owned(), |group| group.to_string());
        let url: Uri = format!("{pod}/state/{group}")
            .replace("/*", "")
            .parse()
            .unwrap();
        let mut headers = vec![("Accept", "text/event-stream")];
        if !self.last_event_id.is_empty() {
            headers.push(("Last-Event-ID", &self.last_event_id));
        }
        let transport = Connector::default().connect(&url).await?;
        let request = head("GET", &url, 1, &headers);
        Response::exchange(transport, request.as_bytes(), false).await
    }

    /// Applies events until the response ends, the client leaves, or it has the last writes.
    async fn follow(&mut self, mut response: Response, world: &World, began: Instant) {
        let mut parser = Parser::resuming(&self.last_event_id);
        let mut leaves =
            tokio::time::Instant::now() + Duration::from_millis(self.rng.u64(500..20_000));
        while !self.is_complete() {
            if world.is_calm.load(Ordering::Relaxed) {
                leaves += RECOVERY;
            }
            let Ok(Ok(bytes)) = timeout_at(leaves, response.chunk()).await else {
                break;
            };
            for event in parser.feed(&bytes) {
                let was_synced = self.state.is_synced;
                self.state.apply(&event, world);
                if self.state.is_synced && !was_synced {
                    world.synced_after.lock().unwrap().push(began.elapsed());
                }
            }
            parser.last_event_id().clone_into(&mut self.last_event_id);
        }
    }

    /// True if it has the state after the last writes: one key of each of its groups.
    fn is_complete(&self) -> bool {
        let mut ends = self.ends();
        self.state.is_synced && ends.all(|key| self.state.values[key] > 0)
    }

    fn ends(&self) -> impl Iterator<Item = usize> {
        let (group, first) = (self.group, self.state.values.len() - GROUPS as usize);
        (first..self.state.values.len()).filter(move |key| reads(group, *key))
    }

    /// Keys with other values than in the stream.
    fn differences(&self, stored: &Folded) -> Vec<(usize, u32, u32)> {
        (0..stored.values.len())
            .filter(|key| reads(self.group, *key))
            .map(|key| (key, self.state.values[key], stored.values[key]))
            .filter(|(_, own, stored)| own != stored)
            .collect()
    }
}

fn reads(group: Option<u32>, key: usize) -> bool {
    group.is_none_or(|group| key % GROUPS as usize == group as usize)
}

// === the run ===

async fn create_stream(jetstream: &jetstream::Context, load: Load, replicas: usize) {
    let config = stream::Config {
        name: "STATE".to_owned(),
        subjects: vec!["s.>".to_owned()],
        max_messages_per_subject: load.history,
        allow_rollup: true,
        allow_direct: true,
        num_replicas: replicas,
        ..stream::Config::default()
    };
    eventually(RECOVERY, "the stream is created", || async {
        jetstream.create_stream(config.clone()).await.is_ok()
    })
    .await;
}

fn configuration(servers: &[String], load: Load) -> String {
    // The window holds two seconds of writes: clients often return with a position that has left it.
    let window = load.writes_per_second * 2;
    config_for(
        servers,
        &format!(
            "routes:
  - {{ path: /state, sources: [{{ stream: STATE, subjects: [\"s.>\"] }}], begin: latest, window: {{ events: {window} }} }}
  - {{ path: \"/state/{{group}}\", sources: [{{ stream: STATE, subjects: [\"s.{{group}}.>\"] }}], begin: latest, window: {{ events: {window} }} }}
drain: {{ accept_for: 0s, spread: 1s, timeout: 3s }}"
        ),
    )
}

/// Puts, deletes and purges keys at random until the faults end. Messages may get lost.
async fn write(jetstream: jetstream::Context, load: Load, world: Arc<World>) {
    let client = jetstream.client();
    let mut rng = fastrand::Rng::with_seed(load.seed);
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut value, mut removed) = (1, VecDeque::new());
    while !world.is_calm.load(Ordering::Relaxed) {
        tick.tick().await;
        for _ in 0..load.writes_per_second.div_ceil(100) {
            let (key, mut headers) = (rng.u32(..load.keys), HeaderMap::new());
            value += 1;
            let payload = match rng.u8(..20) {
                0..3 => {
                    headers.insert("KV-Operation", "DEL");
                    String::new()
                }
                3 => {
                    headers.insert("KV-Operation", "PURGE");
                    headers.insert("Nats-Rollup", "sub");
                    String::new()
                }
                _ => format!("{key}={value}"),
            };
            if payload.is_empty() && load.purges_markers && removed.len() < 1000 {
                removed.push_back((Instant::now(), key));
            }
            let sent = client.publish_with_headers(subject(key), headers, payload.into());
            sent.await.unwrap();
        }
        if let Some((_, key)) = removed.pop_front_if(|(since, _)| since.elapsed() > MARKER_AGE) {
            // It may fail, as its server does.
            drop(timeout(Duration::from_secs(1), purge_marker(&jetstream, key)).await);
        }
    }
}

/// Purges the marker of a removed key, as `nats kv purge-deletes` does.
async fn purge_marker(jetstream: &jetstream::Context, key: u32) -> Option<()> {
    let stream = jetstream.get_stream_no_info("STATE").await.ok()?;
    let subject = subject(key);
    let last = stream
        .get_last_raw_message_by_subject(&subject)
        .await
        .ok()?;
    if last.payload.is_empty() {
        let purge = stream.purge().sequence(last.sequence + 1).filter(subject);
        purge.await.ok()?;
    }
    Some(())
}

/// Writes one key of each group, and waits until it is stored.
async fn write_ends(jetstream: &jetstream::Context, load: Load) {
    for key in load.keys..load.keys + GROUPS {
        testkit::nats::publish(jetstream, &subject(key), [format!("{key}=1")]).await;
    }
}

/// State of the stream, read without the sidecar.
async fn stored(jetstream: &jetstream::Context, load: Load) -> Folded {
    let mut stream = jetstream.get_stream("STATE").await.unwrap();
    let last = stream.info().await.unwrap().state.last_sequence;
    let consumer = stream
        .create_consumer(consumer::pull::OrderedConfig::default())
        .await
        .unwrap();
    let mut messages = consumer.messages().await.unwrap();
    let mut state = Folded::new(load.keys);
    loop {
        let message = within(RECOVERY, "the stream delivers", messages.next()).await;
        let message = message.unwrap().unwrap();
        let payload = String::from_utf8_lossy(&message.payload);
        let value = payload
            .split_once('=')
            .map_or(0, |(_, value)| value.parse().unwrap());
        state.values[key_of(&message.subject)] = value;
        if message.info().unwrap().stream_sequence == last {
            return state;
        }
    }
}

/// Ends pods and servers at random, and starts new ones. Returns the number of faults.
async fn fail(
    servers: &mut Servers,
    pods: &mut [Sidestream],
    load: Load,
    world: &World,
) -> (u32, u32) {
    let mut rng = fastrand::Rng::with_seed(load.seed);
    let (mut of_pods, mut of_servers, began) = (0, 0, Instant::now());
    let mut drained = Vec::new();
    while began.elapsed() < load.faults_for {
        sleep(Duration::from_millis(rng.u64(500..3000))).await;
        if rng.bool() {
            of_servers += 1;
            servers.fail(load, &mut rng).await;
            continue;
        }
        of_pods += 1;
        let index = rng.usize(..pods.len());
        let next = Sidestream::builder(configuration(&servers.urls(), load))
            .without_waiting()
            .start()
            .await;
        world.pods.lock().unwrap()[index] = next.url("");
        let mut ended = std::mem::replace(&mut pods[index], next);
        if rng.bool() {
            ended.kill9();
        } else {
            ended.terminate();
            drained.push(ended);
        }
    }
    (of_pods, of_servers)
}

async fn folded_states_equal_the_stream(mut servers: Servers, load: Load) {
    let replicas = if matches!(servers, Servers::One(_)) {
        1
    } else {
        3
    };
    let jetstream = servers.jetstream().await;
    create_stream(&jetstream, load, replicas).await;
    fill(&jetstream, load).await;
    let mut pods = Vec::new();
    for _ in 0..2 {
        pods.push(Sidestream::start(configuration(&servers.urls(), load)).await);
    }
    let world = Arc::new(World {
        pods: Mutex::new(pods.iter().map(|pod| pod.url("")).collect()),
        is_calm: AtomicBool::new(false),
        reconnects: AtomicU32::new(0),
        rejections: AtomicU32::new(0),
        snapshots: AtomicU32::new(0),
        gaps: AtomicU32::new(0),
        synced_after: Mutex::default(),
    });
    let clients: Vec<_> = (0..load.clients)
        .map(|number| tokio::spawn(Client::new(number, load).run(Arc::clone(&world))))
        .collect();
    let writing = tokio::spawn(write(jetstream.clone(), load, Arc::clone(&world)));
    let faults = fail(&mut servers, &mut pods, load, &world).await;
    world.is_calm.store(true, Ordering::Relaxed);
    within(RECOVERY, "the writer ends", writing).await.unwrap();
    write_ends(&jetstream, load).await;
    let calm = Instant::now();
    let mut ended = Vec::new();
    for client in clients {
        let fact = "every client has the last writes";
        ended.push(within(RECOVERY * 4, fact, client).await.unwrap());
    }
    let settled = calm.elapsed();
    let stored = stored(&jetstream, load).await;
    report(&world, &stored, faults, settled);
    for (number, client) in ended.iter().enumerate() {
        let differences = client.differences(&stored);
        assert!(
            differences.is_empty(),
            "client {number} of group {:?} has {} other values (key, own, stored): {:?}",
            client.group,
            differences.len(),
            &differences[..differences.len().min(10)]
        );
    }
    assert!(faults.0 > 0 && faults.1 > 0, "pods and servers have failed");
}

/// Writes every key once.
async fn fill(jetstream: &jetstream::Context, load: Load) {
    let keys: Vec<u32> = (0..load.keys).collect();
    for keys in keys.chunks(500) {
        let publish = |key: &u32| {
            let payload = format!("{key}=1").into();
            jetstream.publish(subject(*key), payload).into_future()
        };
        let sent = futures_util::future::try_join_all(keys.iter().map(publish));
        let stored = sent.await.unwrap().into_iter().map(IntoFuture::into_future);
        futures_util::future::try_join_all(stored).await.unwrap();
    }
}

fn report(world: &World, stored: &Folded, faults: (u32, u32), settled: Duration) {
    let mut times = world.synced_after.lock().unwrap();
    times.sort_unstable();
    let at = |share: usize| {
        times
            .get(times.len() * share / 100)
            .copied()
            .unwrap_or_default()
    };
    eprintln!(
        "{} keys exist; failed: {} pods, {} servers; clients: {} reconnects, {} rejections, {} states, {} gaps; \
         synced after {:?} (median), {:?} (99 %); settled after {settled:?}",
        stored.values.iter().filter(|value| **value > 0).count(),
        faults.0,
        faults.1,
        world.reconnects.load(Ordering::Relaxed),
        world.rejections.load(Ordering::Relaxed),
        world.snapshots.load(Ordering::Relaxed),
        world.gaps.load(Ordering::Relaxed),
        at(50),
        at(99),
    );
}

#[tokio::test]
async fn states_equal_the_stream_while_pods_and_servers_fail() {
    let load = Load {
        seed: 1,
        keys: 5000,
        history: 1,
        writes_per_second: 300,
        clients: 40,
        purges_markers: false,
        faults_for: Duration::from_secs(20),
    };
    let servers = Servers::One(Box::new(Nats::start().await));
    folded_states_equal_the_stream(servers, load).await;
}

#[tokio::test]
async fn states_equal_the_stream_while_replicas_lag() {
    let load = Load {
        seed: 2,
        keys: 3000,
        history: 3,
        writes_per_second: 200,
        clients: 20,
        // Pauses servers. The run is too short for markers of that age.
        purges_markers: true,
        faults_for: Duration::from_secs(20),
    };
    folded_states_equal_the_stream(Servers::Three(Cluster::start().await), load).await;
}

/// Load of the long forms: 100,000 keys, 2,000 writes per second, 200 clients. On a machine that is
/// too small for them, `SIDESTREAM_TEST_LOAD` is the share of writes and clients in percent.
fn long(seed: u64, seconds: u64) -> Load {
    let share = std::env::var("SIDESTREAM_TEST_LOAD").unwrap_or_else(|_| "100".to_owned());
    let share: u32 = share.parse().unwrap();
    Load {
        seed,
        keys: 100_000,
        history: 1,
        writes_per_second: 20 * share,
        clients: 2 * share,
        purges_markers: false,
        faults_for: Duration::from_secs(seconds),
    }
}

#[tokio::test]
#[ignore = "takes two minutes of both cores: `make test-long`"]
async fn states_equal_the_stream_while_pods_and_servers_fail_for_two_minutes() {
    let servers = Servers::One(Box::new(Nats::start().await));
    folded_states_equal_the_stream(servers, long(3, 120)).await;
}

#[tokio::test]
#[ignore = "takes two minutes of both cores: `make test-long`"]
async fn states_equal_the_stream_while_replicas_lag_for_two_minutes() {
    let load = Load {
        history: 3,
        purges_markers: true,
        ..long(4, 120)
    };
    folded_states_equal_the_stream(Servers::Three(Cluster::start().await), load).await;
}

#[tokio::test]
#[ignore = "takes ten minutes of both cores: `make test-long`"]
async fn states_equal_the_stream_while_pods_and_servers_fail_for_ten_minutes() {
    let servers = Servers::One(Box::new(Nats::start().await));
    folded_states_equal_the_stream(servers, long(5, 600)).await;
}
