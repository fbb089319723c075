//! Stream buffer: the recent events of one JetStream stream, and the feeds that select from it.
//!
//! A pod follows each stream with one consumer. Its tailer appends through a
//! [`writer::StreamWriter`]; the buffer keeps the events in order within [`Limits`], indexes them
//! by subject, and appends each to every feed whose filters match (a trie over all filters, with a
//! cache per subject). A feed exists while it has a reader: the first reader creates it and fills
//! it from the subject index, without a scan of the buffer; the last one removes it.
//!
//! ```text
//! events:  [base ..................... end)   running indexes, ascending sequence numbers
//! gaps:        ^ position, index of the event that follows
//! floor:   every event after this sequence number is in `events`
//! head:    the last sequence number that the writer passed
//! ```
//!
//! One mutex guards the state. It is locked before the lock of a feed, never after. Events are
//! encoded before locking, and tasks are woken after its release.

mod opening;
pub mod writer;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use futures_util::future::BoxFuture;

use slab::Slab;

use crate::event::{Fingerprint, Position, SourceTag};
use crate::payload::Converter;
use crate::subject::FilterSet;

use super::archive::Archive;
use super::budget::{Budget, Evict};
use super::encoded::EncodedEvent;
use super::feed::{Feed, WakeList};
use super::gap::Gap;
use super::limits::{Limits, SourceSize};
use super::open_error::OpenError;
use super::opening as feed_opening;
use super::options::{BatchEncodings, FeedOptions};
use super::origin::Origin;
use super::prefetch;
use super::replay::member::ReplayMember;
use super::replay::{ReplayPool, ReplaySlots};
use super::resume::Start;
use super::snapshot::{Snapshot, Snapshots};
use super::source::{OpenFuture, Source};
use super::subject_index::SubjectIndex;
use super::trie::SubjectTrie;
use super::window::GapSide;

/// Reading side of a stream buffer.
pub struct StreamBuffer {
    /// This buffer, for its cursors.
    me: Weak<Self>,
    name: Box<str>,
    budget: Arc<Budget>,
    replay_pool: Option<Arc<ReplayPool>>,
    snapshots: Snapshots,
    /// Messages that the stream has ready for the writer, as the server reports it.
    pending: AtomicU64,
    /// A feed with a converter was created.
    has_converters: AtomicBool,
    state: Mutex<State>,
}

/// Access to the stored events of a stream that are older than the buffer.
#[derive(Clone, Debug)]
pub struct ArchiveAccess {
    /// Source of the stored events.
    pub archive: Arc<dyn Archive>,
    /// Every filter that any route can request.
    pub reach: FilterSet,
    /// Replay slots of the process.
    pub replays: Arc<ReplaySlots>,
}

struct State {
    events: VecDeque<Arc<EncodedEvent>>,
    /// Running index of the first of `events`.
    base: u64,
    bytes: usize,
    /// Gaps for feeds that are created later; bounded by the number of events.
    gaps: VecDeque<BufferGap>,
    index: SubjectIndex,
    limits: Limits,
    /// Position of the writer; `None` before it starts.
    head: Option<Position>,
    /// Every event after this sequence number is in `events`.
    floor: u64,
    trie: SubjectTrie,
    feeds: Slab<Arc<Feed>>,
    keys: HashMap<Key, usize>,
    /// The writer has not reached the point where readers may start.
    catching_up: bool,
    /// NATS rejects the writer until an operator changes something.
    rejected: bool,
    ended: bool,
}

/// Events are missing after a position.
#[derive(Clone, Copy, Debug)]
struct BufferGap {
    gap: Gap,
    position: Position,
    /// Running index of the next event.
    index: u64,
    since: Instant,
}

/// Readers with the same key share a feed.
type Key = (FilterSet, Arc<FeedOptions>);

// === impl StreamBuffer ===

impl Source for StreamBuffer {
    fn name(&self) -> &str {
        &self.name
    }

    fn tag(&self) -> Result<SourceTag, OpenError> {
        let state = self.lock();
        if state.rejected {
            return Err(OpenError::Rejected);
        }
        state.head.map(|head| head.tag).ok_or(OpenError::NotReady)
    }

    fn is_ready(&self) -> bool {
        self.lock().is_ready()
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
        let archive = self
            .replay_pool
            .as_ref()
            .map(|replays| &**replays.archive());
        Box::pin(feed_opening::is_finished(archive, filters, seq))
    }

    /// 0 before the writer has caught up.
    fn pending(&self) -> u64 {
        if self.is_ready() {
            self.pending.load(Ordering::Relaxed)
        } else {
            0
        }
    }

    fn set_limits(&self, limits: Limits) {
        self.lock().limits = limits;
    }

    fn sweep(&self, now: Instant) {
        self.snapshots.sweep();
        let mut state = self.lock();
        state.evict(now);
        for (_, feed) in &state.feeds {
            feed.lock().window.evict(now);
        }
    }

    fn size(&self) -> SourceSize {
        let state = self.lock();
        let entries: usize = state.feeds.iter().map(|(_, feed)| feed.overhead()).sum();
        SourceSize {
            events: state.events.len(),
            bytes: state.bytes + entries,
            feeds: state.feeds.len(),
        }
    }
}

impl StreamBuffer {
    /// Runs the replays of this stream. To be spawned once; pending forever without an archive.
    pub fn replays(&self) -> impl Future<Output = ()> + Send + use<> {
        let replay_pool = self.replay_pool.clone();
        async move {
            match replay_pool {
                Some(replay_pool) => replay_pool.run().await,
                None => std::future::pending().await,
            }
        }
    }

    /// Converts new events for the feeds of other versions, without a lock: every reader that opens
    /// waits for the lock.
    fn convert_ahead(&self, events: &[Arc<EncodedEvent>]) {
        if !self.has_converters.load(Ordering::Relaxed) {
            return;
        }
        let needed = self.lock().needed_converters(events);
        for (nth, converter) in needed {
            let _made = events[nth].convert(&converter);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Origin for StreamBuffer {
    fn head_at_end(&self, feed: &Feed, index: u64) -> Option<Position> {
        let state = self.lock();
        // Under both locks: an appended event is either before the head and in the feed, or
        // neither.
        (index >= feed.lock().window.end())
            .then_some(state.head)
            .flatten()
    }

    fn join_replay(&self, feed: &Arc<Feed>, after: u64) -> Option<Box<ReplayMember>> {
        ReplayMember::join(self.replay_pool.as_ref()?, feed, after)
    }

    fn snapshot<'a>(
        &'a self,
        filters: &'a FilterSet,
        floor: Position,
        reader: Position,
    ) -> BoxFuture<'a, Result<Arc<Snapshot>, OpenError>> {
        Box::pin(async move {
            let replays = self.replay_pool.as_ref().ok_or(OpenError::NotReady)?;
            self.snapshots.get(replays, filters, floor, reader).await
        })
    }

    /// Removes a feed after its last reader has left. The buffer can create it again.
    fn reader_left(&self, feed: &Arc<Feed>) {
        let mut state = self.lock();
        let key = (feed.filters.clone(), feed.options.clone());
        // A reader may have joined between its own lock and this one.
        if !feed.lock().subscribers.is_empty() {
            return;
        }
        let Some(slot) = state.keys.get(&key).copied() else {
            return;
        };
        if Arc::ptr_eq(&state.feeds[slot], feed) {
            state.keys.remove(&key);
            state.trie.remove(&feed.filters, slot);
            let removed = state.feeds.remove(slot);
            drop(state);
            drop(removed);
        }
    }
}

impl Evict for StreamBuffer {
    fn last_read(&self) -> u64 {
        // Clients read feeds; the buffer is evicted first among equals, because feeds keep their
        // events.
        0
    }

    fn evict_half(&self) -> bool {
        let mut state = self.lock();
        let count = state.events.len().div_ceil(2);
        for _ in 0..count {
            state.pop();
        }
        count > 0
    }
}

impl std::fmt::Debug for StreamBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StreamBuffer({})", self.name)
    }
}

// === impl State ===

impl State {
    fn new(limits: Limits) -> Self {
        Self {
            events: VecDeque::new(),
            base: 0,
            bytes: 0,
            gaps: VecDeque::new(),
            index: SubjectIndex::default(),
            limits,
            head: None,
            floor: 0,
            trie: SubjectTrie::default(),
            feeds: Slab::new(),
            keys: HashMap::new(),
            catching_up: false,
            rejected: false,
            ended: false,
        }
    }

    fn is_ready(&self) -> bool {
        self.head.is_some() && !self.catching_up && !self.ended
    }

    /// Returns the encodings that are left to make when the lock is released.
    fn append(
        &mut self,
        encoded: &[Arc<EncodedEvent>],
        now: Instant,
        wake_list: &mut WakeList,
    ) -> BatchEncodings {
        let mut deliveries: Vec<(usize, usize)> = Vec::with_capacity(encoded.len());
        let mut found = Vec::new();
        for (nth, one) in encoded.iter().enumerate() {
            debug_assert!(
                self.head
                    .is_none_or(|head| head.tag == one.event.position.tag
                        && head.seq < one.event.position.seq),
                "sequence numbers in a buffer ascend"
            );
            let (subject, index) = (&one.event.subject, self.base + self.events.len() as u64);
            self.index.push(subject, index, |feeds| {
                feeds.matches(&self.trie, subject, &mut found)
            });
            self.bytes += one.stored().len();
            self.events.push_back(one.clone());
            self.head = Some(one.event.position);
            deliveries.extend(found.drain(..).map(|feed| (feed, nth)));
        }
        // One lock and one notification per feed, with its events in order.
        deliveries.sort_unstable();
        let mut encodings = BatchEncodings::default();
        for group in deliveries.chunk_by(|one, next| one.0 == next.0) {
            let feed = &self.feeds[group[0].0];
            let events = group
                .iter()
                .map(|(_, nth)| encodings.show(&encoded[*nth], &feed.options, *nth));
            feed.append(events, wake_list);
        }
        self.evict(now);
        encodings
    }

    /// Returns the conversions that the feeds need of new events, by index.
    fn needed_converters(&self, events: &[Arc<EncodedEvent>]) -> Vec<(usize, Arc<Converter>)> {
        let (mut needed, mut found) = (Vec::new(), Vec::new());
        for (nth, one) in events.iter().enumerate() {
            self.trie.matches(&one.event.subject, &mut found);
            let begin = needed.len();
            for feed in found.drain(..) {
                let Some(converter) = &self.feeds[feed].options.converter else {
                    continue;
                };
                let is_known = needed[begin..]
                    .iter()
                    .any(|(_, known): &(usize, Arc<Converter>)| Arc::ptr_eq(known, converter));
                if !is_known {
                    needed.push((nth, converter.clone()));
                }
            }
        }
        needed
    }

    /// Returns the events from which a new feed is seeded; none if the feed exists.
    fn seeds(&self, filters: &FilterSet, options: &Arc<FeedOptions>) -> Vec<Arc<EncodedEvent>> {
        if self.keys.contains_key(&(filters.clone(), options.clone())) {
            return Vec::new();
        }
        let found = self.index.find(filters);
        let events = found.into_iter().filter_map(|index| self.get(index));
        events.cloned().collect()
    }

    fn feed(
        &mut self,
        filters: FilterSet,
        options: &Arc<FeedOptions>,
        buffer: &StreamBuffer,
        tag: SourceTag,
    ) -> Result<Arc<Feed>, OpenError> {
        let key = (filters, options.clone());
        if let Some(slot) = self.keys.get(&key) {
            return Ok(self.feeds[*slot].clone());
        }
        let floor = Position {
            tag,
            seq: self.floor,
            fingerprint: None,
        };
        let feed = Feed::new(key.0.clone(), options.clone(), floor, &buffer.budget)
            .ok_or(OpenError::TooManyFeeds)?;
        if options.converter.is_some() {
            buffer.has_converters.store(true, Ordering::Relaxed);
        }
        self.seed(&feed);
        let slot = self.feeds.insert(feed.clone());
        self.trie.insert(&key.0, slot);
        self.keys.insert(key, slot);
        Ok(feed)
    }

    /// Fills a new feed before it has readers, through the subject index.
    fn seed(&self, feed: &Feed) {
        let window = &mut feed.lock().window;
        let mut gaps = self.gaps.iter().peekable();
        let found = self.index.find(&feed.filters);
        window.reserve(found.len());
        for some in found.chunks(prefetch::AHEAD) {
            prefetch::events(some.iter().filter_map(|index| self.get(*index)));
            let mut rest = some;
            while let Some(first) = rest.first() {
                while let Some(gap) = gaps.next_if(|gap| gap.index <= *first) {
                    window.push_gap(gap.gap, gap.position, GapSide::After, gap.since);
                }
                let until = gaps.peek().map_or(u64::MAX, |gap| gap.index);
                let (before, after) = rest.split_at(rest.partition_point(|index| *index < until));
                let events = before.iter().filter_map(|index| self.get(*index));
                window.append(events.map(|encoded| feed.options.show(encoded.clone())));
                rest = after;
            }
        }
        for gap in gaps {
            window.push_gap(gap.gap, gap.position, GapSide::After, gap.since);
        }
    }

    fn push_gap(&mut self, gap: Gap, position: Position, since: Instant) {
        let index = self.base + self.events.len() as u64;
        self.gaps.push_back(BufferGap {
            gap,
            position,
            index,
            since,
        });
        if self.gaps.len() > self.limits.events {
            self.pop_gap();
        }
    }

    /// Removes the oldest gap. Completeness can no longer be promised to a reader before it.
    fn pop_gap(&mut self) {
        let Some(gap) = self.gaps.pop_front() else {
            return;
        };
        self.floor = self.floor.max(gap.position.seq + 1);
    }

    fn get(&self, index: u64) -> Option<&Arc<EncodedEvent>> {
        self.events
            .get(usize::try_from(index.checked_sub(self.base)?).ok()?)
    }

    /// Fingerprint of the message at this sequence number, if it is in memory.
    fn fingerprint_at(&self, seq: u64) -> Option<Fingerprint> {
        let index = self
            .events
            .partition_point(|encoded| encoded.event.position.seq < seq);
        self.events
            .get(index)
            .filter(|encoded| encoded.event.position.seq == seq)?
            .event
            .position
            .fingerprint
    }

    fn evict(&mut self, now: Instant) {
        while let Some(first) = self.events.front() {
            let old = now.saturating_duration_since(first.event.received) > self.limits.age;
            let full = self.events.len() > self.limits.events
                || (self.bytes > self.limits.bytes && self.events.len() > 1);
            if !old && !full {
                break;
            }
            self.pop();
        }
        let (base, age) = (self.base, self.limits.age);
        let is_old =
            |gap: &BufferGap| gap.index <= base && now.saturating_duration_since(gap.since) > age;
        while self.gaps.front().is_some_and(is_old) {
            self.pop_gap();
        }
    }

    fn pop(&mut self) {
        let Some(first) = self.events.pop_front() else {
            return;
        };
        self.base += 1;
        self.bytes -= first.stored().len();
        self.floor = self.floor.max(first.event.position.seq);
        self.index.pop(&first.event.subject);
        while self.gaps.front().is_some_and(|gap| gap.index < self.base) {
            self.gaps.pop_front();
        }
    }

    fn clear(&mut self, floor: u64) {
        while !self.events.is_empty() {
            self.pop();
        }
        self.gaps.clear();
        self.floor = floor;
    }
}
