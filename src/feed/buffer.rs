//! The recent events of one JetStream stream, once for the whole pod, and the feeds that are made of them.

mod opening;
mod writer;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use slab::Slab;

use crate::sse::{Position, SourceTag};
use crate::subject::FilterSet;

use super::budget::{Budget, Evict};
use super::encoded::{EncodedEvent, LOOKS};
use super::feed::Feed;
use super::history::Archive;
use super::notify::WakeList;
use super::options::Named;
use super::replay::{ReplayMember, ReplayPool, ReplaySlots};
use super::subject_index::SubjectIndex;
use super::trie::SubjectTrie;
use super::window::GapSide;
use super::{FeedOptions, Gap, Limits, OpenError};

pub use writer::StreamWriter;

/// The reading side.
pub struct StreamBuffer {
    name: Arc<str>,
    budget: Arc<Budget>,
    replayer: Option<Arc<ReplayPool>>,
    /// What the source has ready for the writer, by its own word.
    pending: AtomicU64,
    state: Mutex<State>,
}

/// What lies behind a log's window.
#[derive(Clone, Debug)]
pub struct History {
    /// Where it is read.
    pub archive: Arc<dyn Archive>,
    /// Everything that any reader can ask for.
    pub reach: FilterSet,
    /// The places of all replays.
    pub replays: Arc<ReplaySlots>,
}

struct State {
    events: VecDeque<Arc<EncodedEvent>>,
    /// Running index of the first of `events`.
    base: u64,
    bytes: usize,
    /// Where events are missing, for feeds that are made later; never more than events.
    holes: VecDeque<Hole>,
    index: SubjectIndex,
    limits: Limits,
    /// Where the writer is; none before it began.
    head: Option<Position>,
    /// Everything after this sequence number is in `events`.
    floor: u64,
    interest: SubjectTrie,
    feeds: Slab<Arc<Feed>>,
    keys: HashMap<Key, usize>,
    /// The writer is still on its way to where readers begin.
    catching_up: bool,
    /// NATS rejects the writer until an operator changes something.
    rejected: bool,
    ended: bool,
}

/// Events are missing behind a position.
#[derive(Clone, Copy, Debug)]
struct Hole {
    gap: Gap,
    position: Position,
    /// The running index of the event that follows.
    index: u64,
    since: Instant,
}

/// What makes two readers share a feed.
type Key = (FilterSet, Arc<FeedOptions>);

/// A log and its writer. Without a past, what is not in memory any more is lost to readers.
#[must_use]
pub fn channel(
    name: impl Into<Arc<str>>,
    limits: Limits,
    budget: &Arc<Budget>,
    past: Option<History>,
) -> (StreamWriter, Arc<StreamBuffer>) {
    let state = State {
        events: VecDeque::new(),
        base: 0,
        bytes: 0,
        holes: VecDeque::new(),
        index: SubjectIndex::default(),
        limits,
        head: None,
        floor: 0,
        interest: SubjectTrie::default(),
        feeds: Slab::new(),
        keys: HashMap::new(),
        catching_up: false,
        rejected: false,
        ended: false,
    };
    let replayer =
        past.map(|past| ReplayPool::new(&past.replays, past.archive, past.reach, budget));
    let log = Arc::new(StreamBuffer {
        name: name.into(),
        budget: budget.clone(),
        replayer,
        pending: AtomicU64::new(0),
        state: Mutex::new(state),
    });
    let shrink: Arc<dyn Evict> = log.clone();
    budget.join(Arc::downgrade(&shrink));
    (StreamWriter::new(&log), log)
}

// === impl Log ===

impl StreamBuffer {
    /// The name of the stream.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The tag of its ids; none before the writer began.
    #[must_use]
    pub fn tag(&self) -> Option<SourceTag> {
        self.lock().head.map(|head| head.tag)
    }

    /// Whether readers may begin.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().is_ready()
    }

    /// Whether NATS rejects reading the stream until an operator changes something.
    #[must_use]
    pub fn is_rejected(&self) -> bool {
        self.lock().rejected
    }

    /// Messages that the source has ready and the writer has not taken: 0 while it is on its way to where readers begin.
    #[must_use]
    pub fn pending(&self) -> u64 {
        if self.is_ready() {
            self.pending.load(Ordering::Relaxed)
        } else {
            0
        }
    }

    /// Changes how much is kept; takes effect with the next event.
    pub fn set_limits(&self, limits: Limits) {
        self.lock().limits = limits;
    }

    /// Drops what is too old at this time, here and in every feed.
    pub fn sweep(&self, now: Instant) {
        let mut state = self.lock();
        state.evict(now);
        for (_, feed) in &state.feeds {
            feed.lock().window.evict(now);
        }
    }

    /// Events and bytes in memory, and feeds.
    #[must_use]
    pub fn size(&self) -> (usize, usize, usize) {
        let state = self.lock();
        let entries: usize = state.feeds.iter().map(|(_, feed)| feed.overhead()).sum();
        (state.events.len(), state.bytes + entries, state.feeds.len())
    }

    /// Serves readers that are behind the window, until the log is gone. To be spawned once.
    pub fn replays(&self) -> impl Future<Output = ()> + Send + use<> {
        let replayer = self.replayer.clone();
        async move {
            match replayer {
                Some(replayer) => replayer.run().await,
                None => std::future::pending().await,
            }
        }
    }

    pub(super) fn enter(&self, feed: &Arc<Feed>, after: u64) -> Option<Box<ReplayMember>> {
        self.replayer.as_ref()?.enter(feed, after)
    }

    pub(super) fn head_at_end(&self, feed: &Feed, index: u64) -> Option<Position> {
        let state = self.lock();
        // Both locks: an event that is appended is either before the head and in the feed, or neither.
        (index >= feed.lock().window.end())
            .then_some(state.head)
            .flatten()
    }

    /// The last reader of a feed has left: the feed goes too, since the log can make it again.
    pub(super) fn left(&self, feed: &Arc<Feed>) {
        let mut state = self.lock();
        let key = (feed.filters.clone(), feed.profile.clone());
        // Another reader may have come between its own lock and this one.
        if !feed.lock().readers.is_empty() {
            return;
        }
        let Some(slot) = state.keys.get(&key).copied() else {
            return;
        };
        if Arc::ptr_eq(&state.feeds[slot], feed) {
            state.keys.remove(&key);
            state.interest.remove(&feed.filters, slot);
            let gone = state.feeds.remove(slot);
            drop(state);
            drop(gone);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Evict for StreamBuffer {
    fn last_read(&self) -> u64 {
        // Feeds are what clients read; the log gives first among equals, since it can be filled again.
        0
    }

    fn shrink(&self) -> bool {
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
        write!(f, "Log({})", self.name)
    }
}

// === impl State ===

impl State {
    fn is_ready(&self) -> bool {
        self.head.is_some() && !self.catching_up && !self.ended
    }

    fn append(&mut self, logged: &[Arc<EncodedEvent>], now: Instant, news: &mut WakeList) {
        let mut wanted: Vec<(usize, usize)> = Vec::with_capacity(logged.len());
        let mut found = Vec::new();
        for (place, one) in logged.iter().enumerate() {
            debug_assert!(
                self.head
                    .is_none_or(|head| head.tag == one.event.position.tag
                        && head.seq < one.event.position.seq),
                "a log ascends"
            );
            let (subject, index) = (&one.event.subject, self.base + self.events.len() as u64);
            self.index.push(subject, index, |feeds| {
                feeds.matches(&self.interest, subject, &mut found)
            });
            self.bytes += one.frame.len();
            self.events.push_back(one.clone());
            self.head = Some(one.event.position);
            wanted.extend(found.drain(..).map(|feed| (feed, place)));
        }
        // One lock and one wake per feed: its events side by side, still in order.
        wanted.sort_unstable();
        let mut named = Named::default();
        for group in wanted.chunk_by(|one, next| one.0 == next.0) {
            let feed = &self.feeds[group[0].0];
            let events = group
                .iter()
                .map(|(_, place)| named.show(&logged[*place], &feed.profile, *place));
            feed.append(events, news);
        }
        self.evict(now);
    }

    fn feed(
        &mut self,
        filters: FilterSet,
        profile: &Arc<FeedOptions>,
        log: &StreamBuffer,
        tag: SourceTag,
    ) -> Result<Arc<Feed>, OpenError> {
        let key = (filters, profile.clone());
        if let Some(slot) = self.keys.get(&key) {
            return Ok(self.feeds[*slot].clone());
        }
        let floor = Position {
            tag,
            seq: self.floor,
            check: None,
        };
        let feed = Feed::new(key.0.clone(), profile.clone(), floor, &log.budget)
            .ok_or(OpenError::TooManyFeeds)?;
        self.seed(&feed);
        let slot = self.feeds.insert(feed.clone());
        self.interest.insert(&key.0, slot);
        self.keys.insert(key, slot);
        Ok(feed)
    }

    /// Fills a feed before anyone can read it: the log's events through its index, never by a scan.
    fn seed(&self, feed: &Feed) {
        let window = &mut feed.lock().window;
        let mut holes = self.holes.iter().peekable();
        let found = self.index.find(&feed.filters);
        window.reserve(found.len());
        for some in found.chunks(LOOKS) {
            EncodedEvent::look_at(some.iter().filter_map(|index| self.get(*index)));
            let mut rest = some;
            while let Some(first) = rest.first() {
                while let Some(hole) = holes.next_if(|hole| hole.index <= *first) {
                    window.push_gap(hole.gap, hole.position, GapSide::Behind, hole.since);
                }
                let until = holes.peek().map_or(u64::MAX, |hole| hole.index);
                let (before, behind) = rest.split_at(rest.partition_point(|index| *index < until));
                let events = before.iter().filter_map(|index| self.get(*index));
                window.append(events.map(|logged| feed.profile.show(logged.clone())));
                rest = behind;
            }
        }
        for hole in holes {
            window.push_gap(hole.gap, hole.position, GapSide::Behind, hole.since);
        }
    }

    fn push_hole(&mut self, gap: Gap, position: Position, since: Instant) {
        let index = self.base + self.events.len() as u64;
        self.holes.push_back(Hole {
            gap,
            position,
            index,
            since,
        });
        if self.holes.len() > self.limits.events {
            self.pop_hole();
        }
    }

    /// Forgets the oldest hole: to a reader before it nothing can be promised.
    fn pop_hole(&mut self) {
        let Some(hole) = self.holes.pop_front() else {
            return;
        };
        self.floor = self.floor.max(hole.position.seq + 1);
    }

    fn get(&self, index: u64) -> Option<&Arc<EncodedEvent>> {
        self.events
            .get(usize::try_from(index.checked_sub(self.base)?).ok()?)
    }

    /// The check of the message at this sequence number, if it is in memory.
    fn check_at(&self, seq: u64) -> Option<u16> {
        let place = self
            .events
            .partition_point(|logged| logged.event.position.seq < seq);
        self.events
            .get(place)
            .filter(|logged| logged.event.position.seq == seq)?
            .event
            .position
            .check
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
            |hole: &Hole| hole.index <= base && now.saturating_duration_since(hole.since) > age;
        while self.holes.front().is_some_and(is_old) {
            self.pop_hole();
        }
    }

    fn pop(&mut self) {
        let Some(first) = self.events.pop_front() else {
            return;
        };
        self.base += 1;
        self.bytes -= first.frame.len();
        self.floor = self.floor.max(first.event.position.seq);
        self.index.pop(&first.event.subject);
        while self
            .holes
            .front()
            .is_some_and(|hole| hole.index < self.base)
        {
            self.holes.pop_front();
        }
    }

    fn clear(&mut self, floor: u64) {
        while !self.events.is_empty() {
            self.pop();
        }
        self.holes.clear();
        self.floor = floor;
    }
}
