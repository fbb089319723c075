//! Republish source: a JetStream stream with `republish`, whose feeds are core subscriptions.
//!
//! The server republishes each stored message on a core subject, with its stream sequence in
//! headers. A feed subscribes to the republished subjects of its filters and keeps the stream's own
//! sequence numbers, so the stream's archive serves replays. The pod receives only what its readers
//! request, instead of the whole stream. The tailer in `nats::republish` detects lost messages by
//! the headers and repairs them from the archive.
//!
//! Each feed has its own head, because its subscription starts on its own. Readers wait until the
//! tailer calls [`RepublishWriter::begin`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use crate::event::{Event, Position, SourceTag};
use crate::subject::FilterSet;

use super::archive::State;
use super::budget::Budget;
use super::buffer::ArchiveAccess;
use super::cursor::Cursor;
use super::encoded::EncodedEvent;
use super::feed::{self, Feed};
use super::feed_map::{FeedLease, FeedMap, REQUESTS_MAX, SubscribeRequest, SubscribeRequests};
use super::gap::{Gap, GapReason};
use super::limits::SourceSize;
use super::open_error::OpenError;
use super::opening;
use super::opening::Opened;
use super::options::FeedOptions;
use super::origin::Origin;
use super::replay::ReplayPool;
use super::replay::member::ReplayMember;
use super::resume::{Outcome, Start, StoredFingerprint, View};
use super::snapshot::{Snapshot, Snapshots};
use super::source::{OpenFuture, Source};
use super::window::GapSide;

/// Reading side of one stream; every feed has a subscription of its own.
pub struct RepublishSource {
    /// This source, for its cursors and writers.
    me: Weak<Self>,
    name: Box<str>,
    /// Tag of the stream's event ids; `None` before the stream is known to republish.
    tag: Mutex<Option<SourceTag>>,
    /// NATS rejects reading the stream until an operator changes something.
    rejected: AtomicBool,
    feeds: Arc<FeedMap>,
    requests: mpsc::Sender<SubscribeRequest<RepublishWriter>>,
    replay_pool: Arc<ReplayPool>,
    snapshots: Snapshots,
}

/// Writer of one feed. The events have positions already. Not `Clone`; dropping it ends the feed.
#[derive(Debug)]
pub struct RepublishWriter {
    source: Weak<RepublishSource>,
    lease: FeedLease,
    /// Bytes set by [`RepublishWriter::set_external_bytes`].
    external_bytes: usize,
}

/// Creates a source, and the receiver of its subscribe requests.
#[must_use]
pub fn channel(
    name: impl Into<Box<str>>,
    budget: &Arc<Budget>,
    access: ArchiveAccess,
) -> (Arc<RepublishSource>, SubscribeRequests<RepublishWriter>) {
    let (requests, received) = mpsc::channel(REQUESTS_MAX);
    let replay_pool = ReplayPool::new(&access.replays, access.archive, access.reach, budget);
    let (name, tag, rejected, feeds) = (
        name.into(),
        Mutex::default(),
        AtomicBool::new(false),
        FeedMap::new(budget),
    );
    (
        Arc::new_cyclic(|me| RepublishSource {
            me: me.clone(),
            name,
            tag,
            rejected,
            feeds,
            requests,
            replay_pool,
            snapshots: Snapshots::default(),
        }),
        received,
    )
}

// === impl RepublishSource ===

impl Source for RepublishSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn tag(&self) -> Result<SourceTag, OpenError> {
        if self.rejected.load(Ordering::Relaxed) {
            return Err(OpenError::Rejected);
        }
        self.known_tag().ok_or(OpenError::NotReady)
    }

    fn is_ready(&self) -> bool {
        self.known_tag().is_some()
    }

    fn are_positions_shared(&self) -> bool {
        true
    }

    fn open<'a>(
        &'a self,
        filters: FilterSet,
        options: &'a Arc<FeedOptions>,
        start: Start,
    ) -> OpenFuture<'a> {
        Box::pin(self.open_reader(filters, options, start))
    }

    fn is_finished<'a>(
        &'a self,
        filters: &'a FilterSet,
        seq: u64,
    ) -> BoxFuture<'a, Result<bool, OpenError>> {
        Box::pin(opening::is_finished(
            Some(&**self.replay_pool.archive()),
            filters,
            seq,
        ))
    }

    fn sweep(&self, now: Instant) {
        self.snapshots.sweep();
        self.feeds.sweep(now);
    }

    fn size(&self) -> SourceSize {
        self.feeds.size()
    }
}

impl RepublishSource {
    /// Admits no reader until [`Self::set_ready`]; an operator has to change something first.
    pub fn reject(&self) {
        self.rejected.store(true, Ordering::Relaxed);
    }

    /// Marks the stream as readable under this tag: readers may start.
    pub fn set_ready(&self, tag: SourceTag) {
        self.rejected.store(false, Ordering::Relaxed);
        let before = self
            .tag
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(tag);
        if before.is_some_and(|before| before != tag) {
            // Running replays belong to the old epoch.
            self.replay_pool.start_epoch();
        }
    }

    /// Opens a reader. Ready after its subscription is confirmed.
    async fn open_reader(
        &self,
        filters: FilterSet,
        options: &Arc<FeedOptions>,
        start: Start,
    ) -> Result<Opened, OpenError> {
        let tag = self.tag()?;
        // The start of a feed is known only after its subscription is confirmed.
        let found = self.feeds.find(filters, options, || Position {
            tag,
            seq: 0,
            fingerprint: None,
        })?;
        let mut cursor = Cursor::join_at_end(self.me.clone(), found.feed.clone());
        let writer = |lease| RepublishWriter {
            source: self.me.clone(),
            lease,
            external_bytes: 0,
        };
        found.wait_subscribed(&self.requests, writer).await?;
        if !cursor.seek_to_end() {
            return Err(OpenError::NotReady);
        }
        let mut snapshot = None;
        let outcome = match start {
            Start::Live => Outcome::Live,
            Start::Begin(begin) => {
                let replays = &self.replay_pool;
                let begun = opening::begin_at(&mut cursor, begin, replays, &self.snapshots).await?;
                snapshot = begun.1;
                begun.0
            }
            Start::Unknown(reason) => Outcome::Gap(Gap::uncounted(reason)),
            Start::After(at) => {
                let archive = Some(&**self.replay_pool.archive());
                opening::resume(&mut cursor, at, archive, |cursor, source, fingerprint| {
                    view(cursor, at, source, fingerprint)
                })
                .await?
            }
        };
        Ok(Opened {
            cursor,
            outcome,
            snapshot,
        })
    }

    /// Runs the replays of this stream. To be spawned once.
    pub fn replays(&self) -> impl Future<Output = ()> + Send + use<> {
        self.replay_pool.clone().run()
    }

    /// `None` before the stream is known to republish.
    fn known_tag(&self) -> Option<SourceTag> {
        *self.tag.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Origin for RepublishSource {
    fn head_at_end(&self, feed: &Feed, index: u64) -> Option<Position> {
        let state = feed.lock();
        (index >= state.window.end())
            .then_some(state.head)
            .flatten()
    }

    fn join_replay(&self, feed: &Arc<Feed>, after: u64) -> Option<Box<ReplayMember>> {
        ReplayMember::join(&self.replay_pool, feed, after)
    }

    fn snapshot<'a>(
        &'a self,
        filters: &'a FilterSet,
        floor: Position,
        reader: Position,
    ) -> BoxFuture<'a, Result<Arc<Snapshot>, OpenError>> {
        let replays = &self.replay_pool;
        Box::pin(self.snapshots.get(replays, filters, floor, reader))
    }

    fn reader_left(&self, feed: &Arc<Feed>) {
        self.feeds.reader_left(feed);
    }
}

impl std::fmt::Debug for RepublishSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RepublishSource({})", self.name)
    }
}

/// State of the source as seen from the position `at`.
fn view(
    cursor: &Cursor,
    at: Position,
    source: Option<State>,
    fingerprint: StoredFingerprint,
) -> Option<View> {
    let state = cursor.feed().lock();
    let head = state.head?;
    let fingerprint = state
        .window
        .fingerprint_at(at.seq)
        .map_or(fingerprint, StoredFingerprint::Found);
    Some(View {
        tag: head.tag,
        floor: state.window.floor(),
        head: head.seq,
        source,
        fingerprint,
    })
}

// === impl RepublishWriter ===

impl RepublishWriter {
    /// Starts the feed after `head`: the subscription is confirmed and delivers everything after
    /// it. Waiting readers may start.
    pub fn begin(&mut self, head: Position) {
        {
            let mut state = self.lease.feed().lock();
            state.window.begin(head);
            state.head = Some(head);
        }
        self.lease.confirm_subscribed();
    }

    /// Sequence number up to which everything was appended or does not match.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.lease.feed().lock().head.map_or(0, |head| head.seq)
    }

    /// Encodes an event for all feeds of the stream that match it.
    #[must_use]
    pub fn encode(&self, event: Event) -> Arc<EncodedEvent> {
        EncodedEvent::new(event, self.lease.budget())
    }

    /// Appends events in ascending order of sequence, all after the head, with one lock and one
    /// notification.
    pub fn append(&mut self, events: Vec<Event>) {
        // Encode before locking: every reader of the feed waits for the lock.
        let encoded = events.into_iter().map(|event| self.encode(event)).collect();
        self.append_encoded(encoded);
    }

    /// Like [`Self::append`], for events that other feeds may share.
    pub fn append_encoded(&mut self, events: Vec<Arc<EncodedEvent>>) {
        let Some(last) = events.last().map(|encoded| encoded.event.position) else {
            return;
        };
        {
            let feed = self.lease.feed();
            // Before the lock: a reader must not encode under it.
            for encoded in &events {
                feed.options.prepare(encoded);
            }
            let mut state = feed.lock();
            let feed::State { window, head, .. } = &mut *state;
            window.append(events.iter().map(|one| {
                debug_assert!(
                    head.is_none_or(|head| head.seq < one.event.position.seq),
                    "sequence numbers in a feed ascend"
                );
                *head = Some(one.event.position);
                feed.options.show(one.clone())
            }));
            debug_assert_eq!(state.head, Some(last), "the last event is the head");
        }
        // Evicted memory is released only when the last reference is dropped.
        drop(events);
        self.lease.wake();
    }

    /// Charges the budget with memory that the tailer holds for this feed; replaces the previous
    /// amount.
    pub fn set_external_bytes(&mut self, bytes: usize) {
        if bytes != self.external_bytes {
            let budget = self.lease.budget();
            budget.add(bytes);
            budget.sub(std::mem::replace(&mut self.external_bytes, bytes));
        }
    }

    /// Advances the head: messages up to this sequence number that were not appended do not match.
    pub fn advance(&mut self, seq: u64) {
        let mut state = self.lease.feed().lock();
        if let Some(head) = &mut state.head
            && head.seq < seq
        {
            *head = Position {
                tag: head.tag,
                seq,
                fingerprint: None,
            };
        }
    }

    /// Reports to every reader that events are missing after the head.
    pub fn gap(&mut self, reason: GapReason, missed: Option<u64>) {
        self.push_gap(Gap { reason, missed }, false);
    }

    /// Reports to every reader that events are missing before the head. A reader with an older
    /// position reads the archive, which may have them.
    pub fn gap_before_head(&mut self, reason: GapReason, missed: Option<u64>) {
        self.push_gap(Gap { reason, missed }, true);
    }

    fn push_gap(&mut self, gap: Gap, is_before: bool) {
        {
            let mut state = self.lease.feed().lock();
            let Some(head) = state.head else { return };
            state
                .window
                .push_gap(gap, head, GapSide::After, Instant::now());
            if is_before {
                state.window.raise_floor(head.seq);
            }
        }
        self.lease.wake();
    }

    /// Continues after sequence `head` where the following events do not adjoin the feed. Every
    /// reader receives the gap.
    pub fn start_epoch(&mut self, tag: SourceTag, head: u64, gap: Gap) {
        let head = Position {
            tag,
            seq: head,
            fingerprint: None,
        };
        let starts_epoch = gap.reason != GapReason::Expired;
        {
            let mut state = self.lease.feed().lock();
            state.window.start_epoch(gap, head, Instant::now());
            state.head = Some(head);
        }
        if let Some(source) = self.source.upgrade() {
            if source.known_tag() != Some(tag) {
                source.set_ready(tag);
            } else if starts_epoch {
                source.replay_pool.start_epoch();
            }
        }
        self.lease.wake();
    }

    /// Returns when the feed has been without readers for its idle period
    /// ([`super::feed_map::LINGER`] at most). Cancel safe.
    pub async fn wait_idle(&mut self) {
        self.lease.wait_idle().await;
    }
}

impl Drop for RepublishWriter {
    fn drop(&mut self) {
        self.set_external_bytes(0);
    }
}
