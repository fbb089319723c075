//! Tailer of one feed of a republished stream: delivers messages in order and repairs losses.
//!
//! One task per feed. It subscribes ([`open`]), classifies each message with the
//! [`SequenceTracker`], and compares the feed with its stream after everything that may have lost
//! messages and every few seconds ([`compare`]):
//!
//! ```text
//! receive -> pending -> deliver_pending -> Next: append
//!                         |-> Duplicate: skip
//!                         |-> Late: a gap in place of the message
//!                         |-> LateLoss: a gap, then append
//!                         '-> Loss: repair: read up to the message from the stream
//! reconnect, overflow, denied subject -> needs_resync -> resync
//! ```
//!
//! Order matters: a repair is written before the messages after it. If lost messages cannot be read
//! after [`ATTEMPTS_MAX`] attempts, the feed continues after a gap.

mod compare;
mod open;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::context::StreamContext;
use super::distribution::{FeedReceiver, PositionedMessage};
use super::mapping::Republish;
use super::sequence::{SequenceStep, SequenceTracker};
use crate::event::{Position, SourceTag};
use crate::feed::archive::{Page, Pages as _, Unavailable};
use crate::feed::{GapReason, RepublishWriter};
use crate::lifecycle::shutdown::Token;
use crate::nats::connection::ConnectionState;
use crate::nats::decode::decoder::BATCH_MAX;
use crate::nats::jetstream::api::JetStreamError;
use crate::nats::jetstream::consumer;
use crate::subject::{Filter, FilterSet};
use open::Subscribed;

/// 3 attempts to read lost messages, each with its own retries, before they become a gap.
const ATTEMPTS_MAX: u32 = 3;
/// 1000 subjects of one repair for which the stream is asked whether an earlier message is missing:
/// a thousand requests take it less than a second.
const SUBJECTS_ASKED_MAX: usize = 1000;

/// Task of one feed.
pub(super) struct RepublishTailer {
    context: Arc<StreamContext>,
    filters: FilterSet,
    writer: RepublishWriter,
    tracker: SequenceTracker,
    /// Messages of the feed. `None` until it has subscribed again.
    receiver: Option<FeedReceiver>,
    /// Republish configuration of the current subscription, and the subjects derived from it.
    republish: Republish,
    subjects: Vec<String>,
    /// Messages that are received but not delivered yet.
    pending: VecDeque<Arc<PositionedMessage>>,
    /// Creation time of the stream at the last check.
    created: i128,
    tag: SourceTag,
    /// Position of the last delivered event, or the one at which the feed began.
    last: Option<Position>,
    /// Sequence and publish time of the newest received message.
    newest: Option<(u64, i128)>,
    /// State of the connection at the last check.
    seen: ConnectionState,
    /// Messages may be missing before the next one: the feed is compared with its stream first.
    needs_resync: bool,
    /// Last sequence that still has to be read from the stream.
    unread_through: u64,
    attempts: u32,
    /// Time of the next periodic comparison.
    compare_at: Instant,
}

/// Reason why the feed cannot continue yet.
enum ReadError {
    /// A JetStream request failed.
    JetStreamError(JetStreamError),
    /// Lost messages cannot be read now.
    Unread(String),
    /// Lost messages cannot be read until an operator acts.
    Rejected(String),
}

impl From<JetStreamError> for ReadError {
    fn from(error: JetStreamError) -> Self {
        Self::JetStreamError(error)
    }
}

impl RepublishTailer {
    /// Follows the stream until shutdown is requested or the feed has no readers.
    pub(super) async fn run(
        context: Arc<StreamContext>,
        filters: FilterSet,
        mut writer: RepublishWriter,
        mut shutdown: Token,
    ) {
        let subscribed = tokio::select! {
            biased;
            () = shutdown.requested() => return,
            () = writer.wait_idle() => return,
            subscribed = open::subscribe(&context, &filters) => subscribed,
        };
        let Subscribed {
            receiver,
            republish,
            subjects,
            created,
            head,
            seen,
        } = subscribed;
        writer.begin(head);
        context.feeds_open.fetch_add(1, Ordering::Relaxed);
        let compare_at = Instant::now() + context.compare_delay();
        let mut tailer = Self {
            tracker: SequenceTracker::new(head.seq),
            pending: VecDeque::new(),
            last: Some(head),
            newest: None,
            needs_resync: false,
            unread_through: 0,
            attempts: 0,
            context,
            filters,
            writer,
            receiver: Some(receiver),
            republish,
            subjects,
            created,
            tag: head.tag,
            seen,
            compare_at,
        };
        tailer.check_connection(&tailer.context.nats.0.connections.core.state());
        tailer.follow(&mut shutdown).await;
    }

    async fn follow(&mut self, shutdown: &mut Token) {
        let mut connection = self.context.nats.0.connections.core.clone();
        loop {
            // A comparison before new messages: a repair is written before what follows it.
            if self.needs_resync || !self.pending.is_empty() || self.compare_at <= Instant::now() {
                tokio::select! {
                    biased;
                    () = shutdown.requested() => return,
                    () = self.run_once() => continue,
                }
            }
            tokio::select! {
                biased; // The connection before its messages.
                () = shutdown.requested() => return,
                () = self.writer.wait_idle() => return,
                () = connection.changed() => self.check_connection(&connection.state()),
                messages = next_messages(&mut self.receiver) => match messages {
                    Some(messages) => {
                        // Read after the messages were received: messages of a new connection are
                        // never delivered before the repair.
                        let now = ConnectionState { generation: connection.generation(), up: true, ..connection.state() };
                        self.check_connection(&now);
                        self.receive(messages);
                    }
                    // The library's client has ended, or the feed's queue was full.
                    None => {
                        self.receiver = None;
                        self.needs_resync = true;
                    }
                },
                () = tokio::time::sleep_until(self.compare_at) => {}
            }
        }
    }

    /// Sorts received messages: each subscription delivered its own part.
    fn receive(&mut self, mut messages: Vec<Arc<PositionedMessage>>) {
        if self.subjects.len() > 1 {
            messages.sort_by_key(|message| message.sequence);
        }
        self.pending.extend(messages);
    }

    /// Compares the feed if necessary or due, otherwise delivers pending messages.
    async fn run_once(&mut self) {
        let done = if self.needs_resync {
            self.resync().await
        } else if self.pending.is_empty() {
            return self.compare_periodically().await;
        } else {
            self.deliver_pending().await
        };
        match done {
            Ok(()) if self.needs_resync => {
                // The stream changed meanwhile.
                self.attempts += 1;
                tokio::time::sleep(consumer::retry_delay(self.attempts)).await;
            }
            Ok(()) => self.attempts = 0,
            Err(error) => {
                self.attempts += 1;
                self.handle_error(&error).await;
            }
        }
    }

    /// Waits before the next attempt, or gives up with a gap.
    async fn handle_error(&mut self, error: &ReadError) {
        let why = match error {
            ReadError::JetStreamError(error) => error.explain(&self.context.config.name),
            ReadError::Unread(why) | ReadError::Rejected(why) => why.clone(),
        };
        tracing::warn!(filters = %self.filters, error = why, "comparing feed with stream failed; retrying");
        let is_final = match error {
            ReadError::JetStreamError(error) => error.is_permanent(),
            ReadError::Unread(_) => self.attempts >= ATTEMPTS_MAX,
            ReadError::Rejected(_) => true,
        };
        if is_final {
            self.skip_with_gap();
        } else {
            tokio::time::sleep(consumer::retry_delay(self.attempts)).await;
        }
    }

    /// Continues with the pending messages after a gap.
    fn skip_with_gap(&mut self) {
        self.context.reported.inc();
        self.writer.gap_before_head(GapReason::Upstream, None);
        self.needs_resync = false;
        self.attempts = 0;
        // Everything missing up to here, and before the next message, is reported.
        self.tracker
            .advance(std::mem::take(&mut self.unread_through));
        if let Some(message) = self.pending.front() {
            self.tracker.record(
                message.subject(),
                message
                    .previous
                    .max(self.tracker.last_of(message.subject())),
            );
        }
        self.writer.advance(self.tracker.head());
    }

    /// Delivers pending messages in order, each after all that it names as its predecessors.
    async fn deliver_pending(&mut self) -> Result<(), ReadError> {
        self.tracker.set_subjects_max(self.context.subjects_max());
        let mut batch = Vec::new();
        let mut count = 0;
        while let Some(message) = self.pending.pop_front() {
            if !self.filters.matches(message.subject()) {
                continue; // The subscription is wider than the filter.
            }
            let step = self
                .tracker
                .classify(message.subject(), message.sequence, message.previous);
            match step {
                SequenceStep::Duplicate if self.is_renumbered(&message) => {
                    self.needs_resync = true;
                    break;
                }
                SequenceStep::Duplicate => continue,
                SequenceStep::Late | SequenceStep::LateLoss => {
                    self.writer.append_encoded(std::mem::take(&mut batch));
                    let missed = (step == SequenceStep::Late).then_some(1);
                    self.report_late(missed);
                }
                SequenceStep::Loss => {
                    self.writer.append_encoded(std::mem::take(&mut batch));
                    let (subject, sequence) = (message.subject().to_owned(), message.sequence);
                    self.pending.push_front(message);
                    // The repair includes the message itself.
                    self.repair(&subject, sequence).await?;
                    if self.needs_resync {
                        break;
                    }
                    continue;
                }
                SequenceStep::Next => {}
            }
            if step != SequenceStep::Late {
                match message.encode(self.tag, &self.context.decoder, &self.writer) {
                    Some(event) => batch.push(event),
                    None => {
                        self.writer.append_encoded(std::mem::take(&mut batch));
                        self.mark_oversized(message.sequence);
                    }
                }
                self.last = Some(message.position(self.tag));
            }
            self.tracker.record(message.subject(), message.sequence);
            self.newest = self.newest.max(
                message
                    .published
                    .map(|published| (message.sequence, published)),
            );
            count += 1;
            if count % BATCH_MAX == 0 {
                self.writer.append_encoded(std::mem::take(&mut batch));
                // Lets readers run before more is appended: otherwise their window moves past them.
                tokio::task::yield_now().await;
            }
        }
        self.writer.append_encoded(batch);
        self.writer.set_external_bytes(self.tracker.bytes());
        Ok(())
    }

    /// Reports a gap directly before a message that is too large, as a stream buffer does.
    fn mark_oversized(&mut self, sequence: u64) {
        self.writer.advance(sequence.saturating_sub(1));
        self.writer.gap(GapReason::Upstream, Some(1));
        self.writer.advance(sequence);
    }

    /// Returns true if an old sequence belongs to a newer message: the sequences started again.
    fn is_renumbered(&mut self, message: &PositionedMessage) -> bool {
        let Some(published) = message.published else {
            return false;
        };
        let this = (message.sequence, published);
        let Some(newest) = self.newest else {
            self.newest = Some(this);
            return false;
        };
        let is_other = this.0 < newest.0 && this.1 > newest.1;
        // Each is checked once: a clock that was set back is not another stream.
        if is_other || this.0 > newest.0 {
            self.newest = Some(this);
        }
        is_other
    }

    /// Reports lost messages that were overtaken by later ones.
    fn report_late(&mut self, missed: Option<u64>) {
        tracing::warn!(stream = self.context.config.name, filters = %self.filters, "republished messages lost before already delivered ones; reporting a gap");
        self.context.reported.inc();
        self.writer.gap_before_head(GapReason::Upstream, missed);
    }

    /// Reads what is missing before this message of this subject, and the message.
    async fn repair(&mut self, subject: &str, sequence: u64) -> Result<(), ReadError> {
        if self.is_missing_before(subject, self.tracker.head()).await? {
            self.report_late(None);
            // Not reported again if the repair needs another attempt.
            self.tracker.record(subject, self.tracker.head());
        }
        self.read_through(sequence).await
    }

    /// Returns true if a message of the subject is missing before `head`, where later messages were
    /// already delivered.
    async fn is_missing_before(&self, subject: &str, head: u64) -> Result<bool, ReadError> {
        let last = self.tracker.last_of(subject);
        let Some(filter) = Filter::parse(subject).ok().filter(|_| last < head) else {
            return Ok(false);
        };
        let next = self
            .context
            .nats
            .0
            .api
            .next_stored(&self.context.config.name, last + 1, &[filter])
            .await?;
        Ok(next.is_some_and(|next| next.sequence <= head))
    }

    /// Reports messages missing before those that were read after `head`: a stored message does not
    /// name its predecessor. `left` is the number of subjects for which the stream may still be
    /// asked; beyond it, a loss is reported without asking.
    async fn report_late_of_page(
        &mut self,
        page: &Page,
        head: u64,
        left: &mut usize,
    ) -> Result<(), ReadError> {
        let mut asked = HashSet::new();
        for event in &page.events {
            if *left == 0
                || self.tracker.last_of(&event.subject) >= head
                || !asked.insert(&event.subject)
            {
                continue;
            }
            *left -= 1;
            if *left == 0 || self.is_missing_before(&event.subject, head).await? {
                // One report is enough: it has no count.
                self.report_late(None);
                *left = 0;
            }
        }
        Ok(())
    }

    /// Reads everything up to this sequence from JetStream.
    async fn read_through(&mut self, through: u64) -> Result<(), ReadError> {
        let context = Arc::clone(&self.context);
        self.unread_through = self
            .pending
            .front()
            .map_or(through, |next| through.min(next.sequence.saturating_sub(1)));
        let Ok(_permit) = context.reads.acquire().await else {
            return Ok(());
        };
        let mut replay = context.nats.0.connections.replay.clone();
        replay.wait_up().await;
        tracing::info!(stream = context.config.name, filters = %self.filters, after = self.tracker.head(), through, "republished messages lost; reading them from the stream");
        let (head, mut left) = (self.tracker.head(), SUBJECTS_ASKED_MAX);
        let mut pages = context.archive.read_as(&self.filters, head, self.tag);
        while self.tracker.head() < through {
            let page = match pages.next().await {
                Ok(page) => page,
                Err(Unavailable::Changed) => {
                    self.needs_resync = true;
                    return Ok(());
                }
                Err(Unavailable::Temporary(why)) => return Err(ReadError::Unread(why)),
                Err(Unavailable::Rejected(why)) => return Err(ReadError::Rejected(why)),
            };
            if page.after > self.tracker.head() {
                let gap = page.gap();
                if page.is_unreadable {
                    // As for a live message that is too large.
                    self.writer.advance(page.after - 1);
                    self.writer.gap(gap.reason, gap.missed);
                    self.writer.advance(page.after);
                } else {
                    self.writer.start_epoch(self.tag, page.after, gap);
                }
                self.tracker.advance(page.after);
            }
            self.report_late_of_page(&page, head, &mut left).await?;
            for event in &page.events {
                self.tracker.record(&event.subject, event.position.seq);
                self.last = Some(event.position);
            }
            self.writer.append(page.events);
            self.writer.advance(page.through);
            self.tracker.advance(page.through);
        }
        context.repaired.inc();
        Ok(())
    }
}

impl Drop for RepublishTailer {
    fn drop(&mut self) {
        self.context.feeds_open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Messages of a receiver. Never returns without one.
async fn next_messages(receiver: &mut Option<FeedReceiver>) -> Option<Vec<Arc<PositionedMessage>>> {
    match receiver {
        Some(receiver) => receiver.next().await,
        None => std::future::pending().await,
    }
}
