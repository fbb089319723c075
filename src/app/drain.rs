//! Drain: the graceful shutdown of this pod's clients, phase by phase.
//!
//! ```text
//! not-ready         readiness fails; clients that connect now get the drain's `retry:`
//! accepting         serve everything for `accept_for`: load balancers need time to notice
//! listeners-closed  close the listeners after their queues are empty; reject new requests
//! goaway            send GOAWAY or `Connection: close`, before any event stream ends
//! ending            end event streams one by one over `spread`, least lag first
//! lingering         wait until every connection has ended
//! ```
//!
//! Called by `app::shutdown` on the first shard. Each phase ends by counting tokens
//! ([`lifecycle::shutdown`](crate::lifecycle::shutdown)), not by sleeping; the moments come from a
//! [`Schedule`], which a signal may compress meanwhile. At the deadline the event streams that are
//! left are cut and counted in `sidestream_drain_cut_total`.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::shards::{self, Shards};
use crate::http::Context;
use crate::lifecycle::drain::Config;
use crate::lifecycle::phase::{Phase, Progress};
use crate::lifecycle::schedule::Schedule;
use crate::lifecycle::shutdown::Trigger;
use crate::net::queue;
use crate::presence::{CloseReason, StreamHandle};
use crate::telemetry::Metrics;

/// 1 s: sending GOAWAY takes milliseconds; a connection still in its handshake is not waited for.
const GOAWAY_MAX: Duration = Duration::from_secs(1);

/// 200 ms between two looks at what is left.
const LOOK_MAX: Duration = Duration::from_millis(200);

/// 2 s: time for clients to acknowledge bytes that are still in the kernel's send buffers.
const UNSENT_MAX: Duration = Duration::from_secs(2);

/// The downstream side of the process, while it drains.
pub(super) struct Clients<'a> {
    pub(super) context: Arc<Context>,
    pub(super) shards: Shards,
    pub(super) progress: &'a watch::Sender<Progress>,
    pub(super) metrics: &'a Metrics,
    /// Moments of the drain; they may move closer while it runs.
    pub(super) schedule: watch::Receiver<Schedule>,
}

/// Enters a phase: visible in `/health`, in the metric and in the log.
pub(super) fn enter(progress: &watch::Sender<Progress>, phase: Phase) {
    progress.send_modify(|now| now.phase = phase);
    tracing::info!(phase = phase.as_str(), "drain phase");
}

impl Clients<'_> {
    /// Drains, and returns when every connection has ended or was cut at the deadline.
    pub(super) async fn drain(self, config: &Config) {
        let Self {
            context,
            shards,
            progress,
            metrics,
            mut schedule,
        } = self;
        let Shards {
            listeners,
            goaway,
            mut connections,
            others,
            ports,
        } = shards;
        progress.send_modify(|now| now.streams_left = context.streams.len() as u64);
        enter(progress, Phase::NotReady);
        context.set_drain_retry(config.retry_min, config.retry_max);
        enter(progress, Phase::Accepting);
        // A pod that never had a connection is in no load balancer: skip the wait. A Job
        // would otherwise end `accept_for` later than its work.
        if context.connection_limiter.has_accepted() {
            until(&mut schedule, |schedule| schedule.accept_until).await;
        }

        context.set_draining();
        if timeout(GOAWAY_MAX, listeners.shut_down()).await.is_err() {
            tracing::warn!("listener did not close within 1 s");
        }
        enter(progress, Phase::ListenersClosed);

        enter(progress, Phase::Goaway);
        // GOAWAY before any body ends: a client must not send its next request on a closing
        // connection.
        if timeout(GOAWAY_MAX, goaway.shut_down()).await.is_err() {
            tracing::info!("GOAWAY could not be sent on every connection within 1 s");
        }
        let mut clock = schedule.clone();
        let ended = tokio::select! {
            biased;
            () = end_all(&context, progress, &mut connections, &mut schedule) => true,
            () = until(&mut clock, |schedule| schedule.deadline) => false,
        };
        if !ended {
            cut(&context, progress, metrics, connections).await;
        }
        progress.send_modify(|now| now.streams_left = 0);
        let deadline = schedule.borrow().deadline.min(Instant::now() + UNSENT_MAX);
        if timeout_at(deadline, sent(&ports)).await.is_err() {
            tracing::info!("clients have not acknowledged all bytes in the send buffers");
        }
        shards::stop(others);
    }
}

/// Returns at a moment of the schedule, also if the moment moves meanwhile.
async fn until(schedule: &mut watch::Receiver<Schedule>, moment: impl Fn(&Schedule) -> Instant) {
    loop {
        let at = moment(&schedule.borrow_and_update());
        tokio::select! {
            () = sleep_until(at) => return,
            Ok(()) = schedule.changed() => {}
        }
    }
}

/// Ends the event streams, then waits for the connections.
async fn end_all(
    context: &Context,
    progress: &watch::Sender<Progress>,
    connections: &mut Trigger,
    schedule: &mut watch::Receiver<Schedule>,
) {
    enter(progress, Phase::Ending);
    end_streams(context, progress, schedule).await;
    enter(progress, Phase::Lingering);
    let mut pause = Duration::from_millis(20);
    while !context.streams.is_empty() {
        // Event streams that began after the others were asked to end; for the rest this changes
        // nothing.
        context
            .streams
            .for_each(|member| member.close(CloseReason::Drain));
        progress.send_modify(|now| now.streams_left = context.streams.len() as u64);
        sleep(pause).await;
        // A visit of a million event streams takes tens of milliseconds.
        pause = (pause * 2).min(LOOK_MAX);
    }
    progress.send_modify(|now| now.streams_left = 0);
    connections.completed().await;
}

/// Ends the event streams one by one, evenly spaced over the time that the schedule has left.
///
/// Least lag first: most clients reconnect early, and lagging clients get the longest time to read
/// their pending events.
async fn end_streams(
    context: &Context,
    progress: &watch::Sender<Progress>,
    schedule: &mut watch::Receiver<Schedule>,
) {
    let mut streams = by_lag(context).into_iter();
    loop {
        // Even spacing from now on; recomputed when the schedule changes.
        let (from, to) = (Instant::now(), schedule.borrow_and_update().spread_until);
        let left = to.saturating_duration_since(from);
        let count = u32::try_from(streams.len()).unwrap_or(u32::MAX);
        for place in 1..=count {
            // A stream that has already ended leaves its slot to the next one.
            let Some(stream) = streams.next() else { return };
            let Some(stream) = stream.upgrade() else {
                continue;
            };
            stream.close(CloseReason::Drain);
            drop(stream);
            progress.send_modify(|now| now.streams_left = context.streams.len() as u64);
            if place == count {
                return;
            }
            tokio::select! {
                () = sleep_until(from + left.mul_f64(f64::from(place) / f64::from(count))) => {}
                Ok(()) = schedule.changed() => break,
            }
        }
        if streams.len() == 0 {
            return;
        }
    }
}

/// Cuts what is left at the deadline, and counts it.
async fn cut(
    context: &Context,
    progress: &watch::Sender<Progress>,
    metrics: &Metrics,
    mut connections: Trigger,
) {
    let cut = context.streams.len() as u64;
    context
        .streams
        .for_each(|member| member.close(CloseReason::Cut));
    metrics.drain_cut_total.inc_by(cut);
    progress.send_modify(|now| now.cut = cut);
    if cut > 0 {
        tracing::warn!(cut, "drain deadline reached; event streams cut");
    } else {
        tracing::info!("drain deadline reached; connections without an event stream cut");
    }
    // First round: event streams log how they ended. Second round: every other connection.
    for _ in 0..2 {
        if timeout(CUT_MAX, connections.completed()).await.is_ok() {
            return;
        }
        connections.abort();
    }
}

/// 200 ms: a cut task only needs to be polled once.
const CUT_MAX: Duration = Duration::from_millis(200);

/// Returns when clients have acknowledged everything in the kernel's send buffers, which are lost
/// with the pod's network namespace.
async fn sent(ports: &[u16]) {
    // Exponential interval: with many connections each look takes a while.
    let mut pause = Duration::from_millis(10);
    while queue::unsent(ports).is_ok_and(|count| count > 0) {
        sleep(pause).await;
        pause = (pause * 2).min(LOOK_MAX);
    }
}

fn by_lag(context: &Context) -> Vec<Weak<dyn StreamHandle>> {
    let mut members: Vec<(u64, Weak<dyn StreamHandle>)> = Vec::with_capacity(context.streams.len());
    for member in context.streams.members() {
        members.push((member.lag().events, Arc::downgrade(&member)));
    }
    members.sort_by_key(|(lag, _)| *lag);
    members.into_iter().map(|(_, member)| member).collect()
}
