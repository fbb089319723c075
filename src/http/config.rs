//! What clients may ask for (`routes:`, `limits:`, `trusted_proxies:` and `forwarded_header:` in the configuration).

use std::collections::HashSet;
use std::time::Duration;

use crate::feed::{Limits, Slow};
use crate::limit::PerClient;
use crate::sse::Tier;
use crate::subject::{Filter, SubjectTemplate, TextTemplate, Variable};

/// Everything the downstream side is configured with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// In the order of the file; the first whose path fits answers.
    pub routes: Vec<RouteConfig>,
    /// The most connections; none: from the limit of file descriptors.
    pub connections_max: Option<usize>,
    /// What one client may take.
    pub per_client: PerClient,
    /// The most subjects that one request may name.
    pub subjects_per_request_max: usize,
    /// Networks of proxies that say the address of a client.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// The header in which they say it; the other one is ignored.
    pub forwarded_header: ForwardedHeader,
}

/// The header in which trusted proxies say the address of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, the default: nginx, HAProxy, Envoy, Traefik and the load balancers of clouds write it.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

impl ForwardedHeader {
    /// Every one, as the configuration writes it.
    pub const ALL: [(&'static str, Self); 2] = [
        ("x-forwarded-for", Self::XForwardedFor),
        ("forwarded", Self::Forwarded),
    ];

    /// As the configuration writes it.
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
        // 16 subjects: what one page of an application watches; each costs a request a check, not a subscription.
        Self {
            routes: Vec::new(),
            connections_max: None,
            per_client: PerClient::default(),
            subjects_per_request_max: 16,
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::default(),
        }
    }
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// Such as `/events/orders/{id}`: segments, some of which are variables.
    pub path: PathTemplate,
    /// One to four.
    pub sources: Vec<SourceConfig>,
    /// Who a client is; none: its address.
    pub client: Option<TextTemplate>,
    /// The name of an event that bears none itself.
    pub event: Option<TextTemplate>,
    /// How long a connection is silent before a comment keeps it alive.
    pub heartbeat: Duration,
    /// How long a client waits before it connects again.
    pub retry: Duration,
    /// How long an event stream may last, spread by a fifth either way.
    pub max_age: Duration,
    /// What of the route's events is kept in memory.
    pub window: Limits,
    /// What becomes of clients whose own socket takes too little.
    pub slow: Slow,
    /// Tiers of events that bear none themselves: the first filter that fits decides.
    pub priority: Vec<(Filter, Tier)>,
    /// After how much silence a client is told its position; none: never, not even at the beginning.
    pub checkpoint: Option<Duration>,
    /// A name, besides the usual ones, under which the query has a client's last event id.
    pub last_event_id_query: Option<Box<str>>,
    /// How a client is answered of whose past nothing is retained any more.
    pub expired: Expired,
    /// How the end of an event stream looks to a client that is to come back.
    pub close: CloseStyle,
    /// Which other origins a browser may read the route from.
    pub cors: CorsConfig,
}

impl RouteConfig {
    /// A route with every default.
    #[must_use]
    pub fn new(path: PathTemplate, sources: Vec<SourceConfig>) -> Self {
        Self {
            path,
            sources,
            client: None,
            event: None,
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
            close: CloseStyle::default(),
            cors: CorsConfig::default(),
        }
    }

    /// The variables that a request for this route fills in.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        let subjects = self
            .sources
            .iter()
            .flat_map(|source| &source.subjects)
            .flat_map(SubjectTemplate::variables);
        subjects.chain(self.client.iter().flat_map(TextTemplate::variables))
    }
}

/// The path of a route: literal segments and variables.
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
    /// Reads `/a/{b}/c`; the error is a sentence.
    ///
    /// # Errors
    /// When it does not begin with a slash, has an empty segment, or a variable that is no name or is repeated.
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
                        return Err("the name of a variable is made of letters, digits and `_`");
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
                return Err("a variable stands in a path only once");
            }
            segments.push(segment);
        }
        Ok(Self {
            text: text.into(),
            segments: segments.into(),
        })
    }

    /// As it was written: the `route` label of metrics.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The names of its variables.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Variable(name) => Some(&**name),
            Segment::Literal(_) => None,
        })
    }

    /// The raw (percent-encoded) values of its variables, if the path fits.
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

/// Where a route's events come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceConfig {
    /// A JetStream stream; none: core NATS.
    pub stream: Option<String>,
    /// A name that stands for the stream in ids, in the place of its own name and creation time.
    pub identity: Option<String>,
    /// How the events of a JetStream stream come.
    pub delivery: Delivery,
    /// What of it a client of this route reads.
    pub subjects: Vec<SubjectTemplate>,
    /// What a template that is one whole variable may ask for.
    pub allow: Vec<Filter>,
}

impl SourceConfig {
    /// Every subject that a client of the route can ever ask for, each filter once.
    #[must_use]
    pub fn reach(&self) -> HashSet<Filter> {
        let (whole, others): (Vec<_>, Vec<_>) = self
            .subjects
            .iter()
            .partition(|subject| subject.is_whole_variable());
        // Whole variables all reach what is allowed.
        let whole = whole
            .first()
            .into_iter()
            .flat_map(|subject| subject.reach(&self.allow));
        whole
            .chain(others.iter().flat_map(|subject| subject.reach(&self.allow)))
            .collect()
    }
}

/// How the events of a JetStream stream come to the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// By one consumer for all that any route can ask for.
    #[default]
    Shared,
    /// By a core subscription for each set of filters that is asked for, to what the stream republishes.
    Republish,
}

/// How a client is answered whose `Last-Event-ID` is older than what is retained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expired {
    /// A browser with a gap event, since any status but 200 would end its EventSource for good; others with 416.
    #[default]
    Auto,
    /// With 416 and a JSON body.
    Status,
    /// With a gap event, then from the oldest that is retained.
    Gap,
}

/// How the end of an event stream looks to a client that is to come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CloseStyle {
    /// As the protocol ends an answer: the last chunk, END_STREAM.
    #[default]
    Clean,
    /// As a broken connection, after everything was sent: for clients that take a clean end as finished.
    Abort,
}

/// Cross-origin reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorsConfig {
    /// Exact origins, or `*` alone.
    pub origins: Vec<String>,
    /// Whether cookies may come with the request; never with `*`.
    pub credentials: bool,
}
