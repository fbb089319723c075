//! Composition root: builds, starts, reloads and stops the parts of the process.
//!
//! [`run`] is the only entry; `cli::run` calls it on the main thread, which becomes the first
//! shard. The order of starting makes every dependency available before something can use it, and
//! the order of stopping is its reverse:
//!
//! ```text
//! start  admin port (probes answer) -> NATS connections -> sources -> presence -> revocations
//!        -> providers -> listeners
//! run    signals, admin commands and reloads, one at a time, in `App::run`
//! end    drain: listeners and event streams -> presence, sources, NATS -> admin port
//! ```
//!
//! | file | job |
//! | --- | --- |
//! | `sources` | streams and core subjects that the routes name |
//! | `shards` | one thread with a runtime and listeners for each core |
//! | `tickets` | store of tickets |
//! | `taps` | routes that the admin page can tap |
//! | `schemas` | JSON Schemas of payloads |
//! | `application_check` | health check of the application |
//! | `load` | load level, measured on the admin thread |
//! | `reload` | a changed configuration; the answer of `/config` |
//! | `shutdown`, `drain` | the end of the process; the drain of its clients |
//!
//! Only this folder knows both the NATS side and the HTTP side.

mod application_check;
mod drain;
mod error;
mod load;
mod parts;
mod reload;
mod resources;
mod schemas;
mod shards;
mod shutdown;
mod sources;
mod stream_ages;
mod taps;
mod tickets;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::config::{self, Loaded};
use crate::feed::Budget;
use crate::feed::replay::ReplaySlots;
use crate::http::application::{Application, ApplicationConfig};
use crate::http::{self, Routes};
use crate::lifecycle::health::Health;
use crate::lifecycle::phase::Progress;
use crate::lifecycle::schedule;
use crate::lifecycle::signals::Request;
use crate::limit::load_level::SharedLevel;
use crate::limit::{ConnectionLimiter, LoopLagProbes, descriptors};
use crate::net::sockets;
use crate::presence::StreamTable;
use crate::telemetry::{Metrics, Tracer};
use crate::{admin, auth, nats};

use application_check::ApplicationCheck;
pub use error::StartError;
use parts::{App, Live};
use reload::{Pending, Step};
use schemas::SchemaReaders;
use shards::Shards;
use shutdown::Cause;
use sources::Sources;
use taps::RouteTaps;
use tickets::TicketStores;

/// Runs the sidecar until a signal ends it, including the drain, which fits into `grace`.
///
/// Blocks; the calling thread becomes the first shard.
///
/// # Errors
/// [`StartError`] if the process cannot start.
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
    // Do not wait for a blocking read of the configuration, for example from a pipe without writer.
    runtime.shutdown_background();
    ended
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

        // The admin port is first: probes are answered while the rest starts.
        let (progress, drain) = watch::channel(Progress::default());
        let (commanded, commands) = mpsc::channel(16);
        let shown = Arc::new(Mutex::new(reload::shown(&loaded, &[], None)));
        let streams = StreamTable::default();
        let taps = RouteTaps::default();
        let parts = admin::Parts {
            pod: pod(),
            health: health.clone(),
            metrics: metrics.clone(),
            streams: streams.clone(),
            drain,
            config: Box::new({
                let shown = shown.clone();
                move || shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
            }),
            token: admin::Token::default(),
            taps: Box::new(taps.clone()),
            commands: commanded,
        };
        let admin_token = parts.token.clone();
        let budget =
            Budget::with_envelope(config.window_bytes_max, config.feeds_max, http::ENVELOPE);
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

        // NATS next; it connects in the background.
        let identity = nats::Identity::new(&pod());
        let tag = identity.tag();
        let tracer = Tracer::new(&metrics);
        let nats = nats::connect(&config.nats, identity, &health, &metrics, &tracer)
            .await
            .map_err(|error| StartError::Configuration(error.to_string()))?;
        let replays = ReplaySlots::new(config.replays, &metrics);
        let sources = Sources::start(nats.clone(), tag, &budget, replays, &metrics);
        // No routes are in force yet.
        drop(sources.apply(config, &Weak::new()));
        // The load monitor starts before NATS and reads the sources once they are set here.
        followed.get_or_init(|| sources.clone());

        let (registering, registered) = crate::lifecycle::shutdown::channel();
        if let Some(bucket) = &config.presence.bucket {
            streams.set_presence(nats.presence(
                bucket,
                config.presence.max_bytes,
                registered.clone(),
            ));
        }

        // Listeners are last: the first connection finds everything that serves it.
        let context = http::Context::new(
            metrics.clone(),
            tracer.clone(),
            streams,
            limiter,
            load_level,
        );
        taps.0.get_or_init(|| context.clone());
        if let Some(bucket) = &config.authentication.revocations.bucket {
            let revocations = Arc::new(auth::Revocations::default());
            context.set_revocations(revocations.clone());
            nats.watch_revocations(bucket, revocations, context.streams.clone(), registered);
        }
        let live = Live {
            context,
            providers: auth::Providers::new(&health, &metrics),
            tickets: TicketStores::new(nats.clone()),
            schemas: SchemaReaders::new(nats.clone(), health.clone()),
            application_check: ApplicationCheck::new(health.clone()),
            sources,
            budget,
            metrics,
            tracer,
            // A token of a file is followed by the admin itself.
            admin_token: config.admin.token_file.is_none().then_some(admin_token),
        };
        live.apply(config);
        live.sample();
        let shards = Shards::start(&config.listen, &live.context, &health, &loop_lag).await?;
        tokio::spawn(stream_ages::watch(live.context.clone(), health.clone()));
        let count = shards.others.len() + 1;
        let (budget, metrics) = (live.budget.clone(), live.metrics.clone());
        tokio::spawn(resources::watch(count, budget, metrics, health.clone()));
        if let Some(grace) = grace.filter(|grace| schedule::usable(*grace) < config.drain.timeout) {
            tracing::warn!(?grace, timeout = ?config.drain.timeout, "drain.timeout exceeds the grace period; the drain will be compressed");
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

    /// Serves until a signal or the drain command.
    async fn run(mut self) {
        let asked = Arc::new(Notify::new());
        let mut reloads =
            config::reload::Reloads::new(self.path.clone(), &self.loaded, asked.clone());
        let check = self.health.check("config", "not read yet");
        self.log_warnings();
        check.set(self.status());
        self.health.complete_start();
        let mut pending: Option<(Pending, Outcomes)> = None;
        // Requests for a reload that is not read yet.
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
                        // The requester may have disconnected.
                        drop(outcome.send(Ok(())));
                        break Cause::Command;
                    }
                    None => {}
                },
                Some((next, outcomes)) = caught_up(&mut pending) => {
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

/// Answers that the requesters of a reload wait for.
type Outcomes = Vec<oneshot::Sender<Result<(), String>>>;

fn answer(outcomes: Outcomes, result: &Result<(), String>) {
    for outcome in outcomes {
        // The requester may have disconnected.
        drop(outcome.send(result.clone()));
    }
}

/// Returns the pending configuration once its streams are caught up; `None` if none is pending.
async fn caught_up(pending: &mut Option<(Pending, Outcomes)>) -> Option<(Pending, Outcomes)> {
    let (waiting, _) = pending.as_ref()?;
    waiting.caught_up().await;
    pending.take()
}

impl Live {
    fn apply(&self, config: &config::Config) {
        self.budget
            .set_max(config.window_bytes_max, config.feeds_max);
        let limiter = &self.context.connection_limiter;
        let auto = || descriptors::connections_max(limiter.limit());
        self.context
            .client_limiter
            .set(config.http.per_client.clone());
        limiter.set(
            config.http.connections_max.unwrap_or_else(auto),
            config.file_descriptors,
        );
        self.apply_admin_token(&config.admin);
        self.tracer.apply(&config.tracing);
        // Providers before the routes that name them.
        self.providers.apply(&config.authentication);
        if let Some(revocations) = self.context.revocations() {
            let when_unavailable = config.authentication.revocations.when_unavailable;
            revocations.set_when_unavailable(when_unavailable);
        }
        let find = |source: &http::config::SourceConfig| self.sources.find(source);
        let find_provider = |name: &str| self.providers.find(name);
        let tickets = self
            .tickets
            .apply(config.http.tickets.as_ref(), &self.metrics);
        let schemas = self.schemas.apply(&config.schemas, &self.metrics);
        let routes = Routes::new(
            config.http.clone(),
            &find,
            &find_provider,
            tickets,
            schemas.as_ref(),
            &self.metrics,
        );
        self.application_check
            .apply(config.http.application.as_ref());
        let application = self.application(config.http.application.as_ref());
        self.context
            .set_routes(routes.with_application(application));
    }

    /// Returns the application with its connections, or a new one if its settings have changed.
    fn application(&self, config: Option<&ApplicationConfig>) -> Option<Arc<Application>> {
        let config = config?;
        let before = self.context.routes().application().cloned();
        let before = before.filter(|application| application.config() == config);
        Some(before.unwrap_or_else(|| Application::new(config.clone(), &self.metrics).into()))
    }

    /// Applies the token of the admin port. A change from or to a file needs a restart; the token in
    /// force stays until then.
    fn apply_admin_token(&self, config: &admin::Config) {
        let token = self.admin_token.as_ref();
        let Some(token) = token.filter(|_| config.token_file.is_none()) else {
            return;
        };
        if let Err(error) = token.set(config.token.as_ref()) {
            tracing::error!(%error, "admin token not changed");
        }
    }

    /// Registers gauges that are computed at each scrape.
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
        let context = self.context.clone();
        self.metrics.sample_with(move |metrics| {
            let bytes = context
                .routes()
                .application()
                .map_or(0, |application| application.cached_bytes());
            metrics
                .application_cache_bytes
                .set(i64::try_from(bytes).unwrap_or(i64::MAX));
        });
    }
}

/// Name of this process in NATS and in logs: the pod name, else the host name.
fn pod() -> String {
    let named = ["POD_NAME", "HOSTNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|name| !name.is_empty()));
    named
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())
        .map_or_else(|| "sidestream".into(), |name| name.trim().into())
}
