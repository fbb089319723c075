//! One history read: an ephemeral consumer, its messages as pages, and a new consumer after a loss.
//!
//! A consumer skips expired messages without a notice. After each batch with missing sequences the
//! reader therefore compares with the stream's first sequence, and a page that begins later than
//! the previous one ended shows the gap:
//!
//! ```text
//! start_consumer -> process: PendingRange -> finish_range (is anything expired?) -> pages -> next
//! ```
//!
//! Each step stores its result in `self`, so that a dropped `next` future loses nothing. A failed
//! step is retried [`ATTEMPTS_MAX`] times without progress; then the error is returned to the
//! replay.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::read_health::{self, StreamContext};
use crate::event::{Fingerprint, Position, SourceTag};
use crate::feed::archive::{BoxFuture, Page, Pages, Unavailable};
use crate::nats::decode::decoder::{Batch, BatchItem};
use crate::nats::jetstream::api::{Api, JetStreamError};
use crate::nats::jetstream::consumer::{
    self, Consumer, Lost, REJECTIONS_MAX, Received, Spec, sequence,
};
use crate::nats::jetstream::stream_state::StreamState;
use crate::subject::{Filter, FilterSet};

/// Maximum number of events of a page: one batch of a reader.
const PAGE_EVENTS_MAX: usize = 256;
/// Maximum number of bytes of a page, unless one event alone is larger.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// Maximum number of messages of one pull request: with 256, a read of small messages waits for the
/// round trips of its requests.
const REQUEST_MAX: usize = 2048;
/// Maximum number of bytes of one pull request. Two are open at a time, and one page: 3 MiB per
/// read.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// With more filters than this, the request is long and matching is slow on the server: the union
/// of all filters is requested instead.
const FILTERS_MAX: usize = 32;
/// 5 failures without progress, about 2 s with their delays, end a read: more than it takes to find
/// that one message is the cause.
const ATTEMPTS_MAX: u32 = 5;
/// 10 s to wait for the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// 2 s for the first attempt to create a consumer, twice and four times as long for later ones. A
/// thousand times the usual duration: a cluster that lost a server still places consumers on it for
/// a while, and the next consumer on another server.
const CREATE_TIMEOUT_MIN: Duration = Duration::from_secs(2);
/// 1 s after an abandoned creation, the consumer exists if it ever will.
const LATE_CREATION: Duration = Duration::from_secs(1);

/// Reads on from its head, whatever happens to the consumer.
pub(super) struct HistoryReader {
    context: Arc<StreamContext>,
    filters: FilterSet,
    /// Source tag of the expected stream; set by the first request if not known before.
    tag: Option<SourceTag>,
    /// Every message up to this sequence is in pages.
    head: u64,
    /// Position of the last received message.
    last: Option<Position>,
    consumer: Option<Consumer>,
    /// Name of the consumer that exists, or whose creation was requested.
    name: Option<String>,
    /// Received messages that are not known to be complete yet.
    range: Option<PendingRange>,
    ready: VecDeque<Page>,
    /// The consumer has nothing pending.
    is_at_end: bool,
    /// Failures since the last progress.
    attempts: u32,
}

/// Messages of one batch, up to a sequence.
#[derive(Debug)]
struct PendingRange {
    batch: Batch,
    through: u64,
    /// No sequence is missing, so no message can have expired in between.
    is_contiguous: bool,
}

/// Reason why the next page is not available yet.
enum ReadError {
    JetStreamError(JetStreamError),
    Lost(Lost),
    Unconnected,
    Changed,
}

impl From<JetStreamError> for ReadError {
    fn from(error: JetStreamError) -> Self {
        Self::JetStreamError(error)
    }
}

impl HistoryReader {
    pub(super) fn new(
        context: Arc<StreamContext>,
        filters: FilterSet,
        after: u64,
        tag: Option<SourceTag>,
    ) -> Self {
        Self {
            context,
            filters,
            tag,
            head: after,
            last: None,
            consumer: None,
            name: None,
            range: None,
            ready: VecDeque::new(),
            is_at_end: false,
            attempts: 0,
        }
    }

    /// Returns the next page. Every step stores its result in `self`: a dropped future loses
    /// nothing.
    async fn page(&mut self) -> Result<Page, Unavailable> {
        loop {
            if let Some(page) = self.ready.pop_front() {
                return Ok(page);
            }
            if let Err(error) = self.advance().await {
                self.recover(error).await?;
            }
        }
    }

    async fn advance(&mut self) -> Result<(), ReadError> {
        if self.range.is_some() {
            return self.finish_range().await;
        }
        if self.is_at_end {
            return self.confirm_end().await;
        }
        let Some(consumer) = &mut self.consumer else {
            return self.start_consumer().await;
        };
        let received = consumer.receive().await;
        self.process(received)
    }

    /// Creates a consumer that continues after the head.
    async fn start_consumer(&mut self) -> Result<(), ReadError> {
        let mut connection = self.context.nats.0.connections.replay.clone();
        tokio::time::timeout(CONNECT_TIMEOUT, connection.wait_up())
            .await
            .map_err(|_| ReadError::Unconnected)?;
        let state = self.verified_stream().await?;
        if let Some(last) = self.last
            && (state.first_seq..=state.last_seq).contains(&last.seq)
            && !self
                .api()
                .holds_same_message(&self.context.stream, last)
                .await?
        {
            return Err(ReadError::Changed);
        }
        let spec = Spec {
            stream: self.context.stream.clone(),
            name: consumer::name(
                self.api(),
                &self.context.nats.0.identity,
                &self.context.stream,
                "r",
            ),
            filters: self.server_filters(),
            from: sequence(self.head + 1),
            batch: REQUEST_MAX,
            bytes: REQUEST_BYTES_MAX,
            headers_only: false,
        };
        self.name = Some(spec.name.clone());
        let created = Consumer::create(&self.context.nats.0.api, connection, spec);
        let timeout = CREATE_TIMEOUT_MIN * (1 << self.attempts.min(2));
        let consumer = tokio::time::timeout(timeout, created)
            .await
            .map_err(|_| JetStreamError::Timeout)??;
        self.context.nats.0.metrics.consumers_created_total.inc();
        self.is_at_end = consumer.pending == 0;
        self.consumer = Some(consumer);
        Ok(())
    }

    /// Returns the stream's state if it is still the stream that is read.
    async fn verified_stream(&mut self) -> Result<StreamState, ReadError> {
        let state = self.api().stream_info(&self.context.stream).await?;
        let state = self.context.subjects.shareable(state)?;
        let tag = state.tag(&self.context.stream, self.context.identity.as_deref());
        // Restored from an older snapshot if it ends before what was read.
        if *self.tag.get_or_insert(tag) != tag || state.last_seq < self.head {
            return Err(ReadError::Changed);
        }
        Ok(state)
    }

    /// Filters to request from NATS; messages are matched again here.
    fn server_filters(&self) -> Vec<Filter> {
        let subjects = &self.context.subjects;
        let filters = subjects.server_filters(self.api(), &self.filters);
        if filters.len() > FILTERS_MAX {
            subjects.server_filters(self.api(), &self.context.all)
        } else {
            filters
        }
    }

    fn process(&mut self, received: Received) -> Result<(), ReadError> {
        let (Some(tag), now) = (self.tag, Instant::now()) else {
            return Ok(());
        };
        let mut range = PendingRange {
            batch: Batch::default(),
            through: self.head,
            is_contiguous: true,
        };
        for (info, message) in &received.messages {
            if info.sequence <= range.through {
                continue; // Never twice, whatever the server sends.
            }
            range.is_contiguous &= info.sequence == range.through + 1;
            range.through = info.sequence;
            let fingerprint = Some(Fingerprint::of_publish_time(info.published));
            let position = Position {
                tag,
                seq: info.sequence,
                fingerprint,
            };
            self.last = Some(position);
            self.context.decoder.decode_into(
                self.context.subjects.fields(message),
                position,
                now,
                &self.filters,
                &mut range.batch,
            );
        }
        if let Some(passed) = received.passed.filter(|passed| *passed > range.through) {
            range.through = passed;
            range.is_contiguous = false;
        }
        if !received.messages.is_empty() || received.passed.is_some() {
            self.attempts = 0;
        }
        self.is_at_end |= received
            .messages
            .last()
            .is_some_and(|(info, _)| info.pending == 0);
        if range.through > self.head {
            self.range = Some(range);
        }
        received
            .lost
            .map_or(Ok(()), |lost| Err(ReadError::Lost(lost)))
    }

    /// Creates pages of the received range, after checking whether messages expired meanwhile: the
    /// consumer skips those without a notice.
    async fn finish_range(&mut self) -> Result<(), ReadError> {
        let is_contiguous = self.range.as_ref().is_some_and(|range| range.is_contiguous);
        let first = if is_contiguous {
            0
        } else {
            self.verified_stream().await?.first_seq
        };
        if let Some(range) = self.range.take() {
            let after = std::mem::replace(&mut self.head, range.through);
            self.ready.extend(pages(range, after, first));
        }
        Ok(())
    }

    /// Confirms the end of the stream. No further message reports how far the consumer has come, so
    /// the stream's leader is asked whether anything selected is left up to its last sequence.
    async fn confirm_end(&mut self) -> Result<(), ReadError> {
        let last = self.verified_stream().await?.last_seq;
        let is_confirmed = last > self.head
            && match self
                .api()
                .next_stored(&self.context.stream, self.head + 1, &self.server_filters())
                .await
            {
                Ok(next) => next.is_none_or(|next| next.sequence > last),
                // The consumer's heartbeats confirm it later.
                Err(JetStreamError::Denied(_)) => false,
                Err(error) => return Err(error.into()),
            };
        self.is_at_end = false;
        if is_confirmed {
            self.range = Some(PendingRange {
                batch: Batch::default(),
                through: last,
                is_contiguous: false,
            });
        }
        Ok(())
    }

    /// Recovers from an error, or returns it after too many attempts.
    async fn recover(&mut self, error: ReadError) -> Result<(), Unavailable> {
        // A failed request for the stream's state does not cost the consumer.
        if !matches!(
            (&error, &self.consumer),
            (ReadError::JetStreamError(_), Some(_))
        ) {
            self.discard_consumer();
        }
        let error = match error {
            ReadError::Changed => return Err(Unavailable::Changed),
            ReadError::Unconnected => {
                return Err(Unavailable::Temporary("not connected to NATS".to_owned()));
            }
            ReadError::JetStreamError(error) => error,
            ReadError::Lost(Lost::Denied(subject)) => JetStreamError::Denied(subject),
            ReadError::Lost(Lost::Rejected(status, text)) => JetStreamError::Rejected {
                code: 0,
                status,
                text,
            },
            ReadError::Lost(lost) => {
                JetStreamError::Failed(format!("history consumer lost: {lost:?}"))
            }
        };
        tracing::debug!(stream = self.context.stream, after = self.head, attempts = self.attempts, %error, "history read interrupted; retrying");
        self.attempts += 1;
        if self.attempts
            > if error.is_permanent() {
                REJECTIONS_MAX
            } else {
                ATTEMPTS_MAX
            }
        {
            self.attempts = 0;
            read_health::report(&self.context, &error);
            return Err(self.context.unavailable(&error));
        }
        tokio::time::sleep(consumer::retry_delay(self.attempts - 1)).await;
        Ok(())
    }

    fn api(&self) -> &Api {
        &self.context.nats.0.api
    }

    /// Deletes the consumer without waiting.
    fn discard_consumer(&mut self) {
        let was_created = self.consumer.take().is_some();
        let (Some(name), Ok(runtime)) = (self.name.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let context = Arc::clone(&self.context);
        runtime.spawn(async move {
            let api = &context.nats.0.api;
            api.delete_later(&context.stream, &name).await;
            if !was_created {
                // The server may have processed this request before it created the consumer.
                tokio::time::sleep(LATE_CREATION).await;
                api.delete_later(&context.stream, &name).await;
            }
        });
    }
}

impl Pages for HistoryReader {
    fn next(&mut self) -> BoxFuture<'_, Page> {
        Box::pin(self.page())
    }
}

impl Drop for HistoryReader {
    fn drop(&mut self) {
        self.discard_consumer();
    }
}

impl fmt::Debug for HistoryReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Reading({} {} after {})",
            self.context.stream, self.filters, self.head
        )
    }
}

/// Divides a range after `after` into pages. `first` is the stream's oldest sequence. Expired and
/// unreadable messages show as a page that begins later than the previous one ended.
fn pages(range: PendingRange, after: u64, first: u64) -> Vec<Page> {
    let items = range.batch.into_items();
    let begin = match items.first() {
        Some(BatchItem::Events(events)) => events
            .first()
            .map_or(range.through, |event| event.position.seq - 1),
        Some(BatchItem::Lost(sequence)) => sequence - 1,
        None => range.through,
    };
    let mut pages = Vec::new();
    let mut page = Page {
        after: after.max(begin.min(first.saturating_sub(1))),
        ..Page::default()
    };
    let mut bytes = 0;
    for item in items {
        match item {
            BatchItem::Events(events) => {
                for event in events {
                    if let Some(before) = skip_expired(&mut page, event.position.seq, first) {
                        pages.push(before);
                        bytes = 0;
                    }
                    let is_full = page.events.len() == PAGE_EVENTS_MAX
                        || bytes + event.data.len() > PAGE_BYTES_MAX;
                    if let Some(last) = page.events.last().filter(|_| is_full) {
                        page.through = last.position.seq;
                        let next = Page {
                            after: page.through,
                            ..Page::default()
                        };
                        pages.push(std::mem::replace(&mut page, next));
                        bytes = 0;
                    }
                    bytes += event.data.len();
                    page.events.push(event);
                }
            }
            BatchItem::Lost(sequence) => {
                page.through = sequence - 1;
                pages.push(std::mem::replace(
                    &mut page,
                    Page {
                        after: sequence,
                        is_unreadable: true,
                        ..Page::default()
                    },
                ));
                bytes = 0;
            }
        }
    }
    pages.extend(skip_expired(
        &mut page,
        range.through.saturating_add(1),
        first,
    ));
    page.through = range.through;
    pages.push(page);
    debug_assert!(
        pages.iter().all(|page| page.after <= page.through),
        "a page ends at or after its start"
    );
    pages
}

/// Ends the page if an expired sequence before `seq` may have been selected; the next page begins
/// later.
fn skip_expired(page: &mut Page, seq: u64, first: u64) -> Option<Page> {
    let seen = page
        .events
        .last()
        .map_or(page.after, |event| event.position.seq);
    let after = first.min(seq).saturating_sub(1);
    if after <= seen {
        return None;
    }
    page.through = seen;
    Some(std::mem::replace(
        page,
        Page {
            after,
            ..Page::default()
        },
    ))
}
