//! Clients that come back all at once for what they missed: how long until the last of them has everything.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Run, Setting, crowd, microseconds, milliseconds};
use crate::Fallible;
use crate::client::fleet::{Fleet, Shape};
use crate::client::meter::{Goal, Meter};
use crate::client::visit::{Positions, Visit};
use crate::plan::{Pace, Plan, Replay};
use crate::stage::nats::Nats;
use crate::stage::process::{Cpu, forget_peak, peak_bytes};

/// First visit with one event each, a time away in which events are published, then the return that is measured.
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
        "memory": { "before_bytes": memory, "peak_bytes": run.look(peak_bytes)? },
        "faults": run.faults(plan.warm_up, replay.events),
    }))
}

/// Every client comes, has the first event of its subject, remembers its id, and goes.
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
        without => {
            Err(format!("{without} clients had no event with an id on their first visit").into())
        }
    }
}

/// Publishes what is missed, and returns when the server has all of it, as one client that stayed can tell.
async fn miss(
    run: &mut Run<'_>,
    setting: &Setting<'_>,
    replay: Replay,
    stored: u64,
) -> Fallible<()> {
    let meter = Arc::new(Meter::new());
    // The subject that is last in turn: whoever has its last event, has been sent all others before.
    let endpoint = setting.endpoint.clone().at(run.plan.subjects - 1);
    let witness = Fleet::open(
        &[Shape::Http1 { clients: 1 }],
        crowd(run.plan, &endpoint, Visit::First, &meter),
    );
    if !meter.until(Goal::Settled(1), PATIENCE).await {
        return Err("the server does not answer".into());
    }
    while run.publisher.published() < run.plan.warm_up + replay.events {
        let left = run.plan.warm_up + replay.events - run.publisher.published();
        run.publisher
            .publish(left.min(BURST), f64::INFINITY)
            .await?;
        // JetStream drops what it cannot store at once.
        let deadline = Instant::now() + PATIENCE;
        while setting.outlet.is_stored()
            && setting.nats.stored().await? - stored < run.publisher.published()
        {
            if Instant::now() > deadline {
                return Err("NATS has not stored everything that was published".into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    if !meter.until(Goal::Events(replay.behind), PATIENCE).await {
        let seen = meter.read(|tally| tally.events);
        return Err(format!(
            "a client that stayed has {seen} of {} events",
            replay.behind
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
        let expected = replay.behind * self.plan.client_count() as u64;
        self.look(forget_peak)?;
        let (begin, cpu, own) = (Instant::now(), self.cpu()?, Cpu::of(std::process::id())?);
        // Everyone had the first event of their subject.
        let visit = Visit::Return(positions, 1);
        let fleet = Fleet::open(
            &self.plan.clients,
            crowd(self.plan, &setting.endpoint, visit, &self.meter),
        );
        tokio::select! {
            _ = self.meter.until(Goal::Events(expected), PATIENCE) => {}
            error = readings.watch() => return Err(error),
        }
        let elapsed = begin.elapsed();
        let spent = self.cpu()?.zip(cpu).map(|(now, before)| now.since(before));
        let own = Cpu::of(std::process::id())?.since(own);
        fleet.close().await;
        let share = |time: Duration| time.as_secs_f64() / elapsed.as_secs_f64();
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
                "server_busy": spent.map(|spent| share(spent.total())),
                "load_busy": share(own.total()),
                "consumers_max": readings.most(),
                "consumers_created": readings.seen(),
            })
        }))
    }
}

/// The consumers that serve the replay: those that were not there before it.
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

    /// Looks every [`LOOK_INTERVAL`] until it is dropped; returns only when NATS cannot be asked.
    async fn watch(&self) -> Box<dyn std::error::Error + Send + Sync> {
        loop {
            if let Err(error) = self.look().await {
                return error;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn look(&self) -> Fallible<()> {
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

    /// The most that were alive at one look.
    fn most(&self) -> usize {
        self.seen.borrow().0
    }

    /// How many there were in all; one that lived between two looks is not among them.
    fn seen(&self) -> usize {
        self.seen.borrow().1.len()
    }
}

/// A debug build that reads a million events from JetStream.
const PATIENCE: Duration = Duration::from_secs(120);
/// One event for each client: what JetStream stores without a queue.
const WARM_UP_RATE: f64 = 10_000.0;
/// Less than the 10,000 that JetStream lets wait for storage.
const BURST: u64 = 4_000;
/// A reading lives for 0.1 s at least.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A pod that so many messages wait for takes no new event streams; here they are published as fast as NATS takes them.
const PRESSING: u64 = 200_000;
/// 12 s: three levels of pressure, each of which falls after three seconds, and some.
const REST: Duration = Duration::from_secs(12);
