//! The drain: from a pod that serves to one that nobody is connected to, phase by phase, counted and never slept out.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::shards::{self, Shards};
use crate::http::Context;
use crate::lifecycle::drain::Config;
use crate::lifecycle::phase::{Phase, Progress};
use crate::registry::{Close, Member};
use crate::telemetry::Metrics;

/// What clients are connected through.
pub(super) struct Clients<'a> {
    pub(super) context: Arc<Context>,
    pub(super) shards: Shards,
    pub(super) progress: &'a watch::Sender<Progress>,
    pub(super) metrics: &'a Metrics,
}

/// Says which phase begins.
pub(super) fn enter(progress: &watch::Sender<Progress>, phase: Phase) {
    progress.send_modify(|now| now.phase = phase);
    tracing::info!(phase = phase.as_str(), "drain");
}

impl Clients<'_> {
    /// Returns when every connection has ended, at `timeout` at the latest.
    pub(super) async fn drain(self, config: &Config) {
        let Self { context, shards, progress, metrics } = self;
        let deadline = Instant::now() + config.timeout;
        enter(progress, Phase::ReadyOff);
        context.set_drain_retry(config.retry_min, config.retry_max);
        enter(progress, Phase::Accepting);
        sleep(config.accept_for).await;

        let (listeners, connections, others) = shards.into_parts();
        context.refuse_all();
        if timeout_at(deadline, listeners.drain()).await.is_err() {
            tracing::warn!("a listener did not close in time");
        }
        enter(progress, Phase::ListenersClosed);

        // GOAWAY before any body ends: a client must not send its next request into a connection that is ending.
        enter(progress, Phase::Goaway);
        let ended = async {
            // Polled first: it tells the connections before an event stream is told.
            tokio::join!(biased; connections.drain(), end_streams(&context, progress, config.spread, deadline));
        };
        if timeout_at(deadline, ended).await.is_err() {
            let cut = context.registry.len() as u64;
            context.registry.for_each(|member| member.close(Close::Cut));
            metrics.drain_cut_total.inc_by(cut);
            progress.send_modify(|now| now.cut = cut);
            tracing::warn!(cut, "the time of the drain is over; event streams were cut");
        }
        progress.send_modify(|now| now.streams_left = 0);
        shards::stop(others);
    }
}

/// Ends the event streams one by one, evenly over `spread`, and returns when there are none.
///
/// The one with the least pending goes first: most clients are soon elsewhere, and those that are behind have the
/// longest time to take what they are owed.
async fn end_streams(context: &Context, progress: &watch::Sender<Progress>, spread: Duration, deadline: Instant) {
    enter(progress, Phase::Ending);
    let began = Instant::now();
    let spread = spread.min(deadline.saturating_duration_since(began));
    let streams = by_lag(context);
    let count = u32::try_from(streams.len()).unwrap_or(u32::MAX);
    for (place, stream) in (1..).zip(streams) {
        // Gone by itself, it leaves its place in time to the others.
        let Some(stream) = stream.upgrade() else { continue };
        stream.close(Close::Drain);
        drop(stream);
        progress.send_modify(|now| now.streams_left = context.registry.len() as u64);
        sleep_until(began + spread.mul_f64(f64::from(place) / f64::from(count))).await;
    }
    enter(progress, Phase::Lingering);
    while !context.registry.is_empty() {
        // Those among them that had been accepted and had not asked yet are told now; the others know.
        context.registry.for_each(|member| member.close(Close::Drain));
        progress.send_modify(|now| now.streams_left = context.registry.len() as u64);
        sleep(Duration::from_millis(20)).await;
    }
}

fn by_lag(context: &Context) -> Vec<Weak<dyn Member>> {
    let mut members: Vec<(u64, Weak<dyn Member>)> = Vec::with_capacity(context.registry.len());
    for member in context.registry.members() {
        members.push((member.lag().events, Arc::downgrade(&member)));
    }
    members.sort_by_key(|(lag, _)| *lag);
    members.into_iter().map(|(_, member)| member).collect()
}
