//! One reading of the past: an ephemeral consumer, pages made of what it brings, and another one when it is lost.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{StreamHandle_, outlook};
use crate::feed::archive::{BoxFuture, Page, Pages, Unavailable};
use crate::nats::decode::decoder::{Batch, BatchItem};
use crate::nats::decode::message::MessageFields;
use crate::nats::jetstream::api::{Api, JetStreamError, StreamState};
use crate::nats::jetstream::consumer::{
    self, Consumer, Lost, REJECTIONS_MAX, Received, Spec, sequence,
};
use crate::sse::{Position, SourceTag};
use crate::subject::{Filter, FilterSet};

/// The most events of one page: what a reader shows in one go.
const PAGE_EVENTS_MAX: usize = 256;
/// The most bytes of one page, unless one event alone is larger.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// The most messages of one pull request.
const REQUEST_MAX: usize = 256;
/// The most bytes of one pull request. Two stand at a time, and a page: 3 MiB for each reading.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// More filters than this are a long request and slow matching at the server: then it is asked for all there is.
const FILTERS_MAX: usize = 32;
/// So many failures without progress, about 2 s of waiting, end a reading: more than what shows that it is the message.
const ATTEMPTS_MAX: u32 = 5;
/// How long a reading waits for the connection.
const CONNECTED_MAX: Duration = Duration::from_secs(10);
/// How long the first attempt waits for its consumer, the later ones twice and four times as long. 2 s: a thousand times
/// what it takes; a cluster that lost a server puts consumers on it for a while, and the next one on another.
const CREATED_MIN: Duration = Duration::from_secs(2);
/// How long after a creation that was not waited for to the end the consumer is surely there, if it ever is.
const UNMADE: Duration = Duration::from_secs(1);

/// Reads on from where it is, whatever happens to the consumer.
pub(super) struct HistoryReader {
    place: Arc<StreamHandle_>,
    filters: FilterSet,
    /// Which sequence its numbers are of; learned at the beginning if nobody was told.
    tag: Option<SourceTag>,
    /// Everything up to here is in pages.
    head: u64,
    /// The last message that was seen.
    last: Option<Position>,
    consumer: Option<Consumer>,
    /// The name of the consumer that is there, or was begun to be made.
    name: Option<String>,
    /// What was received and is not known yet to be complete.
    stretch: Option<PendingRange>,
    ready: VecDeque<Page>,
    /// The server says that nothing waits for us.
    is_at_end: bool,
    /// Failures since the last progress.
    attempts: u32,
}

/// What came in one go.
#[derive(Debug)]
struct PendingRange {
    batch: Batch,
    through: u64,
    /// No number is left out: nothing can have expired in between.
    is_whole: bool,
}

/// Why there is no next page for the moment.
enum ReadError {
    JetStreamError(JetStreamError),
    Lost(Lost),
    Unconnected,
    Changed,
}

impl From<JetStreamError> for ReadError {
    fn from(trouble: JetStreamError) -> Self {
        Self::JetStreamError(trouble)
    }
}

impl HistoryReader {
    pub(super) fn new(
        place: Arc<StreamHandle_>,
        filters: FilterSet,
        after: u64,
        tag: Option<SourceTag>,
    ) -> Self {
        Self {
            place,
            filters,
            tag,
            head: after,
            last: None,
            consumer: None,
            name: None,
            stretch: None,
            ready: VecDeque::new(),
            is_at_end: false,
            attempts: 0,
        }
    }

    /// Every step leaves what it got in `self`: a reading whose `next` is not waited for to the end loses nothing.
    async fn page(&mut self) -> Result<Page, Unavailable> {
        loop {
            if let Some(page) = self.ready.pop_front() {
                return Ok(page);
            }
            if let Err(fault) = self.step().await {
                self.recover(fault).await?;
            }
        }
    }

    async fn step(&mut self) -> Result<(), ReadError> {
        if self.stretch.is_some() {
            return self.complete().await;
        }
        if self.is_at_end {
            return self.confirm_end().await;
        }
        let Some(consumer) = &mut self.consumer else {
            return self.begin().await;
        };
        let received = consumer.receive().await;
        self.take(received)
    }

    /// Makes a consumer that adjoins what is in pages.
    async fn begin(&mut self) -> Result<(), ReadError> {
        let mut link = self.place.nats.0.links.replay.clone();
        tokio::time::timeout(CONNECTED_MAX, link.up())
            .await
            .map_err(|_| ReadError::Unconnected)?;
        let state = self.look().await?;
        if let Some(last) = self.last
            && (state.first_seq..=state.last_seq).contains(&last.seq)
            && !self.api().still_holds(&self.place.stream, last).await?
        {
            return Err(ReadError::Changed);
        }
        let spec = Spec {
            stream: self.place.stream.clone(),
            name: consumer::name(
                self.api(),
                &self.place.nats.0.identity,
                &self.place.stream,
                "r",
            ),
            filters: self.asked(),
            from: sequence(self.head + 1),
            batch: REQUEST_MAX,
            bytes: REQUEST_BYTES_MAX,
        };
        self.name = Some(spec.name.clone());
        let created = Consumer::create(&self.place.nats.0.api, link, spec);
        let patience = CREATED_MIN * (1 << self.attempts.min(2));
        let consumer = tokio::time::timeout(patience, created)
            .await
            .map_err(|_| JetStreamError::Timeout)??;
        self.place.nats.0.metrics.consumers_created_total.inc();
        self.is_at_end = consumer.pending == 0;
        self.consumer = Some(consumer);
        Ok(())
    }

    /// The stream as it is now, if it is still the one that is read.
    async fn look(&mut self) -> Result<StreamState, ReadError> {
        let state = self.api().describe_shareable(&self.place.stream).await?;
        let tag = state.tag(&self.place.stream, self.place.identity.as_deref());
        // Restored from an older snapshot when it ends before what was read.
        if *self.tag.get_or_insert(tag) != tag || state.last_seq < self.head {
            return Err(ReadError::Changed);
        }
        Ok(state)
    }

    /// What NATS is asked for; everything is matched again here.
    fn asked(&self) -> Vec<Filter> {
        let filters = consumer::filters(self.api(), &self.filters);
        if filters.len() > FILTERS_MAX {
            consumer::filters(self.api(), &self.place.all)
        } else {
            filters
        }
    }

    fn take(&mut self, received: Received) -> Result<(), ReadError> {
        let (Some(tag), now) = (self.tag, Instant::now()) else {
            return Ok(());
        };
        let mut stretch = PendingRange {
            batch: Batch::default(),
            through: self.head,
            is_whole: true,
        };
        for (place, message) in &received.messages {
            if place.sequence <= stretch.through {
                continue; // Never twice, whatever the server sends.
            }
            stretch.is_whole &= place.sequence == stretch.through + 1;
            stretch.through = place.sequence;
            let fingerprint = Some(Position::fingerprint_of(place.published));
            let position = Position {
                tag,
                seq: place.sequence,
                fingerprint,
            };
            self.last = Some(position);
            self.place.intake.take(
                MessageFields::of(message),
                position,
                now,
                &self.filters,
                &mut stretch.batch,
            );
        }
        if let Some(passed) = received.passed.filter(|passed| *passed > stretch.through) {
            stretch.through = passed;
            stretch.is_whole = false;
        }
        if !received.messages.is_empty() || received.passed.is_some() {
            self.attempts = 0;
        }
        self.is_at_end |= received
            .messages
            .last()
            .is_some_and(|(place, _)| place.pending == 0);
        if stretch.through > self.head {
            self.stretch = Some(stretch);
        }
        received
            .lost
            .map_or(Ok(()), |lost| Err(ReadError::Lost(lost)))
    }

    /// Makes pages of what was received, once it is known whether something expired meanwhile: the consumer passes over
    /// what is gone without a word.
    async fn complete(&mut self) -> Result<(), ReadError> {
        let is_whole = self
            .stretch
            .as_ref()
            .is_some_and(|stretch| stretch.is_whole);
        let first = if is_whole {
            0
        } else {
            self.look().await?.first_seq
        };
        if let Some(stretch) = self.stretch.take() {
            let after = std::mem::replace(&mut self.head, stretch.through);
            self.ready.extend(pages(stretch, after, first));
        }
        Ok(())
    }

    /// At the end nothing more comes that tells how far the reader is: the stream's leader is asked whether there is
    /// anything up to what it said was its last message.
    async fn confirm_end(&mut self) -> Result<(), ReadError> {
        let last = self.look().await?.last_seq;
        let is_confirmed = last > self.head
            && match self
                .api()
                .next_stored(&self.place.stream, self.head + 1, &self.asked())
                .await
            {
                Ok(next) => next.is_none_or(|next| next.sequence > last),
                // The consumer's heartbeats tell it later.
                Err(JetStreamError::Denied(_)) => false,
                Err(trouble) => return Err(trouble.into()),
            };
        self.is_at_end = false;
        if is_confirmed {
            self.stretch = Some(PendingRange {
                batch: Batch::default(),
                through: last,
                is_whole: false,
            });
        }
        Ok(())
    }

    /// Gets over a fault, or tells it.
    async fn recover(&mut self, fault: ReadError) -> Result<(), Unavailable> {
        // A description that did not come costs no consumer.
        if !matches!(
            (&fault, &self.consumer),
            (ReadError::JetStreamError(_), Some(_))
        ) {
            self.forget();
        }
        let trouble = match fault {
            ReadError::Changed => return Err(Unavailable::Changed),
            ReadError::Unconnected => {
                return Err(Unavailable::Temporary("not connected to NATS".to_owned()));
            }
            ReadError::JetStreamError(trouble) => trouble,
            ReadError::Lost(Lost::Denied(subject)) => JetStreamError::Denied(subject),
            ReadError::Lost(Lost::Rejected(status, text)) => JetStreamError::Rejected {
                code: 0,
                status,
                text,
            },
            ReadError::Lost(lost) => {
                JetStreamError::Refused(format!("its past cannot be read: {lost:?}"))
            }
        };
        tracing::debug!(stream = self.place.stream, after = self.head, attempts = self.attempts, reason = %trouble, "reading interrupted");
        self.attempts += 1;
        if self.attempts
            > if trouble.is_permanent() {
                REJECTIONS_MAX
            } else {
                ATTEMPTS_MAX
            }
        {
            self.attempts = 0;
            outlook::report(&self.place, &trouble);
            return Err(self.place.unavailable(&trouble));
        }
        tokio::time::sleep(consumer::pause(self.attempts - 1)).await;
        Ok(())
    }

    fn api(&self) -> &Api {
        &self.place.nats.0.api
    }

    /// Has the consumer deleted, without waiting.
    fn forget(&mut self) {
        let is_made = self.consumer.take().is_some();
        let (Some(name), Ok(runtime)) = (self.name.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let place = Arc::clone(&self.place);
        runtime.spawn(async move {
            let api = &place.nats.0.api;
            api.forget(&place.stream, &name).await;
            if !is_made {
                // The server may have answered this one before it made the consumer.
                tokio::time::sleep(UNMADE).await;
                api.forget(&place.stream, &name).await;
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
        self.forget();
    }
}

impl fmt::Debug for HistoryReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Reading({} {} after {})",
            self.place.stream, self.filters, self.head
        )
    }
}

/// Cuts a stretch behind `after` into pages. `first` is the oldest message that is still there: what was before it, and
/// what can be given to nobody, shows as a page that begins later than the one before it ended.
fn pages(stretch: PendingRange, after: u64, first: u64) -> Vec<Page> {
    let steps = stretch.batch.into_steps();
    let begin = match steps.first() {
        Some(BatchItem::Events(events)) => events
            .first()
            .map_or(stretch.through, |event| event.position.seq - 1),
        Some(BatchItem::Lost(sequence)) => sequence - 1,
        None => stretch.through,
    };
    let mut pages = Vec::new();
    let mut page = Page {
        after: after.max(begin.min(first.saturating_sub(1))),
        ..Page::default()
    };
    let mut bytes = 0;
    for step in steps {
        match step {
            BatchItem::Events(events) => {
                for event in events {
                    if let Some(before) = leave_out(&mut page, event.position.seq, first) {
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
    pages.extend(leave_out(
        &mut page,
        stretch.through.saturating_add(1),
        first,
    ));
    page.through = stretch.through;
    pages.push(page);
    debug_assert!(
        pages.iter().all(|page| page.after <= page.through),
        "a page does not end before it begins"
    );
    pages
}

/// A number that is left out before `seq`, among those that are gone, may have been wanted: then the page ends there, and
/// the next one begins later.
fn leave_out(page: &mut Page, seq: u64, first: u64) -> Option<Page> {
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
