//! End of the process: runs the drain, answers signals and commands meanwhile, then exits.
//!
//! ```text
//! SIGTERM       -> drain -> exit
//! drain command -> drain -> stay, drained, until a signal (the container's preStop hook)
//! SIGTERM during the drain of a command  -> the rest of the drain is compressed
//! second SIGTERM                         -> exit at once
//! ```
//!
//! Runs on the first shard, called by [`App::run`](super::App). Order: clients first
//! ([`app::drain`](super::drain)), then presence, sources and NATS, the admin port last, so that
//! probes and `/health` answer until the end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::drain::{Clients, enter};
use super::parts::{App, Live};
use super::shards::Shards;
use super::sources::Sources;
use crate::admin::{Admin, Command};
use crate::http::Context;
use crate::lifecycle::drain::Config;
use crate::lifecycle::phase::{Phase, Progress};
use crate::lifecycle::schedule::Schedule;
use crate::lifecycle::shutdown::Trigger;
use crate::lifecycle::signals::Request;
use crate::nats::Nats;
use crate::telemetry::{Metrics, Tracer};

/// 3 s: delete the consumers and make one last round trip. NATS removes the rest by inactivity.
const UPSTREAM_MAX: Duration = Duration::from_secs(3);

/// Reason for the drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A signal: the process exits when it is drained.
    Signal,
    /// The drain command: the process stays, drained, until a signal.
    Command,
}

/// Signals and commands that arrive during the drain.
struct ShutdownControl {
    signals: mpsc::Receiver<Request>,
    commands: mpsc::Receiver<Command>,
    /// Set once a signal has requested the exit.
    exit_requested: bool,
}

/// Signal that changes a running drain.
enum ShutdownEvent {
    /// First signal: compress the rest of the drain.
    Compress,
    /// Second signal: exit at once.
    Exit,
}

impl App {
    /// Stops everything: clients first, the admin port last.
    pub(super) async fn end(self, cause: Cause) {
        let Self {
            live:
                Live {
                    context,
                    sources,
                    metrics,
                    tracer,
                    ..
                },
            ..
        } = self;
        let Self {
            shards,
            nats,
            registry,
            admin,
            progress,
            loaded,
            signals,
            commands,
            grace,
            ..
        } = self;
        let config = loaded.config.drain;
        let began = Instant::now();
        let (schedule, scheduled) = watch::channel(Schedule::new(&config, began, grace));
        let planned = schedule.borrow().deadline.saturating_duration_since(began);
        let seconds = planned.as_secs_f64();
        tracing::info!(
            ?cause,
            streams = context.streams.len(),
            seconds,
            "drain started"
        );
        if planned < config.timeout {
            tracing::warn!(?grace, timeout = ?config.timeout, "drain compressed to fit into the grace period");
        }
        let parts = Parts {
            context,
            shards,
            registry,
            sources,
            nats,
            metrics,
            tracer,
            progress,
        };
        let mut control = ShutdownControl {
            signals,
            commands,
            exit_requested: cause == Cause::Signal,
        };
        let drained = {
            let drain = parts.drain(config, scheduled);
            let mut drain = std::pin::pin!(drain);
            loop {
                tokio::select! {
                    biased;
                    event = control.next() => match event {
                        ShutdownEvent::Exit => break false,
                        ShutdownEvent::Compress => {
                            let mut left = Duration::ZERO;
                            schedule.send_modify(|schedule| left = schedule.compress_after_signal(Instant::now()));
                            tracing::warn!(seconds = left.as_secs_f64(), "signal received; the rest of the drain is compressed");
                        }
                    },
                    () = &mut drain => break true,
                }
            }
        };
        if !drained {
            tracing::warn!("second signal received; exiting at once");
        } else if !control.exit_requested {
            // The requester of the drain, such as a preStop hook, decides when the process exits.
            tracing::info!("drained; waiting for a signal to exit");
            control.next().await;
        }
        leave(admin);
    }
}

/// Stops the admin port as the last step.
fn leave(admin: Admin) {
    tracing::info!("exiting");
    // Blocks for at most 500 ms; no task of this thread is left.
    admin.stop();
}

/// Parts of the process in the order in which they stop.
struct Parts {
    context: Arc<Context>,
    shards: Shards,
    /// Stops the writer of presence entries.
    registry: Trigger,
    sources: Arc<Sources>,
    nats: Nats,
    metrics: Arc<Metrics>,
    tracer: Tracer,
    progress: watch::Sender<Progress>,
}

impl Parts {
    async fn drain(self, config: Config, schedule: watch::Receiver<Schedule>) {
        let Self {
            context,
            shards,
            registry,
            sources,
            nats,
            metrics,
            tracer,
            progress,
        } = self;
        let began = Instant::now();
        Clients {
            context,
            shards,
            progress: &progress,
            metrics: &metrics,
            schedule,
        }
        .drain(&config)
        .await;
        enter(&progress, Phase::Upstream);
        let upstream = async {
            registry.shut_down().await;
            sources.stop().await;
            nats.close().await;
        };
        // Beside NATS: the last spans are those of the event streams that have ended.
        let traces = tracer.shut_down(UPSTREAM_MAX);
        let (upstream, ()) = tokio::join!(timeout(UPSTREAM_MAX, upstream), traces);
        if upstream.is_err() {
            tracing::warn!(
                "NATS did not answer within 3 s; the server removes this pod's consumers by inactivity"
            );
        }
        let cut = progress.borrow().cut;
        tracing::info!(seconds = began.elapsed().as_secs_f64(), cut, "drained");
        enter(&progress, Phase::Done);
    }
}

impl ShutdownControl {
    /// Returns at the next signal that changes the drain; answers everything else. Cancel safe.
    async fn next(&mut self) -> ShutdownEvent {
        loop {
            tokio::select! {
                biased;
                signal = self.signals.recv() => match signal {
                    Some(Request::End) if std::mem::replace(&mut self.exit_requested, true) => return ShutdownEvent::Exit,
                    Some(Request::End) => return ShutdownEvent::Compress,
                    Some(Request::Reload) => tracing::info!("SIGHUP ignored: the pod is draining"),
                    // The signal thread has ended: no signal can arrive.
                    None => std::future::pending().await,
                },
                command = self.commands.recv() => match command {
                    // This drain is the requested one. The requester may have disconnected.
                    Some(Command::Drain { outcome }) => drop(outcome.send(Ok(()))),
                    Some(Command::Reload { outcome }) => drop(outcome.send(Err("the sidecar is draining".to_owned()))),
                    None => std::future::pending().await,
                },
            }
        }
    }
}
