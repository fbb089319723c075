//! Sources of all routes: the JetStream streams with their filters, and core subjects.
//!
//! [`Sources::apply`] compares the configuration with what is followed. A stream is followed once
//! for the whole pod, with the union of the filters of all routes and the largest of their windows:
//!
//! ```text
//! delivery: shared     StreamBuffer    <- one tailer with one consumer
//! delivery: republish  RepublishSource <- subscriptions on demand
//! no stream            CoreSource      <- subscriptions on demand, one source for the process
//! ```
//!
//! If filters, identity or delivery of a stream change, a new source replaces the old one. The
//! routes in force name the old one until the new one is caught up, so it keeps serving: the sweep
//! stops it when these routes are dropped and its last feed is gone. The only lock is `state`; the
//! locks inside the sources may be acquired while it is held, none other.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::event::SourceTag;
use crate::feed::buffer::ArchiveAccess;
use crate::feed::replay::ReplaySlots;
use crate::feed::{self, Budget, Limits, Source};
use crate::http::Routes;
use crate::http::config::{Delivery, SourceConfig};
use crate::lifecycle::shutdown::{self, Token, Trigger};
use crate::nats::{Nats, StreamConfig};
use crate::subject::{BucketName, Filter, FilterSet};
use crate::telemetry::Metrics;

/// All sources of the process.
pub(super) struct Sources {
    nats: Nats,
    budget: Arc<Budget>,
    replays: Arc<ReplaySlots>,
    core: Arc<dyn Source>,
    state: Mutex<State>,
}

struct State {
    followed: HashMap<String, Followed>,
    /// Sources that a reload has replaced, while a request or an event stream may use them.
    retired: Vec<Retired>,
    /// Stops the subscriptions to core subjects; `None` once they are stopped.
    core: Option<Trigger>,
}

struct Followed {
    wanted: Wanted,
    source: Arc<dyn Source>,
    stop: Trigger,
}

/// Source that a reload has replaced.
struct Retired {
    followed: Followed,
    /// Routes that name it. They live while they are in force, and while a request that found them
    /// is not answered.
    routes: Weak<Routes>,
}

/// Sources that one configuration has added or replaced.
#[must_use]
pub(super) struct NewSources(Vec<Arc<dyn Source>>);

/// Requirements of all routes on one stream.
#[derive(Clone)]
struct Wanted {
    bucket: Option<BucketName>,
    identity: Option<String>,
    delivery: Delivery,
    filters: FilterSet,
    limits: Limits,
}

/// 1 s: interval of eviction by age, and of the check for unused retired sources.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

impl Sources {
    /// Starts the subscriptions to core subjects and the sweep.
    pub(super) fn start(
        nats: Nats,
        tag: SourceTag,
        budget: &Arc<Budget>,
        replays: Arc<ReplaySlots>,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let (core, writer) = feed::core_source::channel(tag, budget);
        let (signal, watch) = shutdown::channel();
        nats.serve_core(writer, watch);
        metrics.feeds.with_label_values(&[core.name()]).set(0);
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

    /// Follows the streams of a configuration. If filters or identity of a stream change, a new
    /// source replaces the old one, which keeps serving the routes `in_force` and the event streams
    /// that read it. Returns the new sources.
    pub(super) fn apply(&self, config: &Config, in_force: &Weak<Routes>) -> NewSources {
        let wanted = wanted(config);
        let mut state = self.lock();
        let State {
            followed, retired, ..
        } = &mut *state;
        let mut replaced: Vec<Followed> = Vec::new();
        let mut added = Vec::new();
        for (stream, wanted) in &wanted {
            if let Some(known) = followed
                .get_mut(stream)
                .filter(|known| known.wanted.is_followed_as(wanted))
            {
                if known.wanted.limits != wanted.limits {
                    known.wanted.limits = wanted.limits;
                    known.source.set_limits(wanted.limits);
                }
                continue;
            }
            let new = self.follow(stream, wanted.clone());
            added.push(new.source.clone());
            replaced.extend(followed.insert(stream.clone(), new));
        }
        let gone: Vec<String> = followed
            .keys()
            .filter(|stream| !wanted.contains_key(*stream))
            .cloned()
            .collect();
        for stream in gone {
            self.nats.retire_check(&stream);
            replaced.extend(followed.remove(&stream));
        }
        retired.extend(replaced.into_iter().map(|followed| Retired {
            followed,
            routes: in_force.clone(),
        }));
        NewSources(added)
    }

    fn follow(&self, stream: &str, wanted: Wanted) -> Followed {
        let Wanted {
            bucket,
            identity,
            filters,
            limits,
            delivery,
        } = wanted.clone();
        let followed = StreamConfig {
            name: stream.to_owned(),
            bucket,
            filters,
            identity,
            window: limits,
        };
        let past = ArchiveAccess {
            archive: self.nats.archive(&followed),
            reach: followed.filters.clone(),
            replays: self.replays.clone(),
        };
        let (stop, stopped) = shutdown::channel();
        let source: Arc<dyn Source> = match delivery {
            Delivery::Shared => {
                let (writer, log) =
                    feed::buffer::writer::channel(stream, limits, &self.budget, Some(past));
                spawn_until(log.replays(), stopped.clone());
                self.nats.tail(followed, writer, stopped);
                log
            }
            Delivery::Republish => {
                let (republish, requests) =
                    feed::republish_source::channel(stream, &self.budget, past);
                spawn_until(republish.replays(), stopped.clone());
                self.nats
                    .serve_republished(followed, republish.clone(), requests, stopped);
                republish
            }
        };
        Followed {
            wanted,
            source,
            stop,
        }
    }

    /// Returns the source of a route.
    pub(super) fn find(&self, source: &SourceConfig) -> Arc<dyn Source> {
        let state = self.lock();
        let followed = source
            .stream
            .as_ref()
            .and_then(|stream| state.followed.get(stream));
        followed
            .map_or(&self.core, |followed| &followed.source)
            .clone()
    }

    /// Messages that JetStream has ready and this pod has not received.
    pub(super) fn pending(&self) -> u64 {
        self.lock()
            .followed
            .values()
            .map(|followed| followed.source.pending())
            .sum()
    }

    /// Stops every consumer and subscription; returns when NATS has confirmed.
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
                .chain(retired.drain(..).map(|retired| retired.followed));
            followed
                .map(|followed| followed.stop)
                .chain(core.take())
                .collect()
        };
        futures_util::future::join_all(stops.into_iter().map(Trigger::shut_down)).await;
    }

    /// Updates the gauges of windows and feeds.
    pub(super) fn sample(&self, metrics: &Metrics) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let mut sources = vec![self.core.clone()];
        sources.extend(
            self.lock()
                .followed
                .values()
                .map(|followed| followed.source.clone()),
        );
        for source in sources {
            let (label, size) = ([source.name()], source.size());
            metrics
                .window_events
                .with_label_values(&label)
                .set(gauge(size.events));
            metrics
                .window_bytes
                .with_label_values(&label)
                .set(gauge(size.bytes));
            metrics
                .feeds
                .with_label_values(&label)
                .set(gauge(size.feeds));
        }
    }

    fn sweep(&self, now: Instant) {
        self.core.sweep(now);
        let mut state = self.lock();
        let State {
            followed, retired, ..
        } = &mut *state;
        let replaced = retired.iter().map(|retired| &retired.followed);
        for followed in followed.values().chain(replaced) {
            followed.source.sweep(now);
        }
        for unused in retired.extract_if(.., |retired| retired.is_unused()) {
            tokio::spawn(unused.followed.stop.shut_down());
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

/// Runs the task until the shutdown is requested.
fn spawn_until(task: impl Future<Output = ()> + Send + 'static, mut ended: Token) {
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = ended.requested() => {}
            () = task => {}
        }
    });
}

impl NewSources {
    /// Returns when all are caught up, or after `most`. Cancel safe.
    pub(super) async fn caught_up(&self, most: Duration) {
        let ready = async {
            while self.0.iter().any(|source| !source.is_ready()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // Requests to streams that are not caught up get the rejection of a starting process.
        drop(tokio::time::timeout(most, ready).await);
    }
}

impl Retired {
    /// Returns whether no event stream reads the source and no request can open it.
    fn is_unused(&self) -> bool {
        // The routes first: once they are dropped, no feed can be added.
        self.routes.strong_count() == 0 && self.followed.source.size().feeds == 0
    }
}

impl Wanted {
    /// True if one source serves both; the limits may differ.
    fn is_followed_as(&self, other: &Self) -> bool {
        self.bucket == other.bucket
            && self.identity == other.identity
            && self.delivery == other.delivery
            && self.filters == other.filters
    }
}

/// Requirements per stream: the union of all filters and the largest window of its routes.
fn wanted(config: &Config) -> HashMap<String, Wanted> {
    // Collect all filters of a stream before building its set: adding them route by route is
    // quadratic.
    let mut reach: HashMap<&str, HashSet<Filter>> = HashMap::new();
    let mut wanted: HashMap<String, Wanted> = HashMap::new();
    for route in config.http.all_routes() {
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
                // The configuration check ensures that all routes agree on the rest.
                .or_insert_with(|| Wanted {
                    bucket: source.bucket.clone(),
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
