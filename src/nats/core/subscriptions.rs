//! Core subjects on demand: one subscription for each filter, shared by all feeds that hold it, and one task for them.
//!
//! ```text
//! CoreWriter::change -> waiting -> round: subscribe, then a round trip -> CoreWriter::established
//! inlet (all subscriptions) -> take -> message becomes an event once -> CoreWriter::append (every feed that wants it)
//! ```
//!
//! NATS sends one copy of a message for each matching subscription, so the number of copies is that of the distinct
//! filters that match, however many feeds hold them. Rounds follow each other: a feed whose filters are all subscribed to
//! already waits for the round after the one that made them.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use async_nats::Message;
use prometheus::IntCounter;

use super::inlet::{self, Inlet, Made};
use crate::feed::core_source::FAN_OUT_MAX;
use crate::feed::{Change, CoreWriter, FeedKey, GapReason, SubscriptionKey};
use crate::lifecycle::shutdown::Token;
use crate::nats::connection::flush::ServerFlush;
use crate::nats::connection::{ConnectionState, NatsConnection};
use crate::nats::decode::decoder::{BATCH_MAX, EventDecoder};
use crate::nats::decode::message::MessageFields;
use crate::sse::{Position, SourceTag};
use crate::subject::Filter;
use crate::telemetry::Metrics;

/// The label of core subjects in metrics.
const SOURCE: &str = "core";

/// Subscribes to the core subjects that feeds want, and writes what comes to them.
pub(crate) struct Core {
    link: NatsConnection,
    barrier: ServerFlush,
    intake: EventDecoder,
    denied: IntCounter,
    tag: SourceTag,
    writer: CoreWriter,
    inlet: Inlet<SubscriptionKey>,
    /// What the next round is for.
    waiting: Waiting,
    round: Option<Round>,
    /// The connection as it was when it was compared last.
    seen: ConnectionState,
    /// Subscriptions whose refusal was reported on this connection.
    refused: HashSet<SubscriptionKey>,
}

/// Subscriptions to make, and feeds to establish after that.
#[derive(Default)]
struct Waiting {
    subscribe: Vec<(SubscriptionKey, Filter)>,
    feeds: Vec<FeedKey>,
}

/// A round on its way.
struct Round {
    feeds: Vec<FeedKey>,
    done: Pin<Box<dyn Future<Output = Done> + Send>>,
}

/// Subscriptions that the server has confirmed.
struct Done {
    made: Vec<(SubscriptionKey, Made)>,
    /// The connection that confirmed them.
    seen: ConnectionState,
}

impl Core {
    pub(crate) fn new(
        link: NatsConnection,
        barrier: ServerFlush,
        tag: SourceTag,
        writer: CoreWriter,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let denied = metrics
            .events_rejected_total
            .with_label_values(&[SOURCE, "denied"]);
        let seen = ConnectionState {
            denied: Arc::default(),
            ..link.now()
        };
        Self {
            link,
            barrier,
            intake: EventDecoder::new(metrics, SOURCE),
            denied,
            tag,
            writer,
            inlet: Inlet::default(),
            waiting: Waiting::default(),
            round: None,
            seen,
            refused: HashSet::new(),
        }
    }

    /// Serves feeds until the drain begins or no reader can come any more.
    pub(crate) async fn serve(mut self, mut drain: Token) {
        loop {
            self.begin_round();
            tokio::select! {
                biased; // The connection before its messages: a gap comes before the messages after it.
                () = drain.requested() => break,
                () = self.link.changed() => self.compare(&self.link.now()),
                done = next(&mut self.round) => self.finish_round(done),
                change = self.writer.change() => match change {
                    Some(change) => self.apply(change),
                    None => break,
                },
                message = self.inlet.next() => match message {
                    Some((key, message)) => if self.take(key, message) {
                        // Readers run before more is appended, or their windows move past them.
                        tokio::task::yield_now().await;
                    },
                    // The client of the library has ended, and all its subscriptions with it.
                    None => self.subscribe_again(),
                },
            }
        }
        self.inlet.end().await;
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Subscribe { feed, subscribe } => {
                self.waiting.feeds.push(feed);
                self.waiting.subscribe.extend(subscribe);
            }
            Change::Unsubscribe { unsubscribe } => {
                for key in unsubscribe {
                    self.inlet.remove(key);
                    self.refused.remove(&key);
                }
            }
        }
    }

    /// Makes every subscription again, with the client that replaces the one that has ended.
    fn subscribe_again(&mut self) {
        self.inlet = Inlet::default();
        let all = self
            .writer
            .subscriptions()
            .map(|(key, filter)| (key, filter.clone()));
        self.waiting.subscribe = all.collect();
        // Subscriptions of a round on its way may be of either client.
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
        } = std::mem::take(&mut self.waiting);
        subscribe.retain(|(key, _)| self.writer.filter(*key).is_some());
        let done = Box::pin(round(self.link.clone(), self.barrier.clone(), subscribe));
        self.round = Some(Round { feeds, done });
    }

    fn finish_round(&mut self, Done { made, seen }: Done) {
        let feeds = self
            .round
            .take()
            .map(|round| round.feeds)
            .unwrap_or_default();
        for (key, made) in made {
            // Feeds that ended meanwhile need no subscription any more: dropping it ends it.
            if self.writer.filter(key).is_some() {
                self.inlet.add(key, made);
            }
        }
        self.compare(&self.link.now());
        let is_stale =
            seen.generation != self.seen.generation || seen.overflows != self.seen.overflows;
        for feed in feeds {
            let is_refused = || {
                let filters = self.writer.filters(feed)?.filters();
                Some(
                    filters
                        .iter()
                        .any(|filter| self.seen.denials(filter.as_str()) > 0),
                )
            };
            if is_stale || is_refused().unwrap_or(false) {
                self.writer.gap_of_feed(feed, GapReason::Upstream, None);
            }
            self.writer.confirm_subscribed(feed);
        }
    }

    /// Takes this message and all that are ready, as far as one batch goes; whether there may be more.
    fn take(&mut self, key: SubscriptionKey, first: Message) -> bool {
        let received = Instant::now();
        let mut work = self.writer.fan_out(key);
        let mut messages = vec![(key, first)];
        let is_full = |messages: &[_], work| messages.len() >= BATCH_MAX || work >= FAN_OUT_MAX;
        while !is_full(&messages, work) {
            let Some((key, message)) = self.inlet.ready() else {
                break;
            };
            work += self.writer.fan_out(key);
            messages.push((key, message));
        }
        // After the receipt: a message of another connection is never appended before the gap.
        let state = ConnectionState {
            generation: self.link.generation(),
            up: true,
            ..self.link.now()
        };
        self.compare(&state);
        self.intake.received(messages.len());
        let mut batch = Vec::with_capacity(messages.len());
        for (key, message) in &messages {
            if message.status.is_some() {
                self.intake.status();
                continue;
            }
            // A wildcard in the first place selects none of NATS's own subjects.
            if !self
                .writer
                .filter(*key)
                .is_some_and(|filter| filter.matches(message.subject.as_str()))
            {
                continue;
            }
            // The writer sets the number.
            let position = Position {
                tag: self.tag,
                seq: 0,
                fingerprint: None,
            };
            batch.push((
                *key,
                self.intake
                    .convert(MessageFields::of_core(message), position, received),
            ));
        }
        let may_be_more = is_full(&messages, work);
        drop(messages);
        let repeated = self.writer.append(batch);
        self.intake.repeated(repeated);
        may_be_more
    }

    /// Marks a gap when messages may be missing: another connection, messages dropped, or a refused subject.
    fn compare(&mut self, now: &ConnectionState) {
        if !now.up {
            return; // Once, when it is up again.
        }
        let is_other = now.generation != self.seen.generation;
        if is_other {
            self.refused.clear();
        }
        if is_other || now.overflows != self.seen.overflows {
            self.writer.gap(GapReason::Upstream, None);
        }
        if !Arc::ptr_eq(&now.denied, &self.seen.denied) {
            self.report_refused(now);
        }
        self.seen = now.clone();
    }

    fn report_refused(&mut self, now: &ConnectionState) {
        let refused = now
            .denied
            .keys()
            .filter_map(|subject| self.writer.find(&Filter::parse(subject).ok()?));
        let new: Vec<SubscriptionKey> = refused.filter(|key| !self.refused.contains(key)).collect();
        for key in new {
            self.refused.insert(key);
            self.denied.inc();
            let filter = self.writer.filter(key).map(tracing::field::display);
            tracing::error!(
                filter,
                "NATS denies a core subject that clients subscribe to"
            );
            self.writer
                .gap_of_subscription(key, GapReason::Upstream, None);
        }
    }
}

/// The end of a round; never without one.
async fn next(round: &mut Option<Round>) -> Done {
    match round {
        Some(round) => (&mut round.done).await,
        None => std::future::pending().await,
    }
}

/// Subscribes and waits until the server has done so.
async fn round(
    mut link: NatsConnection,
    barrier: ServerFlush,
    mut subscribe: Vec<(SubscriptionKey, Filter)>,
) -> Done {
    let mut made = Vec::with_capacity(subscribe.len());
    while let Some((key, filter)) = subscribe.pop() {
        let generation = link.up().await;
        match inlet::subscribe(&link.client(), filter.as_str()).await {
            Ok(one) => made.push((key, one)),
            Err(error) => {
                tracing::warn!(%filter, %error, "subscription to a core subject failed; retrying");
                subscribe.push((key, filter));
                link.gone(generation).await;
            }
        }
    }
    loop {
        link.up().await;
        let seen = link.now();
        barrier.pass().await;
        // With another connection the client subscribes again by itself, but the round trip was of the old one.
        if link.generation() == seen.generation {
            return Done { made, seen };
        }
    }
}
