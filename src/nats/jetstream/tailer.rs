//! The loop that follows one JetStream stream for the whole pod.

mod delivery;
pub(in crate::nats) mod start;

use std::sync::Arc;
use std::time::Instant;

use async_nats::jetstream::consumer::DeliverPolicy;
use time::OffsetDateTime;

use super::api::{Api, JetStreamError, StreamState};
use super::consumer::{self, Consumer, Lost, REJECTIONS_MAX, Received, Spec, sequence};
use super::tags::SourceTags;
use crate::feed::{Gap, GapReason, Limits, StreamWriter};
use crate::lifecycle::health::{Check, Health, Status};
use crate::lifecycle::shutdown::Token;
use crate::nats::connection::{Identity, NatsConnection};
use crate::nats::decode::decoder::{Batch, EventDecoder};
use crate::nats::decode::message::MessageFields;
use crate::sse::{Position, SourceTag};
use crate::subject::{Filter, FilterSet};
use crate::telemetry::Metrics;
use delivery::Delivery;
use start::{Known, Start};

/// One JetStream stream to follow.
#[derive(Clone, Debug)]
pub struct StreamConfig {
    /// Its name.
    pub name: String,
    /// Everything that any route can ask of it.
    pub filters: FilterSet,
    /// A name that replaces its creation time in ids.
    pub identity: Option<String>,
    /// How much of its recent past is wanted at the start.
    pub window: Limits,
}

/// The most messages of one pull request.
const REQUEST_MAX: usize = 512;
/// The most bytes of one pull request.
const REQUEST_BYTES_MAX: usize = 4 << 20;

/// What the check says before the recent past is read.
const NOT_CAUGHT_UP: &str = "not caught up yet";

/// Follows one JetStream stream.
#[derive(Debug)]
pub(crate) struct StreamTailer {
    config: StreamConfig,
    identity: Identity,
    api: Api,
    data: NatsConnection,
    tags: Arc<SourceTags>,
    writer: StreamWriter,
    intake: EventDecoder,
    metrics: Arc<Metrics>,
    check: Check,
    followed: Option<Followed>,
    consumer: Option<Consumer>,
    /// Whether everything that stood in the stream when the consumer was created has been taken.
    caught_up: bool,
    /// The last sequence of the stream when the consumer was created.
    target: u64,
    /// Attempts since the last progress.
    attempts: u32,
    /// Permanent errors since the last progress.
    rejections: u32,
    delivery: Delivery,
}

/// Which stream it follows under which tag, and the last message that it saw of it.
#[derive(Clone, Copy, Debug)]
struct Followed {
    created: i128,
    tag: SourceTag,
    last: Option<Position>,
}

impl StreamTailer {
    pub(crate) fn new(
        config: StreamConfig,
        identity: Identity,
        (api, data, tags): (Api, NatsConnection, Arc<SourceTags>),
        writer: StreamWriter,
        health: &Health,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self {
            intake: EventDecoder::new(metrics, &config.name),
            check: health.check(format!("stream:{}", config.name), NOT_CAUGHT_UP),
            metrics: Arc::clone(metrics),
            config,
            identity,
            api,
            data,
            tags,
            writer,
            followed: None,
            consumer: None,
            caught_up: false,
            target: 0,
            attempts: 0,
            rejections: 0,
            delivery: Delivery::default(),
        }
    }

    /// Follows until the drain begins, whatever happens to the stream.
    pub(crate) async fn run(mut self, mut drain: Token) {
        self.writer.catch_up();
        loop {
            tokio::select! {
                biased; // A busy stream never ends by itself.
                () = drain.requested() => break,
                () = self.follow() => {}
            }
        }
        if let Some(consumer) = self.consumer.take() {
            self.api.delete(&self.config.name, consumer.name()).await;
        }
        tracing::debug!(stream = self.config.name, "tailer ended");
    }

    /// Follows with one consumer for as long as it works.
    async fn follow(&mut self) {
        self.data.up().await;
        if let Err(trouble) = self.begin().await {
            self.report(&trouble);
            self.back_off().await;
            return;
        }
        while let Some(consumer) = &mut self.consumer {
            let received = consumer.receive().await;
            let is_idle = received.messages.is_empty();
            if let Some(lost) = self.take(received) {
                self.lose(lost).await;
            } else if is_idle {
                self.look_at_delivery().await;
            }
        }
    }

    /// Looks where the stream is and creates a consumer that adjoins what was passed.
    async fn begin(&mut self) -> Result<(), JetStreamError> {
        let state = self.api.describe_shareable(&self.config.name).await?;
        let tag = state.tag(&self.config.name, self.config.identity.as_deref());
        self.tags
            .claim(&self.config.name, self.config.identity.as_deref(), tag)?;
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos();
        let start = match (self.followed, self.writer.head()) {
            (Some(followed), Some((_, head))) => {
                let known = Known {
                    created: followed.created,
                    has_identity: self.config.identity.is_some(),
                    head,
                    is_content_known: self.is_content_known(&state, followed).await?,
                };
                start::onward(&state, known, self.config.window, now)
            }
            _ => start::recent(&state, self.config.window, now),
        };
        self.target = state.last_seq;
        let mut followed = Followed {
            created: state.created,
            tag,
            last: self.followed.and_then(|known| known.last),
        };
        let consumer = match start {
            Start::Onward { first } => self.create(sequence(first)).await?,
            Start::Recent { first, since } => {
                let consumer = self.create_recent(first, since).await?;
                followed.last = None;
                self.writer.begin(tag, consumer.head);
                consumer
            }
            Start::Behind { first, missed } => {
                let gap = Gap {
                    reason: GapReason::Expired,
                    missed: self.is_everything(&state).then_some(missed),
                };
                self.renew(&mut followed, first - 1, gap);
                self.create(sequence(first)).await?
            }
            Start::Anew { head, reason } => {
                self.renew(
                    &mut followed,
                    head,
                    Gap {
                        reason,
                        missed: None,
                    },
                );
                self.create(sequence(head + 1)).await?
            }
        };
        self.followed = Some(followed);
        tracing::info!(
            stream = self.config.name,
            consumer = consumer.name(),
            after = consumer.head,
            pending = consumer.pending,
            "stream followed"
        );
        // A consumer that was rejected before has to show that it delivers.
        if consumer.pending == 0 && self.rejections == 0 {
            self.settle();
        }
        self.consumer = Some(consumer);
        Ok(())
    }

    /// Tells the readers that what they know and what follows do not adjoin. Kept even if the consumer then fails.
    fn renew(&mut self, followed: &mut Followed, head: u64, gap: Gap) {
        tracing::warn!(stream = self.config.name, reason = ?gap.reason, missed = gap.missed, after = head, "gap in the stream");
        followed.last = None;
        // Whoever comes before the new past is read would take it for news.
        self.caught_up = false;
        self.writer.catch_up();
        self.check.set(Status::Failing(NOT_CAUGHT_UP.to_owned()));
        self.writer.start_epoch(followed.tag, head, gap);
        self.followed = Some(*followed);
    }

    /// Whether JetStream still holds the message that we saw last; the numbers mean other messages otherwise.
    async fn is_content_known(
        &self,
        state: &StreamState,
        followed: Followed,
    ) -> Result<bool, JetStreamError> {
        let Some(last) = followed.last else {
            return Ok(true);
        };
        let is_there = (state.first_seq..=state.last_seq).contains(&last.seq);
        if !is_there || (followed.created != state.created && self.config.identity.is_none()) {
            return Ok(true);
        }
        self.api.still_holds(&self.config.name, last).await
    }

    /// Whether every message of the stream is wanted, so that a number of messages is one of events.
    fn is_everything(&self, state: &StreamState) -> bool {
        let wanted = |subject: &String| {
            let subject = Filter::parse(subject);
            subject.is_ok_and(|subject| {
                self.config
                    .filters
                    .filters()
                    .iter()
                    .any(|filter| filter.covers(&subject))
            })
        };
        !state.subjects.is_empty() && state.subjects.iter().all(wanted)
    }

    /// A consumer for the recent past: by time if that is later than the sequence.
    async fn create_recent(
        &mut self,
        first: u64,
        since: Option<i128>,
    ) -> Result<Consumer, JetStreamError> {
        let since = since.and_then(|since| OffsetDateTime::from_unix_timestamp_nanos(since).ok());
        if let Some(start_time) = since {
            let consumer = self
                .create(DeliverPolicy::ByStartTime { start_time })
                .await?;
            if consumer.head + 1 >= first {
                return Ok(consumer);
            }
            self.api.forget(&self.config.name, consumer.name()).await;
        }
        self.create(sequence(first)).await
    }

    async fn create(&mut self, from: DeliverPolicy) -> Result<Consumer, JetStreamError> {
        let spec = Spec {
            stream: self.config.name.clone(),
            name: consumer::name(&self.api, &self.identity, &self.config.name, ""),
            filters: consumer::filters(&self.api, &self.config.filters),
            from,
            batch: REQUEST_MAX,
            bytes: REQUEST_BYTES_MAX,
        };
        let consumer = Consumer::create(&self.api, self.data.clone(), spec).await?;
        self.metrics.consumers_created_total.inc();
        Ok(consumer)
    }

    /// Writes what came to the log. Returns why nothing more will come, if so.
    fn take(&mut self, received: Received) -> Option<Lost> {
        let (Some(followed), Some((_, head))) = (&mut self.followed, self.writer.head()) else {
            return received.lost;
        };
        let now = Instant::now();
        let mut batch = Batch::default();
        let mut last = head;
        self.intake.received(received.messages.len());
        for (place, message) in &received.messages {
            if place.sequence <= last {
                continue; // Never twice, whatever the server sends.
            }
            last = place.sequence;
            let position = Position {
                tag: followed.tag,
                seq: last,
                fingerprint: Some(Position::fingerprint_of(place.published)),
            };
            followed.last = Some(position);
            self.intake.take(
                MessageFields::of(message),
                position,
                now,
                &self.config.filters,
                &mut batch,
            );
        }
        batch.write_to_log(&mut self.writer);
        // A message that no filter selects moves the head too, and so does what the server passed behind the last one.
        // Only the consumer's own word counts here: the state of the stream may come from a replica that is ahead of it.
        last = last.max(received.passed.unwrap_or(0));
        self.writer.advance(last);
        if last > head && self.delivery.end() {
            self.check.set(if self.caught_up {
                Status::Ok
            } else {
                Status::Failing(NOT_CAUGHT_UP.to_owned())
            });
        }
        if !received.messages.is_empty() || received.passed.is_some() {
            self.attempts = 0;
            if std::mem::take(&mut self.rejections) >= REJECTIONS_MAX {
                self.writer.accept();
            }
        }
        if let Some((place, _)) = received.messages.last() {
            self.writer.pending(place.pending);
        }
        let is_at_end = received
            .messages
            .last()
            .is_some_and(|(place, _)| place.pending == 0);
        if is_at_end || received.passed.is_some() || last >= self.target {
            self.settle();
        }
        received.lost
    }

    fn settle(&mut self) {
        if !self.caught_up {
            self.caught_up = true;
            self.writer.caught_up();
            self.check.set(Status::Ok);
        }
    }

    async fn lose(&mut self, lost: Lost) {
        tracing::info!(stream = self.config.name, reason = ?lost, "consumer lost, making another");
        if let Some(consumer) = self.consumer.take() {
            self.api.forget(&self.config.name, consumer.name()).await;
        }
        match lost {
            Lost::Rejected(status, text) => self.report(&JetStreamError::Rejected {
                code: 0,
                status,
                text,
            }),
            Lost::Denied(subject) => self.report(&JetStreamError::Denied(subject)),
            Lost::Disconnected | Lost::Silent | Lost::Hole | Lost::Deleted => {}
        }
        self.back_off().await;
    }

    fn report(&mut self, trouble: &JetStreamError) {
        self.caught_up = false;
        if trouble.is_permanent() {
            self.rejections += 1;
            if self.rejections == REJECTIONS_MAX {
                tracing::error!(stream = self.config.name, why = %trouble.explain(&self.config.name), "NATS rejects reading the stream; closing its event streams");
                self.writer.reject();
            }
        }
        self.check
            .set(Status::Failing(trouble.explain(&self.config.name)));
    }

    async fn back_off(&mut self) {
        tokio::time::sleep(consumer::pause(self.attempts)).await;
        self.attempts += 1;
    }
}
