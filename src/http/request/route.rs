//! Routes: a path, the sources behind it, and everything that is the same for all its event streams.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, LazyLock};

use hyper::header::HeaderValue;
use prometheus::core::{AtomicU64, GenericCounter};
use prometheus::{Histogram, IntCounter, IntGauge};

use super::cors;
use super::rejection::Rejection;
use super::request::Request;
use crate::feed::{FeedOptions, Gap, GapReason, Source};
use crate::http::config::{Config, RouteConfig, SourceConfig};
use crate::net::AddressText;
use crate::presence::{CloseReason, Protocol};
use crate::sse::Tier;
use crate::subject::template::Unfilled;
use crate::subject::{Filter, FilterSet, SubjectTemplate};
use crate::telemetry::Metrics;

/// All routes, in the order of the configuration. Replaced as a whole by a reload; open event streams keep theirs.
#[derive(Debug, Default)]
pub struct Routes {
    pub(in crate::http) config: Config,
    pub(in crate::http) routes: Vec<Arc<Route>>,
}

/// One route.
#[derive(Debug)]
pub(in crate::http) struct Route {
    pub(in crate::http) config: RouteConfig,
    pub(in crate::http) label: Arc<str>,
    pub(in crate::http) profile: Arc<FeedOptions>,
    /// A hash of the profile, equal again after a reload that leaves it as it was.
    profile_hash: u64,
    pub(in crate::http) sources: Vec<RouteSource>,
    pub(in crate::http) metrics: RouteMetrics,
    /// The request headers that a preflight allows.
    pub(in crate::http) cors_headers: HeaderValue,
}

/// One source of a route, and what a request may ask of it. The configuration names each source once.
#[derive(Debug)]
pub(in crate::http) struct RouteSource {
    pub(in crate::http) source: Source,
    /// Name of the stream, or `core`: the `source` field of logs.
    pub(in crate::http) label: Box<str>,
    subjects: Vec<SubjectTemplate>,
    allow: Vec<Filter>,
}

/// A route's metrics, their labels resolved.
#[derive(Debug)]
pub(in crate::http) struct RouteMetrics {
    pub(in crate::http) events: GenericCounter<AtomicU64>,
    pub(in crate::http) bytes: GenericCounter<AtomicU64>,
    pub(in crate::http) delivery: Histogram,
    streams: [IntGauge; 3],
    opened: [IntCounter; 3],
    closed: [IntCounter; CloseReason::ALL.len()],
    gaps: [IntCounter; GapReason::ALL.len()],
    missed_events: [IntCounter; GapReason::ALL.len()],
    shed_events: [IntCounter; Tier::ALL.len()],
}

/// Finds the source that a route's configuration names.
pub type FindSource<'a> = &'a dyn Fn(&SourceConfig) -> Source;

/// A route, and the raw values of its path's variables by name.
pub(in crate::http) type Found<'p> = (&'p Arc<Route>, Vec<(&'p str, &'p str)>);

/// The key of this process for hashes of sets of filters: nothing that clients send makes two of them equal.
static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl Routes {
    /// Builds the routes of a configuration.
    #[must_use]
    pub fn new(config: Config, find: FindSource<'_>, metrics: &Metrics) -> Self {
        let routes = config
            .routes
            .iter()
            .map(|route| Arc::new(Route::new(route.clone(), find, metrics)))
            .collect();
        Self { config, routes }
    }

    /// The first route whose path fits, and the values in the path.
    pub(in crate::http) fn find<'p>(&'p self, path: &'p str) -> Option<Found<'p>> {
        self.routes
            .iter()
            .find_map(|route| Some((route, route.config.path.matches(path)?)))
    }
}

impl Route {
    fn new(config: RouteConfig, find: FindSource<'_>, metrics: &Metrics) -> Self {
        let label: Arc<str> = config.path.as_str().into();
        let sources = config.sources.iter().map(|source| RouteSource {
            source: find(source),
            label: source.stream.as_deref().unwrap_or("core").into(),
            subjects: source.subjects.clone(),
            allow: source.allow.clone(),
        });
        let sources = sources.collect();
        let (event, priority) = (config.event.clone(), config.priority.clone());
        let profile = FeedOptions {
            event,
            priority,
            window: config.window,
        };
        let metrics = RouteMetrics::new(&label, metrics);
        let cors_headers = cors::request_headers(config.variables());
        let profile_hash = KEY.hash_one(&profile);
        Self {
            profile: profile.into(),
            profile_hash,
            sources,
            metrics,
            label,
            cors_headers,
            config,
        }
    }

    /// Whether another pod knows the positions of one of its sources.
    pub(in crate::http) fn is_resumable_elsewhere(&self) -> bool {
        self.sources
            .iter()
            .any(|source| !matches!(source.source, Source::Core(_)))
    }

    /// What a request asks of each source.
    pub(in crate::http) fn filters(
        &self,
        request: &Request<'_>,
        most: usize,
    ) -> Result<Vec<FilterSet>, Rejection> {
        let mut sets = Vec::with_capacity(self.sources.len());
        let mut count = 0;
        for source in &self.sources {
            let mut all = Vec::new();
            for template in &source.subjects {
                all.extend(template.fill(request, &source.allow).map_err(refuse)?);
            }
            count += all.len();
            sets.push(FilterSet::new(all));
        }
        if count > most.max(self.sources.len()) {
            return Err(Rejection::TooManySubjects);
        }
        Ok(sets)
    }

    /// A hash for each feed that these filters, one set for each source, are read from.
    pub(in crate::http) fn feeds(&self, filters: &[FilterSet]) -> impl Iterator<Item = u64> {
        self.sources.iter().zip(filters).map(|(source, filters)| {
            KEY.hash_one((source.source.address(), self.profile_hash, filters))
        })
    }

    /// Who the client of a request is: for limits, the registry and the log; and whether the route's `client` says so.
    pub(in crate::http) fn client(&self, request: &Request<'_>) -> (Box<str>, bool) {
        let named = self
            .config
            .client
            .as_ref()
            .and_then(|template| template.fill(request));
        // One that is cut is not told from others that begin like it.
        let is_named = named.as_ref().is_some_and(|name| name.len() <= 256);
        let Some(mut name) = named else {
            return (Box::from(&*AddressText::from(request.remote)), false);
        };
        // 256: what is told in logs and the registry stays small whatever the client says.
        if name.len() > 256 {
            let cut = (0..=256)
                .rev()
                .find(|cut| name.is_char_boundary(*cut))
                .unwrap_or(0);
            name.truncate(cut);
        }
        (name.into(), is_named)
    }
}

fn refuse(unfilled: Unfilled) -> Rejection {
    match unfilled {
        Unfilled::Missing(variable) | Unfilled::Token(variable) => {
            Rejection::Variable(variable.to_string())
        }
        Unfilled::Filter(invalid) => Rejection::Subject(invalid.explain()),
        Unfilled::NotAllowed(filter) => Rejection::NotAllowed(filter.to_string()),
    }
}

impl RouteMetrics {
    fn new(route: &str, metrics: &Metrics) -> Self {
        let protocols = [Protocol::Http10, Protocol::Http11, Protocol::H2];
        Self {
            events: metrics.events_delivered_total.with_label_values(&[route]),
            bytes: metrics.bytes_sent_total.with_label_values(&[route]),
            delivery: metrics.delivery_seconds.with_label_values(&[route]),
            streams: protocols.map(|protocol| {
                metrics
                    .streams
                    .with_label_values(&[route, protocol.as_str()])
            }),
            opened: protocols.map(|protocol| {
                metrics
                    .streams_opened_total
                    .with_label_values(&[route, protocol.as_str()])
            }),
            closed: CloseReason::ALL.map(|close| {
                metrics
                    .streams_closed_total
                    .with_label_values(&[route, close.label()])
            }),
            gaps: GapReason::ALL.map(|reason| {
                metrics
                    .gaps_total
                    .with_label_values(&[route, reason.as_str()])
            }),
            missed_events: GapReason::ALL.map(|reason| {
                metrics
                    .missed_events_total
                    .with_label_values(&[route, reason.as_str()])
            }),
            shed_events: Tier::ALL.map(|tier| {
                metrics
                    .shed_events_total
                    .with_label_values(&[route, tier.as_str()])
            }),
        }
    }

    pub(in crate::http) fn opened(&self, protocol: Protocol) {
        self.streams[protocol as usize].inc();
        self.opened[protocol as usize].inc();
    }

    pub(in crate::http) fn closed(&self, protocol: Protocol, close: CloseReason) {
        self.streams[protocol as usize].dec();
        self.closed[close as usize].inc();
    }

    /// Counts a gap that the client receives, and the events in it if their number is known.
    pub(in crate::http) fn gap(&self, gap: Gap) {
        let reason = gap.reason as usize;
        self.gaps[reason].inc();
        if let Some(missed) = gap.missed {
            self.missed_events[reason].inc_by(missed);
        }
    }

    /// Counts events of a tier that were skipped.
    pub(in crate::http) fn shed(&self, tier: Tier, events: u64) {
        self.shed_events[tier as usize].inc_by(events);
    }
}
