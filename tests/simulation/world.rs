//! One simulated world: a source, pods that follow it, and clients, in random steps.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use sidestream::encoding::{Coding, Framing};
use sidestream::event::{Position, Tier};
use sidestream::feed::budget::{FEED_BYTES, FILTER_BYTES};
use sidestream::feed::{
    Budget, Compression, FeedOptions, Gap, Limits, OpenError, Outcome, Slow, SlowPolicy,
    Source as _, Start,
};
use sidestream::subject::{Filter, FilterSet, TextTemplate};
use sidestream::telemetry::Metrics;

use super::client::Client;
use super::dispatcher::Dispatcher;
use super::pod::{self, Pod, ROOM, now};
use super::resume;
use super::source::{Shared, Source, lock};

/// Few tokens, so that filters overlap.
const TOKENS: [&str; 3] = ["a", "b", "c"];
const FILTERS: [&str; 10] = [
    "a", "b.>", "*", "*.a", "a.*", "a.b", ">", "b.*.c", "*.>", "a.b.*",
];

pub(crate) struct World {
    dispatcher: Dispatcher,
    rng: Rng,
    source: Shared,
    pods: Vec<Pod>,
    clients: Vec<Client>,
    /// Event ids of clients that have left.
    left: Vec<Position>,
    all_options: Vec<Arc<FeedOptions>>,
    has_archive: bool,
    opened: usize,
}

pub(crate) fn subject(rng: &mut Rng) -> String {
    (0..rng.usize(1..4))
        .map(|_| TOKENS[rng.usize(..TOKENS.len())])
        .collect::<Vec<_>>()
        .join(".")
}

pub(crate) fn filters(rng: &mut Rng) -> FilterSet {
    FilterSet::new(
        (0..rng.usize(1..4)).map(|_| Filter::parse(FILTERS[rng.usize(..FILTERS.len())]).unwrap()),
    )
}

pub(crate) fn all_options(rng: &mut Rng) -> Vec<Arc<FeedOptions>> {
    let window = Limits {
        events: rng.usize(1..6),
        bytes: rng.usize(100..600),
        age: Duration::from_secs(rng.u64(2..40)),
    };
    let named = FeedOptions {
        event: Some(TextTemplate::parse("{subject.1}").unwrap()),
        priority: vec![
            (Filter::parse("a.>").unwrap(), Tier::Critical),
            (Filter::parse("*.b").unwrap(), Tier::Telemetry),
            (Filter::parse("a").unwrap(), Tier::Telemetry),
        ],
        window: Limits {
            events: 15,
            ..Limits::default()
        },
        ..FeedOptions::default()
    };
    vec![
        Arc::default(),
        Arc::new(FeedOptions {
            window,
            ..FeedOptions::default()
        }),
        Arc::new(named),
    ]
}

/// Returns the options in the framings and content codings of a seed: without a random number, so that the schedule of a
/// seed does not depend on it.
pub(crate) fn in_framings(options: Vec<Arc<FeedOptions>>, seed: u64) -> Vec<Arc<FeedOptions>> {
    let with_framing = |(nth, options): (u64, Arc<FeedOptions>)| {
        let framing = Framing::ALL[((seed >> nth) % 2) as usize];
        let coding = [None, None, Some(Coding::Gzip), Some(Coding::Zstd)];
        let coding = coding[((seed >> (4 + 2 * nth)) % 4) as usize];
        let min_rate = ((seed >> 10) % 2) as usize * 500;
        Arc::new(FeedOptions {
            framing,
            compression: coding.map(|coding| Compression { coding, min_rate }),
            ..(*options).clone()
        })
    };
    (0..).zip(options).map(with_framing).collect()
}

/// Policy of a slow client; usually none.
pub(crate) fn slow(rng: &mut Rng) -> Option<Slow> {
    let policy = [
        SlowPolicy::Shed,
        SlowPolicy::Shed,
        SlowPolicy::Conflate,
        SlowPolicy::Disconnect,
    ][rng.usize(..4)];
    let slow = Slow {
        lag: rng.u64(Slow::LAG_MIN..24),
        policy,
        ..Slow::default()
    };
    (rng.u8(..3) == 0).then_some(slow)
}

/// Space for everything, or for little more than two feeds and their events.
pub(crate) fn bytes_max(rng: &mut Rng) -> usize {
    let feed = FEED_BYTES + 3 * (FILTER_BYTES + 64);
    if rng.bool() {
        rng.usize(4 * feed..5 * feed)
    } else {
        ROOM
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let source = Source::new("S", rng.u64(..));
        let has_archive = rng.bool();
        let metrics = Arc::new(Metrics::new().unwrap());
        let pods = (0..rng.usize(1..3)).map(|_| {
            let bytes = bytes_max(&mut rng);
            let budget = Budget::new(bytes, rng.usize(2..20));
            Pod::new(&source, has_archive, &budget, &metrics, &mut rng)
        });
        let pods = pods.collect();
        let all_options = in_framings(all_options(&mut rng), seed);
        let dispatcher = Dispatcher::new();
        Self {
            rng,
            dispatcher,
            source,
            pods,
            clients: Vec::new(),
            left: Vec::new(),
            all_options,
            has_archive,
            opened: 0,
        }
    }

    /// One random step, followed by all checks.
    pub(crate) async fn step(&mut self) {
        match self.rng.u8(..100) {
            0..30 => lock(&self.source).publish_some(&mut self.rng),
            30..55 => self.follow(),
            55..78 => self.read(),
            78..84 => self.open().await,
            84..87 => self.leave(),
            87..90 => self.checkpoint(),
            90..94 => self.wait().await,
            94..96 => lock(&self.source).expire_some(&mut self.rng),
            96 => lock(&self.source).delete_some(&mut self.rng),
            97 => lock(&self.source).take_snapshot(),
            98 => lock(&self.source).is_failing = self.rng.u8(..4) == 0,
            _ => pod::change(&self.source, &mut self.pods, &mut self.rng),
        }
        let has_dispatched = self.dispatcher.run_some(&mut self.rng);
        self.check(has_dispatched);
    }

    fn follow(&mut self) {
        let at = self.rng.usize(..self.pods.len());
        let pod = &mut self.pods[at];
        pod.follow(&mut self.rng, now());
        // Pages of replays count too, but cannot be evicted.
        assert!(
            self.has_archive || pod.budget.used() <= pod.budget.max(),
            "{:?}",
            pod.budget
        );
    }

    fn read(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let at = self.rng.usize(..self.clients.len());
        let client = &mut self.clients[at];
        let budget = [1, 100, 400, 1 << 20][self.rng.usize(..4)];
        let slow = slow(&mut self.rng);
        let _ = client
            .read(&self.pods[client.model.pod], budget, slow.as_ref(), now())
            .is_ready();
    }

    fn leave(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let client = self
            .clients
            .swap_remove(self.rng.usize(..self.clients.len()));
        self.left.push(client.model.position);
    }

    fn checkpoint(&mut self) {
        for client in &mut self.clients {
            client.checkpoint(&self.pods[client.model.pod]);
        }
    }

    async fn wait(&mut self) {
        let wait = if self.rng.bool() {
            self.rng.u64(..200)
        } else {
            self.rng.u64(..8000)
        };
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let at = self.rng.usize(..self.pods.len());
        self.pods[at].sweep(now());
    }

    async fn open(&mut self) {
        let at = self.rng.usize(..self.pods.len());
        let key = (
            filters(&mut self.rng),
            self.all_options[self.rng.usize(..3)].clone(),
        );
        let start = resume::start(&mut self.rng, &self.source, &self.left);
        let pod = &self.pods[at];
        let evicted = pod.buffer.size().events < pod.history[pod.epoch_place()..].len();
        let is_shared = self.clients.iter().any(|client| {
            client.model.pod == at
                && (&client.model.filters, &client.model.options) == (&key.0, &key.1)
        });
        let opened = pod.buffer.open(key.0.clone(), &key.1, start).await;
        let opened = match opened {
            Ok(opened) => opened,
            Err(OpenError::NotReady) => {
                return assert!(pod.generation.is_none() || self.has_archive);
            }
            Err(OpenError::TooManyFeeds) => return assert!(pod.budget.feeds() >= 2),
            Err(OpenError::TooManyReplays) => return assert!(self.has_archive),
            Err(OpenError::Rejected | OpenError::StateTooLarge) => {
                panic!("the simulated source rejects nothing")
            }
        };
        match (start, opened.outcome) {
            (Start::Live | Start::Begin(_), outcome) => assert_eq!(outcome, Outcome::Live),
            (Start::Unknown(reason), outcome) => assert_eq!(
                outcome,
                Outcome::Gap(Gap {
                    reason,
                    missed: None
                })
            ),
            (Start::After(at), outcome) => {
                let is_memory_whole =
                    pod.is_roomy() && !evicted && !is_shared && key.1.window == Limits::default();
                resume::assert_outcome(pod, at, outcome, self.has_archive, is_memory_whole);
            }
        }
        self.opened += 1;
        self.clients.push(Client::new(
            self.opened,
            (at, pod),
            key,
            opened.cursor,
            opened.outcome,
        ));
    }

    fn check(&mut self, has_dispatched: bool) {
        for client in &mut self.clients {
            let pod = &self.pods[client.model.pod];
            client.receive(pod);
            if has_dispatched {
                client.assert_woken(pod);
            }
            client.assert_lag(pod, now());
        }
        for (at, pod) in self.pods.iter().enumerate() {
            let mut keys: Vec<_> = self
                .clients
                .iter()
                .filter(|one| one.model.pod == at)
                .map(|one| (&one.model.filters, Arc::as_ptr(&one.model.options)))
                .collect();
            keys.sort();
            keys.dedup();
            assert_eq!(pod.buffer.size().feeds, keys.len(), "feeds with readers");
            assert!(pod.budget.feeds() >= keys.len());
        }
    }

    /// Runs every client to the end by wake-ups alone, then drops everything.
    pub(crate) async fn end(mut self) {
        lock(&self.source).is_failing = false;
        for pod in self.pods.iter_mut() {
            pod.follow_to_end(&mut self.rng);
        }
        for _ in 0..400 {
            self.dispatcher.finish();
            self.clients
                .iter_mut()
                .for_each(|client| client.receive(&self.pods[client.model.pod]));
            for client in self.clients.iter_mut().filter(|client| client.is_woken()) {
                while client
                    .read(&self.pods[client.model.pod], 1000, None, now())
                    .is_ready()
                {}
            }
            if !self
                .clients
                .iter()
                .any(|client| client.cursor.is_replaying())
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        self.dispatcher.finish();
        self.check(true);
        for client in &mut self.clients {
            assert!(
                !client.cursor.is_replaying(),
                "{client}: its replay never ended"
            );
            assert!(client.cursor.is_caught_up(), "{client}: was not woken");
        }
        self.clients.clear();
        self.dispatcher.finish();
        self.check(true);
        let budgets: Vec<_> = self.pods.iter().map(|pod| pod.budget.clone()).collect();
        self.pods.clear();
        tokio::time::sleep(Duration::from_secs(60)).await;
        for budget in budgets {
            assert_eq!(
                (budget.used(), budget.feeds()),
                (0, 0),
                "dropping everything releases the budget"
            );
        }
    }
}
