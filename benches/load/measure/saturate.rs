//! Scenario *saturate*: the highest rate of deliveries that a server sustains.
//!
//! The rate rises by a quarter in each step, until one delivery in a hundred is a second late.
//! The result is the last step before that.

use serde_json::{Value, json};

use super::{Run, Setting};
use crate::Fallible;
use crate::client::visit::Visit;
use crate::plan::{Pace, Plan};

/// Begins at `rate` events per second. Returns the last step without lag.
pub(super) async fn run(plan: &Plan, mut rate: f64, setting: Setting<'_>) -> Fallible<Value> {
    let mut run = Run::new(plan, &setting).await?;
    let (fleet, connect) = run.connect(&setting.endpoint, Visit::First).await?;
    run.publish(plan.warm_up, plan.pace).await?;
    let seconds = plan.events as f64 / rate;
    let (mut best, mut steps, mut faults) = (
        Value::Null,
        Vec::new(),
        run.faults(0, run.publisher.published()),
    );
    // On a busy machine a step may fail although the server is fast enough, so it has two tries.
    let mut tries = TRIES;
    while tries > 0 && rate <= RATE_MAX {
        let mut step = run
            .deliver((rate * seconds).ceil() as u64, Pace::PerSecond(rate))
            .await?;
        step["rate"] = json!(rate);
        let whole = step["deliveries"]
            == step["published"].as_u64().unwrap_or(0) * plan.client_count() as u64;
        let lag = step["latency_ms"]["p99"].as_f64().unwrap_or(f64::INFINITY);
        let late = step["publisher_late_max_ms"]
            .as_f64()
            .unwrap_or(f64::INFINITY);
        steps.push(step.clone());
        if whole && lag < LAG_MAX_MS && late < LAG_MAX_MS {
            // A server may shed events of slow clients: only steps without lag can be faulty.
            faults = run.faults(0, run.publisher.published());
            best = step;
            rate *= RAISE;
            tries = TRIES;
        } else if whole {
            tries -= 1;
        } else {
            tries = 0;
        }
    }
    fleet.close().await;
    if best.is_null() {
        return Err("the clients lag in the first step: begin with a lower --rate".into());
    }
    best["steps"] = json!(steps);
    Ok(json!({ "connect": connect, "saturation": best, "faults": faults }))
}

/// One second, in the 99th percentile.
const LAG_MAX_MS: f64 = 1_000.0;
/// Factor from step to step, as precise as medians of a few runs.
const RAISE: f64 = 1.25;
const TRIES: usize = 2;
/// 20,000 events per second to 1,000 clients: more bytes than one core can copy.
const RATE_MAX: f64 = 20_000.0;
