//! Subscriptions to core subjects on demand: one per filter, one task for all of them.
//!
//! ```text
//! CoreWriter::change -> waiting -> round: subscribe, then flush -> CoreWriter::established
//! subscription_set   -> process -> one event per message        -> CoreWriter::append
//! ```
//!
//! NATS sends one copy of a message per matching subscription, so the number of copies depends on
//! the number of distinct filters, not on the number of feeds. Rounds run one after another. A feed
//! whose filters are all subscribed to still waits for a round, because the round that subscribed
//! may not be confirmed yet.
//!
//! Core subjects have no history. After a reconnect, a dropped message or a denied subject, the
//! feeds get a gap; the connection's state is checked before the messages that follow, so that the
//! gap comes first.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use async_nats::{GroupSubscription, Message};
use prometheus::IntCounter;

use super::subscription_set::{SetSubscriber, SubscriptionSet};
use crate::event::{Position, SourceTag};
use crate::feed::core_source::FAN_OUT_MAX;
use crate::feed::{Change, CoreWriter, FeedKey, GapReason, SubscriptionKey};
use crate::lifecycle::shutdown::Token;
use crate::nats::connection::flush::ServerFlush;
use crate::nats::connection::{ConnectionState, NatsConnection};
use crate::nats::decode::decoder::{BATCH_MAX, EventDecoder};
use crate::nats::decode::message::MessageFields;
use crate::subject::Filter;
use crate::telemetry::{Metrics, Tracer};

/// Label of core subjects in metrics.
const SOURCE: &str = "core";

/// Subscribes to the core subjects that feeds need, and writes their messages.
pub(crate) struct CoreSubscriptions {
    connection: NatsConnection,
    server_flush: ServerFlush,
    decoder: EventDecoder,
    denied: IntCounter,
    tag: SourceTag,
    writer: CoreWriter,
    subscription_set: SubscriptionSet<SubscriptionKey>,
    /// Contents of the next round.
    waiting: Waiting,
    round: Option<Round>,
    /// State of the connection at the last check.
    seen: ConnectionState,
    /// Subscriptions whose permission violation was reported on this connection.
    reported_denials: HashSet<SubscriptionKey>,
}

/// Subscriptions to create, and feeds to establish after that.
#[derive(Default)]
struct Waiting {
    subscribe: Vec<(SubscriptionKey, Filter)>,
    feeds: Vec<FeedKey>,
    /// Every subscription is created again: messages before the end of the round may be missing.
    is_again: bool,
}

/// A round in progress.
struct Round {
    feeds: Vec<FeedKey>,
    is_again: bool,
    done: Pin<Box<dyn Future<Output = Established> + Send>>,
}

/// Subscriptions that the server has confirmed.
struct Established {
    subscribed: Vec<(SubscriptionKey, GroupSubscription)>,
    /// State of the connection that confirmed them.
    seen: ConnectionState,
}

impl CoreSubscriptions {
    pub(crate) fn new(
        connection: NatsConnection,
        server_flush: ServerFlush,
        tag: SourceTag,
        writer: CoreWriter,
        (metrics, tracer): (&Arc<Metrics>, &Tracer),
    ) -> Self {
        let denied = metrics
            .events_rejected_total
            .with_label_values(&[SOURCE, "denied"]);
        let seen = ConnectionState {
            denied: Arc::default(),
            ..connection.state()
        };
        let subscription_set = SubscriptionSet::new(&connection.client());
        Self {
            connection,
            server_flush,
            decoder: EventDecoder::live(metrics, SOURCE, tracer),
            denied,
            tag,
            writer,
            subscription_set,
            waiting: Waiting::default(),
            round: None,
            seen,
            reported_denials: HashSet::new(),
        }
    }

    /// Serves feeds until shutdown is requested or no feed can be opened.
    pub(crate) async fn run(mut self, mut shutdown: Token) {
        loop {
            self.begin_round();
            tokio::select! {
                biased; // The connection before its messages: the gap comes before the messages after it.
                () = shutdown.requested() => break,
                () = self.connection.changed() => self.check_connection(&self.connection.state()),
                done = round_done(&mut self.round) => self.finish_round(done),
                change = self.writer.change() => match change {
                    Some(change) => self.apply(change),
                    None => break,
                },
                (key, message) = self.subscription_set.next() => if self.process(key, message) {
                    // Lets readers run before more is appended: otherwise their windows move past
                    // them.
                    tokio::task::yield_now().await;
                },
            }
        }
        self.subscription_set.end().await;
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Subscribe { feed, subscribe } => {
                self.waiting.feeds.push(feed);
                self.waiting.subscribe.extend(subscribe);
            }
            Change::Unsubscribe { unsubscribe } => {
                for key in unsubscribe {
                    self.subscription_set.remove(key);
                    self.reported_denials.remove(&key);
                }
            }
        }
    }

    /// Creates every subscription again, with the client that replaces the ended one.
    fn subscribe_again(&mut self) {
        self.subscription_set = SubscriptionSet::new(&self.connection.client());
        let all = self
            .writer
            .subscriptions()
            .map(|(key, filter)| (key, filter.clone()));
        self.waiting.subscribe = all.collect();
        self.waiting.is_again = true;
        // Subscriptions of a round in progress may belong to either client.
        self.waiting
            .feeds
            .extend(self.round.take().into_iter().flat_map(|round| round.feeds));
    }

    fn begin_round(&mut self) {
        if self.round.is_some()
            || (self.waiting.feeds.is_empty() && self.waiting.subscribe.is_empty())
        {
            return;
        }
        let Waiting {
            mut subscribe,
            feeds,
            is_again,
        } = std::mem::take(&mut self.waiting);
        subscribe.retain(|(key, _)| self.writer.filter(*key).is_some());
        let done = Box::pin(run_round(
            self.connection.clone(),
            self.server_flush.clone(),
            self.subscription_set.subscriber(),
            subscribe,
        ));
        self.round = Some(Round {
            feeds,
            is_again,
            done,
        });
    }

    fn finish_round(&mut self, Established { subscribed, seen }: Established) {
        let Some(Round {
            feeds, is_again, ..
        }) = self.round.take()
        else {
            return;
        };
        for (key, subscribed) in subscribed {
            // Feeds that ended meanwhile need no subscription; dropping it unsubscribes.
            if self.writer.filter(key).is_some() {
                self.subscription_set.add(key, subscribed);
            }
        }
        if is_again {
            self.writer.gap(GapReason::Upstream, None);
        }
        self.check_connection(&self.connection.state());
        let is_stale =
            seen.generation != self.seen.generation || seen.overflows != self.seen.overflows;
        for feed in feeds {
            if is_stale || self.is_denied(feed) {
                self.writer.gap_of_feed(feed, GapReason::Upstream, None);
            }
            self.writer.confirm_subscribed(feed);
        }
    }

    /// Returns true if the server denies a subject of this feed.
    fn is_denied(&self, feed: FeedKey) -> bool {
        self.writer.filters(feed).is_some_and(|filters| {
            filters
                .filters()
                .iter()
                .any(|filter| self.seen.denials(filter.as_str()) > 0)
        })
    }

    /// Takes this message and all that have arrived, up to one batch. Returns true if more may
    /// follow.
    fn process(&mut self, key: SubscriptionKey, first: Message) -> bool {
        let received = Instant::now();
        let mut work = self.writer.fan_out(key);
        let mut messages = vec![(key, first)];
        let is_full = |messages: &[_], work| messages.len() >= BATCH_MAX || work >= FAN_OUT_MAX;
        while !is_full(&messages, work) {
            let Some((key, message)) = self.subscription_set.ready() else {
                break;
            };
            work += self.writer.fan_out(key);
            messages.push((key, message));
        }
        // Read after the messages were received: a message of a new connection is never appended
        // before the gap.
        let state = ConnectionState {
            generation: self.connection.generation(),
            up: true,
            ..self.connection.state()
        };
        self.check_connection(&state);
        self.decoder.count_received(messages.len());
        let mut batch = Vec::with_capacity(messages.len());
        for (key, message) in &messages {
            if message.status.is_some() {
                self.decoder.count_status();
                continue;
            }
            // A wildcard in the first token does not select subjects reserved by NATS.
            if !self
                .writer
                .filter(*key)
                .is_some_and(|filter| filter.matches(message.subject.as_str()))
            {
                continue;
            }
            // The writer assigns the sequence.
            let position = Position {
                tag: self.tag,
                seq: 0,
                fingerprint: None,
            };
            batch.push((
                *key,
                self.decoder
                    .decode(MessageFields::of_core(message), position, received),
            ));
        }
        let may_be_more = is_full(&messages, work);
        drop(messages);
        let repeated = self.writer.append(batch);
        self.decoder.count_duplicates(repeated);
        may_be_more
    }

    /// Reports a gap if messages may be missing: after a reconnect, dropped messages or a denied
    /// subject.
    fn check_connection(&mut self, now: &ConnectionState) {
        if !now.up {
            return; // Reported once, after the reconnect.
        }
        let is_other = now.generation != self.seen.generation;
        if is_other {
            self.reported_denials.clear();
            if self.subscription_set.has_ended() {
                self.subscribe_again();
            }
        }
        if is_other || now.overflows != self.seen.overflows {
            self.writer.gap(GapReason::Upstream, None);
        }
        if !Arc::ptr_eq(&now.denied, &self.seen.denied) {
            self.report_denials(now);
        }
        self.seen = now.clone();
    }

    fn report_denials(&mut self, now: &ConnectionState) {
        let reported_denials = now
            .denied
            .keys()
            .filter_map(|subject| self.writer.find(&Filter::parse(subject).ok()?));
        let new: Vec<SubscriptionKey> = reported_denials
            .filter(|key| !self.reported_denials.contains(key))
            .collect();
        for key in new {
            self.reported_denials.insert(key);
            self.denied.inc();
            let filter = self.writer.filter(key).map(tracing::field::display);
            tracing::error!(filter, "NATS denies the subscription to a core subject");
            self.writer
                .gap_of_subscription(key, GapReason::Upstream, None);
        }
    }
}

/// Returns when the round ends. Never returns without one.
async fn round_done(round: &mut Option<Round>) -> Established {
    match round {
        Some(round) => (&mut round.done).await,
        None => std::future::pending().await,
    }
}

/// Subscribes, and waits until the server has processed it.
async fn run_round(
    mut connection: NatsConnection,
    server_flush: ServerFlush,
    subscriber: SetSubscriber<SubscriptionKey>,
    mut subscribe: Vec<(SubscriptionKey, Filter)>,
) -> Established {
    let mut subscribed = Vec::with_capacity(subscribe.len());
    while let Some((key, filter)) = subscribe.pop() {
        let generation = connection.wait_up().await;
        match subscriber.subscribe(key, filter.as_str()).await {
            Ok(one) => subscribed.push((key, one)),
            Err(error) => {
                tracing::warn!(%filter, %error, "subscription to a core subject failed; retrying");
                subscribe.push((key, filter));
                connection.wait_down(generation).await;
            }
        }
    }
    loop {
        connection.wait_up().await;
        let seen = connection.state();
        server_flush.flush().await;
        // After a reconnect the client subscribes again by itself, but the flush used the old
        // connection.
        if connection.generation() == seen.generation {
            return Established { subscribed, seen };
        }
    }
}
