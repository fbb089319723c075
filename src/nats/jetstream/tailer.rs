//! Tailer: follows one JetStream stream for the whole pod, whatever happens to it.
//!
//! One task per stream. It reads the stream's state, chooses the start position ([`start`]),
//! creates a pull consumer and writes decoded events into the stream buffer. When the consumer is
//! lost it creates another one after the last sequence, so that no message is missing or repeated:
//!
//! ```text
//! start_consumer -> receive -> process -> StreamWriter
//!       ^                         |
//!       +---- delay <- on_lost <--+ Lost
//! ```
//!
//! If the sequence cannot be continued, because messages expired, the stream was recreated or
//! restored from an older snapshot, the tailer starts a new epoch and every client receives a gap.
//! The health check `stream:NAME` fails, or after a reload is degraded, until the recent messages
//! are read. [`REJECTIONS_MAX`] permanent errors in a row close the event streams of this source.

mod delivery;
pub(in crate::nats) mod start;

use std::sync::Arc;
use std::time::Instant;

use async_nats::jetstream::consumer::DeliverPolicy;
use time::OffsetDateTime;

use super::api::{Api, JetStreamError};
use super::consumer::{self, Consumer, Lost, REJECTIONS_MAX, Received, Spec, sequence};
use super::stream_config::{StreamConfig, check_name};
use super::stream_state::StreamState;
use super::stream_subjects::StreamSubjects;
use super::tags::SourceTags;
use crate::event::{Fingerprint, Position, SourceTag};
use crate::feed::{Gap, GapReason, StreamWriter};
use crate::lifecycle::health::{Check, Health, Status};
use crate::lifecycle::shutdown::Token;
use crate::nats::connection::{Identity, NatsConnection};
use crate::nats::decode::decoder::{Batch, EventDecoder};
use crate::nats::decode::message::MessageFields;
use crate::subject::Filter;
use crate::telemetry::{Metrics, Tracer};
use delivery::Delivery;
use start::{Progress, Start};

/// Maximum number of messages of one pull request.
const REQUEST_MAX: usize = 512;
/// Maximum number of bytes of one pull request.
const REQUEST_BYTES_MAX: usize = 4 << 20;

/// Message of the health check before the recent messages are read.
const NOT_CAUGHT_UP: &str = "not caught up yet";

/// Task that follows one JetStream stream.
#[derive(Debug)]
pub(crate) struct StreamTailer {
    config: StreamConfig,
    subjects: StreamSubjects,
    identity: Identity,
    api: Api,
    data: NatsConnection,
    tags: Arc<SourceTags>,
    writer: StreamWriter,
    decoder: EventDecoder,
    metrics: Arc<Metrics>,
    check: Check,
    followed: Option<FollowedStream>,
    consumer: Option<Consumer>,
    /// All messages that the stream held when the consumer was created are processed.
    caught_up: bool,
    /// Last sequence of the stream when the consumer was created.
    target: u64,
    /// Attempts since the last progress.
    attempts: u32,
    /// Permanent errors since the last progress.
    rejections: u32,
    delivery: Delivery,
}

/// Access to JetStream for a tailer.
pub(crate) struct Server {
    pub(crate) api: Api,
    /// Connection that delivers the messages.
    pub(crate) data: NatsConnection,
    pub(crate) tags: Arc<SourceTags>,
}

/// Identity of the followed stream, its source tag, and the last message received from it.
#[derive(Clone, Copy, Debug)]
struct FollowedStream {
    created: i128,
    tag: SourceTag,
    last: Option<Position>,
}

impl StreamTailer {
    pub(crate) fn new(
        config: StreamConfig,
        identity: Identity,
        server: Server,
        writer: StreamWriter,
        health: &Health,
        (metrics, tracer): (&Arc<Metrics>, &Tracer),
    ) -> Self {
        let Server { api, data, tags } = server;
        Self {
            decoder: EventDecoder::live(metrics, &config.name, tracer),
            check: health.check(check_name(&config.name), NOT_CAUGHT_UP),
            metrics: Arc::clone(metrics),
            subjects: config.subjects(),
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

    /// Follows the stream until shutdown is requested.
    pub(crate) async fn run(mut self, mut shutdown: Token) {
        self.writer.catch_up();
        loop {
            tokio::select! {
                biased; // A busy stream would otherwise never yield.
                () = shutdown.requested() => break,
                () = self.follow_once() => {}
            }
        }
        if let Some(consumer) = self.consumer.take() {
            self.api.delete(&self.config.name, consumer.name()).await;
        }
        tracing::debug!(stream = self.config.name, "tailer ended");
    }

    /// Follows the stream with one consumer until it is lost.
    async fn follow_once(&mut self) {
        self.data.wait_up().await;
        if let Err(error) = self.start_consumer().await {
            self.report(&error);
            self.wait_before_retry().await;
            return;
        }
        while let Some(consumer) = &mut self.consumer {
            let received = consumer.receive().await;
            let is_idle = received.messages.is_empty();
            if let Some(lost) = self.process(received) {
                self.on_lost(lost).await;
            } else if is_idle {
                self.check_delivery().await;
            }
        }
    }

    /// Fails or degrades the health check if an idle stream holds a message that is not delivered.
    async fn check_delivery(&mut self) {
        let (Some((_, head)), Some(consumer)) = (self.writer.head(), &self.consumer) else {
            return;
        };
        let checked = self
            .delivery
            .check(&self.api, &self.config, consumer.name(), head);
        if let Some(text) = checked.await {
            self.check.set(if self.caught_up {
                Status::Degraded(text)
            } else {
                Status::Failing(text)
            });
        }
    }

    /// Reads the stream's state and creates a consumer that continues after the head.
    async fn start_consumer(&mut self) -> Result<(), JetStreamError> {
        let state = self.api.stream_info(&self.config.name).await?;
        let state = self.subjects.shareable(state)?;
        let tag = state.tag(&self.config.name, self.config.identity.as_deref());
        self.tags
            .claim(&self.config.name, self.config.identity.as_deref(), tag)?;
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos();
        let start = match (self.followed, self.writer.head()) {
            (Some(followed), Some((_, head))) => {
                let progress = Progress {
                    created: followed.created,
                    has_identity: self.config.identity.is_some(),
                    head,
                    is_last_unchanged: self.is_last_unchanged(&state, followed).await?,
                };
                start::resume(&state, progress, self.config.window, now)
            }
            _ => start::window_start(&state, self.config.window, now),
        };
        self.target = state.last_seq;
        let mut followed = FollowedStream {
            created: state.created,
            tag,
            last: self.followed.and_then(|progress| progress.last),
        };
        let consumer = match start {
            Start::Continue { first } => self.create(sequence(first)).await?,
            Start::Window { first, since } => {
                let consumer = self.create_recent(first, since).await?;
                self.writer.begin(tag, consumer.head);
                self.identify_head(&mut followed, &state, consumer.head);
                consumer
            }
            Start::Expired { first, missed } => {
                let gap = Gap {
                    reason: GapReason::Expired,
                    missed: self.selects_everything(&state).then_some(missed),
                };
                self.start_epoch(&mut followed, first - 1, gap);
                self.create(sequence(first)).await?
            }
            Start::NewEpoch { head, reason } => {
                self.start_epoch(
                    &mut followed,
                    head,
                    Gap {
                        reason,
                        missed: None,
                    },
                );
                self.identify_head(&mut followed, &state, head);
                self.create(sequence(head + 1)).await?
            }
        };
        self.followed = Some(followed);
        tracing::info!(
            stream = self.config.name,
            consumer = consumer.name(),
            after = consumer.head,
            pending = consumer.pending,
            "following stream"
        );
        // After a rejection, the new consumer must first deliver something.
        if consumer.pending == 0 && self.rejections == 0 {
            self.mark_caught_up();
        }
        self.consumer = Some(consumer);
        Ok(())
    }

    /// Reports to readers that the next events do not follow the last ones. Remains in effect even
    /// if creating the consumer then fails.
    fn start_epoch(&mut self, followed: &mut FollowedStream, head: u64, gap: Gap) {
        tracing::warn!(stream = self.config.name, reason = ?gap.reason, missed = gap.missed, after = head, "gap in stream");
        followed.last = None;
        // A client that opens before the new recent messages are read would receive them as live
        // events.
        self.caught_up = false;
        self.writer.catch_up();
        self.check.set(Status::Failing(NOT_CAUGHT_UP.to_owned()));
        self.writer.start_epoch(followed.tag, head, gap);
        self.followed = Some(*followed);
    }

    /// Notes the message at the head that begins here, if it is the stream's last one: without any
    /// further message it reveals that the stream was restored.
    fn identify_head(&mut self, followed: &mut FollowedStream, state: &StreamState, head: u64) {
        let position = state.position_after(head, followed.tag);
        followed.last = Some(position).filter(|position| position.fingerprint.is_some());
        self.writer.identify_head(position);
    }

    /// Returns true if JetStream still holds the last message that was received. Otherwise the
    /// sequences belong to other messages.
    async fn is_last_unchanged(
        &self,
        state: &StreamState,
        followed: FollowedStream,
    ) -> Result<bool, JetStreamError> {
        let Some(last) = followed.last else {
            return Ok(true);
        };
        let is_there = (state.first_seq..=state.last_seq).contains(&last.seq);
        if !is_there || (followed.created != state.created && self.config.identity.is_none()) {
            return Ok(true);
        }
        self.api.holds_same_message(&self.config.name, last).await
    }

    /// Returns true if every message of the stream is selected, so that a number of messages is a
    /// number of events.
    fn selects_everything(&self, state: &StreamState) -> bool {
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

    /// Creates a consumer for the recent messages: by time if that position is later than the
    /// sequence.
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
            self.api
                .delete_later(&self.config.name, consumer.name())
                .await;
        }
        self.create(sequence(first)).await
    }

    async fn create(&mut self, from: DeliverPolicy) -> Result<Consumer, JetStreamError> {
        let spec = Spec {
            stream: self.config.name.clone(),
            name: consumer::name(&self.api, &self.identity, &self.config.name, ""),
            filters: self
                .subjects
                .server_filters(&self.api, &self.config.filters),
            from,
            batch: REQUEST_MAX,
            bytes: REQUEST_BYTES_MAX,
            headers_only: false,
        };
        let consumer = Consumer::create(&self.api, self.data.clone(), spec).await?;
        self.metrics.consumers_created_total.inc();
        Ok(consumer)
    }

    /// Writes a batch to the stream buffer. Returns the reason if the consumer is lost.
    fn process(&mut self, received: Received) -> Option<Lost> {
        let (Some(followed), Some((_, head))) = (&mut self.followed, self.writer.head()) else {
            return received.lost;
        };
        let now = Instant::now();
        let mut batch = Batch::default();
        let mut last = head;
        self.decoder.count_received(received.messages.len());
        for (info, message) in &received.messages {
            if info.sequence <= last {
                continue; // Never twice, whatever the server sends.
            }
            last = info.sequence;
            let position = Position {
                tag: followed.tag,
                seq: last,
                fingerprint: Some(Fingerprint::of_publish_time(info.published)),
            };
            followed.last = Some(position);
            self.decoder.decode_into(
                MessageFields {
                    published: Some(info.published),
                    is_past: !self.caught_up,
                    ..self.subjects.fields(message)
                },
                position,
                now,
                &self.config.filters,
                &mut batch,
            );
        }
        batch.write_to(&mut self.writer);
        // Messages that no filter selects also advance the head, as does the sequence that the
        // server has passed after the last message. Only the consumer's own heartbeat counts here:
        // the stream's state may come from a replica that is ahead of it.
        last = last.max(received.passed.unwrap_or(0));
        self.writer.advance(last);
        if last > head && self.delivery.reset() {
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
        if let Some((info, _)) = received.messages.last() {
            self.writer.pending(info.pending);
        }
        let is_at_end = received
            .messages
            .last()
            .is_some_and(|(info, _)| info.pending == 0);
        if is_at_end || received.passed.is_some() || last >= self.target {
            self.mark_caught_up();
        }
        received.lost
    }

    fn mark_caught_up(&mut self) {
        if !self.caught_up {
            self.caught_up = true;
            self.writer.caught_up();
            self.check.set(Status::Ok);
        }
    }

    async fn on_lost(&mut self, lost: Lost) {
        tracing::info!(stream = self.config.name, reason = ?lost, "consumer lost; recreating");
        if let Some(consumer) = self.consumer.take() {
            self.api
                .delete_later(&self.config.name, consumer.name())
                .await;
        }
        match lost {
            Lost::Rejected(status, text) => self.report(&JetStreamError::Rejected {
                code: 0,
                status,
                text,
            }),
            Lost::Denied(subject) => self.report(&JetStreamError::Denied(subject)),
            Lost::Disconnected | Lost::Silent | Lost::MissingDelivery | Lost::Deleted => {}
        }
        self.wait_before_retry().await;
    }

    fn report(&mut self, error: &JetStreamError) {
        self.caught_up = false;
        if error.is_permanent() {
            self.rejections += 1;
            if self.rejections == REJECTIONS_MAX {
                tracing::error!(stream = self.config.name, error = %error.explain(&self.config.name), "NATS rejects reading the stream; closing its event streams");
                self.writer.reject();
            }
        }
        self.check
            .set(Status::Failing(error.explain(&self.config.name)));
    }

    async fn wait_before_retry(&mut self) {
        tokio::time::sleep(consumer::retry_delay(self.attempts)).await;
        self.attempts += 1;
    }
}
