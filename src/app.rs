//! The composition root: from a configuration to running parts, in the order they start, and back in the order they stop.

mod drain;
mod load;
mod reload;
mod shards;
mod shutdown;
mod sources;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::config::{self, Loaded};
use crate::feed::Budget;
use crate::feed::replay::ReplaySlots;
use crate::http::{self, Routes};
use crate::lifecycle::health::Health;
use crate::lifecycle::phase::Progress;
use crate::lifecycle::schedule;
use crate::lifecycle::signals::Request;
use crate::limit::load_level::SharedLevel;
use crate::limit::{ConnectionLimiter, LoopLagProbes, descriptors};
use crate::net::sockets;
use crate::presence::StreamTable;
use crate::telemetry::Metrics;
use crate::{admin, nats};

use reload::{Pending, Step};
use shards::Shards;
use shutdown::Cause;
use sources::Sources;

/// Why the process could not start.
#[derive(Debug)]
pub enum StartError {
    /// What the configuration names does not work: an address, a certificate.
    Configuration(String),
    /// The system refuses: an address in use, no thread.
    System(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration(why) | Self::System(why) => f.write_str(why),
        }
    }
}

/// Runs the sidecar until a signal ends it, drained, within what `grace` leaves for that. Blocks; the calling thread
/// becomes the first shard.
///
/// # Errors
/// [`StartError`] when it could not start.
pub fn run(
    path: PathBuf,
    loaded: Loaded,
    signals: mpsc::Receiver<Request>,
    grace: Option<Duration>,
) -> Result<(), StartError> {
    let runtime = shards::runtime().map_err(|error| StartError::System(error.to_string()))?;
    let ended = runtime
        .block_on(App::start(path, loaded, signals, grace))
        .map(|app| runtime.block_on(app.run()));
    // A file that is being read, perhaps from a pipe without a writer, is not waited for.
    runtime.shutdown_background();
    ended
}

/// The running parts.
struct App {
    loaded: Loaded,
    /// Keys of the file that only a restart applies.
    restart: Vec<&'static str>,
    path: PathBuf,
    signals: mpsc::Receiver<Request>,
    /// How long the process may take to end, if whoever started it has said so.
    grace: Option<Duration>,
    commands: mpsc::Receiver<admin::Command>,
    live: Live,
    nats: nats::Nats,
    /// The end of the writing to the registry over all pods.
    registry: crate::lifecycle::shutdown::Trigger,
    shards: Shards,
    health: Health,
    progress: watch::Sender<Progress>,
    shown: Arc<Mutex<serde_json::Value>>,
    admin: admin::Admin,
}

/// The parts that a configuration is applied to while event streams are open.
struct Live {
    context: Arc<http::Context>,
    sources: Arc<Sources>,
    budget: Arc<Budget>,
    metrics: Arc<Metrics>,
}

impl App {
    async fn start(
        path: PathBuf,
        loaded: Loaded,
        signals: mpsc::Receiver<Request>,
        grace: Option<Duration>,
    ) -> Result<Self, StartError> {
        let config = &loaded.config;
        let system = |error: &dyn fmt::Display| StartError::System(error.to_string());
        let health = Health::default();
        let metrics = Arc::new(Metrics::new().map_err(|error| system(&error))?);
        let limiter = ConnectionLimiter::new(descriptors::raise());
        descriptors::sample_with(&metrics);
        sockets::sample_with(&metrics);

        // The admin first: probes are answered while everything else is still to come.
        let (progress, drain) = watch::channel(Progress::default());
        let (commanded, commands) = mpsc::channel(16);
        let shown = Arc::new(Mutex::new(reload::shown(&loaded, &[], None)));
        let streams = StreamTable::default();
        let parts = admin::Parts {
            health: health.clone(),
            metrics: metrics.clone(),
            registry: streams.clone(),
            drain,
            config: Box::new({
                let shown = shown.clone();
                move || shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
            }),
            commands: commanded,
        };
        let budget = Budget::new(config.window_bytes_max, config.feeds_max);
        let (loop_lag, load_level) = (LoopLagProbes::default(), SharedLevel::default());
        let load = load::Watched {
            limiter: limiter.clone(),
            budget: budget.clone(),
            loop_lag: loop_lag.clone(),
            sources: Arc::default(),
            metrics: metrics.clone(),
            health: health.clone(),
            level: load_level.clone(),
        };
        let followed = load.sources.clone();
        let admin =
            admin::start(&config.admin, parts, load.watch()).map_err(|error| system(&error))?;

        // Then NATS, which is waited for in the background.
        let identity = nats::Identity::new(&pod());
        let tag = identity.tag();
        let nats = nats::connect(&config.nats, identity, &health, &metrics)
            .await
            .map_err(|error| StartError::Configuration(error.to_string()))?;
        let replays = ReplaySlots::new(config.replays, &metrics);
        let sources = Sources::start(nats.clone(), tag, &budget, replays, &metrics);
        sources.apply(config);
        // Set once, here.
        followed.get_or_init(|| sources.clone());

        let (registering, registered) = crate::lifecycle::shutdown::channel();
        if let Some(bucket) = &config.registry.bucket {
            streams.set_cluster(nats.registry(bucket, config.registry.max_bytes, registered));
        }

        // Clients last: from the first connection on everything that answers it is there.
        let context = http::Context::new(metrics.clone(), streams, limiter, load_level);
        let live = Live {
            context,
            sources,
            budget,
            metrics,
        };
        live.apply(config);
        live.sample();
        let shards = Shards::start(&config.listen, &live.context, &health, &loop_lag).await?;
        if let Some(grace) = grace.filter(|grace| schedule::usable(*grace) < config.drain.timeout) {
            tracing::warn!(?grace, timeout = ?config.drain.timeout, "drain.timeout does not fit into the grace period");
        }
        let restart = Vec::new();
        Ok(Self {
            loaded,
            restart,
            path,
            signals,
            grace,
            commands,
            live,
            nats,
            registry: registering,
            shards,
            health,
            progress,
            shown,
            admin,
        })
    }

    /// Serves until a signal or the command to drain.
    async fn run(mut self) {
        let asked = Arc::new(Notify::new());
        let mut reloads =
            config::reload::Reloads::new(self.path.clone(), &self.loaded, asked.clone());
        let check = self.health.check("config", "not read yet");
        self.log_warnings();
        check.set(self.status());
        let mut pending: Option<(Pending, Outcomes)> = None;
        // Asked for, and not read yet.
        let mut outcomes: Outcomes = Vec::new();
        let cause = loop {
            tokio::select! {
                biased;
                request = self.signals.recv() => match request {
                    Some(Request::Reload) => asked.notify_one(),
                    Some(Request::End) | None => break Cause::Signal,
                },
                command = self.commands.recv() => match command {
                    Some(admin::Command::Reload { outcome }) => {
                        outcomes.push(outcome);
                        asked.notify_one();
                    }
                    Some(admin::Command::Drain { outcome }) => {
                        // Whoever asked may be gone.
                        drop(outcome.send(Ok(())));
                        break Cause::Command;
                    }
                    None => {}
                },
                Some((next, outcomes)) = caught_up(&mut pending, &self.live.sources) => {
                    self.apply(next, &check);
                    answer(outcomes, &Ok(()));
                }
                reload = reloads.next(), if pending.is_none() => {
                    let outcomes = std::mem::take(&mut outcomes);
                    match self.reload(reload, &check) {
                        Step::Answered(result) => answer(outcomes, &result),
                        Step::CatchUp(next) => pending = Some((next, outcomes)),
                    }
                }
            }
        };
        self.end(cause).await;
    }
}

/// Those that asked for the file to be read again.
type Outcomes = Vec<oneshot::Sender<Result<(), String>>>;

fn answer(outcomes: Outcomes, result: &Result<(), String>) {
    for outcome in outcomes {
        // The one that asked may be gone.
        drop(outcome.send(result.clone()));
    }
}

/// The configuration that waits for its streams, when they are caught up with; nothing if none waits.
async fn caught_up(
    pending: &mut Option<(Pending, Outcomes)>,
    sources: &Sources,
) -> Option<(Pending, Outcomes)> {
    let (waiting, _) = pending.as_ref()?;
    waiting.caught_up(sources).await;
    pending.take()
}

impl Live {
    fn apply(&self, config: &config::Config) {
        self.budget
            .set_max(config.window_bytes_max, config.feeds_max);
        let limiter = &self.context.connection_limiter;
        let auto = || descriptors::connections_max(limiter.limit());
        self.context.client_limiter.set(config.http.per_client);
        limiter.set(
            config.http.connections_max.unwrap_or_else(auto),
            config.file_descriptors,
        );
        let find = |source: &http::config::SourceConfig| self.sources.find(source);
        self.context
            .set_routes(Routes::new(config.http.clone(), &find, &self.metrics));
    }

    /// What is counted only when metrics are read.
    fn sample(&self) {
        let sources = self.sources.clone();
        self.metrics
            .sample_with(move |metrics| sources.sample(metrics));
        let streams = self.context.streams.clone();
        self.metrics.sample_with(move |metrics| {
            let bytes = http::memory_bytes(&streams, metrics);
            metrics
                .connections_memory_bytes
                .set(i64::try_from(bytes).unwrap_or(i64::MAX));
        });
    }
}

/// The name under which NATS and logs know this process: the pod's, else the machine's.
fn pod() -> String {
    let named = ["POD_NAME", "HOSTNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|name| !name.is_empty()));
    named
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())
        .map_or_else(|| "sidestream".into(), |name| name.trim().into())
}
