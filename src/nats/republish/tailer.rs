//! One feed of a republished stream: its subscription, what is found missing in it, and where that is read instead.

mod compare;
mod open;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::Place;
use super::distribution::{PositionedMessage, Tap};
use super::mapping::Republish;
use super::sequence::{SequenceStep, SequenceTracker};
use crate::feed::archive::{Page, Pages as _, Unavailable};
use crate::feed::{GapReason, RepublishWriter};
use crate::lifecycle::shutdown::Token;
use crate::nats::connection::ConnectionState;
use crate::nats::decode::decoder::BATCH_MAX;
use crate::nats::jetstream::api::JetStreamError;
use crate::nats::jetstream::consumer;
use crate::sse::{Position, SourceTag};
use crate::subject::{Filter, FilterSet};
use open::Begun;

/// So many attempts to read what is missing, each of them with retries of its own, before it is told as a gap.
const ATTEMPTS_MAX: u32 = 3;
/// Subjects of one reading of which the stream is asked whether something was missing before: a thousand questions take it
/// less than a second.
const ASKED_MAX: usize = 1000;

/// One feed that is wanted.
pub(super) struct RepublishTailer {
    place: Arc<Place>,
    filters: FilterSet,
    writer: RepublishWriter,
    chain: SequenceTracker,
    /// Its messages; none while it is to subscribe again.
    tap: Option<Tap>,
    /// What is subscribed to, by the republishing that it was made from.
    republish: Republish,
    subjects: Vec<String>,
    /// Received, and not handed on yet.
    pending: VecDeque<Arc<PositionedMessage>>,
    /// The stream as it was when it was looked at last.
    created: i128,
    tag: SourceTag,
    /// The last event that was handed on.
    last: Option<Position>,
    /// The newest message that was received: its number and when it was published.
    newest: Option<(u64, i128)>,
    /// The connection as it was when the feed was compared last.
    seen: ConnectionState,
    /// Something may be missing before what comes next: the feed is compared first.
    is_doubtful: bool,
    /// What could not be read yet ends here.
    unread: u64,
    attempts: u32,
    /// When it is compared next.
    due: Instant,
}

/// Why the feed cannot go on for the moment.
enum ReadError {
    /// JetStream does not say something.
    JetStreamError(JetStreamError),
    /// What is missing cannot be read now.
    Unread(String),
    /// The missing messages cannot be read until an operator changes something.
    Rejected(String),
}

impl From<JetStreamError> for ReadError {
    fn from(trouble: JetStreamError) -> Self {
        Self::JetStreamError(trouble)
    }
}

impl RepublishTailer {
    /// Follows until the drain begins or nobody reads the feed any more.
    pub(super) async fn run(
        place: Arc<Place>,
        filters: FilterSet,
        mut writer: RepublishWriter,
        mut drain: Token,
    ) {
        let begun = tokio::select! {
            biased;
            () = drain.requested() => return,
            () = writer.wait_idle() => return,
            begun = open::begin(&place, &filters) => begun,
        };
        let Begun {
            tap,
            republish,
            subjects,
            created,
            tag,
            head,
            seen,
        } = begun;
        writer.begin(tag, head);
        place.followers.fetch_add(1, Ordering::Relaxed);
        let due = Instant::now() + place.pause();
        let mut follower = Self {
            chain: SequenceTracker::new(head),
            pending: VecDeque::new(),
            last: None,
            newest: None,
            is_doubtful: false,
            unread: 0,
            attempts: 0,
            place,
            filters,
            writer,
            tap: Some(tap),
            republish,
            subjects,
            created,
            tag,
            seen,
            due,
        };
        follower.compare_link(&follower.place.nats.0.links.core.now());
        follower.follow(&mut drain).await;
    }

    async fn follow(&mut self, drain: &mut Token) {
        let mut link = self.place.nats.0.links.core.clone();
        loop {
            // What is in doubt before what comes: a repair stands before what follows it.
            if self.is_doubtful || !self.pending.is_empty() || self.due <= Instant::now() {
                tokio::select! {
                    biased;
                    () = drain.requested() => return,
                    () = self.work() => continue,
                }
            }
            tokio::select! {
                biased; // The connection before its messages.
                () = drain.requested() => return,
                () = self.writer.wait_idle() => return,
                () = link.changed() => self.compare_link(&link.now()),
                messages = next(&mut self.tap) => match messages {
                    Some(messages) => {
                        // Behind the receipt: what came on another connection is never handed on before the repair.
                        let now = ConnectionState { generation: link.generation(), up: true, ..link.now() };
                        self.compare_link(&now);
                        self.receive(messages);
                    }
                    // The client of the library has ended, or more came than was taken in time.
                    None => {
                        self.tap = None;
                        self.is_doubtful = true;
                    }
                },
                () = tokio::time::sleep_until(self.due) => {}
            }
        }
    }

    /// Sorts what has come: each subscription brought its own part.
    fn receive(&mut self, mut messages: Vec<Arc<PositionedMessage>>) {
        if self.subjects.len() > 1 {
            messages.sort_by_key(|message| message.sequence);
        }
        self.pending.extend(messages);
    }

    /// Compares the feed if it is in doubt or due, and hands on what has come.
    async fn work(&mut self) {
        let done = if self.is_doubtful {
            self.settle().await
        } else if self.pending.is_empty() {
            return self.compare_in_passing().await;
        } else {
            self.hand_on().await
        };
        match done {
            Ok(()) if self.is_doubtful => {
                // The stream became another one meanwhile.
                self.attempts += 1;
                tokio::time::sleep(consumer::pause(self.attempts)).await;
            }
            Ok(()) => self.attempts = 0,
            Err(fault) => {
                self.attempts += 1;
                self.endure(&fault).await;
            }
        }
    }

    /// Waits before the next attempt, or tells that there is none.
    async fn endure(&mut self, fault: &ReadError) {
        let why = match fault {
            ReadError::JetStreamError(trouble) => trouble.explain(&self.place.config.name),
            ReadError::Unread(why) | ReadError::Rejected(why) => why.clone(),
        };
        tracing::warn!(filters = %self.filters, why, "feed cannot be compared with its stream now");
        let is_hopeless = match fault {
            ReadError::JetStreamError(trouble) => trouble.is_permanent(),
            ReadError::Unread(_) => self.attempts >= ATTEMPTS_MAX,
            ReadError::Rejected(_) => true,
        };
        if is_hopeless {
            self.give_up();
        } else {
            tokio::time::sleep(consumer::pause(self.attempts)).await;
        }
    }

    /// Goes on with what has come, behind a gap.
    fn give_up(&mut self) {
        self.place.told.inc();
        self.writer.gap_before_head(GapReason::Upstream, None);
        self.is_doubtful = false;
        self.attempts = 0;
        // Whatever is missing up to here, and before the next message, has been told.
        self.chain.advance(std::mem::take(&mut self.unread));
        if let Some(message) = self.pending.front() {
            self.chain.take(
                message.subject(),
                message.previous.max(self.chain.last_of(message.subject())),
            );
        }
        self.writer.advance(self.chain.head());
    }

    /// Hands on what has come, in order, each message after all that it says was before it.
    async fn hand_on(&mut self) -> Result<(), ReadError> {
        self.chain.set_subjects_max(self.place.subjects_max());
        let mut batch = Vec::new();
        let mut count = 0;
        while let Some(message) = self.pending.pop_front() {
            if !self.filters.matches(message.subject()) {
                continue; // The subscription is wider than the filter.
            }
            let verdict = self
                .chain
                .judge(message.subject(), message.sequence, message.previous);
            match verdict {
                SequenceStep::Known if self.is_of_other_numbers(&message) => {
                    self.is_doubtful = true;
                    break;
                }
                SequenceStep::Known => continue,
                SequenceStep::Late | SequenceStep::LateHole => {
                    self.writer.append_encoded(std::mem::take(&mut batch));
                    let missed = (verdict == SequenceStep::Late).then_some(1);
                    self.tell_late(missed);
                }
                SequenceStep::Hole => {
                    self.writer.append_encoded(std::mem::take(&mut batch));
                    let (subject, sequence) = (message.subject().to_owned(), message.sequence);
                    self.pending.push_front(message);
                    // With what was missing comes the message itself.
                    self.repair(&subject, sequence).await?;
                    if self.is_doubtful {
                        break;
                    }
                    continue;
                }
                SequenceStep::Next => {}
            }
            if verdict != SequenceStep::Late {
                match message.show(self.tag, &self.place.intake, &self.writer) {
                    Some(event) => batch.push(event),
                    None => {
                        self.writer.append_encoded(std::mem::take(&mut batch));
                        self.mark_lost(message.sequence);
                    }
                }
                self.last = Some(message.position(self.tag));
            }
            self.chain.take(message.subject(), message.sequence);
            self.newest = self.newest.max(
                message
                    .published
                    .map(|published| (message.sequence, published)),
            );
            count += 1;
            if count % BATCH_MAX == 0 {
                self.writer.append_encoded(std::mem::take(&mut batch));
                // Readers run before more is appended, or their window moves past them.
                tokio::task::yield_now().await;
            }
        }
        self.writer.append_encoded(batch);
        self.writer.set_external_bytes(self.chain.bytes());
        Ok(())
    }

    /// Marks the gap of a message that cannot become an event directly before it, as in a log.
    fn mark_lost(&mut self, sequence: u64) {
        self.writer.advance(sequence.saturating_sub(1));
        self.writer.gap(GapReason::Upstream, Some(1));
        self.writer.advance(sequence);
    }

    /// Whether an old number stands on a message that is newer: the numbers have begun again.
    fn is_of_other_numbers(&mut self, message: &PositionedMessage) -> bool {
        let Some(published) = message.published else {
            return false;
        };
        let this = (message.sequence, published);
        let Some(newest) = self.newest else {
            self.newest = Some(this);
            return false;
        };
        let is_other = this.0 < newest.0 && this.1 > newest.1;
        // Looked at once for each: a clock that was set back is no other stream.
        if is_other || this.0 > newest.0 {
            self.newest = Some(this);
        }
        is_other
    }

    /// Tells of messages that later ones have overtaken.
    fn tell_late(&mut self, missed: Option<u64>) {
        tracing::warn!(stream = self.place.config.name, filters = %self.filters, "republished messages were lost behind later ones");
        self.place.told.inc();
        self.writer.gap_before_head(GapReason::Upstream, missed);
    }

    /// Reads what is missing before this message of this subject, and the message.
    async fn repair(&mut self, subject: &str, sequence: u64) -> Result<(), ReadError> {
        if self.is_late(subject, self.chain.head()).await? {
            self.tell_late(None);
            // Not told again when the repair needs another attempt.
            self.chain.take(subject, self.chain.head());
        }
        self.read_through(sequence).await
    }

    /// Whether something of a subject is missing where later messages were handed on, up to this number.
    async fn is_late(&self, subject: &str, head: u64) -> Result<bool, ReadError> {
        let last = self.chain.last_of(subject);
        let Some(filter) = Filter::parse(subject).ok().filter(|_| last < head) else {
            return Ok(false);
        };
        let next = self
            .place
            .nats
            .0
            .api
            .next_stored(&self.place.config.name, last + 1, &[filter])
            .await?;
        Ok(next.is_some_and(|next| next.sequence <= head))
    }

    /// Tells if something is missing before messages that were read behind `head`: they do not say what was before them.
    /// `left`: of how many subjects the stream may still be asked; of more it is told without asking.
    async fn tell_what_is_late(
        &mut self,
        page: &Page,
        head: u64,
        left: &mut usize,
    ) -> Result<(), ReadError> {
        let mut asked = HashSet::new();
        for event in &page.events {
            if *left == 0
                || self.chain.last_of(&event.subject) >= head
                || !asked.insert(&event.subject)
            {
                continue;
            }
            *left -= 1;
            if *left == 0 || self.is_late(&event.subject, head).await? {
                // Once is enough: it does not say how many.
                self.tell_late(None);
                *left = 0;
            }
        }
        Ok(())
    }

    /// Reads everything up to here from JetStream.
    async fn read_through(&mut self, through: u64) -> Result<(), ReadError> {
        let place = Arc::clone(&self.place);
        self.unread = self
            .pending
            .front()
            .map_or(through, |next| through.min(next.sequence.saturating_sub(1)));
        let Ok(_turn) = place.readings.acquire().await else {
            return Ok(());
        };
        let mut replay = place.nats.0.links.replay.clone();
        replay.up().await;
        tracing::info!(stream = place.config.name, filters = %self.filters, after = self.chain.head(), through, "republished messages were lost, reading them from the stream");
        let (head, mut left) = (self.chain.head(), ASKED_MAX);
        let mut pages = place.archive.read_as(&self.filters, head, self.tag);
        while self.chain.head() < through {
            let page = match pages.next().await {
                Ok(page) => page,
                Err(Unavailable::Changed) => {
                    self.is_doubtful = true;
                    return Ok(());
                }
                Err(Unavailable::Temporary(why)) => return Err(ReadError::Unread(why)),
                Err(Unavailable::Rejected(why)) => return Err(ReadError::Rejected(why)),
            };
            if page.after > self.chain.head() {
                let gap = page.gap();
                if page.is_unreadable {
                    // As behind a live message that is too large.
                    self.writer.advance(page.after - 1);
                    self.writer.gap(gap.reason, gap.missed);
                    self.writer.advance(page.after);
                } else {
                    self.writer.start_epoch(self.tag, page.after, gap);
                }
                self.chain.advance(page.after);
            }
            self.tell_what_is_late(&page, head, &mut left).await?;
            for event in &page.events {
                self.chain.take(&event.subject, event.position.seq);
                self.last = Some(event.position);
            }
            self.writer.append(page.events);
            self.writer.advance(page.through);
            self.chain.advance(page.through);
        }
        place.repaired.inc();
        Ok(())
    }
}

impl Drop for RepublishTailer {
    fn drop(&mut self) {
        self.place.followers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The messages of a tap; never without one.
async fn next(tap: &mut Option<Tap>) -> Option<Vec<Arc<PositionedMessage>>> {
    match tap {
        Some(tap) => tap.next().await,
        None => std::future::pending().await,
    }
}
