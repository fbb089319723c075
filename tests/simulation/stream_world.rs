//! Simulation of event streams over HTTP/1: the real connections, dispatcher and sinks.
//!
//! Each pod serves its stream buffer on routes. Each client has a connection: the task that the
//! sidecar would spawn for an accepted socket, over a socket in memory. The world polls woken tasks
//! in random order, makes room in sockets or none, requests ends, and makes clients leave in the
//! middle of a write.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt as _;
use sidestream::event::Position;
use sidestream::feed::{Budget, FeedOptions, Gap, GapReason, Limits, Outcome, Source as _, Start};
use sidestream::http::config::{
    CloseStyle, Config, Delivery, Expired, PathTemplate, RouteConfig, SourceConfig,
};
use sidestream::http::{self, Context, Drain, Routes};
use sidestream::lifecycle::shutdown::{self, Trigger};
use sidestream::limit::load_level::SharedLevel;
use sidestream::limit::{ConnectionLimiter, LoadLevel};
use sidestream::presence::{CloseReason, StreamHandle, StreamTable};
use sidestream::subject::{Allow, FilterSet, SubjectTemplate};
use sidestream::telemetry::{Metrics, Tracer};

use super::coverage::{self, Case};
use super::decoder::Item;
use super::dispatcher::Dispatcher;
use super::model::Model;
use super::pod::{self, Pod, now};
use super::resume;
use super::socket;
use super::source::{Shared, Source, lock};
use super::stream_client::{self, Connection, StreamClient};
use super::world;

pub(crate) struct World {
    dispatcher: Dispatcher,
    rng: Rng,
    source: Shared,
    pods: Vec<Pod>,
    /// HTTP side of each pod.
    servers: Vec<Server>,
    routes: Vec<Route>,
    clients: Vec<StreamClient>,
    /// Event ids of clients that have left.
    left: Vec<Position>,
    has_archive: bool,
    opened: usize,
}

struct Route {
    filters: FilterSet,
    options: Arc<FeedOptions>,
    config: RouteConfig,
}

struct Server {
    context: Arc<Context>,
    metrics: Arc<Metrics>,
    drain: Drain,
    triggers: [Trigger; 2],
}

/// Number of filter sets; each has a route for each of the options.
const FILTER_SETS: usize = 3;

/// 5 ms: interval in which a client checks whether its request is answered.
const OPENING_CHECK: Duration = Duration::from_millis(5);

fn seconds(rng: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_secs(rng.u64(range))
}

impl Route {
    fn new(number: usize, filters: FilterSet, options: Arc<FeedOptions>, rng: &mut Rng) -> Self {
        let subjects = filters
            .filters()
            .iter()
            .map(|filter| SubjectTemplate::parse(&filter.to_string()).unwrap());
        let source = SourceConfig {
            stream: Some("S".to_owned()),
            bucket: None,
            identity: None,
            delivery: Delivery::Shared,
            subjects: subjects.collect(),
            allow: Allow::default(),
        };
        let path = PathTemplate::parse(&format!("/{number}")).unwrap();
        let mut config = RouteConfig::new(path, vec![source]);
        config.event = options.event.clone();
        config.priority = options.priority.clone();
        config.window = options.window;
        config.heartbeat = seconds(rng, 2..20);
        config.checkpoint = rng.bool().then(|| seconds(rng, 1..20));
        if rng.u8(..4) == 0 {
            config.max_age = seconds(rng, 20..100);
        }
        if let Some(slow) = world::slow(rng) {
            config.slow = slow;
        }
        config.slow.stall_timeout = Duration::from_millis(rng.u64(100..4000));
        config.expired = Expired::Gap;
        if rng.u8(..4) == 0 {
            config.close = CloseStyle::Abort;
        }
        Self {
            filters,
            options,
            config,
        }
    }
}

impl Server {
    fn new(pod: &Pod, metrics: Arc<Metrics>, routes: &[Route]) -> Self {
        let context = Context::new(
            metrics.clone(),
            Tracer::new(&metrics),
            StreamTable::default(),
            ConnectionLimiter::new(1 << 20),
            SharedLevel::default(),
        );
        let config = Config {
            routes: routes.iter().map(|route| route.config.clone()).collect(),
            ..Config::default()
        };
        let find = |_: &SourceConfig| -> Arc<dyn sidestream::feed::Source> { pod.buffer.clone() };
        context.set_routes(Routes::new(config, &find, &|_| None, None, None, &metrics));
        let (goaway_trigger, goaway) = shutdown::channel();
        let (end_trigger, end) = shutdown::channel();
        Self {
            context,
            metrics,
            drain: Drain { goaway, end },
            triggers: [goaway_trigger, end_trigger],
        }
    }

    /// Returns true if a client may be reading the archive.
    fn is_replaying(&self) -> bool {
        self.metrics.replays_running.get() > 0 || self.metrics.replays_queued.get() > 0
    }

    /// Number of openings until now with each outcome and with each reason for a gap.
    fn outcomes(&self, route: usize) -> Vec<u64> {
        let outcomes = Outcome::LABELS
            .map(|label| self.metrics.resumes_total.with_label_values(&[label]).get());
        let route = format!("/{route}");
        let reasons = GapReason::ALL.map(|reason| {
            let labels = [route.as_str(), reason.as_str()];
            self.metrics.gaps_total.with_label_values(&labels).get()
        });
        outcomes.into_iter().chain(reasons).collect()
    }

    /// Outcome of the opening since `before`.
    fn outcome(&self, route: usize, before: &[u64]) -> Outcome {
        let after = self.outcomes(route);
        let changed: Vec<_> = (0..after.len())
            .filter(|index| after[*index] > before[*index])
            .collect();
        match changed[..] {
            [] => Outcome::Live,
            [1] => Outcome::Window,
            [2] => Outcome::Archive,
            [3, reason] => Outcome::Gap(Gap {
                reason: GapReason::ALL[reason - Outcome::LABELS.len()],
                missed: None,
            }),
            _ => panic!("one outcome: {changed:?}"),
        }
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let source = Source::new("S", rng.u64(..));
        let has_archive = rng.bool();
        let all_options = world::all_options(&mut rng);
        let sets: Vec<_> = (0..FILTER_SETS).map(|_| world::filters(&mut rng)).collect();
        let mut routes = Vec::new();
        for set in sets {
            for options in &all_options {
                let route = Route::new(routes.len(), set.clone(), options.clone(), &mut rng);
                routes.push(route);
            }
        }
        let (mut pods, mut servers) = (Vec::new(), Vec::new());
        for _ in 0..rng.usize(1..3) {
            let (bytes, feeds) = (world::bytes_max(&mut rng), rng.usize(2..20));
            let budget = Budget::with_envelope(bytes, feeds, http::ENVELOPE);
            let metrics = Arc::new(Metrics::new().unwrap());
            let pod = Pod::new(&source, has_archive, &budget, &metrics, &mut rng);
            servers.push(Server::new(&pod, metrics, &routes));
            pods.push(pod);
        }
        Self {
            dispatcher: Dispatcher::new(),
            rng,
            source,
            pods,
            servers,
            routes,
            clients: Vec::new(),
            left: Vec::new(),
            has_archive,
            opened: 0,
        }
    }

    /// One random step, followed by all checks.
    pub(crate) async fn step(&mut self) {
        match self.rng.u8(..100) {
            0..25 => lock(&self.source).publish_some(&mut self.rng),
            25..47 => {
                let at = self.rng.usize(..self.pods.len());
                self.pods[at].follow(&mut self.rng, now());
            }
            47..64 => self.run_tasks(),
            64 => self.change_load_level(),
            65..75 => self.change_room(),
            75..83 => self.open().await,
            83..86 => self.leave(),
            86 => self.close(),
            87..93 => self.wait().await,
            93..96 => lock(&self.source).expire_some(&mut self.rng),
            96 => lock(&self.source).delete_some(&mut self.rng),
            97 => lock(&self.source).take_snapshot(),
            98 => lock(&self.source).is_failing = self.rng.u8(..4) == 0,
            _ => pod::change(&self.source, &mut self.pods, &mut self.rng),
        }
        let has_dispatched = self.dispatcher.run_some(&mut self.rng);
        self.check(has_dispatched);
    }

    /// Polls some tasks that were woken, and at random one that was not.
    fn run_tasks(&mut self) {
        let mut at: Vec<_> = (0..self.clients.len()).collect();
        self.rng.shuffle(&mut at);
        let most = self.rng.usize(..6);
        let is_spurious = self.rng.u8(..8) == 0;
        for at in at.into_iter().take(most) {
            if is_spurious || self.clients[at].connection.is_woken() {
                self.poll(at);
            }
        }
    }

    fn poll(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let server = &self.servers[client.model.pod];
        client.connection.poll();
        if server.is_replaying() {
            coverage::reach(Case::ReadOfTheArchive);
            client.model.has_replayed = true;
        }
        client.receive(&self.pods[client.model.pod]);
    }

    fn any_client(&mut self) -> Option<usize> {
        (!self.clients.is_empty()).then(|| self.rng.usize(..self.clients.len()))
    }

    /// Changes the load level of a pod, from which on events of its clients may be skipped.
    fn change_load_level(&mut self) {
        let at = self.rng.usize(..self.pods.len());
        let level = match self.rng.u8(..4) {
            0 => LoadLevel::ALL[self.rng.usize(1..LoadLevel::ALL.len())],
            _ => LoadLevel::None,
        };
        let shared = &self.servers[at].context.load_level;
        shared.set(level);
        for client in self.clients.iter_mut().filter(|one| one.model.pod == at) {
            client.may_skip |= level != LoadLevel::None;
        }
    }

    /// A client reads, reads little, or stops reading.
    fn change_room(&mut self) {
        let Some(at) = self.any_client() else { return };
        let room = match self.rng.u8(..10) {
            0..2 => 0,
            2..5 => self.rng.usize(1..300),
            _ => usize::MAX,
        };
        self.clients[at].make_room(room);
        if self.rng.u8(..8) == 0 {
            self.clients[at].connection.peer.send(b"stray");
        }
    }

    /// A client leaves, at any byte.
    fn leave(&mut self) {
        let Some(at) = self.any_client() else { return };
        let client = &mut self.clients[at];
        if self.rng.bool() {
            client.connection.peer.close();
        } else {
            client.connection.peer.reset();
        }
        if self.rng.bool() {
            client.connection.poll();
            assert!(client.connection.is_over(), "{client}: has left");
        }
    }

    /// Requests the end of one event stream, or drains a pod.
    fn close(&mut self) {
        let Some(at) = self.any_client() else { return };
        let pod = self.clients[at].model.pod;
        if self.rng.bool() {
            let reason = [CloseReason::Drain, CloseReason::Cut][self.rng.usize(..2)];
            return self.clients[at].close(&self.pods[pod], reason);
        }
        for client in self.clients.iter_mut().filter(|one| one.model.pod == pod) {
            client.close(&self.pods[pod], CloseReason::Drain);
        }
    }

    async fn wait(&mut self) {
        let most = if self.rng.bool() { 200 } else { 8000 };
        let mut left = self.rng.u64(1..most);
        while left > 0 {
            let slice = self.rng.u64(1..1000).min(left);
            tokio::time::sleep(Duration::from_millis(slice)).await;
            left -= slice;
            self.run_tasks();
        }
        let at = self.rng.usize(..self.pods.len());
        self.pods[at].sweep(now());
    }

    async fn open(&mut self) {
        let at = self.rng.usize(..self.pods.len());
        let number = self.rng.usize(..self.routes.len());
        let start = resume::start(&mut self.rng, &self.source, &self.left);
        self.opened += 1;
        let (pod, server) = (&self.pods[at], &self.servers[at]);
        let route = &self.routes[number];
        let key = (route.filters.clone(), route.options.clone());
        let evicted = pod.buffer.size().events < pod.history[pod.epoch_place()..].len();
        let is_ndjson = self.rng.u8(..8) == 0;
        let is_shared = self.clients.iter().any(|client| {
            let is_same = client.route == (number, is_ndjson);
            client.model.pod == at && is_same && !client.connection.is_over()
        });
        let (socket, peer) = socket::pair();
        let version = if self.rng.u8(..8) == 0 {
            coverage::reach(Case::Http10);
            "1.0"
        } else {
            "1.1"
        };
        let id = match start {
            Start::Live | Start::Begin(_) => String::new(),
            Start::Unknown(_) => "last-event-id: invalid\r\n".to_owned(),
            Start::After(position) => format!("last-event-id: {position}\r\n"),
        };
        let accept = if is_ndjson {
            coverage::reach(Case::Ndjson);
            "accept: application/x-ndjson\r\n"
        } else {
            ""
        };
        let head = format!("GET /{number} HTTP/{version}\r\nhost: pod\r\n{accept}{id}\r\n");
        peer.send(head.as_bytes());
        let address = stream_client::address(self.opened);
        let permit = server.context.connection_limiter.acquire().unwrap();
        let task = http::clear_text(
            &server.context,
            socket,
            address,
            permit,
            server.drain.clone(),
        );
        let mut connection = Connection::new(peer, task);
        let before = server.outcomes(number);
        let handle = loop {
            connection.poll();
            if let Some(handle) = find(&server.context.streams, &address.ip().to_string()) {
                break handle;
            }
            let bytes = connection.peer.take();
            if let [Item::Rejection { code }] = &connection.decoder.decode(&bytes)[..] {
                return self.assert_rejection(at, code, connection);
            }
            assert!(!connection.is_over(), "a request is answered");
            while !connection.is_woken() {
                tokio::time::sleep(OPENING_CHECK).await;
            }
        };
        let outcome = server.outcome(number, &before);
        let is_memory_whole =
            pod.is_roomy() && !evicted && !is_shared && key.1.window == Limits::default();
        match (start, outcome) {
            (Start::Live | Start::Begin(_), outcome) => assert_eq!(outcome, Outcome::Live),
            (Start::Unknown(reason), Outcome::Gap(gap)) => assert_eq!(gap.reason, reason),
            (Start::Unknown(_), outcome) => panic!("{outcome:?} of an invalid id"),
            (Start::After(position), outcome) => {
                let is_archived = self.has_archive;
                resume::assert_outcome(pod, position, outcome, is_archived, is_memory_whole);
            }
        }
        let position = stream_client::position(&handle.describe().last_event_id);
        let mut model = Model::new(self.opened, (at, pod), key, position, outcome);
        (model.is_late, model.has_replayed) = (true, server.is_replaying());
        if self.rng.u8(..4) == 0 {
            connection.peer.set_room(self.rng.usize(..300));
        }
        let mut client = StreamClient::new(model, connection, handle, (number, is_ndjson), outcome);
        client.may_skip = server.context.load_level.level() != LoadLevel::None;
        self.clients.push(client);
    }

    fn assert_rejection(&self, at: usize, code: &str, mut connection: Connection) {
        let pod = &self.pods[at];
        coverage::reach(Case::Rejection);
        match code {
            "nats_not_connected" => assert!(pod.generation.is_none() || self.has_archive),
            "too_many_feeds" => assert!(pod.budget.feeds() >= 2),
            "too_many_replays" => assert!(self.has_archive),
            "overloaded" => {
                let level = self.servers[at].context.load_level.level();
                assert_eq!(level, LoadLevel::Reject);
            }
            code => panic!("rejected with {code}"),
        }
        connection.peer.close();
        connection.poll();
        assert!(connection.is_over(), "a rejected client has left");
    }

    fn check(&mut self, has_dispatched: bool) {
        for client in &mut self.clients {
            let at = client.model.pod;
            client.receive(&self.pods[at]);
            let is_settled = has_dispatched && !self.servers[at].is_replaying();
            client.assert_idle(&self.pods[at], is_settled);
            if self.rng.u8(..8) == 0 {
                client.assert_totals();
            }
            if client.is_half_closed() && self.rng.u8(..8) == 0 {
                client.connection.peer.close();
            }
        }
        self.remove_ended();
        if self.rng.u8(..8) == 0 {
            self.check_feeds();
        }
    }

    fn remove_ended(&mut self) {
        let mut at = 0;
        while let Some(client) = self.clients.get(at) {
            if client.connection.is_over() {
                client.assert_ended();
                let client = self.clients.swap_remove(at);
                self.left.push(client.model.position);
            } else {
                at += 1;
            }
        }
    }

    /// Asserts that feeds exist for the open event streams, and only for them.
    fn check_feeds(&self) {
        for (at, (pod, server)) in self.pods.iter().zip(&self.servers).enumerate() {
            let open = server.context.streams.members();
            let is_open =
                |handle: &Arc<dyn StreamHandle>| open.iter().any(|one| Arc::ptr_eq(one, handle));
            let mut keys: Vec<_> = self
                .clients
                .iter()
                .filter(|one| one.model.pod == at && is_open(&one.handle))
                .map(|one| {
                    let options = Arc::as_ptr(&one.model.options);
                    (&one.model.filters, options, one.route.1)
                })
                .collect();
            keys.sort();
            keys.dedup();
            assert_eq!(pod.buffer.size().feeds, keys.len(), "feeds with readers");
            assert_eq!(
                server.context.connection_limiter.in_use(),
                self.clients
                    .iter()
                    .filter(|one| one.model.pod == at)
                    .count() as u64,
                "connections"
            );
        }
    }

    /// Runs every client to the end by wake-ups alone, then ends the source.
    pub(crate) async fn end(mut self) {
        lock(&self.source).is_failing = false;
        for pod in &mut self.pods {
            pod.follow_to_end(&mut self.rng);
        }
        for client in &mut self.clients {
            client.make_room(usize::MAX);
        }
        self.settle().await;
        for client in &self.clients {
            let peer = &client.connection.peer;
            assert!(!peer.has_refused(), "{client}: bytes were not written");
        }
        for pod in &mut self.pods {
            pod.writer.reject();
        }
        self.settle().await;
        for client in &self.clients {
            let peer = &client.connection.peer;
            assert!(peer.is_ended(), "{client}: its source has ended");
            peer.close();
        }
        self.settle().await;
        assert_eq!(self.clients.len(), 0, "clients that have not ended");
        let budgets: Vec<_> = self.pods.iter().map(|pod| pod.budget.clone()).collect();
        self.pods.clear();
        for server in std::mem::take(&mut self.servers) {
            assert!(server.context.streams.is_empty(), "open event streams");
            drop(server.context);
            drop(server.drain);
            for mut trigger in server.triggers {
                let completed = trigger.completed().now_or_never();
                assert!(completed.is_some(), "no connection holds the shutdown");
            }
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        for budget in budgets {
            assert_eq!(
                (budget.used(), budget.feeds()),
                (0, 0),
                "dropping everything releases the budget"
            );
        }
    }

    /// Runs all tasks until only timers are left.
    async fn settle(&mut self) {
        for _ in 0..2000 {
            self.dispatcher.finish();
            let mut is_idle = true;
            for at in 0..self.clients.len() {
                while self.clients[at].connection.is_woken() {
                    self.poll(at);
                    is_idle = false;
                }
            }
            self.check(true);
            if is_idle && !self.servers.iter().any(Server::is_replaying) {
                return;
            }
            // Longer than a heartbeat takes to be written, shorter than the interval of heartbeats.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("tasks are woken again and again");
    }
}

/// Finds an event stream by the name of its client.
fn find(streams: &StreamTable, client: &str) -> Option<Arc<dyn StreamHandle>> {
    streams
        .members()
        .into_iter()
        .find(|handle| handle.client() == client)
}
