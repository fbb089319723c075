//! Bodies of `/health` and `/health/ready`: the checks, and the progress of a drain.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::parts::Parts;
use crate::lifecycle::health::Status;
use crate::lifecycle::phase::Progress;

/// Returns whether the pod is ready: no check fails and no drain has started.
pub(super) fn is_ready(parts: &Parts) -> bool {
    parts.health.is_ready() && !parts.drain.borrow().is_draining()
}

/// Returns the full report.
pub(super) fn report(parts: &Parts) -> Value {
    let (checks, drain) = (parts.health.report(), *parts.drain.borrow());
    json!({
        "status": overall(&checks, drain),
        "version": env!("CARGO_PKG_VERSION"),
        "checks": checks.iter().map(|(name, status)| (name.clone(), check(status))).collect::<Map<_, _>>(),
        "drain": self::drain(drain),
    })
}

/// Returns the progress of the drain.
pub(super) fn drain(progress: Progress) -> Value {
    json!({
        "phase": progress.phase.as_str(),
        "number": progress.phase.number(),
        "streams_left": progress.streams_left,
        "cut": progress.cut,
    })
}

/// Returns the readiness and the failing checks.
pub(super) fn readiness(parts: &Parts) -> Value {
    let (checks, drain) = (parts.health.report(), *parts.drain.borrow());
    let failing: Map<_, _> = checks
        .iter()
        .filter_map(|(name, status)| match status {
            Status::Failing(why) => Some((name.clone(), why.as_str().into())),
            Status::Ok | Status::Degraded(_) => None,
        })
        .collect();
    json!({ "ready": is_ready(parts), "status": overall(&checks, drain), "failing": failing })
}

/// Returns the overall status. A drain takes precedence over failing checks, which the report still
/// has.
fn overall(checks: &BTreeMap<String, Status>, drain: Progress) -> &'static str {
    if drain.is_draining() {
        "draining"
    } else if checks
        .values()
        .any(|status| matches!(status, Status::Failing(_)))
    {
        "failing"
    } else if checks
        .values()
        .any(|status| matches!(status, Status::Degraded(_)))
    {
        "degraded"
    } else {
        "ok"
    }
}

fn check(status: &Status) -> Value {
    let message = match status {
        Status::Ok => None,
        Status::Degraded(why) | Status::Failing(why) => Some(why),
    };
    json!({ "status": status.as_str(), "message": message })
}
