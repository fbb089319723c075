//! Scenario *replay*: all clients return at once for the events they missed.
//!
//! Every client connects, receives one event of its subject, stores its id and disconnects. Then
//! the missed events are published. When the server has all of them, the clients return with
//! their ids, and the time until the last one is complete is measured. While they read, the
//! consumers of the stream are listed every [`POLL_INTERVAL`]: those that did not exist before
//! serve the replay.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Run, Setting, crowd, microseconds, milliseconds, share};
use crate::Fallible;
use crate::client::fleet::{Fleet, Shape};
use crate::client::meter::{Goal, Meter};
use crate::client::visit::{Positions, Visit};
use crate::plan::{Pace, Plan};
use crate::stage::nats::Nats;
use crate::stage::process::{Cpu, peak_bytes, reset_peak};
use crate::stage::recipe::Replay;

/// Runs the first visit, publishes the missed events, and measures the return.
pub(super) async fn run(plan: &Plan, replay: Replay, setting: Setting<'_>) -> Fallible<Value> {
    let mut run = Run::new(plan, &setting).await?;
    let stored = setting.nats.stored().await?;
    let positions = first_visit(&mut run, &setting).await?;
    miss(&mut run, &setting, replay, stored).await?;
    if replay.events >= PRESSING {
        tokio::time::sleep(REST).await;
    }
    let memory = run.settle().await?;
    let readings = Readings::begin(setting.nats).await?;
    run.meter = Arc::new(Meter::new());
    let result = run
        .come_back(&setting, positions, replay, &readings)
        .await?;
    Ok(json!({
        "replay": result,
        "memory": { "before_bytes": memory, "peak_bytes": run.inspect(peak_bytes)? },
        "faults": run.faults(plan.warm_up, replay.events),
    }))
}

/// Every client connects, receives the first event of its subject, stores its id, and disconnects.
async fn first_visit(run: &mut Run<'_>, setting: &Setting<'_>) -> Fallible<Arc<Positions>> {
    let positions = Positions::new(run.plan.client_count());
    let (fleet, _) = run
        .connect(&setting.endpoint, Visit::Remembered(Arc::clone(&positions)))
        .await?;
    run.publish(run.plan.warm_up, Pace::PerSecond(WARM_UP_RATE))
        .await?;
    fleet.close().await;
    match run.plan.client_count() - positions.known() {
        0 => Ok(positions),
        without => Err(format!("{without} clients received no event with an id at first").into()),
    }
}

/// Publishes the missed events. Returns when the server has all of them.
///
/// A client that stays connected is the witness.
async fn miss(
    run: &mut Run<'_>,
    setting: &Setting<'_>,
    replay: Replay,
    stored: u64,
) -> Fallible<()> {
    let meter = Arc::new(Meter::new());
    // The last subject of each cycle: all other events are published before its last event.
    let endpoint = setting.endpoint.clone().at(run.plan.subjects - 1);
    let witness = Fleet::open(
        &[Shape::Http1 { clients: 1 }],
        crowd(run.plan, &endpoint, Visit::First, &meter),
    );
    if !meter.until(Goal::Settled(1), TIMEOUT).await {
        return Err("no response from the server".into());
    }
    while run.publisher.published() < run.plan.warm_up + replay.events {
        let left = run.plan.warm_up + replay.events - run.publisher.published();
        run.publisher
            .publish(left.min(BURST), f64::INFINITY)
            .await?;
        // JetStream drops messages if too many wait to be stored.
        let deadline = Instant::now() + TIMEOUT;
        while setting.outlet.is_stored()
            && setting.nats.stored().await? - stored < run.publisher.published()
        {
            if Instant::now() > deadline {
                return Err("NATS did not store all published events".into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    if !meter.until(Goal::Events(replay.missed), TIMEOUT).await {
        let seen = meter.read(|tally| tally.events);
        return Err(format!(
            "a client that stayed connected received {seen} of {} events",
            replay.missed
        )
        .into());
    }
    witness.close().await;
    Ok(())
}

// === impl Run ===

impl Run<'_> {
    async fn come_back(
        &self,
        setting: &Setting<'_>,
        positions: Arc<Positions>,
        replay: Replay,
        readings: &Readings<'_>,
    ) -> Fallible<Value> {
        let expected = replay.missed * self.plan.client_count() as u64;
        self.inspect(reset_peak)?;
        let (begin, cpu, own) = (Instant::now(), self.cpu()?, Cpu::of(std::process::id())?);
        let visit = Visit::Return(positions);
        let fleet = Fleet::open(
            &self.plan.clients,
            crowd(self.plan, &setting.endpoint, visit, &self.meter),
        );
        tokio::select! {
            _ = self.meter.until(Goal::Events(expected), TIMEOUT) => {}
            error = readings.watch() => return Err(error),
        }
        let elapsed = begin.elapsed();
        let spent = self.cpu()?.zip(cpu).map(|(now, before)| now.since(before));
        let own = Cpu::of(std::process::id())?.since(own);
        fleet.close().await;
        Ok(self.meter.read(|tally| {
            let events = tally.events.max(1) as f64;
            json!({
                "clients": self.plan.client_count(),
                "events": tally.events,
                "seconds": elapsed.as_secs_f64(),
                "per_second": tally.events as f64 / elapsed.as_secs_f64(),
                "first_byte_ms": milliseconds(&tally.first_byte),
                "bytes_per_event": tally.bytes as f64 / events,
                "events_per_read": tally.events as f64 / tally.reads.max(1) as f64,
                "cpu_us_per_event": spent.map(|spent| microseconds(spent.total()) / events),
                "server_busy": spent.map(|spent| share(spent.total(), elapsed)),
                "load_busy": share(own.total(), elapsed),
                "consumers_max": readings.most(),
                "consumers_created": readings.seen(),
            })
        }))
    }
}

/// Consumers that serve the replay: those that did not exist before it.
struct Readings<'a> {
    nats: &'a Nats,
    before: BTreeSet<String>,
    seen: RefCell<(usize, BTreeSet<String>)>,
}

impl<'a> Readings<'a> {
    async fn begin(nats: &'a Nats) -> Fallible<Self> {
        Ok(Self {
            nats,
            before: nats.consumers().await?.into_iter().collect(),
            seen: RefCell::default(),
        })
    }

    /// Lists the consumers every [`POLL_INTERVAL`] until it is dropped. Returns only on an error.
    async fn watch(&self) -> Box<dyn std::error::Error + Send + Sync> {
        loop {
            if let Err(error) = self.poll().await {
                return error;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn poll(&self) -> Fallible<()> {
        let alive: BTreeSet<String> = self
            .nats
            .consumers()
            .await?
            .into_iter()
            .filter(|name| !self.before.contains(name))
            .collect();
        let mut seen = self.seen.borrow_mut();
        seen.0 = seen.0.max(alive.len());
        seen.1.extend(alive);
        Ok(())
    }

    /// Returns the maximum number at one time.
    fn most(&self) -> usize {
        self.seen.borrow().0
    }

    /// Returns the total number, except for those that existed only between two polls.
    fn seen(&self) -> usize {
        self.seen.borrow().1.len()
    }
}

/// 2 min: a debug build that reads a million events from JetStream.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Rate of the first events, one for each client: JetStream stores them without a queue.
const WARM_UP_RATE: f64 = 10_000.0;
/// Fewer than the 10,000 messages that may wait to be stored in JetStream.
const BURST: u64 = 4_000;
/// 20 ms: a replay takes at least 0.1 s.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Events from which on the sidecar may reject new event streams because of its NATS backlog.
///
/// They are published as fast as NATS accepts them.
const PRESSING: u64 = 200_000;
/// 12 s: each of the three load levels falls after three seconds, and a margin.
const REST: Duration = Duration::from_secs(12);
