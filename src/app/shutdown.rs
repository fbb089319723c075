//! The end of the process: a drain that a signal or a command has begun, what is asked meanwhile, and when it is over.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::drain::{Clients, enter};
use super::shards::Shards;
use super::sources::Sources;
use super::{App, Live};
use crate::admin::{Admin, Command};
use crate::http::Context;
use crate::lifecycle::drain::Config;
use crate::lifecycle::phase::{Phase, Progress};
use crate::lifecycle::schedule::Schedule;
use crate::lifecycle::shutdown::Trigger;
use crate::lifecycle::signals::Request;
use crate::nats::Nats;
use crate::telemetry::Metrics;

/// 3 s: consumers are deleted and a last round trip is made; NATS forgets by itself what it is not told.
const UPSTREAM_MAX: Duration = Duration::from_secs(3);

/// What began the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The process ends when it is drained.
    Signal,
    /// The process stays, drained, until a signal.
    Command,
}

/// What hears while the drain goes on.
struct ShutdownControl {
    signals: mpsc::Receiver<Request>,
    commands: mpsc::Receiver<Command>,
    /// A signal has said already that the process is to end.
    told: bool,
}

/// What is said to them that matters.
enum ShutdownEvent {
    /// The first signal.
    Hurry,
    /// The second.
    Now,
}

impl App {
    /// Stops everything, clients first and the admin last.
    pub(super) async fn end(self, cause: Cause) {
        let Self {
            live:
                Live {
                    context,
                    sources,
                    metrics,
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
            "the drain begins"
        );
        if planned < config.timeout {
            tracing::warn!(?grace, timeout = ?config.timeout, "the drain is compressed into the grace period");
        }
        let parts = Parts {
            context,
            shards,
            registry,
            sources,
            nats,
            metrics,
            progress,
        };
        let mut ears = ShutdownControl {
            signals,
            commands,
            told: cause == Cause::Signal,
        };
        let drained = {
            let drain = parts.drain(config, scheduled);
            let mut drain = std::pin::pin!(drain);
            loop {
                tokio::select! {
                    biased;
                    heard = ears.listen() => match heard {
                        ShutdownEvent::Now => break false,
                        ShutdownEvent::Hurry => {
                            let mut left = Duration::ZERO;
                            schedule.send_modify(|schedule| left = schedule.hurry(Instant::now()));
                            tracing::warn!(seconds = left.as_secs_f64(), "a signal compresses what is left of the drain");
                        }
                    },
                    () = &mut drain => break true,
                }
            }
        };
        if !drained {
            tracing::warn!("a second signal ends the process at once");
        } else if !ears.told {
            // Whoever asked for the drain, such as a preStop hook, decides when the process goes.
            tracing::info!("drained; the process stays until it gets a signal");
            ears.listen().await;
        }
        leave(admin);
    }
}

/// The last act of the process.
fn leave(admin: Admin) {
    tracing::info!("ended");
    // Blocks half a second at most, with nothing left that could wait for this thread.
    admin.stop();
}

/// What ends, in its order.
struct Parts {
    context: Arc<Context>,
    shards: Shards,
    /// The end of the writing to the registry over all pods.
    registry: Trigger,
    sources: Arc<Sources>,
    nats: Nats,
    metrics: Arc<Metrics>,
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
        if timeout(UPSTREAM_MAX, upstream).await.is_err() {
            tracing::warn!(
                "NATS did not answer in time; it removes by itself what this pod has left"
            );
        }
        let cut = progress.borrow().cut;
        tracing::info!(seconds = began.elapsed().as_secs_f64(), cut, "drained");
        enter(&progress, Phase::Done);
    }
}

impl ShutdownControl {
    /// Returns at a signal that ends the process; answers everything else. May be dropped at any await.
    async fn listen(&mut self) -> ShutdownEvent {
        loop {
            tokio::select! {
                biased;
                signal = self.signals.recv() => match signal {
                    Some(Request::End) if std::mem::replace(&mut self.told, true) => return ShutdownEvent::Now,
                    Some(Request::End) => return ShutdownEvent::Hurry,
                    Some(Request::Reload) => tracing::info!("the configuration is not read again while the pod drains"),
                    // The thread that waits for them is gone: nothing can be heard any more.
                    None => std::future::pending().await,
                },
                command = self.commands.recv() => match command {
                    // The drain that is asked for is this one. Whoever asked may be gone.
                    Some(Command::Drain { outcome }) => drop(outcome.send(Ok(()))),
                    Some(Command::Reload { outcome }) => drop(outcome.send(Err("the sidecar is draining".to_owned()))),
                    None => std::future::pending().await,
                },
            }
        }
    }
}
