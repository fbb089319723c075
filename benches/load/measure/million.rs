//! Scenario *million*: very many clients of one process, idle, with a few events, and at a drain.
//!
//! ```text
//! connect -> memory -> idle: CPU time -> events -> SIGTERM, events -> all closed -> return -> events
//! ```
//!
//! Another process takes the clients over. Each returns with the id of its last event, when the last
//! one has left: it must receive every event that was published meanwhile, once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{Run, Setting, crowd, memory_of, microseconds, share};
use crate::Fallible;
use crate::client::endpoint::Endpoint;
use crate::client::fleet::Fleet;
use crate::client::meter::{Goal, Meter};
use crate::client::visit::{Positions, Visit};
use crate::plan::Plan;

/// Runs all phases.
pub(super) async fn run(plan: &Plan, setting: Setting<'_>) -> Fallible<Value> {
    let successor = setting.successor.clone();
    let successor = successor.ok_or("the scenario needs a server that it can end: --spawn")?;
    let mut run = Run::new(plan, &setting).await?;
    let before = run.memory()?;
    let positions = Positions::new(plan.client_count());
    let visit = Visit::Remembered(Arc::clone(&positions));
    let (fleet, connect) = run.connect(&setting.endpoint, visit).await?;
    let opened = run.meter.read(|tally| tally.opened);
    if opened < plan.client_count() as u64 {
        let problem = run.meter.read(|tally| tally.problem.clone());
        let problem = problem.unwrap_or_default();
        return Err(format!("only {opened} clients are open: {problem}").into());
    }
    let idle = run.settle().await?;
    let rest = run.rest().await?;
    let delivery = run.deliver(plan.events, plan.pace).await?;
    let after = run.memory()?;
    let drain = run.drain(fleet).await?;
    let first = run.faults(0, 0);
    let returned = run.return_to(&successor, positions).await?;
    Ok(json!({
        "connect": connect,
        "memory": memory_of(plan, before, idle, after),
        "rest": rest,
        "delivery": delivery,
        "drain": drain,
        "faults": run.faults_of_both(&first, &returned),
    }))
}

impl Run<'_> {
    /// Measures the CPU time of idle clients: their heartbeats.
    async fn rest(&self) -> Fallible<Value> {
        let heartbeats = self.meter.read(|tally| tally.heartbeats);
        let (begin, cpu) = (Instant::now(), self.cpu()?);
        tokio::time::sleep(REST).await;
        let spent = self.cpu()?.zip(cpu).map(|(now, before)| now.since(before));
        let (elapsed, clients) = (begin.elapsed(), self.plan.client_count() as f64);
        let per_second = clients * elapsed.as_secs_f64();
        let heartbeats = self.meter.read(|tally| tally.heartbeats) - heartbeats;
        Ok(json!({
            "seconds": elapsed.as_secs_f64(),
            "heartbeats_per_client_second": heartbeats as f64 / per_second,
            "cpu_us_per_client_second": spent.map(|spent| microseconds(spent.total()) / per_second),
            "server_busy": spent.map(|spent| share(spent.total(), elapsed)),
        }))
    }

    /// Ends the server while events are published. Returns when the last client has left.
    async fn drain(&mut self, fleet: Fleet) -> Fallible<Value> {
        let pid = self.pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let (begin, cpu) = (Instant::now(), self.cpu()?);
        kill_process(
            pid.ok_or("the server's process id is not known")?,
            Signal::TERM,
        )?;
        self.publisher.publish(EVENTS, RATE).await?;
        let mut spent = None;
        let clients = self.plan.client_count() as u64;
        while !self.meter.until(Goal::Ended(clients), POLL).await {
            // The process may have ended.
            if let (Ok(Some(now)), Some(before)) = (self.cpu(), cpu) {
                spent = Some(now.since(before));
            }
            if begin.elapsed() > DRAIN_TIMEOUT {
                let ended = self.meter.read(|tally| tally.ended);
                return Err(
                    format!("only {ended} clients have left after {DRAIN_TIMEOUT:?}").into(),
                );
            }
        }
        let elapsed = begin.elapsed();
        fleet.close().await;
        Ok(json!({
            "seconds": elapsed.as_secs_f64(),
            "close_events": self.meter.read(|tally| tally.closes),
            "cpu_us_per_client": spent.map(|spent| microseconds(spent.total()) / clients as f64),
        }))
    }

    /// All clients return to another server. Returns their counts after the last event.
    async fn return_to(
        &mut self,
        successor: &Endpoint,
        positions: Arc<Positions>,
    ) -> Fallible<Arc<Meter>> {
        let before = std::mem::replace(&mut self.meter, Arc::new(Meter::new()));
        let fleet = Fleet::open(
            &self.plan.clients,
            crowd(self.plan, successor, Visit::Return(positions), &self.meter),
        );
        let clients = self.plan.client_count() as u64;
        let opened = Goal::Settled(clients);
        self.meter.until(opened, self.plan.connect_timeout()).await;
        self.publisher.publish(EVENTS, RATE).await?;
        let all = self.plan.deliveries(0, self.publisher.published());
        let received = before.read(|tally| tally.events);
        let rest = Goal::Events(all.saturating_sub(received));
        self.meter.until(rest, self.plan.delivery_timeout()).await;
        fleet.close().await;
        Ok(std::mem::replace(&mut self.meter, before))
    }

    /// Faults of both visits together. The end of the first one is no fault, with a close event.
    fn faults_of_both(&self, first: &Value, returned: &Meter) -> Value {
        let expected = self.plan.deliveries(0, self.publisher.published());
        let clients = self.plan.client_count() as u64;
        let number = |name: &str| first[name].as_u64().unwrap_or(0);
        let before = self.meter.read(|tally| tally.events);
        let not_closed = number("ended").saturating_sub(number("close_events"));
        returned.read(|tally| {
            json!({
                "missing": expected.saturating_sub(before + tally.events),
                "duplicates": number("duplicates") + tally.duplicates,
                "out_of_order": number("out_of_order") + tally.late,
                "holes": number("holes") + tally.holes,
                "gap_events": number("gap_events") + tally.gaps,
                "close_events": tally.closes,
                "without_id": number("without_id") + tally.without_id,
                "refused": number("refused") + tally.failed,
                "unanswered": number("unanswered") + clients.saturating_sub(tally.opened + tally.failed),
                "ended": not_closed + tally.ended,
                "first_problem": tally.problem,
            })
        })
    }
}

/// 30 s: two heartbeats of each client.
const REST: Duration = Duration::from_secs(30);
/// Events during the drain, and after the return.
const EVENTS: u64 = 4;
/// One event in two seconds.
const RATE: f64 = 0.5;
/// 100 ms between two readings of the CPU time of a server that ends.
const POLL: Duration = Duration::from_millis(100);
/// 2 min: the drain ends after `drain.timeout`.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);
