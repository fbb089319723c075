//! The one writer of all feeds of core subjects: numbers each message once and appends it to the feeds that want it.

use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use slab::Slab;

use super::subscriptions::{SubscriptionKey, Subscriptions};
use super::{Numbers, SubscribeRequests};
use crate::feed::dedup::Dedup;
use crate::feed::encoded::EncodedEvent;
use crate::feed::feed_map::FeedLease;
use crate::feed::notify::WakeList;
use crate::feed::options::Named;
use crate::feed::window::GapSide;
use crate::feed::{Budget, Gap, GapReason};
use crate::sse::{Event, Position};
use crate::subject::{Filter, FilterSet};

/// Deliveries to feeds after which a batch is appended: 16,384 take a few milliseconds and 256 KiB.
pub const FAN_OUT_MAX: usize = 16_384;

/// The writing side of core subjects. Dropping it ends every feed.
#[derive(Debug)]
pub struct CoreWriter {
    numbers: Arc<Numbers>,
    budget: Arc<Budget>,
    demands: SubscribeRequests<FeedLease>,
    feeds: Slab<Written>,
    subscriptions: Subscriptions,
    /// Resolves to a feed that had no reader for long enough.
    unwanted: FuturesUnordered<Pin<Box<dyn Future<Output = usize> + Send>>>,
    /// How many feeds there have been.
    made: u64,
    hasher: RandomState,
    news: WakeList,
    /// The batch: what its messages became, and which feed wants which of them. Kept for their memory.
    steps: Vec<Step>,
    wanted: Vec<Wanted>,
}

/// One feed. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FeedKey {
    place: usize,
    number: u64,
}

/// A change of what is to be subscribed to.
#[derive(Debug)]
pub enum Change {
    /// A feed is wanted. Its readers begin once [`CoreWriter::established`] is called for it.
    Wanted {
        /// The feed.
        feed: FeedKey,
        /// Subscriptions to make for it; its other filters have one already.
        subscribe: Vec<(SubscriptionKey, Filter)>,
    },
    /// A feed has ended; no other feed wants these subscriptions.
    Unwanted {
        /// Subscriptions to end.
        unsubscribe: Vec<SubscriptionKey>,
    },
}

/// A message of one subscription.
#[derive(Debug)]
pub enum Received {
    /// It became an event. Its position is set by the writer.
    Event(Event),
    /// It is too large to become one; its subject.
    Lost(Arc<str>),
}

#[derive(Debug)]
struct Written {
    number: u64,
    lease: FeedLease,
    repeats: Dedup,
    /// Its readers have begun: they are told of what is missing.
    is_established: bool,
}

/// What a message became.
#[derive(Debug)]
enum Step {
    Event {
        logged: Arc<EncodedEvent>,
        /// Its subject and what its publisher calls it.
        id: Option<u64>,
    },
    Gap(Gap, Position),
}

/// One delivery to a feed, ordered by feed and then as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    feed: usize,
    step: usize,
}

impl CoreWriter {
    pub(super) fn new(
        numbers: Arc<Numbers>,
        demands: SubscribeRequests<FeedLease>,
        budget: &Arc<Budget>,
    ) -> Self {
        Self {
            numbers,
            budget: budget.clone(),
            demands,
            feeds: Slab::new(),
            subscriptions: Subscriptions::default(),
            unwanted: FuturesUnordered::new(),
            made: 0,
            hasher: RandomState::new(),
            news: WakeList::default(),
            steps: Vec::new(),
            wanted: Vec::new(),
        }
    }

    /// The next change of what is to be subscribed to; none once no reader can come any more. Cancellation safe.
    pub async fn change(&mut self) -> Option<Change> {
        tokio::select! {
            biased;
            Some(feed) = self.unwanted.next(), if !self.unwanted.is_empty() => Some(self.remove(feed)),
            demand = self.demands.recv() => demand.map(|demand| self.add(demand.writer)),
        }
    }

    fn add(&mut self, lease: FeedLease) -> Change {
        self.made += 1;
        let number = self.made;
        let (filters, mut watch) = (lease.feed().filters.clone(), lease.watch());
        let repeats = Dedup::new(&self.budget);
        let place = self.feeds.insert(Written {
            number,
            lease,
            repeats,
            is_established: false,
        });
        let mut subscribe = Vec::new();
        self.subscriptions.add(place, &filters, &mut subscribe);
        self.unwanted.push(Box::pin(async move {
            watch.unwanted().await;
            place
        }));
        Change::Wanted {
            feed: FeedKey { place, number },
            subscribe,
        }
    }

    fn remove(&mut self, place: usize) -> Change {
        let mut unsubscribe = Vec::new();
        let Written { lease, .. } = self.feeds.remove(place);
        self.subscriptions
            .remove(place, &lease.feed().filters, &mut unsubscribe);
        Change::Unwanted { unsubscribe }
    }

    /// Confirms that the server has the subscriptions of a feed: readers that wait to begin may begin.
    pub fn established(&mut self, feed: FeedKey) {
        if let Some(written) = self
            .feeds
            .get_mut(feed.place)
            .filter(|written| written.number == feed.number)
        {
            written.is_established = true;
            written.lease.established();
        }
    }

    /// Every subscription that is wanted now.
    pub fn subscriptions(&self) -> impl Iterator<Item = (SubscriptionKey, &Filter)> {
        self.subscriptions.iter()
    }

    /// The subscription of a filter, if a feed wants it.
    #[must_use]
    pub fn find(&self, filter: &Filter) -> Option<SubscriptionKey> {
        self.subscriptions.find(filter)
    }

    /// The filter of a subscription, while it is wanted.
    #[must_use]
    pub fn filter(&self, key: SubscriptionKey) -> Option<&Filter> {
        self.subscriptions.filter(key)
    }

    /// How many feeds share a subscription: what one message of it costs.
    #[must_use]
    pub fn fan_out(&self, key: SubscriptionKey) -> usize {
        self.subscriptions.count(key)
    }

    /// The filters of a feed, while it is wanted.
    #[must_use]
    pub fn filters(&self, feed: FeedKey) -> Option<&FilterSet> {
        let written = self
            .feeds
            .get(feed.place)
            .filter(|written| written.number == feed.number)?;
        Some(&written.lease.feed().filters)
    }

    /// Appends messages in the order of their receipt, each to the feeds that take it from its subscription. Returns
    /// how many were omitted in a feed because its window has a message of the same subject and `Nats-Msg-Id`.
    pub fn append(
        &mut self,
        messages: impl IntoIterator<Item = (SubscriptionKey, Received)>,
    ) -> usize {
        let mut repeated = 0;
        for (key, message) in messages {
            let subject = match &message {
                Received::Event(event) => event.subject.clone(),
                Received::Lost(subject) => subject.clone(),
            };
            let (step, before) = (self.steps.len(), self.wanted.len());
            self.wanted.extend(
                self.subscriptions
                    .takers(key, &subject)
                    .map(|feed| Wanted { feed, step }),
            );
            if self.wanted.len() == before {
                continue;
            }
            let position = self.numbers.take();
            self.steps.push(match message {
                Received::Event(mut event) => {
                    let id = event
                        .message_id
                        .take()
                        .map(|id| self.hasher.hash_one((&*subject, id)));
                    event.position = Position {
                        check: event.position.check,
                        ..position
                    };
                    Step::Event {
                        logged: EncodedEvent::new(event, &self.budget),
                        id,
                    }
                }
                Received::Lost(_) => Step::Gap(
                    Gap {
                        reason: GapReason::Upstream,
                        missed: Some(1),
                    },
                    position,
                ),
            });
            if self.wanted.len() >= FAN_OUT_MAX {
                repeated += self.flush();
            }
        }
        repeated + self.flush()
    }

    /// Appends the batch: one lock for each feed, one notification for each thread.
    fn flush(&mut self) -> usize {
        let Some(last) = self.steps.last().map(Step::seq) else {
            return 0;
        };
        self.wanted.sort_unstable();
        let (mut repeated, mut named) = (Vec::new(), Named::default());
        for group in self.wanted.chunk_by(|one, next| one.feed == next.feed) {
            let Written { lease, repeats, .. } = &mut self.feeds[group[0].feed];
            let feed = lease.feed();
            let mut state = feed.lock();
            repeats.forget(state.window.floor());
            let before = state.window.end();
            for run in group.chunk_by(|one, next| {
                !self.steps[one.step].is_gap() && !self.steps[next.step].is_gap()
            }) {
                if let Step::Gap(gap, position) = &self.steps[run[0].step] {
                    state
                        .window
                        .push_gap(*gap, *position, GapSide::Before, Instant::now());
                    continue;
                }
                state.window.append(run.iter().filter_map(|wanted| {
                    let Step::Event { logged, id } = &self.steps[wanted.step] else {
                        return None;
                    };
                    if id.is_some_and(|id| !repeats.note(id, logged.event.position.seq)) {
                        repeated.push(wanted.step);
                        return None;
                    }
                    Some(named.show(logged, &feed.profile, wanted.step))
                }));
            }
            if state.window.end() > before {
                state.readers.tell(feed, &mut self.news);
            }
        }
        // What a window evicts is freed only when nothing else holds it.
        drop(named);
        self.steps.clear();
        self.wanted.clear();
        self.wanted.shrink_to(FAN_OUT_MAX);
        self.numbers.set_complete(last);
        self.wake();
        // A message counts once, however many feeds have it already.
        repeated.sort_unstable();
        repeated.dedup();
        repeated.len()
    }

    /// Marks in every feed that is established that events are missing here.
    pub fn gap(&mut self, reason: GapReason, missed: Option<u64>) {
        let all = self
            .feeds
            .iter()
            .filter(|(_, written)| written.is_established);
        let all: Vec<usize> = all.map(|(place, _)| place).collect();
        self.push_gap(&all, Gap { reason, missed });
    }

    /// Marks in one feed, established or not, that events are missing here.
    pub fn gap_of_feed(&mut self, feed: FeedKey, reason: GapReason, missed: Option<u64>) {
        if self.get(feed).is_some() {
            self.push_gap(&[feed.place], Gap { reason, missed });
        }
    }

    /// Marks in every established feed with a subscription that events are missing here.
    pub fn gap_of_subscription(
        &mut self,
        key: SubscriptionKey,
        reason: GapReason,
        missed: Option<u64>,
    ) {
        let feeds = self
            .subscriptions
            .feeds(key)
            .filter(|place| self.feeds[*place].is_established);
        let feeds: Vec<usize> = feeds.collect();
        self.push_gap(&feeds, Gap { reason, missed });
    }

    fn push_gap(&mut self, feeds: &[usize], gap: Gap) {
        if feeds.is_empty() {
            return;
        }
        // A number of its own, so that a reader that leaves before the gap receives it when it comes back.
        let position = self.numbers.take();
        for place in feeds {
            let feed = self.feeds[*place].lease.feed();
            let mut state = feed.lock();
            state
                .window
                .push_gap(gap, position, GapSide::Before, Instant::now());
            state.readers.tell(feed, &mut self.news);
        }
        self.numbers.set_complete(position.seq);
        self.wake();
    }

    /// Wakes with no lock held.
    fn wake(&mut self) {
        self.news.tell();
        self.budget.enforce();
    }

    fn get(&self, feed: FeedKey) -> Option<&Written> {
        self.feeds
            .get(feed.place)
            .filter(|written| written.number == feed.number)
    }
}

impl Step {
    fn seq(&self) -> u64 {
        match self {
            Self::Event { logged, .. } => logged.event.position.seq,
            Self::Gap(_, position) => position.seq,
        }
    }

    fn is_gap(&self) -> bool {
        matches!(self, Self::Gap(..))
    }
}
