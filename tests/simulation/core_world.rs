//! Simulation of the core source: one subscription per filter, and feeds that share subscriptions.
//!
//! Each subscription keeps its own order; deliveries of several subscriptions are interleaved
//! randomly.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt;
use sidestream::event::{Event, Position, SourceTag};
use sidestream::feed::{
    Budget, Change, CoreSource, CoreWriter, Cursor, FeedKey, Gap, GapReason, Item, OpenError,
    Shedder, Source as _, SourceSize,
};
use sidestream::feed::{
    FeedOptions, Outcome, Read, ReadPolicy, Received, Start, SubscriptionKey, core_source,
};
use sidestream::subject::{Filter, FilterSet};

use super::client::Wakes;
use super::dispatcher::{Dispatcher, RandomSink};
use super::items::{self, Seen};
use super::pod::now;
use super::source::payload;
use super::world;

type Key = (FilterSet, Arc<FeedOptions>);

/// Model of one feed, from its first reader to the end of its idle period.
struct Feed {
    key: Key,
    feed: FeedKey,
    /// Entries by the sequence numbers assigned to them.
    history: Vec<(u64, Kind)>,
    /// Messages published before this count are not in it.
    since: u64,
}

/// One subscription of the connection.
struct Subscription {
    key: SubscriptionKey,
    filter: Filter,
    /// Received, not yet appended.
    pending: VecDeque<(String, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Event(u64),
    Gap(Gap),
}

struct Client {
    key: Key,
    cursor: Cursor,
    /// Index of the history that it has reached.
    next: usize,
    missed: u64,
    /// Events reported by a gap ahead of the items that skip them.
    conflated: u64,
    wakes: Arc<Wakes>,
    sink: Arc<RandomSink>,
    idle_since: Option<u64>,
    known: Known,
}

/// An event id, and the number of messages that had been published before it.
#[derive(Clone, Copy)]
struct Known {
    position: Position,
    published: u64,
}

pub(crate) struct World {
    dispatcher: Dispatcher,
    rng: Rng,
    core: Arc<CoreSource>,
    writer: CoreWriter,
    budget: Arc<Budget>,
    feeds: Vec<Feed>,
    subscriptions: Vec<Subscription>,
    clients: Vec<Client>,
    left: Vec<(Known, Key)>,
    all_options: Vec<Arc<FeedOptions>>,
    /// Subject of every message, in order; its index is its content.
    published: Vec<String>,
    /// Sequence number assigned last.
    counter: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let budget = Budget::new(world::bytes_max(&mut rng), rng.usize(2..12));
        let (core, writer) = core_source::channel(SourceTag::of_process("p"), &budget);
        let all_options = world::in_framings(world::all_options(&mut rng), seed);
        let (feeds, clients, left) = (Vec::new(), Vec::new(), Vec::new());
        let (published, counter, subscriptions) = (Vec::new(), 0, Vec::new());
        let dispatcher = Dispatcher::new();
        Self {
            dispatcher,
            rng,
            core,
            writer,
            budget,
            feeds,
            subscriptions,
            clients,
            left,
            all_options,
            published,
            counter,
        }
    }

    pub(crate) async fn step(&mut self) {
        match self.rng.u8(..100) {
            0..30 => self.publish(),
            30..50 => self.append(),
            50..75 => self.read(),
            75..85 => self.open().await,
            85..90 => self.leave(),
            90..93 => self.clients.iter_mut().for_each(|client| {
                if client.cursor.checkpoint() {
                    client.known.position = client.cursor.position();
                }
            }),
            93..95 => self.lose(),
            _ => self.wait().await,
        }
        let has_dispatched = self.dispatcher.run_some(&mut self.rng);
        self.check(has_dispatched);
    }

    /// Sends a copy to every matching subscription; later subscriptions receive none.
    fn publish(&mut self) {
        for _ in 0..self.rng.usize(1..5) {
            let subject = world::subject(&mut self.rng);
            let content = self.published.len() as u64;
            for subscription in self
                .subscriptions
                .iter_mut()
                .filter(|one| one.filter.matches(&subject))
            {
                subscription.pending.push_back((subject.clone(), content));
            }
            self.published.push(subject);
        }
    }

    /// Appends some messages of some subscriptions, interleaved.
    fn append(&mut self) {
        let mut batch = Vec::new();
        for _ in 0..self.rng.usize(..20) {
            if self.subscriptions.is_empty() {
                break;
            }
            let at = self.rng.usize(..self.subscriptions.len());
            let Subscription {
                key,
                filter,
                pending,
            } = &mut self.subscriptions[at];
            let Some((subject, content)) = pending.pop_front() else {
                continue;
            };
            let is_lost = self.rng.u8(..20) == 0;
            // A feed receives a message from the first of its filters that matches.
            let first = |feed: &Feed| {
                feed.key
                    .0
                    .filters()
                    .iter()
                    .find(|own| own.matches(&subject))
                    == Some(filter)
            };
            let recipients = self
                .feeds
                .iter_mut()
                .filter(|feed| first(feed))
                .collect::<Vec<_>>();
            self.counter += u64::from(!recipients.is_empty());
            let gap = Gap {
                reason: GapReason::Upstream,
                missed: Some(1),
            };
            for feed in recipients {
                feed.history.push((
                    self.counter,
                    if is_lost {
                        Kind::Gap(gap)
                    } else {
                        Kind::Event(content)
                    },
                ));
            }
            let event = || Event {
                position: Position {
                    tag: self.core.tag().unwrap(),
                    seq: 0,
                    fingerprint: None,
                },
                subject: subject.as_str().into(),
                name: None,
                tier: None,
                is_end: false,
                sample: None,
                version: None,
                headers: Default::default(),
                data: payload(content).into(),
                received: now(),
            };
            let received = if is_lost {
                Received::TooLarge(subject.as_str().into())
            } else {
                Received::Event(event())
            };
            batch.push((*key, received));
        }
        assert_eq!(self.writer.append(batch), 0);
        assert!(self.budget.used() <= self.budget.max(), "{:?}", self.budget);
    }

    /// Loses the connection with the messages in flight, or rejects one subscription or feed.
    fn lose(&mut self) {
        let missed = self.rng.bool().then(|| self.rng.u64(1..5));
        let gap = Gap {
            reason: GapReason::Upstream,
            missed,
        };
        self.counter += u64::from(!self.feeds.is_empty());
        let record = |feed: &mut Feed| feed.history.push((self.counter, Kind::Gap(gap)));
        match self.rng.u8(..3) {
            0 if !self.feeds.is_empty() => {
                let at = self.rng.usize(..self.feeds.len());
                self.writer
                    .gap_of_feed(self.feeds[at].feed, GapReason::Upstream, missed);
                record(&mut self.feeds[at]);
            }
            1 if !self.subscriptions.is_empty() => {
                let Subscription { key, filter, .. } =
                    &self.subscriptions[self.rng.usize(..self.subscriptions.len())];
                self.writer
                    .gap_of_subscription(*key, GapReason::Upstream, missed);
                self.feeds
                    .iter_mut()
                    .filter(|feed| feed.key.0.filters().contains(filter))
                    .for_each(record);
            }
            _ => {
                self.subscriptions
                    .iter_mut()
                    .for_each(|one| one.pending.clear());
                self.writer.gap(GapReason::Upstream, missed);
                self.feeds.iter_mut().for_each(record);
            }
        }
    }

    async fn wait(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.rng.u64(..20_000))).await;
        self.core.sweep(now());
        while let Some(change) = self.writer.change().now_or_never() {
            assert!(
                self.change(change.expect("the source still admits readers"))
                    .is_none(),
                "no feed is created without a reader"
            );
        }
    }

    /// Applies a change; returns the feed to confirm, if one was created.
    fn change(&mut self, change: Change) -> Option<FeedKey> {
        match change {
            Change::Subscribe { feed, subscribe } => {
                for (key, filter) in subscribe {
                    assert!(
                        self.subscriptions.iter().all(|one| one.filter != filter),
                        "one subscription of {filter}"
                    );
                    self.subscriptions.push(Subscription {
                        key,
                        filter,
                        pending: VecDeque::new(),
                    });
                }
                Some(feed)
            }
            Change::Unsubscribe { unsubscribe } => {
                self.subscriptions
                    .retain(|one| !unsubscribe.contains(&one.key));
                let (writer, clients) = (&self.writer, &self.clients);
                self.feeds.retain(|feed| {
                    let is_over = writer.filters(feed.feed).is_none();
                    let is_read = clients.iter().any(|client| client.key == feed.key);
                    assert!(!(is_over && is_read), "a feed with a reader was removed");
                    !is_over
                });
                let filters: HashSet<&Filter> = self
                    .feeds
                    .iter()
                    .flat_map(|feed| feed.key.0.filters())
                    .collect();
                assert_eq!(
                    self.subscriptions.len(),
                    filters.len(),
                    "one subscription per filter"
                );
                None
            }
        }
    }

    async fn open(&mut self) {
        let known =
            (!self.left.is_empty() && self.rng.bool()).then(|| self.rng.usize(..self.left.len()));
        let (known, key) = match known {
            Some(at) => (Some(self.left[at].0), self.left[at].1.clone()),
            None => (
                None,
                (
                    world::filters(&mut self.rng),
                    self.all_options[self.rng.usize(..3)].clone(),
                ),
            ),
        };
        let start = known.map_or(Start::Live, |known| Start::After(known.position));
        let core = self.core.clone();
        let options = key.1.clone();
        let mut opening = Box::pin(core.open(key.0.clone(), &options, start));
        let opened = match (&mut opening).now_or_never() {
            Some(opened) => opened,
            None => {
                self.counter += 1;
                let feed = loop {
                    let change = self
                        .writer
                        .change()
                        .now_or_never()
                        .flatten()
                        .expect("an opening reader has requested a feed");
                    if let Some(feed) = self.change(change) {
                        break feed;
                    }
                };
                assert_eq!(self.writer.filters(feed), Some(&key.0));
                let since = self.published.len() as u64;
                self.feeds.push(Feed {
                    key: key.clone(),
                    feed,
                    history: Vec::new(),
                    since,
                });
                self.writer.confirm_subscribed(feed);
                opening.await
            }
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                assert_eq!(error, OpenError::TooManyFeeds);
                self.counter += 1; // The number was allocated and not used.
                return;
            }
        };
        let feed = self
            .feeds
            .iter()
            .find(|feed| feed.key == key)
            .expect("a reader has a feed");
        let position = opened.cursor.position();
        let next = match (known, opened.outcome) {
            (None, outcome) => {
                assert_eq!(outcome, Outcome::Live);
                feed.history.len()
            }
            (Some(known), Outcome::Window) => {
                let missed = (known.published..feed.since)
                    .find(|at| key.0.matches(&self.published[*at as usize]));
                assert_eq!(
                    missed, None,
                    "published without a subscription, and not reported"
                );
                feed.history
                    .partition_point(|(seq, _)| *seq <= known.position.seq)
            }
            (Some(_), Outcome::Gap(gap)) => {
                assert_eq!(gap.reason, GapReason::Expired);
                usize::MAX
            }
            (Some(_), outcome) => panic!("{outcome:?}"),
        };
        // A live reader, or one with a gap, needs nothing published before; any other has what it
        // had.
        let published = match (known, opened.outcome) {
            (Some(known), Outcome::Window) => known.published,
            _ => self.published.len() as u64,
        };
        let known = Known {
            position,
            published,
        };
        let (wakes, missed, idle_since) = (Arc::default(), 0, None);
        let (cursor, sink) = (opened.cursor, Arc::new(RandomSink::default()));
        cursor.set_sink(sink.clone());
        let client = Client {
            key,
            cursor,
            next,
            missed,
            conflated: 0,
            wakes,
            sink,
            idle_since,
            known,
        };
        self.clients.push(client);
    }

    fn leave(&mut self) {
        if !self.clients.is_empty() {
            let client = self
                .clients
                .swap_remove(self.rng.usize(..self.clients.len()));
            self.left.push((client.known, client.key));
        }
    }

    fn read(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let at = self.rng.usize(..self.clients.len());
        let client = &mut self.clients[at];
        let feed = self
            .feeds
            .iter()
            .find(|feed| feed.key == client.key)
            .unwrap();
        let mut batch = items::batch();
        let waker = Waker::from(client.wakes.clone());
        let budget = [1, 100, 1 << 20][self.rng.usize(..3)];
        let mut context = Context::from_waker(&waker);
        let lag = client.cursor.probe().lag(now()).events;
        let mut shedder = world::slow(&mut self.rng).map(|slow| Shedder::new(&slow, lag));
        let mut policy = ReadPolicy {
            budget,
            shedder: shedder.as_mut(),
            throttle: None,
        };
        let read = client
            .cursor
            .poll_read(&mut context, &mut batch, &mut policy);
        client.idle_since = None;
        let is_unknown = |item: &Item| {
            matches!(
                item,
                Item::Gap {
                    gap: Gap { missed: None, .. },
                    ..
                }
            )
        };
        let is_known = client.next != usize::MAX
            && client.missed != u64::MAX
            && !batch.items.iter().any(is_unknown);
        for seen in items::unfold(&batch) {
            client.take(&seen, feed);
        }
        let conflated = std::mem::take(&mut client.conflated);
        assert!(
            conflated == 0 || !is_known,
            "{conflated} more events reported as conflated than skipped"
        );
        match read {
            Poll::Ready(Read::Some) => assert!(!batch.items.is_empty()),
            Poll::Ready(Read::Ended) => panic!("a feed with a reader never ends"),
            Poll::Pending => {
                client.idle_since = Some(client.wakes.count());
                if fastrand::bool() {
                    client.cursor.allow_direct();
                }
                client.skip_to(feed, feed.history.len());
            }
        }
    }

    fn check(&mut self, has_dispatched: bool) {
        assert_eq!(self.core.size().feeds, self.feeds.len());
        if has_dispatched {
            // A feed in a wake list is referenced until the dispatcher has run.
            assert_eq!(self.budget.feeds(), self.feeds.len());
        }
        for client in &mut self.clients {
            let feed = self
                .feeds
                .iter()
                .find(|feed| feed.key == client.key)
                .unwrap();
            for (text, position) in client.sink.take(self.core.tag().unwrap()) {
                assert!(
                    client.idle_since.is_some(),
                    "sent to a client that is not idle"
                );
                client.take(
                    &Seen::Event {
                        text,
                        position,
                        tier: None,
                    },
                    feed,
                );
            }
            if let Some(before) = client.idle_since.filter(|_| has_dispatched) {
                let woken = client.wakes.count() - before;
                assert!(
                    woken > 0 || client.next >= feed.history.len(),
                    "woken, or sent the events"
                );
                assert!(woken <= 1, "woken once");
            }
        }
    }

    pub(crate) async fn end(mut self) {
        self.clients.clear();
        self.dispatcher.finish();
        while !self.subscriptions.is_empty() {
            let change = self
                .writer
                .change()
                .await
                .expect("the source still admits readers");
            assert!(self.change(change).is_none());
        }
        assert_eq!(self.core.size(), SourceSize::default());
        assert_eq!(
            (self.budget.used(), self.budget.feeds()),
            (0, 0),
            "dropping everything releases the budget"
        );
    }
}

impl Client {
    fn take(&mut self, seen: &Seen, feed: &Feed) {
        match seen {
            Seen::Event { text, position, .. } => {
                let (_, data) = text
                    .split_once("data: ")
                    .or_else(|| text.split_once("\"data\":"))
                    .unwrap();
                let content = data
                    .trim_start_matches('"')
                    .split(|c: char| !c.is_ascii_digit())
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap();
                assert!(position.seq > self.known.position.seq, "order");
                self.find(feed, position.seq, Kind::Event(content));
                self.known = Known {
                    position: *position,
                    published: self.known.published.max(content + 1),
                };
            }
            Seen::Gap { gap, .. } if gap.reason == GapReason::Conflated => {
                self.conflated += gap.missed.expect("a count");
            }
            Seen::Gap { gap, .. } if gap.reason == GapReason::Slow => {
                let unread = &feed.history[self.next.min(feed.history.len())..];
                let is_unknown = unread
                    .iter()
                    .any(|(_, kind)| matches!(kind, Kind::Gap(Gap { missed: None, .. })));
                assert!(self.next == usize::MAX || gap.missed.is_some() || is_unknown);
                self.missed = gap
                    .missed
                    .map_or(u64::MAX, |missed| self.missed.saturating_add(missed));
            }
            Seen::Gap { gap, position } => {
                self.find(feed, position.seq, Kind::Gap(*gap));
                // The loss of the connection was reported.
                self.known = Known {
                    position: *position,
                    ..self.known
                };
            }
        }
    }

    fn find(&mut self, feed: &Feed, seq: u64, kind: Kind) {
        let from = if self.next == usize::MAX {
            0
        } else {
            self.next
        };
        let found = (from..feed.history.len()).find(|place| feed.history[*place] == (seq, kind));
        let place = found
            .unwrap_or_else(|| panic!("{kind:?} at {seq} is not in the history from {from} on"));
        self.skip_to(feed, place);
        self.next = place + 1;
    }

    /// Skips the entries before `place`, all of which must have been reported.
    fn skip_to(&mut self, feed: &Feed, place: usize) {
        if self.next != usize::MAX && self.missed != u64::MAX {
            let missed = feed.history[self.next..place]
                .iter()
                .map(|(_, kind)| match kind {
                    Kind::Event(_) => 1,
                    Kind::Gap(gap) => gap
                        .missed
                        .expect("a gap without a count is reported as such"),
                });
            let missed = missed.sum::<u64>();
            let conflated = missed.saturating_sub(self.missed).min(self.conflated);
            self.conflated -= conflated;
            assert_eq!(missed - conflated, self.missed, "missed, and reported");
        }
        (self.next, self.missed) = (place, 0);
    }
}
