//! A scenario as data: clients, events and their rate.
//!
//! [`Preset`] has the defaults of each scenario; [`Plan::new`] applies the command line.

use std::time::Duration;

use crate::Fallible;
use crate::client::fleet::Shape;
use crate::options::{Options, Protocol, Scenario};
use crate::stage::recipe::Replay;
use crate::stage::server::Target;
use crate::wire::body::Framing;
use crate::wire::coding::Coding;
use crate::wire::stamp::Content;

/// Rate of publishing.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pace {
    /// Events per second over all subjects.
    PerSecond(f64),
    /// Each event is published after the previous one has reached all its clients.
    OneByOne,
}

/// Parameters of one run.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Plan {
    /// Scenario that the plan is made from.
    pub(crate) scenario: Scenario,
    /// Framing of the event streams.
    pub(crate) framing: Framing,
    /// Content coding of the event streams.
    pub(crate) compression: Option<Coding>,
    /// Clients by HTTP version.
    pub(crate) clients: Vec<Shape>,
    /// Number of distinct subjects.
    pub(crate) subjects: usize,
    /// Rate of publishing.
    pub(crate) pace: Pace,
    /// Number of measured events.
    pub(crate) events: u64,
    /// Number of events before those: they warm up caches, branch predictors and buffers.
    pub(crate) warm_up: u64,
    /// Bytes of each payload.
    pub(crate) size: usize,
    /// Content of each payload.
    pub(crate) payload: Content,
    /// Events that are published together.
    pub(crate) burst: u64,
    /// Maximum number of clients between connect and first byte.
    pub(crate) connecting: usize,
    /// The clients return with session tickets.
    pub(crate) resume: bool,
    /// Events missed before the clients return. Nothing is published after their return.
    pub(crate) replay: Option<Replay>,
}

impl Plan {
    /// Returns the plan of the scenario with the changes of the command line.
    pub(crate) fn new(options: &Options) -> Fallible<Self> {
        let scenario = options.scenario;
        let preset = Preset::of(scenario);
        let http1 = Shape::Http1 {
            clients: options
                .clients
                .map_or(preset.clients, |clients| clients as usize),
        };
        let http2 = Shape::Http2 {
            connections: options
                .connections
                .unwrap_or(if scenario == Scenario::Million {
                    10_000
                } else {
                    10
                }) as usize,
            streams: options.streams as usize,
        };
        let protocol = options
            .protocol
            .or(matches!(scenario, Scenario::H2 | Scenario::Million).then_some(Protocol::H2));
        let clients = match (scenario, protocol) {
            (Scenario::Smoke, None) if options.tls => vec![http1],
            (Scenario::Smoke, None) => vec![
                http1,
                Shape::Http2 {
                    connections: 2,
                    streams: 10,
                },
            ],
            (_, None | Some(Protocol::H1)) => vec![http1],
            (_, Some(Protocol::H2)) => vec![http2],
        };
        let total: usize = clients.iter().map(|shape| shape.clients()).sum();
        let subjects = match (options.subjects, scenario) {
            (Some(subjects), _) => (subjects as usize).min(total),
            (None, Scenario::ManySubjects | Scenario::Replay) => total,
            (None, _) => 1,
        };
        let rate = options.rate.or(preset.rate);
        let pace = rate.map_or(Pace::OneByOne, Pace::PerSecond);
        let (events, warm_up) = match rate {
            Some(rate) if !(0.01..=1e7).contains(&rate) => {
                return Err("--rate must be between 0.01 and 10,000,000".into());
            }
            // The warm-up takes one second, and has at least one event for each subject.
            Some(rate) => {
                let seconds = options.seconds.map_or(preset.seconds, f64::from);
                (
                    (rate * seconds).ceil() as u64,
                    (rate.ceil() as u64).max(subjects as u64),
                )
            }
            None => (preset.events, preset.warm_up),
        };
        let replay = (scenario == Scenario::Replay).then(|| {
            let missed = u64::from(options.missed);
            Replay {
                from: options.from,
                missed,
                events: missed * subjects as u64,
                size: options.size as usize,
            }
        });
        let (events, warm_up) =
            replay.map_or((events, warm_up), |replay| (replay.events, subjects as u64));
        Ok(Self {
            scenario,
            framing: options.framing,
            compression: options.compression,
            clients,
            subjects,
            pace,
            events: options
                .events
                .filter(|_| replay.is_none())
                .unwrap_or(events),
            warm_up,
            size: options.size as usize,
            payload: options.payload,
            burst: options.burst,
            connecting: options
                .connecting
                .map_or(preset.connecting, |connecting| connecting as usize),
            resume: options.resume,
            replay,
        })
    }

    /// Returns the plan for `target`: other servers get as many clients over HTTP/1.1, with Server-Sent
    /// Events.
    pub(crate) fn for_target(&self, target: Target) -> Self {
        let mut plan = self.clone();
        if target == Target::Bare || target.is_peer() {
            plan.clients = plan.clients.into_iter().map(Shape::as_http1).collect();
        }
        if target != Target::Sidestream && target != Target::Url {
            plan.framing = Framing::Sse;
            plan.compression = None;
        }
        plan
    }

    /// Returns the number of event streams.
    pub(crate) fn client_count(&self) -> usize {
        self.clients.iter().map(|shape| shape.clients()).sum()
    }

    /// Returns the number of connections.
    pub(crate) fn connection_count(&self) -> usize {
        self.clients.iter().map(|shape| shape.connections()).sum()
    }

    /// Returns the maximum time until all clients are open: 60 s, and 0.2 ms for each client.
    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_secs(60) + Duration::from_micros(200) * self.client_count() as u32
    }

    /// Returns the time after which an event counts as lost: 10 s, and 50 µs for each client.
    pub(crate) fn delivery_timeout(&self) -> Duration {
        Duration::from_secs(10) + Duration::from_micros(50) * self.client_count() as u32
    }

    /// Returns the number of deliveries of the events `from..from + events`.
    ///
    /// Client `k` reads subject `k % subjects`.
    pub(crate) fn deliveries(&self, from: u64, events: u64) -> u64 {
        let (clients, subjects) = (self.client_count() as u64, self.subjects as u64);
        let audience =
            |event: u64| clients / subjects + u64::from(event % subjects < clients % subjects);
        (from..from + events).map(audience).sum()
    }
}

struct Preset {
    clients: usize,
    /// Events per second; `None` means one by one.
    rate: Option<f64>,
    seconds: f64,
    events: u64,
    warm_up: u64,
    connecting: usize,
}

impl Preset {
    fn of(scenario: Scenario) -> Self {
        let base = Self {
            clients: 1_000,
            rate: None,
            seconds: 10.0,
            events: 1,
            warm_up: 0,
            connecting: 256,
        };
        match scenario {
            Scenario::Broadcast => Self {
                rate: Some(40.0),
                ..base
            },
            Scenario::Idle => Self {
                clients: 10_000,
                events: 10,
                ..base
            },
            Scenario::ManySubjects => Self {
                clients: 2_000,
                rate: Some(20_000.0),
                seconds: 5.0,
                ..base
            },
            // More than any accept loop accepts in one turn, less than the backlog of 4,096.
            Scenario::Storm => Self {
                clients: 5_000,
                connecting: 2_000,
                ..base
            },
            Scenario::Single => Self {
                events: 200,
                warm_up: 5,
                ..base
            },
            Scenario::TenThousand => Self {
                clients: 10_000,
                rate: Some(1.0),
                ..base
            },
            Scenario::Saturate => Self {
                rate: Some(100.0),
                seconds: 2.0,
                ..base
            },
            // All at once.
            Scenario::Replay => Self {
                connecting: 100_000,
                ..base
            },
            Scenario::H2 => Self {
                rate: Some(100.0),
                ..base
            },
            Scenario::Million => Self {
                events: 3,
                connecting: 2_000,
                ..base
            },
            Scenario::Smoke => Self {
                clients: 50,
                rate: Some(50.0),
                seconds: 1.0,
                ..base
            },
        }
    }
}
