//! The sources that the routes name: which streams are followed with which filters, and the core subjects.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::feed::buffer::History;
use crate::feed::replay::ReplaySlots;
use crate::feed::{self, Budget, CoreSource, Limits, RepublishSource, Source, StreamBuffer};
use crate::http::config::{Delivery, SourceConfig};
use crate::lifecycle::shutdown::{self, Token, Trigger};
use crate::nats::{Nats, StreamConfig};
use crate::sse::SourceTag;
use crate::subject::{Filter, FilterSet};
use crate::telemetry::Metrics;

/// Everything that events come from.
pub(super) struct Sources {
    nats: Nats,
    budget: Arc<Budget>,
    replays: Arc<ReplaySlots>,
    core: Arc<CoreSource>,
    state: Mutex<State>,
}

struct State {
    followed: HashMap<String, Followed>,
    /// Followed in a way that a reload has changed, as long as event streams read them.
    retired: Vec<Followed>,
    /// Ends the subscriptions to core subjects; none when they have been told to end.
    core: Option<Trigger>,
}

struct Followed {
    wanted: Wanted,
    reader: Reader,
    stop: Trigger,
}

/// What cursors of a stream come from.
#[derive(Clone)]
enum Reader {
    Shared(Arc<StreamBuffer>),
    RepublishSource(Arc<RepublishSource>),
}

/// What all routes together want of a stream.
#[derive(Clone)]
struct Wanted {
    identity: Option<String>,
    delivery: Delivery,
    filters: FilterSet,
    limits: Limits,
}

/// The `source` label of core subjects.
const CORE: &str = "core";

/// 1 s: how often what is too old leaves memory, and retired logs are looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

impl Sources {
    /// Begins to serve core subjects, and to sweep.
    pub(super) fn start(
        nats: Nats,
        tag: SourceTag,
        budget: &Arc<Budget>,
        replays: Arc<ReplaySlots>,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let (core, writer) = feed::core_source::channel(tag, budget);
        let (signal, watch) = shutdown::channel();
        nats.serve(writer, watch);
        metrics.feeds.with_label_values(&[CORE]).set(0);
        let state = State {
            followed: HashMap::new(),
            retired: Vec::new(),
            core: Some(signal),
        };
        let sources = Arc::new(Self {
            nats,
            budget: budget.clone(),
            replays,
            core,
            state: Mutex::new(state),
        });
        tokio::spawn(sweep(Arc::downgrade(&sources)));
        sources
    }

    /// Follows what a configuration names. A stream whose filters or identity change is followed anew; event streams
    /// that read the old way keep it until they end.
    pub(super) fn apply(&self, config: &Config) {
        let wanted = wanted(config);
        let mut state = self.lock();
        let State {
            followed, retired, ..
        } = &mut *state;
        for (stream, wanted) in &wanted {
            if let Some(known) = followed
                .get_mut(stream)
                .filter(|known| known.wanted.is_followed_as(wanted))
            {
                if known.wanted.limits != wanted.limits {
                    known.wanted.limits = wanted.limits;
                    known.reader.set_limits(wanted.limits);
                }
                continue;
            }
            let new = self.follow(stream, wanted.clone());
            retired.extend(followed.insert(stream.clone(), new));
        }
        let gone: Vec<String> = followed
            .keys()
            .filter(|stream| !wanted.contains_key(*stream))
            .cloned()
            .collect();
        retired.extend(gone.iter().filter_map(|stream| followed.remove(stream)));
    }

    fn follow(&self, stream: &str, wanted: Wanted) -> Followed {
        let Wanted {
            identity,
            filters,
            limits,
            delivery,
        } = wanted.clone();
        let archive = self.nats.archive(stream, identity.as_deref(), &filters);
        let past = History {
            archive,
            reach: filters.clone(),
            replays: self.replays.clone(),
        };
        let followed = StreamConfig {
            name: stream.to_owned(),
            filters,
            identity,
            window: limits,
        };
        let (stop, stopped) = shutdown::channel();
        let reader = match delivery {
            Delivery::Shared => {
                let (writer, log) = feed::buffer::channel(stream, limits, &self.budget, Some(past));
                spawn_until(log.replays(), stopped.clone());
                self.nats.tail(followed, writer, stopped);
                Reader::Shared(log)
            }
            Delivery::Republish => {
                let (source, demands) = feed::republish_source::channel(stream, &self.budget, past);
                spawn_until(source.replays(), stopped.clone());
                self.nats
                    .serve_republished(followed, source.clone(), demands, stopped);
                Reader::RepublishSource(source)
            }
        };
        Followed {
            wanted,
            reader,
            stop,
        }
    }

    /// The source of a route.
    pub(super) fn find(&self, source: &SourceConfig) -> Source {
        let state = self.lock();
        let followed = source
            .stream
            .as_ref()
            .and_then(|stream| state.followed.get(stream));
        followed.map_or_else(
            || Source::Core(self.core.clone()),
            |followed| followed.reader.source(),
        )
    }

    /// Returns when every stream that is followed has been caught up with, or after `most`.
    pub(super) async fn caught_up(&self, most: Duration) {
        let ready = async {
            while self
                .lock()
                .followed
                .values()
                .any(|followed| !followed.reader.is_ready())
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // Whatever is not caught up with in time is refused as at the start of the process.
        drop(tokio::time::timeout(most, ready).await);
    }

    /// Messages that JetStream has ready and this pod has not taken.
    pub(super) fn pending(&self) -> u64 {
        self.lock()
            .followed
            .values()
            .map(|followed| followed.reader.pending())
            .sum()
    }

    /// Ends every consumer and every subscription; returns when NATS has been told of all of them.
    pub(super) async fn stop(&self) {
        let stops: Vec<Trigger> = {
            let mut state = self.lock();
            let State {
                followed,
                retired,
                core,
            } = &mut *state;
            let followed = followed
                .drain()
                .map(|(_, followed)| followed)
                .chain(retired.drain(..));
            followed
                .map(|followed| followed.stop)
                .chain(core.take())
                .collect()
        };
        futures_util::future::join_all(stops.into_iter().map(Trigger::shut_down)).await;
    }

    /// Brings the gauges of windows and feeds up to date.
    pub(super) fn sample(&self, metrics: &Metrics) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let set = |source: &str, (events, bytes, feeds): (usize, usize, usize)| {
            metrics
                .window_events
                .with_label_values(&[source])
                .set(gauge(events));
            metrics
                .window_bytes
                .with_label_values(&[source])
                .set(gauge(bytes));
            metrics.feeds.with_label_values(&[source]).set(gauge(feeds));
        };
        set(CORE, self.core.size());
        let readers: Vec<Reader> = self
            .lock()
            .followed
            .values()
            .map(|followed| followed.reader.clone())
            .collect();
        for reader in readers {
            set(reader.name(), reader.size());
        }
    }

    fn sweep(&self, now: Instant) {
        self.core.sweep(now);
        let mut state = self.lock();
        let State {
            followed, retired, ..
        } = &mut *state;
        for followed in followed.values().chain(&*retired) {
            followed.reader.sweep(now);
        }
        for done in retired.extract_if(.., |followed| followed.reader.size().2 == 0) {
            tokio::spawn(done.stop.shut_down());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sweep(sources: Weak<Sources>) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    loop {
        ticks.tick().await;
        let Some(sources) = sources.upgrade() else {
            return;
        };
        sources.sweep(Instant::now());
    }
}

/// Runs until the other end of the watch signals.
fn spawn_until(task: impl Future<Output = ()> + Send + 'static, mut ended: Token) {
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = ended.requested() => {}
            () = task => {}
        }
    });
}

impl Reader {
    fn name(&self) -> &Arc<str> {
        match self {
            Self::Shared(log) => log.name(),
            Self::RepublishSource(source) => source.name(),
        }
    }

    fn source(&self) -> Source {
        match self {
            Self::Shared(log) => Source::JetStream(log.clone()),
            Self::RepublishSource(source) => Source::Republish(source.clone()),
        }
    }

    fn is_ready(&self) -> bool {
        match self {
            Self::Shared(log) => log.is_ready(),
            Self::RepublishSource(source) => source.tag().is_some(),
        }
    }

    /// Messages that JetStream has ready for it; what is republished is sent without being asked for.
    fn pending(&self) -> u64 {
        match self {
            Self::Shared(log) => log.pending(),
            Self::RepublishSource(_) => 0,
        }
    }

    /// How much all routes together keep: of a stream on demand each feed has its own window.
    fn set_limits(&self, limits: Limits) {
        match self {
            Self::Shared(log) => log.set_limits(limits),
            Self::RepublishSource(_) => {}
        }
    }

    fn sweep(&self, now: Instant) {
        match self {
            Self::Shared(log) => log.sweep(now),
            Self::RepublishSource(source) => source.sweep(now),
        }
    }

    fn size(&self) -> (usize, usize, usize) {
        match self {
            Self::Shared(log) => log.size(),
            Self::RepublishSource(source) => source.size(),
        }
    }
}

impl Wanted {
    /// Whether one tailer serves both: their limits may differ.
    fn is_followed_as(&self, other: &Self) -> bool {
        self.identity == other.identity
            && self.delivery == other.delivery
            && self.filters == other.filters
    }
}

/// Every stream that a route names, with all that any route can ask of it and the largest of their windows.
fn wanted(config: &Config) -> HashMap<String, Wanted> {
    // All filters of a stream first, and each once: to add them to a set route by route takes the square of their number.
    let mut reach: HashMap<&str, HashSet<Filter>> = HashMap::new();
    let mut wanted: HashMap<String, Wanted> = HashMap::new();
    for route in &config.http.routes {
        for source in &route.sources {
            let Some(stream) = &source.stream else {
                continue;
            };
            reach.entry(stream).or_default().extend(source.reach());
            wanted
                .entry(stream.clone())
                .and_modify(|Wanted { limits, .. }| {
                    limits.events = limits.events.max(route.window.events);
                    limits.bytes = limits.bytes.max(route.window.bytes);
                    limits.age = limits.age.max(route.window.age);
                })
                // Identity and delivery are the same in every route: the configuration was checked.
                .or_insert_with(|| Wanted {
                    identity: source.identity.clone(),
                    delivery: source.delivery,
                    filters: FilterSet::new([]),
                    limits: route.window,
                });
        }
    }
    for (stream, filters) in reach {
        if let Some(wanted) = wanted.get_mut(stream) {
            wanted.filters = FilterSet::new(filters);
        }
    }
    wanted
}
