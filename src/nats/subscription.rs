//! Core subjects on demand: one task per set of filters, from the first reader to the last.

use std::sync::Arc;
use std::time::Instant;

use async_nats::{Message, SubscribeError, Subscriber};
use futures_util::stream::SelectAll;
use futures_util::{FutureExt as _, StreamExt as _};
use prometheus::IntCounter;

use super::barrier::Barrier;
use super::client::{Link, LinkState};
use super::intake::{BATCH_MAX, Batch, Intake};
use super::message::Parts;
use crate::feed::{Demand, Demands, FeedWriter, GapReason};
use crate::lifecycle::drain::Watch;
use crate::sse::{Component, Tag};
use crate::subject::FilterSet;
use crate::telemetry::Metrics;

/// The label of core subjects in metrics.
const SOURCE: &str = "core";

/// What every subscription needs.
#[derive(Clone, Debug)]
pub(crate) struct Core {
    link: Link,
    barrier: Barrier,
    intake: Intake,
    denied: IntCounter,
    tag: Tag,
}

impl Core {
    pub(crate) fn new(link: Link, barrier: Barrier, tag: Tag, metrics: &Arc<Metrics>) -> Self {
        let denied = metrics.events_rejected_total.with_label_values(&[SOURCE, "denied"]);
        Self { link, barrier, intake: Intake::new(metrics, SOURCE), denied, tag }
    }

    /// Serves demands until the drain begins or nobody can demand any more.
    pub(crate) async fn serve(self, mut demands: Demands, mut drain: Watch) {
        loop {
            let demand = tokio::select! {
                biased;
                () = drain.signaled() => return,
                demand = demands.recv() => demand,
            };
            let Some(Demand { filters, writer }) = demand else { return };
            let subscription = Subscription { core: self.clone(), filters, writer, seen: LinkState::default() };
            tokio::spawn(subscription.run(drain.clone()));
        }
    }
}

/// One set of filters that is wanted.
struct Subscription {
    core: Core,
    filters: FilterSet,
    writer: FeedWriter,
    /// The connection as it was when the readers were told last.
    seen: LinkState,
}

impl Subscription {
    async fn run(mut self, mut drain: Watch) {
        // Whatever was begun and not opened ends with its subscribers.
        let Some((mut subscribers, seen)) = self.open(&mut drain).await else { return };
        self.seen = LinkState { denied: Arc::default(), ..seen };
        self.compare(&self.core.link.now());
        self.writer.established();
        loop {
            tokio::select! {
                biased; // The connection before its messages: a gap stands before what follows it.
                () = drain.signaled() => break,
                () = self.writer.unwanted() => break,
                () = self.core.link.changed() => self.compare(&self.core.link.now()),
                message = subscribers.next() => match message {
                    Some(message) => self.take(message, &mut subscribers),
                    // The client is over, and all that was subscribed with it. The next one is another generation.
                    None => match self.open(&mut drain).await {
                        Some((again, _)) => {
                            subscribers = again;
                            self.compare(&self.core.link.now());
                        }
                        None => break,
                    },
                },
            }
        }
        for subscriber in subscribers.iter_mut() {
            if subscriber.unsubscribe().await.is_err() {
                break; // The connection is closed, and every subscription with it.
            }
        }
    }

    /// Subscribes; nothing if that is not wanted any more.
    async fn open(&mut self, drain: &mut Watch) -> Option<(SelectAll<Subscriber>, LinkState)> {
        tokio::select! {
            biased;
            () = drain.signaled() => None,
            () = self.writer.unwanted() => None,
            opened = open(&mut self.core, &self.filters) => Some(opened),
        }
    }

    /// Takes this message and all that are ready.
    fn take(&mut self, first: Message, subscribers: &mut SelectAll<Subscriber>) {
        let mut messages = vec![first];
        while messages.len() < BATCH_MAX {
            let Some(Some(message)) = subscribers.next().now_or_never() else { break };
            messages.push(message);
        }
        let received = Instant::now();
        // Behind the receipt: what came on another connection is never told before the gap.
        let state = LinkState { generation: self.core.link.generation(), up: true, ..self.core.link.now() };
        self.compare(&state);
        self.core.intake.received(messages.len());
        let mut batch = Batch::default();
        for message in &messages {
            if message.status.is_some() {
                self.core.intake.status();
                continue;
            }
            // The feed gives the number.
            let position = Component { tag: self.core.tag, seq: 0, check: None };
            self.core.intake.take(Parts::of_core(message), position, received, &self.filters, &mut batch);
        }
        batch.write_to_feed(&mut self.writer, &self.core.intake);
    }

    /// Tells the readers when messages may be missing: another connection, messages dropped, or a refused subject.
    fn compare(&mut self, now: &LinkState) {
        if !now.up {
            return; // Told once, when it is back.
        }
        let is_refused =
            |state: &LinkState| self.filters.disjoint().iter().any(|filter| state.denials(filter.as_str()) > 0);
        let is_newly_refused =
            !Arc::ptr_eq(&now.denied, &self.seen.denied) && is_refused(now) && !is_refused(&self.seen);
        if is_newly_refused {
            self.core.denied.inc();
            tracing::error!(filters = %self.filters, "nats refuses core subjects that clients are waiting for");
        }
        if is_newly_refused || now.generation != self.seen.generation || now.overflows != self.seen.overflows {
            self.writer.gap(GapReason::Upstream, None);
        }
        self.seen = now.clone();
    }
}

/// Subscribes and waits until the server has done so.
async fn open(core: &mut Core, filters: &FilterSet) -> (SelectAll<Subscriber>, LinkState) {
    let subscribers = loop {
        let generation = core.link.up().await;
        match subscribe(core, filters).await {
            Ok(subscribers) => break subscribers,
            Err(error) => {
                tracing::warn!(%filters, %error, "core subjects not subscribed to yet");
                core.link.gone(generation).await;
            }
        }
    };
    loop {
        core.link.up().await;
        let before = core.link.now();
        core.barrier.pass().await;
        // With another connection the client subscribes again by itself, but the round trip was of the old one.
        if core.link.generation() == before.generation {
            return (subscribers, before);
        }
    }
}

async fn subscribe(core: &Core, filters: &FilterSet) -> Result<SelectAll<Subscriber>, SubscribeError> {
    let client = core.link.client();
    let mut subscribers = SelectAll::new();
    for filter in filters.disjoint() {
        subscribers.push(client.subscribe(filter.to_string()).await?);
    }
    Ok(subscribers)
}
