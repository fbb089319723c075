//! Configuration of routes and client limits: `routes:`, `limits:`, `trusted_proxies:` and
//! `forwarded_header:`.
//!
//! The types hold validated values with defaults; `config::read` parses the file into them.
//! [`PathTemplate`] also matches request paths.

use std::collections::HashSet;
use std::time::Duration;

use hyper::header::HeaderName;

use super::application::ApplicationConfig;
use crate::encoding::{Coding, Framing};
use crate::event::Tier;
use crate::feed::{Limits, Slow};
use crate::limit::PerClientConfig;
use crate::payload::{PayloadFormat, Versions};
use crate::subject::{Allow, BucketName, Filter, SubjectTemplate, TextTemplate, Variable};

/// 30 s, from half of it to one and a half times it: how long a client without valid credentials
/// waits. The page has to renew them meanwhile, and the `EventSource` of a page in the background
/// must not return often.
pub(super) const RETRY_UNAUTHENTICATED: Duration = Duration::from_secs(30);

/// Configuration of the client side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Routes in the order of the file. The first one with a matching path is used.
    pub routes: Vec<RouteConfig>,
    /// Maximum number of connections. `None`: derived from the limit of file descriptors.
    pub connections_max: Option<usize>,
    /// Limits of one client.
    pub per_client: PerClientConfig,
    /// Maximum number of subjects in one request.
    pub subjects_per_request_max: usize,
    /// Networks of the proxies whose forwarded header is believed.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// Header with the client address; the other one is ignored.
    pub forwarded_header: ForwardedHeader,
    /// Time before the expiry of a principal at which its client receives `sidestream.renew`,
    /// spread by a fifth in both directions.
    pub renew_before: Duration,
    /// Tickets. `None`: there are no tickets.
    pub tickets: Option<TicketsConfig>,
    /// Application that receives the requests for paths without a route.
    pub application: Option<ApplicationConfig>,
    /// Event streams that the application may ask for. `None`: none.
    pub subscribe: Option<SubscribeConfig>,
}

impl Config {
    /// Returns the routes, and the one of the application's event streams.
    pub fn all_routes(&self) -> impl Iterator<Item = &RouteConfig> {
        let subscribe = self.subscribe.iter().map(|subscribe| &subscribe.route);
        self.routes.iter().chain(subscribe)
    }
}

/// Event streams that the application may ask for (`application.subscribe`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscribeConfig {
    /// Header of the application's response with the subjects. It begins with `sidestream-`.
    pub header: HeaderName,
    /// Options and sources. No path matches it, and its sources have no subjects.
    pub route: RouteConfig,
}

impl SubscribeConfig {
    /// Name of the header if the configuration does not name one.
    pub const HEADER: HeaderName = HeaderName::from_static("sidestream-subscribe");

    /// Label of metrics and logs. A path begins with a slash, so no route has it.
    pub const LABEL: &str = "application";
}

/// Query parameter with the time at which an event stream begins, or a duration before now.
pub const SINCE_QUERY: &str = "since";

/// Query parameter with the number of last events with which an event stream begins.
pub const LAST_QUERY: &str = "last";

/// Query parameters of `begin_by_client`.
pub const BEGIN_QUERIES: [&str; 2] = [SINCE_QUERY, LAST_QUERY];

/// Query parameter with a ticket.
pub const TICKET_QUERY: &str = "ticket";

/// Tickets: credentials for one event stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketsConfig {
    /// Path at which clients buy tickets, without variables.
    pub path: PathTemplate,
    /// NATS KV bucket of the tickets of all pods.
    pub bucket: BucketName,
    /// Life of a ticket.
    pub ttl: Duration,
    /// Names of the providers with whose credentials a client can buy tickets; at least one.
    pub authenticate: Vec<Box<str>>,
    /// Cross-origin access of browsers.
    pub cors: CorsConfig,
}

impl TicketsConfig {
    /// 30 s: time from buying a ticket until its event stream is requested, on a slow network.
    pub const TTL: Duration = Duration::from_secs(30);

    /// 1 s: buckets count time to live in seconds.
    pub const TTL_MIN: Duration = Duration::from_secs(1);

    /// 10 min: a ticket is part of a URL, which browsers and proxies keep.
    pub const TTL_MAX: Duration = Duration::from_secs(600);
}

/// Header in which trusted proxies forward the address of the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, the default: nginx, HAProxy, Envoy, Traefik and cloud load balancers
    /// write it.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

impl ForwardedHeader {
    /// Every header with its name in the configuration.
    pub const ALL: [(&'static str, Self); 2] = [
        ("x-forwarded-for", Self::XForwardedFor),
        ("forwarded", Self::Forwarded),
    ];

    /// Returns the name in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::XForwardedFor => "x-forwarded-for",
            Self::Forwarded => "forwarded",
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        // 16 subjects: enough for one page of an application. Each costs a check of the request,
        // and no subscription.
        Self {
            routes: Vec::new(),
            connections_max: None,
            per_client: PerClientConfig::default(),
            subjects_per_request_max: 16,
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::default(),
            // 60 s: a login page or a token endpoint that fails once can be asked again.
            renew_before: Duration::from_secs(60),
            tickets: None,
            application: None,
            subscribe: None,
        }
    }
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// Path such as `/events/orders/{id}`, with variables as segments.
    pub path: PathTemplate,
    /// Names of the authentication providers, in the order in which they look for credentials.
    /// Empty: clients are anonymous.
    pub authenticate: Vec<Box<str>>,
    /// Answer to a client without valid credentials.
    pub unauthenticated: Unauthenticated,
    /// Sources, one to four.
    pub sources: Vec<SourceConfig>,
    /// Template of the client's id. `None`: provider and subject of the principal, or the address
    /// of an anonymous client.
    pub client: Option<TextTemplate>,
    /// Name of events without a name of their own.
    pub event: Option<TextTemplate>,
    /// Framings that clients can ask for, the preferred one first. Never empty.
    pub framings: Vec<Framing>,
    /// Compression of the response body. `None`: not compressed.
    pub compression: Option<CompressionConfig>,
    /// Format of the payloads. `None`: as published.
    pub format: Option<PayloadFormat>,
    /// Versions of the payloads. `None`: clients receive them as published.
    pub versions: Option<Versions>,
    /// Silence after which a heartbeat keeps the connection alive.
    pub heartbeat: Duration,
    /// Reconnection time of clients (`retry:`).
    pub retry: Duration,
    /// Maximum age of an event stream, spread by a fifth in both directions.
    pub max_age: Duration,
    /// Window of events in memory.
    pub window: Limits,
    /// Policy for slow clients.
    pub slow: Slow,
    /// Tiers of events without a tier of their own. The first matching filter decides.
    pub priority: Vec<(Filter, Tier)>,
    /// Silence after which a client receives its position. `None`: never, and not at the beginning.
    pub checkpoint: Option<Duration>,
    /// Additional name of the query parameter with the last event id.
    pub last_event_id_query: Option<Box<str>>,
    /// Answer to a client whose position is no longer retained.
    pub expired: Expired,
    /// Beginning of the event stream of a client without an id.
    pub begin: RouteBegin,
    /// An event can end the event stream for good.
    pub finite: bool,
    /// Beginnings that a client can ask for. `None`: it cannot.
    pub begin_by_client: Option<BeginByClient>,
    /// End of an event stream whose client is expected to reconnect.
    pub close: CloseStyle,
    /// Cross-origin access of browsers.
    pub cors: CorsConfig,
    /// The route answers the probes of `sidestream doctor`.
    pub doctor: bool,
}

impl RouteConfig {
    /// Returns a route with all defaults.
    #[must_use]
    pub fn new(path: PathTemplate, sources: Vec<SourceConfig>) -> Self {
        Self {
            path,
            authenticate: Vec::new(),
            unauthenticated: Unauthenticated::default(),
            sources,
            client: None,
            event: None,
            framings: Framing::DEFAULT.to_vec(),
            compression: None,
            format: None,
            versions: None,
            // 15 s: half of the 30 s idle timeout common in load balancers.
            heartbeat: Duration::from_secs(15),
            retry: Duration::from_secs(3),
            max_age: Duration::from_secs(3600),
            window: Limits::default(),
            slow: Slow::default(),
            priority: Vec::new(),
            checkpoint: Some(Duration::from_secs(30)),
            last_event_id_query: None,
            expired: Expired::default(),
            begin: RouteBegin::default(),
            begin_by_client: None,
            finite: false,
            close: CloseStyle::default(),
            cors: CorsConfig::default(),
            doctor: false,
        }
    }

    /// Returns the variables that a request fills in.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        let subjects = self
            .sources
            .iter()
            .flat_map(|source| &source.subjects)
            .flat_map(SubjectTemplate::variables);
        subjects.chain(self.client.iter().flat_map(TextTemplate::variables))
    }
}

/// Compression of the event streams of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompressionConfig {
    /// Content codings that a client can ask for, the preferred one first. Never empty.
    pub algorithms: Vec<Coding>,
    /// Bytes per second that a feed sends to all its clients, from which on its events are compressed.
    pub min_rate: usize,
}

impl Default for CompressionConfig {
    fn default() -> Self {
        Self {
            algorithms: vec![Coding::Zstd, Coding::Gzip],
            min_rate: 0,
        }
    }
}

/// Path of a route: literal segments and variables.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathTemplate {
    text: Box<str>,
    segments: Box<[Segment]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Segment {
    Literal(Box<str>),
    Variable(Box<str>),
}

impl PathTemplate {
    /// Parses a path such as `/a/{b}/c`.
    ///
    /// # Errors
    /// Returns a sentence if the path does not begin with a slash, has an empty segment, or has a
    /// variable that is not a name or is repeated.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let rest = text.strip_prefix('/').ok_or("a path begins with `/`")?;
        let mut segments: Vec<Segment> = Vec::new();
        for part in rest.split('/') {
            let segment = match part.strip_prefix('{').map(|inner| inner.strip_suffix('}')) {
                Some(Some(name)) => {
                    if name.is_empty()
                        || !name
                            .bytes()
                            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                    {
                        return Err("the name of a variable has letters, digits and `_` only");
                    }
                    Segment::Variable(name.into())
                }
                Some(None) => return Err("a variable fills a whole segment"),
                None if part.contains(['{', '}']) => {
                    return Err("a variable fills a whole segment");
                }
                None if part.is_empty() => {
                    return Err("a path has no empty segment and no slash at its end");
                }
                None => Segment::Literal(part.into()),
            };
            if matches!(segment, Segment::Variable(_)) && segments.contains(&segment) {
                return Err("a variable is used only once in a path");
            }
            segments.push(segment);
        }
        Ok(Self {
            text: text.into(),
            segments: segments.into(),
        })
    }

    /// Returns a template that matches no path; `label` is the `route` label of its metrics.
    #[must_use]
    pub fn without_path(label: &str) -> Self {
        // Every path has a segment, be it an empty one.
        Self {
            text: label.into(),
            segments: Box::default(),
        }
    }

    /// Returns the path as configured: the `route` label of metrics.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the names of the variables.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Variable(name) => Some(&**name),
            Segment::Literal(_) => None,
        })
    }

    /// Returns the raw (percent-encoded) values of the variables, or `None` if the path does not
    /// match.
    #[must_use]
    pub fn matches<'p>(&self, path: &'p str) -> Option<Vec<(&str, &'p str)>> {
        let mut parts = path.strip_prefix('/')?.split('/');
        let mut values = Vec::new();
        for segment in &self.segments {
            let part = parts.next()?;
            match segment {
                Segment::Literal(text) if **text == *part => {}
                Segment::Variable(name) if !part.is_empty() => values.push((&**name, part)),
                _ => return None,
            }
        }
        parts.next().is_none().then_some(values)
    }
}

/// Source of a route's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceConfig {
    /// Name of the JetStream stream. `None`: core NATS.
    pub stream: Option<String>,
    /// KV bucket of the stream, if its keys are the subjects.
    pub bucket: Option<BucketName>,
    /// Name in event ids instead of the stream's name and creation time.
    pub identity: Option<String>,
    /// Delivery of the events of a JetStream stream.
    pub delivery: Delivery,
    /// Subjects that a client of the route reads. Empty: the application asks for them
    /// ([`SubscribeConfig`]), within the filters of `allow`.
    pub subjects: Vec<SubjectTemplate>,
    /// Bounds of the subjects of a request.
    pub allow: Allow,
}

impl SourceConfig {
    /// Returns every filter that a client of the route can request, without duplicates.
    #[must_use]
    pub fn reach(&self) -> HashSet<Filter> {
        if self.subjects.is_empty() {
            return self.allow.filters.iter().cloned().collect();
        }
        let (whole, others): (Vec<_>, Vec<_>) = self
            .subjects
            .iter()
            .partition(|subject| subject.is_whole_variable());
        // Every whole variable reaches the same filters: those of `allow`.
        let whole = whole
            .first()
            .into_iter()
            .flat_map(|subject| subject.reach(&self.allow));
        whole
            .chain(others.iter().flat_map(|subject| subject.reach(&self.allow)))
            .collect()
    }
}

/// Delivery of a JetStream stream's events to the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// One consumer with all filters that any route can request.
    #[default]
    Shared,
    /// Core subscriptions to the republished subjects, one per filter that is read.
    Republish,
}

/// Answer to a client without valid credentials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unauthenticated {
    /// An event stream with `sidestream.close` for browsers, whose `EventSource` stops for good
    /// after any status but 200; 401 for others.
    #[default]
    Auto,
    /// Status 401 with a JSON body.
    Status,
    /// An event stream with `sidestream.close`, in the framing that the client asks for.
    Stream,
}

/// Answer to a client whose `Last-Event-ID` is older than the retained events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expired {
    /// A gap event for browsers, whose `EventSource` stops for good after any status but 200; 416
    /// for others.
    #[default]
    Auto,
    /// Status 416 with a JSON body.
    Status,
    /// A gap event, then events from the oldest retained one.
    Gap,
}

/// Beginning of the event stream of a client without an id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouteBegin {
    /// With the next event.
    #[default]
    Live,
    /// With the oldest event that the JetStream stream retains.
    First,
    /// With the last event of each subject, then every later one.
    Latest,
}

impl RouteBegin {
    /// Every beginning with its name in the configuration.
    pub const ALL: [(&'static str, Self); 3] = [
        ("live", Self::Live),
        ("first", Self::First),
        ("latest", Self::Latest),
    ];

    /// Returns the name in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::First => "first",
            Self::Latest => "latest",
        }
    }
}

/// Bounds of the beginnings that a client can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeginByClient {
    /// Maximum age of `since`.
    pub max_age: Duration,
    /// Maximum of `last`.
    pub max_events: u64,
}

impl Default for BeginByClient {
    /// An hour, and 1000 events: what a page shows when it opens.
    fn default() -> Self {
        Self {
            max_age: Duration::from_secs(3600),
            max_events: 1000,
        }
    }
}

/// End of an event stream whose client is expected to reconnect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CloseStyle {
    /// Regular end of the response: the last chunk, or END_STREAM.
    #[default]
    Clean,
    /// Broken connection after all bytes: for clients that treat a regular end as final.
    Abort,
}

/// Cross-origin access (CORS).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorsConfig {
    /// Exact origins, or `*` alone.
    pub origins: Vec<String>,
    /// Allows credentials (cookies). Not with `*`.
    pub credentials: bool,
}
