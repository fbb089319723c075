//! Routes: a path, its sources, and everything that all event streams of the route share.
//!
//! [`Routes`] is built from the configuration and replaced as a whole by a reload (`Context` holds
//! it in an `ArcSwap`). Open event streams keep the [`Route`] with which they were opened. A route
//! resolves its metric labels once, so that no event looks up a label.
//!
//! `request::resolve` computes what a request reads of a route: filters and client.

mod form;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use prometheus::core::{AtomicU64, GenericCounter};
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

use super::application::client::Application;
use super::request::cors;
use super::stream_options::{NamedOptions, StreamOptions};
use super::ticket_endpoint::TicketEndpoint;
use crate::auth::{Provider, Tickets};
use crate::encoding::{Coding, Framing};
use crate::event::{Tier, Version};
use crate::feed::{Compression, FeedOptions, Gap, GapReason, Source, feed_map};
use crate::http::config::{Config, RouteConfig, SourceConfig, SubscribeConfig};
use crate::payload::schema::{RouteSchemas, Schemas};
use crate::payload::{
    CloudEventCounters, ConversionCounters, Converter, PayloadFormat, VersionConverter, Versions,
};
use crate::presence::{CloseReason, Protocol};
use crate::subject::{Allow, Filter, FilterSet, SubjectTemplate};
use crate::telemetry::Metrics;
use crate::telemetry::exemplars::Exemplars;
use crate::telemetry::trace::samples;

/// All routes, in the order of the configuration.
#[derive(Debug, Default)]
pub struct Routes {
    pub(in crate::http) config: Config,
    pub(in crate::http) routes: Vec<Arc<Route>>,
    /// `None`: there are no tickets.
    pub(in crate::http) tickets: Option<TicketEndpoint>,
    /// Receives the requests for other paths.
    pub(in crate::http) application: Option<Arc<Application>>,
    /// Event streams that it may ask for.
    pub(in crate::http) subscribe: Option<SubscribeRoutes>,
}

/// Routes of the event streams that the application asks for: one for each set of sources, because
/// an event stream reads every source of its route. All have the same metrics and options.
#[derive(Debug)]
pub(in crate::http) struct SubscribeRoutes {
    /// Header of the application's response with the subjects.
    pub(in crate::http) header: HeaderName,
    /// By the set of sources: bit N is source N. The first, without a source, is not used; the last
    /// has all sources.
    by_sources: Vec<Arc<Route>>,
}

/// One route.
#[derive(Debug)]
pub(in crate::http) struct Route {
    pub(in crate::http) config: RouteConfig,
    pub(in crate::http) label: Arc<str>,
    /// By framing, whether the route offers it or not.
    options: FramingOptions,
    /// The same, by version of the payloads that the route supports.
    version_options: Vec<(Version, FramingOptions)>,
    /// Options with claims in the name of events, if `event` has some.
    pub(in crate::http) named_options: NamedOptions,
    pub(in crate::http) sources: Vec<RouteSource>,
    /// Providers of the route's `authenticate`, in this order.
    pub(in crate::http) providers: Vec<Arc<dyn Provider>>,
    pub(in crate::http) metrics: RouteMetrics,
    /// Request headers that a CORS preflight allows.
    pub(in crate::http) cors_headers: HeaderValue,
}

/// Options by framing, and by content coding if the route compresses it.
#[derive(Clone, Debug)]
struct FramingOptions {
    plain: [StreamOptions; Framing::ALL.len()],
    coded: Vec<(Framing, Coding, StreamOptions)>,
}

/// One source of a route and the subjects that a request may read of it.
#[derive(Clone, Debug)]
pub(in crate::http) struct RouteSource {
    pub(in crate::http) source: Arc<dyn Source>,
    pub(in crate::http) subjects: Vec<SubjectTemplate>,
    pub(in crate::http) allow: Allow,
}

/// Metrics of a route with their labels resolved.
#[derive(Clone, Debug)]
pub(in crate::http) struct RouteMetrics {
    /// Bytes before and after the compression, by coding.
    compressed: [CompressionMetrics; Coding::ALL.len()],
    /// By framing.
    sent: [SentMetrics; Framing::ALL.len()],
    pub(in crate::http) delivery: Histogram,
    /// Of `delivery`.
    exemplars: Arc<Exemplars>,
    /// By protocol and framing, as `opened`.
    streams: [[IntGauge; Framing::ALL.len()]; 3],
    opened: [[IntCounter; Framing::ALL.len()]; 3],
    /// Open event streams by version.
    versions: Box<[(Version, IntGauge)]>,
    route: Arc<str>,
    /// With the labels of all routes: an end looks up its series.
    closed: IntCounterVec,
    /// In the order of each label's `ALL`, as the arrays below.
    gaps: [IntCounter; GapReason::ALL.len()],
    missed_events: [IntCounter; GapReason::ALL.len()],
    shed_events: [IntCounter; Tier::ALL.len()],
    /// Requests of clients that have everything.
    pub(in crate::http) finished: IntCounter,
}

/// Counters of what the clients of one route and framing have received.
#[derive(Clone, Debug)]
pub(in crate::http) struct SentMetrics {
    pub(in crate::http) events: GenericCounter<AtomicU64>,
    pub(in crate::http) bytes: GenericCounter<AtomicU64>,
}

/// Counters of the event streams with one content coding.
#[derive(Clone, Debug)]
struct CompressionMetrics {
    plain: GenericCounter<AtomicU64>,
    sent: GenericCounter<AtomicU64>,
}

/// Function that returns the source of a route's configuration.
pub type FindSource<'a> = &'a dyn Fn(&SourceConfig) -> Arc<dyn Source>;

/// Function that returns the authentication provider of a name.
pub type FindProvider<'a> = &'a dyn Fn(&str) -> Option<Arc<dyn Provider>>;

/// Route that matches the path of a request.
pub(in crate::http) struct RouteMatch<'p> {
    pub(in crate::http) route: &'p Arc<Route>,
    /// Names of the path's variables with their raw (percent-encoded) values.
    pub(in crate::http) variables: Vec<(&'p str, &'p str)>,
}

impl Routes {
    /// Builds the routes of a configuration. `tickets` belongs to its `tickets`.
    #[must_use]
    pub fn new(
        config: Config,
        find: FindSource<'_>,
        find_provider: FindProvider<'_>,
        tickets: Option<Arc<Tickets>>,
        schemas: Option<&Arc<Schemas>>,
        metrics: &Metrics,
    ) -> Self {
        let new = |route: &RouteConfig| {
            let route = route.clone();
            Arc::new(Route::new(route, find, find_provider, schemas, metrics))
        };
        let routes = config.routes.iter().map(new).collect();
        let tickets = config.tickets.clone().zip(tickets);
        let tickets = tickets.map(|(config, tickets)| {
            // The configuration check ensures that all exist.
            let names = config.authenticate.iter();
            let providers = names.filter_map(|name| find_provider(name)).collect();
            TicketEndpoint::new(config, tickets, providers)
        });
        let subscribe = config
            .subscribe
            .as_ref()
            .map(|subscribe| SubscribeRoutes::new(subscribe, find, schemas, metrics));
        Self {
            config,
            routes,
            tickets,
            application: None,
            subscribe,
        }
    }

    /// Returns the tickets if this is the path at which clients buy them.
    pub(in crate::http) fn tickets_at(&self, path: &str) -> Option<&TicketEndpoint> {
        self.tickets
            .as_ref()
            .filter(|endpoint| endpoint.config.path.as_str() == path)
    }

    /// Returns the application that receives the requests for other paths.
    #[must_use]
    pub fn application(&self) -> Option<&Arc<Application>> {
        self.application.as_ref()
    }

    /// Returns whether clients may open WebSockets over HTTP/2 (RFC 8441). Not with an application,
    /// which is reached over HTTP/1.1: a browser would open those of the application in the same way.
    pub(in crate::http) fn has_websocket_over_http2(&self) -> bool {
        let offers = |route: &Arc<Route>| route.config.framings.contains(&Framing::WebSocket);
        self.application.is_none() && self.routes.iter().any(offers)
    }

    /// Adds the application that receives the requests for other paths.
    #[must_use]
    pub fn with_application(self, application: Option<Arc<Application>>) -> Self {
        Self {
            application,
            ..self
        }
    }

    /// Returns the first route that matches the path.
    pub(in crate::http) fn find<'p>(&'p self, path: &'p str) -> Option<RouteMatch<'p>> {
        self.routes.iter().find_map(|route| {
            let variables = route.config.path.matches(path)?;
            Some(RouteMatch { route, variables })
        })
    }
}

impl SubscribeRoutes {
    fn new(
        config: &SubscribeConfig,
        find: FindSource<'_>,
        schemas: Option<&Arc<Schemas>>,
        metrics: &Metrics,
    ) -> Self {
        let all = Route::new(config.route.clone(), find, &|_| None, schemas, metrics);
        let sets = 1_usize << all.sources.len();
        Self {
            header: config.header.clone(),
            by_sources: (0..sets).map(|set| all.with_sources(set).into()).collect(),
        }
    }

    /// Returns the route with all sources.
    pub(in crate::http) fn all(&self) -> Option<&Arc<Route>> {
        self.by_sources.last()
    }

    /// Returns the route that has the sources of these filters, and the filters by source. Each
    /// filter belongs to the first source with a filter of `allow` that covers it.
    ///
    /// # Errors
    /// The first filter that no source allows.
    pub(in crate::http) fn route(
        &self,
        filters: Vec<Filter>,
    ) -> Result<(&Arc<Route>, Vec<FilterSet>), Filter> {
        let sources = self.all().map_or(&[][..], |all| &all.sources);
        let mut by_source: Vec<Vec<Filter>> = vec![Vec::new(); sources.len()];
        for filter in filters {
            let is_allowed =
                |source: &RouteSource| source.allow.filters.iter().any(|wide| wide.covers(&filter));
            match sources.iter().position(is_allowed) {
                Some(index) => by_source[index].push(filter),
                None => return Err(filter),
            }
        }
        let mut set = 0;
        let mut sets = Vec::new();
        for (index, filters) in by_source.into_iter().enumerate() {
            if !filters.is_empty() {
                set |= 1 << index;
                sets.push(FilterSet::new(filters));
            }
        }
        Ok((&self.by_sources[set], sets))
    }
}

impl Route {
    fn new(
        config: RouteConfig,
        find: FindSource<'_>,
        find_provider: FindProvider<'_>,
        schemas: Option<&Arc<Schemas>>,
        metrics: &Metrics,
    ) -> Self {
        let label: Arc<str> = config.path.as_str().into();
        let sources = config.sources.iter().map(|source| RouteSource {
            source: find(source),
            subjects: source.subjects.clone(),
            allow: source.allow.clone(),
        });
        let sources = sources.collect();
        // The configuration check ensures that all exist. A route without its providers would
        // reject every request.
        let names = config.authenticate.iter();
        let providers = names.filter_map(|name| find_provider(name)).collect();
        let cloud_events = (config.format == Some(PayloadFormat::CloudEvents))
            .then(|| cloud_event_counters(&label, metrics));
        let schemas = schemas.and_then(|schemas| route_schemas(schemas, &config));
        let options = |version: Option<VersionConverter>| {
            let converter = Converter::new(version, cloud_events.clone(), schemas.clone());
            let converter = converter.map(Arc::new);
            let form = |framing: Framing, compression: Option<Compression>| {
                StreamOptions::new(FeedOptions {
                    framing: framing.of_events(),
                    compression,
                    event: config.event.clone(),
                    converter: converter.clone(),
                    priority: config.priority.clone(),
                    window: config.window,
                    is_finite: config.finite,
                    // A client of long polls is away between two polls.
                    linger_min: match framing {
                        Framing::LongPoll => feed_map::LINGER,
                        _ => Duration::ZERO,
                    },
                })
            };
            let coded = config.compression.iter().flat_map(|compression| {
                let forms = compression
                    .algorithms
                    .iter()
                    .flat_map(|coding| Framing::COMPRESSED.map(|framing| (framing, *coding)));
                forms.map(|(framing, coding)| {
                    let compression = Compression {
                        coding,
                        min_rate: compression.min_rate,
                    };
                    (framing, coding, form(framing, Some(compression)))
                })
            });
            FramingOptions {
                coded: coded.collect(),
                plain: Framing::ALL.map(|framing| form(framing, None)),
            }
        };
        let version_options = config.versions.iter().flat_map(|versions| {
            versions.supported.iter().map(|version| {
                let converter = version_converter(versions, *version, &label, metrics);
                (*version, options(Some(converter)))
            })
        });
        let version_options = version_options.collect();
        let options = options(None);
        let metrics = RouteMetrics::new(&label, config.versions.as_ref(), metrics);
        let cors_headers = cors::request_headers(config.variables());
        Self {
            options,
            version_options,
            named_options: NamedOptions::default(),
            sources,
            providers,
            metrics,
            label,
            cors_headers,
            config,
        }
    }

    /// Returns the same route with a part of its sources: bit N of `set` is source N.
    fn with_sources(&self, set: usize) -> Self {
        let is_kept = |index: usize| set & (1 << index) != 0;
        let sources = self.sources.iter().enumerate();
        let sources = sources.filter(|(index, _)| is_kept(*index));
        Self {
            config: self.config.clone(),
            label: self.label.clone(),
            options: self.options.clone(),
            version_options: self.version_options.clone(),
            named_options: NamedOptions::default(),
            sources: sources.map(|(_, source)| source.clone()).collect(),
            providers: Vec::new(),
            metrics: self.metrics.clone(),
            cors_headers: self.cors_headers.clone(),
        }
    }

    /// Returns whether another pod can resume a client of this route: it knows the positions of at
    /// least one source.
    pub(in crate::http) fn is_resumable_elsewhere(&self) -> bool {
        self.sources
            .iter()
            .any(|source| source.source.are_positions_shared())
    }

    /// Returns the options of the route's feeds in a framing and, if it has versions, one of them,
    /// without claims.
    pub(in crate::http) fn options(
        &self,
        framing: Framing,
        coding: Option<Coding>,
        version: Option<Version>,
    ) -> &StreamOptions {
        let known = self.version_options.iter();
        let in_version = known.filter(|(known, _)| Some(*known) == version);
        let options = in_version.map(|(_, options)| options).next();
        let options = options.unwrap_or(&self.options);
        let mut coded = options.coded.iter();
        let coded = coded.find(|known| (known.0, Some(known.1)) == (framing, coding));
        coded.map_or(&options.plain[framing as usize], |(.., options)| options)
    }

    /// Returns a hash of each feed that an event stream with these filters reads. `filters` has one
    /// set per source.
    pub(in crate::http) fn feed_hashes(
        &self,
        options: &StreamOptions,
        filters: &[FilterSet],
    ) -> impl Iterator<Item = u64> {
        self.sources
            .iter()
            .zip(filters)
            .map(|(source, filters)| options.feed_hash(&source.source, filters))
    }
}

/// Returns the schemas of the payloads of a route.
fn route_schemas(schemas: &Arc<Schemas>, config: &RouteConfig) -> Option<RouteSchemas> {
    let reach = config.sources.iter().flat_map(SourceConfig::reach);
    let reach: Vec<Filter> = reach.collect();
    let current = config.versions.as_ref().map(|versions| versions.current);
    RouteSchemas::new(schemas, &reach, current)
}

/// Returns the converter to a version of a route.
fn version_converter(
    versions: &Versions,
    version: Version,
    label: &str,
    metrics: &Metrics,
) -> VersionConverter {
    let name = version.to_string();
    let counter = |result| {
        let labels = [label, &name, result];
        metrics.version_conversions_total.with_label_values(&labels)
    };
    let counters = ConversionCounters {
        converted: counter("converted"),
        failed: counter("failed"),
    };
    VersionConverter::new(versions, version, counters)
}

/// Returns the counters of a route whose events become CloudEvents.
fn cloud_event_counters(label: &str, metrics: &Metrics) -> CloudEventCounters {
    let counter = |mode| metrics.cloud_events_total.with_label_values(&[label, mode]);
    CloudEventCounters {
        structured: counter("structured"),
        binary: counter("binary"),
        completed: counter("completed"),
    }
}

impl RouteMetrics {
    fn new(label: &Arc<str>, versions: Option<&Versions>, metrics: &Metrics) -> Self {
        let route = &**label;
        let protocols = [Protocol::Http10, Protocol::Http11, Protocol::H2];
        let closed = &metrics.streams_closed_total;
        for reason in CloseReason::ALL {
            closed.with_label_values(&[route, reason.label()]);
        }
        Self {
            compressed: Coding::ALL.map(|coding| {
                let bytes = &metrics.compression_bytes_total;
                let counter = |form| bytes.with_label_values(&[route, coding.as_str(), form]);
                CompressionMetrics {
                    plain: counter("plain"),
                    sent: counter("sent"),
                }
            }),
            sent: Framing::ALL.map(|framing| {
                let labels = [route, framing.as_str()];
                SentMetrics {
                    events: metrics.events_delivered_total.with_label_values(&labels),
                    bytes: metrics.bytes_sent_total.with_label_values(&labels),
                }
            }),
            delivery: metrics.delivery_seconds.with_label_values(&[route]),
            exemplars: metrics.exemplars_of(route),
            streams: protocols.map(|protocol| {
                Framing::ALL.map(|framing| {
                    let labels = [route, protocol.as_str(), framing.as_str()];
                    metrics.streams.with_label_values(&labels)
                })
            }),
            opened: protocols.map(|protocol| {
                Framing::ALL.map(|framing| {
                    let labels = [route, protocol.as_str(), framing.as_str()];
                    metrics.streams_opened_total.with_label_values(&labels)
                })
            }),
            versions: versions
                .iter()
                .flat_map(|versions| &versions.supported)
                .map(|version| {
                    let labels = [route, &version.to_string()];
                    (*version, metrics.version_streams.with_label_values(&labels))
                })
                .collect(),
            route: label.clone(),
            closed: closed.clone(),
            finished: metrics.finished_total.with_label_values(&[route]),
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

    /// Records the trace of a delivery, if its span is open.
    #[cold]
    pub(in crate::http) fn record_exemplar(&self, seconds: f64, sample: NonZeroU32) {
        if let Some(ids) = samples::ids(sample) {
            self.exemplars.record(seconds, ids);
        }
    }

    pub(in crate::http) fn sent(&self, framing: Framing) -> &SentMetrics {
        &self.sent[framing as usize]
    }

    /// Counts bytes before and after the compression.
    pub(in crate::http) fn compressed(&self, coding: Coding, plain: usize, sent: usize) {
        let bytes = &self.compressed[coding as usize];
        bytes.plain.inc_by(plain as u64);
        bytes.sent.inc_by(sent as u64);
    }

    pub(in crate::http) fn opened(
        &self,
        protocol: Protocol,
        framing: Framing,
        version: Option<Version>,
    ) {
        self.streams[protocol as usize][framing as usize].inc();
        self.opened[protocol as usize][framing as usize].inc();
        self.streams_of(version).for_each(IntGauge::inc);
    }

    pub(in crate::http) fn closed(
        &self,
        protocol: Protocol,
        framing: Framing,
        version: Option<Version>,
        close: CloseReason,
    ) {
        self.streams[protocol as usize][framing as usize].dec();
        self.streams_of(version).for_each(IntGauge::dec);
        self.closed
            .with_label_values(&[&*self.route, close.label()])
            .inc();
    }

    fn streams_of(&self, version: Option<Version>) -> impl Iterator<Item = &IntGauge> {
        let streams = self.versions.iter();
        let streams = streams.filter(move |(known, _)| Some(*known) == version);
        streams.map(|(_, gauge)| gauge)
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
