//! One simulated world: a source, pods that follow it, and clients, in random steps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use sidestream::event::{Fingerprint, Position, SourceTag, Tier};
use sidestream::feed::budget::{FEED_BYTES, FILTER_BYTES};
use sidestream::feed::{
    Budget, FeedOptions, Gap, GapReason, Limits, OpenError, Outcome, Slow, SlowPolicy, Source as _,
    Start,
};
use sidestream::subject::{Filter, FilterSet, TextTemplate};

use super::client::Client;
use super::dispatcher::Dispatcher;
use super::pod::{Kind, Pod, ROOM};
use super::source::{self, Fate, Shared, Source, lock};

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

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The position as an id of version 0.1 carries it, for every fourth sequence number.
fn as_version_0_1(at: Position) -> Position {
    Position {
        fingerprint: at.fingerprint.map(|fingerprint| {
            if at.seq % 4 == 0 {
                fingerprint.to_short()
            } else {
                fingerprint
            }
        }),
        ..at
    }
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
        let pods = (0..rng.usize(1..3)).map(|_| {
            let bytes = bytes_max(&mut rng);
            let budget = Budget::new(bytes, rng.usize(2..20));
            Pod::new(&source, has_archive, &budget, &mut rng)
        });
        let pods = pods.collect();
        let all_options = all_options(&mut rng);
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
            0..30 => self.publish(),
            30..55 => self.follow(),
            55..78 => self.read(),
            78..84 => self.open().await,
            84..87 => self.leave(),
            87..90 => self.checkpoint(),
            90..94 => self.wait().await,
            94..96 => {
                let back = self.rng.u64(..12);
                let through = self.source().last_seq.saturating_sub(back);
                self.source().expire(through);
            }
            96 => {
                let back = self.rng.u64(..8);
                let seq = self.source().last_seq.saturating_sub(back);
                self.source().delete(seq);
            }
            97 => self.source().take_snapshot(),
            98 => {
                let failing = self.rng.u8(..4) == 0;
                self.source().is_failing = failing;
            }
            _ => self.change(),
        }
        let has_dispatched = self.dispatcher.run_some(&mut self.rng);
        self.check(has_dispatched);
    }

    fn source(&self) -> std::sync::MutexGuard<'_, Source> {
        lock(&self.source)
    }

    fn publish(&mut self) {
        for _ in 0..self.rng.usize(1..6) {
            let (subject, is_poison) = (subject(&mut self.rng), self.rng.u8(..) < 4);
            self.source().publish(&subject, is_poison);
        }
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
            .read(&self.pods[client.pod], budget, slow.as_ref(), now())
            .is_ready();
    }

    fn leave(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let client = self
            .clients
            .swap_remove(self.rng.usize(..self.clients.len()));
        self.left.push(client.position);
    }

    fn checkpoint(&mut self) {
        for client in &mut self.clients {
            client.checkpoint(&self.pods[client.pod]);
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

    /// Recreates or restores the source.
    fn change(&mut self) {
        if self.rng.bool() {
            self.source().recreate();
        } else if self.source().restore() {
            // Under the same tag only the tailer can notice; it does so at once.
            for pod in self.pods.iter_mut().filter(|pod| pod.generation.is_some()) {
                pod.adjoin(&mut self.rng);
            }
        }
    }

    async fn open(&mut self) {
        let at = self.rng.usize(..self.pods.len());
        let key = (
            filters(&mut self.rng),
            self.all_options[self.rng.usize(..3)].clone(),
        );
        let start = self.start();
        let pod = &self.pods[at];
        let evicted = pod.buffer.size().events < pod.history[pod.epoch_place()..].len();
        let is_shared = self.clients.iter().any(|client| {
            client.pod == at && (&client.filters, &client.options) == (&key.0, &key.1)
        });
        let opened = pod.buffer.open(key.0.clone(), &key.1, start).await;
        let opened = match opened {
            Ok(opened) => opened,
            Err(OpenError::NotReady) => {
                return assert!(pod.generation.is_none() || self.has_archive);
            }
            Err(OpenError::TooManyFeeds) => return assert!(pod.budget.feeds() >= 2),
            Err(OpenError::TooManyReplays) => return assert!(self.has_archive),
            Err(OpenError::Rejected) => panic!("the simulated source rejects nothing"),
        };
        match (start, opened.outcome) {
            (Start::Live, outcome) => assert_eq!(outcome, Outcome::Live),
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
                self.assert_outcome(pod, at, outcome, is_memory_whole);
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

    fn start(&mut self) -> Start {
        let rng = &mut self.rng;
        match rng.u8(..20) {
            0..4 => Start::Live,
            4 => Start::Unknown(GapReason::Invalid),
            5 => Start::After(Position {
                tag: SourceTag::of_identity("other"),
                seq: rng.u64(..50),
                fingerprint: None,
            }),
            6 => Start::After(Position {
                tag: lock(&self.source).tag,
                seq: rng.u64(..100),
                fingerprint: Some(Fingerprint::of_publish_time(rng.u16(..).into())),
            }),
            _ if self.left.is_empty() => Start::Live,
            _ => Start::After(as_version_0_1(self.left[rng.usize(..self.left.len())])),
        }
    }

    /// Asserts the outcome for a position.
    fn assert_outcome(&self, pod: &Pod, at: Position, outcome: Outcome, is_memory_whole: bool) {
        let source = self.source();
        let is_tag_known = at.tag == pod.tag && (!self.has_archive || pod.tag == source.tag);
        let is_other = |fingerprint: Option<Fingerprint>| {
            at.fingerprint
                .zip(fingerprint)
                .is_some_and(|(one, other)| !one.agrees_with(other))
        };
        let written = pod.history.iter().rev().find(|entry| {
            entry.epoch == pod.epoch
                && entry.position.seq == at.seq
                && matches!(entry.kind, Kind::Event { .. })
        });
        let written = written.and_then(|entry| entry.position.fingerprint);
        let stored = source
            .records
            .get(&at.seq)
            .filter(|one| one.fate == Fate::Kept && pod.tag == source.tag);
        let stored = stored.map(|one| source::fingerprint(one.content));
        let last = source.last_seq.max(pod.head);
        match outcome {
            Outcome::Live => panic!("{at} is not a live start"),
            Outcome::Window | Outcome::Archive => {
                assert_eq!(at.tag, pod.tag, "an id of another source was accepted");
                assert!(
                    !(self.has_archive && is_other(stored)),
                    "{at} is another message"
                );
                assert!(
                    !self.has_archive || at.seq <= last,
                    "{at} is ahead of the source"
                );
                assert!(self.has_archive || outcome == Outcome::Window);
            }
            Outcome::Gap(gap) => match gap.reason {
                GapReason::Recreated => {
                    assert!(
                        !is_tag_known || is_other(written) || is_other(stored),
                        "{at} is known"
                    );
                }
                GapReason::Ahead => assert!(at.seq > last, "{at} is not ahead of {last}"),
                GapReason::Expired if self.has_archive => {
                    assert!(at.seq + 1 < source.first_seq, "{at} is retained")
                }
                GapReason::Expired => {
                    let is_inside = pod.floor <= at.seq && at.seq <= pod.head;
                    assert!(!(is_inside && is_memory_whole), "{at} is in memory");
                }
                _ => panic!("{at}: {gap:?}"),
            },
        }
    }

    fn check(&mut self, has_dispatched: bool) {
        for client in &mut self.clients {
            let pod = &self.pods[client.pod];
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
                .filter(|one| one.pod == at)
                .map(|one| (&one.filters, Arc::as_ptr(&one.options)))
                .collect();
            keys.sort();
            keys.dedup();
            assert_eq!(pod.buffer.size().feeds, keys.len(), "feeds with readers");
            assert!(pod.budget.feeds() >= keys.len());
        }
    }

    /// Runs every client to the end by wake-ups alone, then drops everything.
    pub(crate) async fn end(mut self) {
        self.source().is_failing = false;
        for pod in self.pods.iter_mut() {
            while pod.generation.is_none()
                || !pod.is_current()
                || self
                    .source
                    .lock()
                    .unwrap()
                    .stored(pod.head)
                    .next()
                    .is_some()
            {
                pod.follow(&mut self.rng, now());
            }
        }
        for _ in 0..400 {
            self.dispatcher.finish();
            self.clients
                .iter_mut()
                .for_each(|client| client.receive(&self.pods[client.pod]));
            for client in self.clients.iter_mut().filter(|client| client.is_woken()) {
                while client
                    .read(&self.pods[client.pod], 1000, None, now())
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
