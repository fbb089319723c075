//! The on-demand side: core subjects that are only heard while somebody reads them, counted by one process.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_util::FutureExt;
use sidestream::feed::{Budget, Cursor, Demands, FeedWriter, Gap, GapReason, Item, OnDemand, OpenError, Relief};
use sidestream::feed::{Outcome, Profile, Read, Start, demand};
use sidestream::sse::{Component, Event, Tag};
use sidestream::subject::FilterSet;

use super::client::Wakes;
use super::courier::{ChanceOutlet, Courier};
use super::items::{self, Seen};
use super::source::payload;
use super::world;

type Key = (FilterSet, Arc<Profile>);

/// One subscription, from its first reader to a while after its last.
struct Feed {
    key: Key,
    writer: FeedWriter,
    /// Received, not yet appended.
    pending: Vec<(String, u64)>,
    /// By the numbers that they are given.
    history: Vec<(u64, Kind)>,
    /// Messages published before are not in it.
    since: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Event(u64),
    Gap(Gap),
}

struct Client {
    key: Key,
    cursor: Cursor,
    /// What of the history it has.
    next: usize,
    missed: u64,
    /// Told of before what of it is passed by.
    conflated: u64,
    wakes: Arc<Wakes>,
    outlet: Arc<ChanceOutlet>,
    waits_since: Option<u64>,
    known: Known,
}

/// An id, and which messages it stands behind: all that were published before this count.
#[derive(Clone, Copy)]
struct Known {
    position: Component,
    published: u64,
}

pub(crate) struct World {
    courier: Courier,
    rng: Rng,
    core: Arc<OnDemand>,
    demands: Demands,
    budget: Arc<Budget>,
    feeds: Vec<Feed>,
    clients: Vec<Client>,
    left: Vec<(Known, Key)>,
    profiles: Vec<Arc<Profile>>,
    /// Every message, in order; its number is its content.
    published: Vec<String>,
    /// The number given last.
    counter: u64,
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let budget = Budget::new(if rng.bool() { rng.usize(2_000..9_000) } else { 1 << 20 }, rng.usize(2..12));
        let (core, demands) = demand::channel(Tag::of_process("p"), &budget);
        let profiles = world::profiles(&mut rng);
        let (feeds, clients, left) = (Vec::new(), Vec::new(), Vec::new());
        let (published, counter) = (Vec::new(), 0);
        let courier = Courier::new();
        Self { courier, rng, core, demands, budget, feeds, clients, left, profiles, published, counter }
    }

    pub(crate) async fn step(&mut self) {
        match self.rng.u8(..100) {
            0..30 => self.publish(),
            30..50 => self.append(),
            50..75 => self.read(),
            75..85 => self.open().await,
            85..90 => self.leave(),
            90..93 => self.clients.iter_mut().for_each(|client| {
                client.cursor.follow();
                if client.cursor.checkpoint() {
                    client.known.position = client.cursor.position();
                }
            }),
            93..95 => self.lose(),
            _ => self.wait().await,
        }
        let is_told = self.courier.turn(&mut self.rng);
        self.check(is_told);
    }

    /// Whoever is subscribed receives it; nobody else ever will.
    fn publish(&mut self) {
        for _ in 0..self.rng.usize(1..5) {
            let subject = world::subject(&mut self.rng);
            let content = self.published.len() as u64;
            for feed in self.feeds.iter_mut().filter(|feed| feed.key.0.matches(&subject)) {
                feed.pending.push((subject.clone(), content));
            }
            self.published.push(subject);
        }
    }

    fn append(&mut self) {
        for feed in &mut self.feeds {
            if self.rng.bool() {
                let most = self.rng.usize(..=feed.pending.len());
                Self::append_to(feed, most, self.core.tag(), &mut self.counter);
                assert!(self.budget.used() <= self.budget.max(), "{:?}", self.budget);
            }
        }
    }

    fn append_to(feed: &mut Feed, most: usize, tag: Tag, counter: &mut u64) {
        let taken: Vec<_> = feed.pending.drain(..most).collect();
        let event = |(subject, content): &(String, u64)| Event {
            position: Component { tag, seq: 0, check: None },
            subject: subject.as_str().into(),
            name: None,
            tier: None,
            message_id: None,
            data: payload(*content).into(),
            received: now(),
        };
        feed.writer.append(taken.iter().map(event).collect());
        for (_, content) in taken {
            *counter += 1;
            feed.history.push((*counter, Kind::Event(content)));
        }
    }

    /// The connection is lost with what was under way.
    fn lose(&mut self) {
        for feed in &mut self.feeds {
            let missed = self.rng.bool().then_some(feed.pending.len() as u64).filter(|missed| *missed > 0);
            feed.pending.clear();
            feed.writer.gap(GapReason::Upstream, missed);
            let gap = Gap { reason: GapReason::Upstream, missed };
            self.counter += 1;
            feed.history.push((self.counter, Kind::Gap(gap)));
        }
    }

    async fn wait(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.rng.u64(..20_000))).await;
        self.core.sweep(now());
        let feeds = std::mem::take(&mut self.feeds);
        for mut feed in feeds {
            let is_read = self.clients.iter().any(|client| client.key == feed.key);
            let is_over = feed.writer.unwanted().now_or_never().is_some();
            assert!(!(is_over && is_read), "a feed with a reader was given up");
            if !is_over {
                self.feeds.push(feed);
            }
        }
    }

    async fn open(&mut self) {
        let known = (!self.left.is_empty() && self.rng.bool()).then(|| self.rng.usize(..self.left.len()));
        let (known, key) = match known {
            Some(at) => (Some(self.left[at].0), self.left[at].1.clone()),
            None => (None, (world::filters(&mut self.rng), self.profiles[self.rng.usize(..3)].clone())),
        };
        let start = known.map_or(Start::Live, |known| Start::After(known.position));
        let core = self.core.clone();
        let profile = key.1.clone();
        let mut opening = Box::pin(core.open(key.0.clone(), &profile, start));
        let opened = match (&mut opening).now_or_never() {
            Some(opened) => opened,
            None => {
                self.counter += 1;
                let mut demand = self.demands.try_recv().expect("whoever waits has demanded");
                assert_eq!(demand.filters, key.0);
                demand.writer.established();
                let since = self.published.len() as u64;
                let (pending, history) = (Vec::new(), Vec::new());
                self.feeds.push(Feed { key: key.clone(), writer: demand.writer, pending, history, since });
                opening.await
            }
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                assert_eq!(error, OpenError::TooManyFeeds);
                self.counter += 1; // It was given to nobody.
                return;
            }
        };
        let feed = self.feeds.iter().find(|feed| feed.key == key).expect("a reader has a feed");
        let position = opened.cursor.position();
        let appended = feed.pending.first().map_or(self.published.len() as u64, |(_, content)| *content);
        let next = match (known, opened.outcome) {
            (None, outcome) => {
                assert_eq!(outcome, Outcome::Live);
                feed.history.len()
            }
            (Some(known), Outcome::Window) => {
                let missed = (known.published..feed.since).find(|at| key.0.matches(&self.published[*at as usize]));
                assert_eq!(missed, None, "published while nobody was subscribed, and not told");
                feed.history.partition_point(|(seq, _)| *seq <= known.position.seq)
            }
            (Some(_), Outcome::Gap(gap)) => {
                assert_eq!(gap.reason, GapReason::Expired);
                usize::MAX
            }
            (Some(_), outcome) => panic!("{outcome:?}"),
        };
        let known = Known { position, published: appended };
        let (wakes, missed, waits_since) = (Arc::default(), 0, None);
        let (cursor, outlet) = (opened.cursor, Arc::new(ChanceOutlet::default()));
        cursor.set_outlet(outlet.clone());
        let client = Client { key, cursor, next, missed, conflated: 0, wakes, outlet, waits_since, known };
        self.clients.push(client);
    }

    fn leave(&mut self) {
        if !self.clients.is_empty() {
            let client = self.clients.swap_remove(self.rng.usize(..self.clients.len()));
            self.left.push((client.known, client.key));
        }
    }

    fn read(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let at = self.rng.usize(..self.clients.len());
        let client = &mut self.clients[at];
        let feed = self.feeds.iter().find(|feed| feed.key == client.key).unwrap();
        client.outlet.close();
        client.cursor.follow();
        let mut batch = items::batch();
        let waker = Waker::from(client.wakes.clone());
        let budget = [1, 100, 1 << 20][self.rng.usize(..3)];
        let mut context = Context::from_waker(&waker);
        let lag = client.cursor.standing().lag(now()).events;
        let mut relief = world::slow(&mut self.rng).map(|slow| Relief::new(&slow, lag));
        let read = match &mut relief {
            None => client.cursor.poll_read(&mut context, &mut batch, budget),
            Some(relief) => client.cursor.poll_read_slow(&mut context, &mut batch, budget, relief),
        };
        client.waits_since = None;
        let is_unknown = |item: &Item| matches!(item, Item::Gap { gap: Gap { missed: None, .. }, .. });
        let is_known = client.next != usize::MAX && client.missed != u64::MAX && !batch.items.iter().any(is_unknown);
        for seen in items::unfold(&batch) {
            client.take(&seen, feed);
        }
        let conflated = std::mem::take(&mut client.conflated);
        assert!(conflated == 0 || !is_known, "conflated, and as it was told: {conflated} more");
        match read {
            Poll::Ready(Read::Some) => assert!(!batch.items.is_empty()),
            Poll::Ready(Read::Ended) => panic!("a feed with a reader never ends"),
            Poll::Pending => {
                client.waits_since = Some(client.wakes.count());
                client.outlet.open();
                client.pass(feed, feed.history.len());
            }
        }
    }

    fn check(&mut self, is_told: bool) {
        assert_eq!(self.core.size().2, self.feeds.len());
        if is_told {
            // Until then a feed that is rung for is held.
            assert_eq!(self.budget.feeds(), self.feeds.len());
        }
        for client in &mut self.clients {
            let feed = self.feeds.iter().find(|feed| feed.key == client.key).unwrap();
            for (text, position) in client.outlet.take(self.core.tag()) {
                assert!(client.waits_since.is_some(), "handed to one that does not wait");
                client.take(&Seen::Event { text, position, tier: None }, feed);
            }
            if let Some(before) = client.waits_since.filter(|_| is_told) {
                let woken = client.wakes.count() - before;
                assert!(woken > 0 || client.next >= feed.history.len(), "woken or given what comes");
                assert!(woken <= 1, "woken once");
            }
        }
    }

    pub(crate) async fn end(mut self) {
        self.clients.clear();
        self.courier.finish();
        for mut feed in self.feeds.drain(..) {
            feed.writer.unwanted().await;
        }
        assert_eq!(self.core.size(), (0, 0, 0));
        assert_eq!((self.budget.used(), self.budget.feeds()), (0, 0), "what is dropped is given back");
    }
}

impl Client {
    fn take(&mut self, seen: &Seen, feed: &Feed) {
        match seen {
            Seen::Event { text, position, .. } => {
                let digits = text.split("data: ").nth(1).unwrap().trim_end_matches(['x', '\n']);
                let content = digits.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
                assert!(position.seq > self.known.position.seq, "order");
                self.find(feed, position.seq, Kind::Event(content));
                self.known = Known { position: *position, published: content + 1 };
            }
            Seen::Gap { gap, .. } if gap.reason == GapReason::Conflated => {
                self.conflated += gap.missed.expect("a count");
            }
            Seen::Gap { gap, .. } if gap.reason == GapReason::Slow => {
                let unread = &feed.history[self.next.min(feed.history.len())..];
                let is_unknown = unread.iter().any(|(_, kind)| matches!(kind, Kind::Gap(Gap { missed: None, .. })));
                assert!(self.next == usize::MAX || gap.missed.is_some() || is_unknown);
                self.missed = gap.missed.map_or(u64::MAX, |missed| self.missed.saturating_add(missed));
            }
            Seen::Gap { gap, position } => {
                self.find(feed, position.seq, Kind::Gap(*gap));
                // What was lost with the connection was told.
                self.known = Known { position: *position, ..self.known };
            }
        }
    }

    fn find(&mut self, feed: &Feed, seq: u64, kind: Kind) {
        let from = if self.next == usize::MAX { 0 } else { self.next };
        let found = (from..feed.history.len()).find(|place| feed.history[*place] == (seq, kind));
        let place = found.unwrap_or_else(|| panic!("{kind:?} at {seq} is not in the history behind {from}"));
        self.pass(feed, place);
        self.next = place + 1;
    }

    /// Passes by what lies before `place`: it must have been told.
    fn pass(&mut self, feed: &Feed, place: usize) {
        if self.next != usize::MAX && self.missed != u64::MAX {
            let missed = feed.history[self.next..place].iter().map(|(_, kind)| match kind {
                Kind::Event(_) => 1,
                Kind::Gap(gap) => gap.missed.expect("an unknown number is told as one"),
            });
            let missed = missed.sum::<u64>();
            let conflated = missed.saturating_sub(self.missed).min(self.conflated);
            self.conflated -= conflated;
            assert_eq!(missed - conflated, self.missed, "missed, and as it was told");
        }
        (self.next, self.missed) = (place, 0);
    }
}
