//! The drain: from a pod that serves to one that nobody is connected to, phase by phase, counted and never slept out.

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

/// 1 s: a connection is told in a moment; one that has not finished its handshake by then is not waited for.
const GOAWAY_MAX: Duration = Duration::from_secs(1);

/// 2 s: how long clients have to acknowledge what the kernel still holds for them.
const UNSENT_MAX: Duration = Duration::from_secs(2);

/// What clients are connected through.
pub(super) struct Clients<'a> {
    pub(super) context: Arc<Context>,
    pub(super) shards: Shards,
    pub(super) progress: &'a watch::Sender<Progress>,
    pub(super) metrics: &'a Metrics,
    /// When what is to be over; it may come nearer while the drain runs.
    pub(super) schedule: watch::Receiver<Schedule>,
}

/// Says which phase begins.
pub(super) fn enter(progress: &watch::Sender<Progress>, phase: Phase) {
    progress.send_modify(|now| now.phase = phase);
    tracing::info!(phase = phase.as_str(), "drain");
}

impl Clients<'_> {
    /// Returns when every connection has ended, at the schedule's deadline at the latest.
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
        enter(progress, Phase::ReadyOff);
        context.set_drain_retry(config.retry_min, config.retry_max);
        enter(progress, Phase::Accepting);
        // A pod that never had a connection is in no load balancer that could still send it one. So is the pod of a Job,
        // which would end `accept_for` later than its work.
        if context.connection_limiter.has_accepted() {
            until(&mut schedule, |schedule| schedule.accept_until).await;
        }

        context.set_draining();
        if timeout(GOAWAY_MAX, listeners.shut_down()).await.is_err() {
            tracing::warn!("a listener did not close in time");
        }
        enter(progress, Phase::ListenersClosed);

        enter(progress, Phase::Goaway);
        // GOAWAY before any body ends: a client must not send its next request into a connection that is ending.
        if timeout(GOAWAY_MAX, goaway.shut_down()).await.is_err() {
            tracing::info!("a connection could not be told in time");
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
            tracing::info!("clients have not acknowledged everything that they were sent");
        }
        shards::stop(others);
    }
}

/// Returns at a moment of the schedule, wherever it is moved meanwhile.
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
    while !context.streams.is_empty() {
        // Those among them that had been accepted and had not asked yet are told now; the others know.
        context
            .streams
            .for_each(|member| member.close(CloseReason::Drain));
        progress.send_modify(|now| now.streams_left = context.streams.len() as u64);
        sleep(Duration::from_millis(20)).await;
    }
    progress.send_modify(|now| now.streams_left = 0);
    connections.completed().await;
}

/// Tells the event streams to end one by one, evenly over what the schedule has left for it.
///
/// The one with the least pending goes first: most clients are soon elsewhere, and those that are behind have the
/// longest time to take what they are owed.
async fn end_streams(
    context: &Context,
    progress: &watch::Sender<Progress>,
    schedule: &mut watch::Receiver<Schedule>,
) {
    let mut streams = by_lag(context).into_iter();
    loop {
        // An even pace from here on; it is found anew when the schedule changes.
        let (from, to) = (Instant::now(), schedule.borrow_and_update().spread_until);
        let left = to.saturating_duration_since(from);
        let count = u32::try_from(streams.len()).unwrap_or(u32::MAX);
        for place in 1..=count {
            // One that is gone by itself leaves its place in time to the others.
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

/// The time is over: what is left is dropped as it is, and counted.
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
        tracing::warn!(cut, "the time of the drain is over; event streams were cut");
    } else {
        tracing::info!(
            "the time of the drain is over; connections without an event stream were cut"
        );
    }
    // A moment for the event streams to tell the log what became of them; then whatever is left of the connections.
    for _ in 0..2 {
        if timeout(CUT_MAX, connections.completed()).await.is_ok() {
            return;
        }
        connections.abort();
    }
}

/// 200 ms: what is cut needs only its turn.
const CUT_MAX: Duration = Duration::from_millis(200);

/// Returns when the kernel holds nothing any more that clients have not acknowledged: it ends with the network
/// namespace of a pod.
async fn sent(ports: &[u16]) {
    // Seldom more and more: with many connections each look takes a while.
    let mut pause = Duration::from_millis(10);
    while queue::unsent(ports).is_ok_and(|count| count > 0) {
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
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
