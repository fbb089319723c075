//! One run: open the clients, read the memory, publish, wait for all events, count.
//!
//! Processor time and memory are those of the server's process, from `/proc` ([`process`]). The
//! result is a JSON object; [`report`] has the names of its fields. [`is_faulty`] decides whether
//! anything was lost. The scenarios *replay*, *saturate* and *million* have modules of their own.
//!
//! [`process`]: crate::stage::process
//! [`report`]: crate::report

mod million;
mod replay;
mod saturate;

use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::Fallible;
use crate::client::crowd::Crowd;
use crate::client::endpoint::Endpoint;
use crate::client::fleet::Fleet;
use crate::client::meter::{Goal, Meter};
use crate::client::visit::Visit;
use crate::options::Scenario;
use crate::plan::{Pace, Plan};
use crate::publisher::{Outlet, Publisher, Work};
use crate::stage::nats::Nats;
use crate::stage::process::{Cpu, resident_bytes};

/// Environment of a run.
pub(crate) struct Setting<'a> {
    /// Address of the server.
    pub(crate) endpoint: Endpoint,
    /// Process id of the server, if it is known.
    pub(crate) pid: Option<u32>,
    /// The NATS server.
    pub(crate) nats: &'a Nats,
    /// Destination of the events.
    pub(crate) outlet: Outlet,
    /// Address of the server that takes the clients over, if there is one.
    pub(crate) successor: Option<Endpoint>,
}

/// Runs the plan once. Returns a JSON object whose names end with their units.
pub(crate) async fn run(plan: &Plan, setting: Setting<'_>) -> Fallible<Value> {
    match (plan.replay, plan.pace) {
        (Some(replay), _) => replay::run(plan, replay, setting).await,
        (None, _) if plan.scenario == Scenario::Million => million::run(plan, setting).await,
        (None, Pace::PerSecond(rate)) if plan.scenario == Scenario::Saturate => {
            saturate::run(plan, rate, setting).await
        }
        (None, _) => live(plan, setting).await,
    }
}

/// Connects all clients once and disconnects them: they have session tickets afterwards.
pub(crate) async fn first_visit(plan: &Plan, endpoint: &Endpoint) -> Fallible<()> {
    let meter = Arc::new(Meter::new());
    let fleet = Fleet::open(&plan.clients, crowd(plan, endpoint, Visit::First, &meter));
    let clients = plan.client_count() as u64;
    meter
        .until(Goal::Settled(clients), plan.connect_timeout())
        .await;
    fleet.close().await;
    match meter.read(|tally| (tally.opened == clients, tally.problem.clone())) {
        (true, _) => Ok(()),
        (false, problem) => Err(problem.unwrap_or_default().into()),
    }
}

async fn live(plan: &Plan, setting: Setting<'_>) -> Fallible<Value> {
    let mut run = Run::new(plan, &setting).await?;
    let stored = setting.nats.stored().await?;
    let before = run.memory()?;
    let (fleet, connect) = run.connect(&setting.endpoint, Visit::First).await?;
    let idle = run.settle().await?;
    run.publish(plan.warm_up, plan.pace).await?;
    let delivery = run.deliver(plan.events, plan.pace).await?;
    let after = run.memory()?;
    let mut faults = run.faults(0, run.publisher.published());
    if setting.outlet.is_stored() {
        let stored = setting.nats.stored().await? - stored;
        faults["not_stored"] = json!(run.publisher.published().saturating_sub(stored));
    }
    fleet.close().await;
    Ok(json!({
        "connect": connect,
        "memory": memory_of(plan, before, idle, after),
        "delivery": delivery,
        "faults": faults,
    }))
}

/// Returns the memory of the server before the clients, with idle clients, and after the events.
fn memory_of(plan: &Plan, before: Option<u64>, idle: Option<u64>, after: Option<u64>) -> Value {
    let per_client = |bytes: Option<u64>| {
        before
            .zip(bytes)
            .map(|(before, now)| now.saturating_sub(before) as f64 / plan.client_count() as f64)
    };
    json!({
        "before_bytes": before,
        "idle_bytes": idle,
        "after_bytes": after,
        "idle_per_client_bytes": per_client(idle),
        "after_per_client_bytes": per_client(after),
    })
}

struct Run<'a> {
    plan: &'a Plan,
    pid: Option<u32>,
    meter: Arc<Meter>,
    publisher: Publisher,
}

impl<'a> Run<'a> {
    async fn new(plan: &'a Plan, setting: &Setting<'_>) -> Fallible<Self> {
        let work = Work {
            outlet: setting.outlet.clone(),
            groups: plan.subjects,
            size: plan.size,
            payload: plan.payload,
            burst: plan.burst,
        };
        let publisher = Publisher::start(work).await?;
        Ok(Self {
            plan,
            pid: setting.pid,
            meter: Arc::new(Meter::new()),
            publisher,
        })
    }

    async fn connect(&self, endpoint: &Endpoint, visit: Visit) -> Fallible<(Fleet, Value)> {
        let clients = self.plan.client_count();
        let (begin, cpu) = (Instant::now(), self.cpu()?);
        let fleet = Fleet::open(
            &self.plan.clients,
            crowd(self.plan, endpoint, visit, &self.meter),
        );
        self.meter
            .until(Goal::Settled(clients as u64), self.plan.connect_timeout())
            .await;
        let seconds = begin.elapsed().as_secs_f64();
        let spent = self.cpu()?.zip(cpu).map(|(now, before)| now.since(before));
        let (opened, first_byte) = self
            .meter
            .read(|tally| (tally.opened, milliseconds(&tally.first_byte)));
        if opened == 0 {
            let problem = self.meter.read(|tally| tally.problem.clone());
            return Err(
                format!("no client got a response: {}", problem.unwrap_or_default()).into(),
            );
        }
        let value = json!({
            "clients": clients,
            "opened": opened,
            "resumed": self.meter.read(|tally| tally.resumed),
            "seconds": seconds,
            "per_second": opened as f64 / seconds,
            "first_byte_ms": first_byte,
            "cpu_us_per_client": spent.map(|spent| microseconds(spent.total()) / clients as f64),
        });
        Ok((fleet, value))
    }

    /// Waits until the server's memory no longer changes, and returns it.
    async fn settle(&self) -> Fallible<Option<u64>> {
        let mut memory = self.memory()?;
        for _ in 0..SETTLE_CHECKS_MAX {
            tokio::time::sleep(SETTLE_INTERVAL).await;
            let now = self.memory()?;
            let same = now == memory;
            memory = now;
            if same {
                break;
            }
        }
        Ok(memory)
    }

    /// Publishes and waits for all events. Returns the maximum lateness of the publisher.
    async fn publish(&mut self, events: u64, pace: Pace) -> Fallible<Duration> {
        if events == 0 {
            return Ok(Duration::ZERO);
        }
        let (steps, rate) = match pace {
            Pace::PerSecond(rate) => (1, rate),
            Pace::OneByOne => (events, f64::INFINITY),
        };
        let mut late = Duration::ZERO;
        for _ in 0..steps {
            late = late.max(self.publisher.publish(events / steps, rate).await?.late_max);
            let expected = self.plan.deliveries(0, self.publisher.published());
            if !self
                .meter
                .until(Goal::Events(expected), self.plan.delivery_timeout())
                .await
            {
                break;
            }
            if steps > 1 {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(late)
    }

    /// Publishes the measured events, and returns rates, latencies and costs.
    async fn deliver(&mut self, events: u64, pace: Pace) -> Fallible<Value> {
        let (plan, published) = (self.plan, self.publisher.published());
        let alone = plan.subjects == 1;
        self.meter.begin(
            published + 1,
            events,
            alone.then_some(plan.client_count() as u64),
        );
        let (before, reads, bytes) = self
            .meter
            .read(|tally| (tally.events, tally.reads, tally.bytes));
        let (begin, cpu, own) = (Instant::now(), self.cpu()?, Cpu::of(std::process::id())?);
        let late = self.publish(events, pace).await?;
        let elapsed = begin.elapsed();
        let spent = self.cpu()?.zip(cpu).map(|(now, before)| now.since(before));
        let own = Cpu::of(std::process::id())?.since(own);
        Ok(self.meter.read(|tally| {
            let deliveries = tally.events - before;
            let reads = (tally.reads - reads).max(1) as f64;
            let per_delivery = |time: Duration| microseconds(time) / deliveries.max(1) as f64;
            json!({
                "published": self.publisher.published() - published,
                "deliveries": deliveries,
                "seconds": elapsed.as_secs_f64(),
                "per_second": deliveries as f64 / elapsed.as_secs_f64(),
                "latency_ms": milliseconds(&tally.latency),
                "last_client_ms": alone.then(|| milliseconds(&tally.last_client)),
                "bytes_per_event": (tally.bytes - bytes) as f64 / deliveries.max(1) as f64,
                "events_per_read": deliveries as f64 / reads,
                "publisher_late_max_ms": late.as_secs_f64() * 1e3,
                "cpu_us_per_delivery": spent.map(|spent| json!({
                    "total": per_delivery(spent.total()),
                    "user": per_delivery(spent.user),
                    "system": per_delivery(spent.system),
                })),
                // Comparable even if a busy machine made one server coalesce more events.
                "cpu_us_per_read": spent.map(|spent| microseconds(spent.total()) / reads),
                "server_busy": spent.map(|spent| share(spent.total(), elapsed)),
                "load_busy": share(own.total(), elapsed),
            })
        }))
    }

    /// Returns all faults since the clients opened.
    ///
    /// Expected are the `events` events from number `from` on. If all counts are zero, every client
    /// received every event once and in order.
    fn faults(&self, from: u64, events: u64) -> Value {
        let expected = self.plan.deliveries(from, events);
        let expected_resumed = match self.plan.resume {
            true => self.plan.connection_count() as u64,
            false => 0,
        };
        self.meter.read(|tally| {
            json!({
                "missing": expected.saturating_sub(tally.events),
                "duplicates": tally.duplicates,
                "out_of_order": tally.late,
                "holes": tally.holes,
                "gap_events": tally.gaps,
                "close_events": tally.closes,
                "without_id": tally.without_id,
                "refused": tally.failed,
                "unanswered": (self.plan.client_count() as u64).saturating_sub(tally.opened + tally.failed),
                "ended": tally.ended,
                "not_resumed": expected_resumed.saturating_sub(tally.resumed),
                "first_problem": tally.problem,
            })
        })
    }

    fn cpu(&self) -> Fallible<Option<Cpu>> {
        self.inspect(Cpu::of)
    }

    fn memory(&self) -> Fallible<Option<u64>> {
        self.inspect(resident_bytes)
    }

    fn inspect<T>(&self, read: impl FnOnce(u32) -> Fallible<T>) -> Fallible<Option<T>> {
        let Some(pid) = self.pid else { return Ok(None) };
        read(pid).map(Some).map_err(|error| {
            format!("cannot inspect the server (pid {pid}), it may have ended: {error}").into()
        })
    }
}

/// Returns whether an event was lost, duplicated or reordered, or a client was not served.
pub(crate) fn is_faulty(run: &Value) -> bool {
    const FAULTS: [&str; 11] = [
        "missing",
        "duplicates",
        "out_of_order",
        "holes",
        "gap_events",
        "close_events",
        "refused",
        "unanswered",
        "not_resumed",
        "ended",
        "not_stored",
    ];
    FAULTS
        .iter()
        .any(|fault| run["faults"][fault].as_u64().unwrap_or(0) > 0)
}

fn crowd(plan: &Plan, endpoint: &Endpoint, visit: Visit, meter: &Arc<Meter>) -> Crowd {
    let (endpoint, meter) = (endpoint.clone(), Arc::clone(meter));
    Crowd {
        endpoint,
        framing: plan.framing,
        compression: plan.compression,
        groups: plan.subjects,
        connecting: plan.connecting,
        visit,
        meter,
    }
}

fn milliseconds(histogram: &Histogram<u64>) -> Value {
    let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e3;
    json!({ "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": histogram.max() as f64 / 1e3 })
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Returns the share of a core that `time` is of `elapsed`.
fn share(time: Duration, elapsed: Duration) -> f64 {
    time.as_secs_f64() / elapsed.as_secs_f64()
}

/// Pause between events that are published one by one, so that all tasks are idle again.
const PAUSE: Duration = Duration::from_millis(10);
const SETTLE_INTERVAL: Duration = Duration::from_millis(100);
/// At most 3 s.
const SETTLE_CHECKS_MAX: usize = 30;
