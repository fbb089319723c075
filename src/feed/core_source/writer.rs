//! Writer of all core feeds: numbers each message once and appends it to every feed that matches.
//!
//! One task owns the writer (`nats::core`). It alternates between [`CoreWriter::change`], which
//! reports which subscriptions to make and to end, and [`CoreWriter::append`] with the messages
//! that arrived. A batch is sorted by feed, so that each feed is locked once and each shard is
//! notified once. A message that a feed's window already has (same subject and `Nats-Msg-Id`) is
//! omitted in that feed.

use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use slab::Slab;

use super::sequence::SequenceCounter;
use super::subscriptions::{SubscriptionKey, Subscriptions};
use crate::event::{Event, Position};
use crate::feed::dedup::Dedup;
use crate::feed::encoded::EncodedEvent;
use crate::feed::feed::WakeList;
use crate::feed::feed_map::{FeedLease, SubscribeRequests};
use crate::feed::options::BatchEncodings;
use crate::feed::window::GapSide;
use crate::feed::{Budget, Gap, GapReason};
use crate::subject::{Filter, FilterSet};

/// Deliveries to feeds after which a batch is flushed: 16,384 take a few milliseconds and 256 KiB.
pub const FAN_OUT_MAX: usize = 16_384;

/// Writing side of the core source. Dropping it ends every feed.
#[derive(Debug)]
pub struct CoreWriter {
    sequence: Arc<SequenceCounter>,
    budget: Arc<Budget>,
    requests: SubscribeRequests<FeedLease>,
    feeds: Slab<CoreFeed>,
    subscriptions: Subscriptions,
    /// Resolves to the slot of a feed whose idle period is over.
    idle: FuturesUnordered<Pin<Box<dyn Future<Output = usize> + Send>>>,
    /// Number of feeds that were ever created.
    created: u64,
    hasher: RandomState,
    wake_list: WakeList,
    /// Current batch and its deliveries to feeds; kept to reuse their memory.
    batch: Vec<BatchItem>,
    deliveries: Vec<Delivery>,
}

/// Key of one feed. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FeedKey {
    slot: usize,
    number: u64,
}

/// Change of the set of subscriptions.
#[derive(Debug)]
pub enum Change {
    /// A feed was created. Its readers start after [`CoreWriter::confirm_subscribed`].
    Subscribe {
        /// Key of the feed.
        feed: FeedKey,
        /// Subscriptions to make; the feed's other filters have one already.
        subscribe: Vec<(SubscriptionKey, Filter)>,
    },
    /// A feed has ended and no other feed needs these subscriptions.
    Unsubscribe {
        /// Subscriptions to end.
        unsubscribe: Vec<SubscriptionKey>,
    },
}

/// Message of one subscription.
#[derive(Debug)]
pub enum Received {
    /// Decoded event; the writer sets its position.
    Event(Event),
    /// The message is larger than an event may be; its subject.
    TooLarge(Arc<str>),
}

impl Received {
    /// Returns the event, if there is one.
    #[must_use]
    pub fn event(self) -> Option<Event> {
        match self {
            Self::Event(event) => Some(event),
            Self::TooLarge(_) => None,
        }
    }
}

#[derive(Debug)]
struct CoreFeed {
    number: u64,
    lease: FeedLease,
    dedup: Dedup,
    /// Its readers have started, so they receive gaps.
    is_subscribed: bool,
}

/// Decoded message of the current batch.
#[derive(Debug)]
enum BatchItem {
    Event {
        encoded: Arc<EncodedEvent>,
        /// Hash of the subject and `Nats-Msg-Id`.
        id: Option<u64>,
    },
    Gap(Gap, Position),
}

/// One delivery to a feed; sorts by feed, then by order of receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Delivery {
    feed: usize,
    item: usize,
}

impl CoreWriter {
    pub(super) fn new(
        sequence: Arc<SequenceCounter>,
        requests: SubscribeRequests<FeedLease>,
        budget: &Arc<Budget>,
    ) -> Self {
        Self {
            sequence,
            budget: budget.clone(),
            requests,
            feeds: Slab::new(),
            subscriptions: Subscriptions::default(),
            idle: FuturesUnordered::new(),
            created: 0,
            hasher: RandomState::new(),
            wake_list: WakeList::default(),
            batch: Vec::new(),
            deliveries: Vec::new(),
        }
    }

    /// Returns the next change of the subscriptions; `None` after the reading side is gone. Cancel
    /// safe.
    pub async fn change(&mut self) -> Option<Change> {
        tokio::select! {
            biased;
            Some(feed) = self.idle.next(), if !self.idle.is_empty() => Some(self.remove(feed)),
            request = self.requests.recv() => request.map(|request| self.add(request.writer)),
        }
    }

    fn add(&mut self, lease: FeedLease) -> Change {
        self.created += 1;
        let number = self.created;
        let (filters, mut watch) = (lease.feed().filters.clone(), lease.watch());
        let dedup = Dedup::new(&self.budget);
        let slot = self.feeds.insert(CoreFeed {
            number,
            lease,
            dedup,
            is_subscribed: false,
        });
        let mut subscribe = Vec::new();
        self.subscriptions.add(slot, &filters, &mut subscribe);
        self.idle.push(Box::pin(async move {
            watch.wait_idle().await;
            slot
        }));
        Change::Subscribe {
            feed: FeedKey { slot, number },
            subscribe,
        }
    }

    fn remove(&mut self, slot: usize) -> Change {
        let mut unsubscribe = Vec::new();
        let CoreFeed { lease, .. } = self.feeds.remove(slot);
        self.subscriptions
            .remove(slot, &lease.feed().filters, &mut unsubscribe);
        Change::Unsubscribe { unsubscribe }
    }

    /// Confirms that the server has the subscriptions of a feed: its waiting readers may start.
    pub fn confirm_subscribed(&mut self, feed: FeedKey) {
        if let Some(written) = self
            .feeds
            .get_mut(feed.slot)
            .filter(|written| written.number == feed.number)
        {
            written.is_subscribed = true;
            written.lease.confirm_subscribed();
        }
    }

    /// Iterates over the current subscriptions.
    pub fn subscriptions(&self) -> impl Iterator<Item = (SubscriptionKey, &Filter)> {
        self.subscriptions.iter()
    }

    /// Returns the subscription of a filter, if it exists.
    #[must_use]
    pub fn find(&self, filter: &Filter) -> Option<SubscriptionKey> {
        self.subscriptions.find(filter)
    }

    /// Returns the filter of a subscription that has not ended.
    #[must_use]
    pub fn filter(&self, key: SubscriptionKey) -> Option<&Filter> {
        self.subscriptions.filter(key)
    }

    /// Number of feeds that share a subscription: the fan-out of one message.
    #[must_use]
    pub fn fan_out(&self, key: SubscriptionKey) -> usize {
        self.subscriptions.count(key)
    }

    /// Returns the filters of a feed that has not ended.
    #[must_use]
    pub fn filters(&self, feed: FeedKey) -> Option<&FilterSet> {
        let written = self
            .feeds
            .get(feed.slot)
            .filter(|written| written.number == feed.number)?;
        Some(&written.lease.feed().filters)
    }

    /// Appends messages in order of receipt, each to the feeds that receive from its subscription.
    /// Returns the number of duplicates: messages omitted in at least one feed because its window
    /// has a message with the same subject and `Nats-Msg-Id`.
    pub fn append(
        &mut self,
        messages: impl IntoIterator<Item = (SubscriptionKey, Received)>,
    ) -> usize {
        let mut duplicates = 0;
        for (key, message) in messages {
            let subject = match &message {
                Received::Event(event) => event.subject.clone(),
                Received::TooLarge(subject) => subject.clone(),
            };
            let (item, before) = (self.batch.len(), self.deliveries.len());
            self.deliveries.extend(
                self.subscriptions
                    .recipients(key, &subject)
                    .map(|feed| Delivery { feed, item }),
            );
            if self.deliveries.len() == before {
                continue;
            }
            let position = self.sequence.take();
            self.batch.push(match message {
                Received::Event(mut event) => {
                    let id = event
                        .headers
                        .take_message_id()
                        .map(|id| self.hasher.hash_one((&*subject, id)));
                    event.position = Position {
                        fingerprint: event.position.fingerprint,
                        ..position
                    };
                    BatchItem::Event {
                        encoded: EncodedEvent::new(event, &self.budget),
                        id,
                    }
                }
                Received::TooLarge(_) => BatchItem::Gap(
                    Gap {
                        reason: GapReason::Upstream,
                        missed: Some(1),
                    },
                    position,
                ),
            });
            if self.deliveries.len() >= FAN_OUT_MAX {
                duplicates += self.flush();
            }
        }
        duplicates + self.flush()
    }

    /// Appends the batch with one lock per feed and one notification per shard.
    fn flush(&mut self) -> usize {
        let Some(last) = self.batch.last().map(BatchItem::seq) else {
            return 0;
        };
        self.deliveries.sort_unstable();
        let (mut duplicates, mut encodings) = (Vec::new(), BatchEncodings::default());
        for group in self.deliveries.chunk_by(|one, next| one.feed == next.feed) {
            let CoreFeed { lease, dedup, .. } = &mut self.feeds[group[0].feed];
            let feed = lease.feed();
            if feed.options.converter.is_some() {
                // Before the lock: readers wait for it.
                let events = group.iter().filter_map(|one| self.batch[one.item].event());
                events.for_each(|encoded| feed.options.prepare(encoded));
            }
            let mut state = feed.lock();
            dedup.evict_through(state.window.floor());
            let before = state.window.end();
            for run in group.chunk_by(|one, next| {
                !self.batch[one.item].is_gap() && !self.batch[next.item].is_gap()
            }) {
                if let BatchItem::Gap(gap, position) = &self.batch[run[0].item] {
                    state
                        .window
                        .push_gap(*gap, *position, GapSide::Before, Instant::now());
                    continue;
                }
                state.window.append(run.iter().filter_map(|delivery| {
                    let BatchItem::Event { encoded, id } = &self.batch[delivery.item] else {
                        return None;
                    };
                    if id.is_some_and(|id| !dedup.insert(id, encoded.event.position.seq)) {
                        duplicates.push(delivery.item);
                        return None;
                    }
                    Some(encodings.show(encoded, &feed.options, delivery.item))
                }));
            }
            if state.window.end() > before {
                state.subscribers.notify(feed, &mut self.wake_list);
            }
        }
        encodings.encode_further(|nth| self.batch.get(nth)?.event());
        // Evicted memory is released only when the last reference is dropped.
        self.batch.clear();
        self.deliveries.clear();
        self.deliveries.shrink_to(FAN_OUT_MAX);
        self.sequence.set_complete(last);
        self.wake();
        // A message counts once, regardless of the number of feeds that already have it.
        duplicates.sort_unstable();
        duplicates.dedup();
        duplicates.len()
    }

    /// Appends a gap to every subscribed feed.
    pub fn gap(&mut self, reason: GapReason, missed: Option<u64>) {
        let all = self
            .feeds
            .iter()
            .filter(|(_, written)| written.is_subscribed);
        let all: Vec<usize> = all.map(|(slot, _)| slot).collect();
        self.push_gap(&all, Gap { reason, missed });
    }

    /// Appends a gap to one feed, subscribed or not.
    pub fn gap_of_feed(&mut self, feed: FeedKey, reason: GapReason, missed: Option<u64>) {
        if self.get(feed).is_some() {
            self.push_gap(&[feed.slot], Gap { reason, missed });
        }
    }

    /// Appends a gap to every subscribed feed with a subscription.
    pub fn gap_of_subscription(
        &mut self,
        key: SubscriptionKey,
        reason: GapReason,
        missed: Option<u64>,
    ) {
        let feeds = self
            .subscriptions
            .feeds(key)
            .filter(|slot| self.feeds[*slot].is_subscribed);
        let feeds: Vec<usize> = feeds.collect();
        self.push_gap(&feeds, Gap { reason, missed });
    }

    fn push_gap(&mut self, feeds: &[usize], gap: Gap) {
        if feeds.is_empty() {
            return;
        }
        // A gap takes a number, so that a reader that leaves before the gap receives it after its
        // return.
        let position = self.sequence.take();
        for slot in feeds {
            let feed = self.feeds[*slot].lease.feed();
            let mut state = feed.lock();
            state
                .window
                .push_gap(gap, position, GapSide::Before, Instant::now());
            state.subscribers.notify(feed, &mut self.wake_list);
        }
        self.sequence.set_complete(position.seq);
        self.wake();
    }

    /// Wakes readers with no lock held.
    fn wake(&mut self) {
        self.wake_list.wake_all();
        self.budget.enforce();
    }

    fn get(&self, feed: FeedKey) -> Option<&CoreFeed> {
        self.feeds
            .get(feed.slot)
            .filter(|written| written.number == feed.number)
    }
}

impl BatchItem {
    fn seq(&self) -> u64 {
        match self {
            Self::Event { encoded, .. } => encoded.event.position.seq,
            Self::Gap(_, position) => position.seq,
        }
    }

    fn event(&self) -> Option<&Arc<EncodedEvent>> {
        match self {
            Self::Event { encoded, .. } => Some(encoded),
            Self::Gap(..) => None,
        }
    }

    fn is_gap(&self) -> bool {
        matches!(self, Self::Gap(..))
    }
}
