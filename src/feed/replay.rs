//! Replays: readers older than the window read the archive together, page by page.
//!
//! A session reads one range of a source for all readers that wait for it. Members take the events
//! of the current page that match their filters, and the next page is published after all of them
//! have, or after `PAGE_MAX`. A member that did not keep up waits for another session, from its own
//! position. There is no buffer per reader: the session has its page, and what the source sends
//! meanwhile (`read_ahead`).
//!
//! ```text
//! Cursor -> ReplayMember::join -> Queued --admit--> Joined --window reached--> Reached
//!                                   ^                 |  \--source changed--> Changed, Rejected
//!                                   +--- too slow ----+
//! ```
//!
//! `ReplayPool::run` is one task per source. It waits while a crowd of readers arrives, takes one of
//! the process-wide [`ReplaySlots`], and spawns a session from the earliest position of all queued
//! readers. Readers that fit into a running session join it between two pages.
//!
//! Lock order: the pool before a feed.

pub(super) mod member;
mod publish;
mod read_ahead;
mod slots;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use slab::Slab;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::lifecycle::backoff::{Backoff, Jitter};
use crate::subject::FilterSet;

use self::read_ahead::ReadAhead;
use super::archive::{Archive, Unavailable};
use super::budget::Budget;
use super::encoded::EncodedEvent;
use super::feed::Feed;
use super::gap::Gap;
use super::trie::SubjectTrie;

pub use slots::{ReplayLimits, ReplaySlots};

/// Replays of one source.
#[derive(Debug)]
pub(super) struct ReplayPool {
    replays: Arc<ReplaySlots>,
    archive: Arc<dyn Archive>,
    /// Every filter that any route can request.
    reach: FilterSet,
    budget: Arc<Budget>,
    state: Mutex<State>,
    /// Notified when a reader is queued.
    queued_notify: Notify,
}

#[derive(Debug, Default)]
struct State {
    readers: Slab<Reader>,
    sessions: Slab<Session>,
    /// Number of epochs that the source has had. A session belongs to one epoch, as do its members.
    epoch: u64,
}

/// One reader that is older than the window.
#[derive(Debug)]
struct Reader {
    feed: Arc<Feed>,
    /// Every event up to here was delivered or does not match.
    through: u64,
    /// Gap before the reader's page, and the last sequence number of the missing events.
    missing: Option<(u64, Gap)>,
    /// It has no page yet, and begins with the oldest event that is left: events that expired before
    /// its first page are no gap.
    begins_at_oldest: bool,
    phase: Phase,
    waker: Option<Waker>,
}

#[derive(Debug)]
enum Phase {
    /// Waits for a session.
    Queued,
    /// Member of this session; has to take `events[next..]` of its page.
    Joined {
        session: usize,
        events: Vec<u32>,
        next: usize,
        /// Payload bytes of `events`.
        bytes: usize,
    },
    /// Has reached the window; no longer delays the session, although its cursor has not noticed
    /// yet.
    Reached,
    /// The source was recreated or restored.
    Changed,
    /// The source rejects reads until an operator changes something.
    Rejected,
}

/// Reason for the end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionEnd {
    /// Its members have everything, or wait for another session.
    Over,
    /// The source was recreated or restored.
    Changed,
    /// The source rejects reads until an operator changes something.
    Rejected,
}

/// One shared reading of the archive.
#[derive(Debug)]
struct Session {
    epoch: u64,
    trie: SubjectTrie,
    filters: FilterSet,
    /// End of the page, and of everything read before.
    through: u64,
    /// Start of the page.
    after: u64,
    events: Vec<Arc<EncodedEvent>>,
    members: usize,
    /// Members that have not taken all of their events of the page.
    unread: usize,
    /// Notified when `unread` or `members` reaches zero.
    page_taken: Arc<Notify>,
}

/// 10 ms: wait for more readers before a session starts. Clients of a drained pod reconnect
/// together and read together.
const GATHER: Duration = Duration::from_millis(10);

/// 250 ms: maximum wait while a crowd arrives. Each session reads the same range again.
const GATHER_MAX: Duration = Duration::from_millis(250);

/// A crowd still arrives if more than a 64th of all queued readers, and at least 4, have arrived in
/// [`GATHER`].
const CROWD_SHARE: usize = 64;
const CROWD_MIN: usize = 4;

/// 1 s: a page waits for its slowest member.
const PAGE_MAX: Duration = Duration::from_secs(1);

/// 5 s: a session continues while readers wait that cannot join it.
const SLICE: Duration = Duration::from_secs(5);

/// Up to 32 filters are requested exactly; with more, the session reads everything that any route
/// can request, and matches here.
const FILTERS_MAX: usize = 32;

/// Delay after a failed read: 100 ms, doubled up to 5 s.
const BACKOFF: Backoff = Backoff::new(
    Duration::from_millis(100),
    Duration::from_secs(5),
    Jitter::Half,
);

impl ReplayPool {
    pub(super) fn new(
        replays: &Arc<ReplaySlots>,
        archive: Arc<dyn Archive>,
        reach: FilterSet,
        budget: &Arc<Budget>,
    ) -> Arc<Self> {
        let (state, queued_notify) = (Mutex::default(), Notify::new());
        Arc::new(Self {
            replays: replays.clone(),
            archive,
            reach,
            budget: budget.clone(),
            state,
            queued_notify,
        })
    }

    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    pub(super) fn slots(&self) -> &ReplaySlots {
        &self.replays
    }

    pub(super) fn archive(&self) -> &Arc<dyn Archive> {
        &self.archive
    }

    /// Queues a reader that has everything up to `after`; `None` at the limit.
    fn enqueue(&self, feed: &Arc<Feed>, after: u64) -> Option<usize> {
        let replays = &self.replays;
        if !replays.count_reader() {
            return None;
        }
        replays.queue();
        let reader = Reader {
            feed: feed.clone(),
            through: after,
            missing: None,
            begins_at_oldest: false,
            phase: Phase::Queued,
            waker: None,
        };
        let key = self.lock().readers.insert(reader);
        self.queued_notify.notify_one();
        Some(key)
    }

    /// Runs sessions forever. To be spawned once.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            self.queued_notify.notified().await;
            self.gather().await;
            while self.queued() > 0 {
                let Ok(slot) = self.replays.slots.clone().acquire_owned().await else {
                    return;
                };
                let Some(session_key) = self.begin() else {
                    break;
                };
                let replay_pool = self.clone();
                tokio::spawn(async move {
                    let metrics = &replay_pool.replays.metrics;
                    metrics.replays_running.inc();
                    let began = Instant::now();
                    replay_pool.read(session_key).await;
                    metrics
                        .replay_seconds
                        .observe(began.elapsed().as_secs_f64());
                    metrics.replays_running.dec();
                    drop(slot);
                    // Members that did not keep up are queued again.
                    replay_pool.queued_notify.notify_one();
                });
            }
        }
    }

    /// Waits [`GATHER`], and longer while a crowd of readers arrives.
    async fn gather(&self) {
        let end = Instant::now() + GATHER_MAX;
        let mut before = 1;
        loop {
            sleep(GATHER).await;
            let queued = self.queued();
            let arrived = queued.saturating_sub(before);
            if arrived < CROWD_MIN.max(queued / CROWD_SHARE) || Instant::now() >= end {
                return;
            }
            before = queued;
        }
    }

    /// Returns the number of queued readers of this source.
    fn queued(&self) -> usize {
        let state = self.lock();
        let phases = state.readers.iter().map(|(_, reader)| &reader.phase);
        phases
            .filter(|phase| matches!(phase, Phase::Queued))
            .count()
    }

    /// Creates a session for all queued readers, from the earliest of them on.
    fn begin(&self) -> Option<usize> {
        let mut state = self.lock();
        let State {
            readers,
            sessions,
            epoch,
        } = &mut *state;
        let queued = || {
            readers
                .iter()
                .filter(|(_, reader)| matches!(reader.phase, Phase::Queued))
        };
        let through = queued().map(|(_, reader)| reader.through).min()?;
        let requested = FilterSet::new(
            queued()
                .flat_map(|(_, reader)| reader.feed.filters.filters())
                .cloned(),
        );
        let filters = if requested.filters().len() > FILTERS_MAX {
            self.reach.clone()
        } else {
            requested
        };
        let session_key = sessions.insert(Session {
            epoch: *epoch,
            trie: SubjectTrie::default(),
            filters,
            through,
            after: through,
            events: Vec::new(),
            members: 0,
            unread: 0,
            page_taken: Arc::default(),
        });
        self.admit(&mut state, session_key);
        Some(session_key)
    }

    /// Admits the queued readers that need nothing from before the current end of the session.
    fn admit(&self, state: &mut State, session_key: usize) {
        let session = &mut state.sessions[session_key];
        if session.epoch != state.epoch {
            return;
        }
        for (key, reader) in &mut state.readers {
            if matches!(reader.phase, Phase::Queued)
                && reader.through >= session.through
                && reader.feed.filters.filters().iter().all(|wanted| {
                    session
                        .filters
                        .filters()
                        .iter()
                        .any(|wide| wide.covers(wanted))
                })
            {
                reader.phase = Phase::Joined {
                    session: session_key,
                    events: Vec::new(),
                    next: 0,
                    bytes: 0,
                };
                session.trie.insert(&reader.feed.filters, key);
                session.members += 1;
                self.replays.unqueue();
            }
        }
    }

    /// Starts an epoch: running sessions belong to the previous one.
    pub(super) fn start_epoch(&self) {
        self.lock().epoch += 1;
    }

    /// Last sequence number that a session has read; `None` after a new epoch has started.
    fn progress(&self, session_key: usize) -> Option<u64> {
        let state = self.lock();
        let session = &state.sessions[session_key];
        (session.epoch == state.epoch).then_some(session.through)
    }

    async fn read(&self, session_key: usize) {
        let (filters, after, page_taken) = {
            let state = self.lock();
            let session = &state.sessions[session_key];
            (
                session.filters.clone(),
                session.after,
                session.page_taken.clone(),
            )
        };
        let mut ahead = ReadAhead::new(self.archive.read(&filters, after));
        let began = Instant::now();
        let (mut failures, mut wanted) = (0, 1);
        loop {
            let bytes_max = self.replays.bytes_max();
            tokio::select! {
                biased;
                () = self.all_left(session_key, &page_taken) => return self.finish(session_key, SessionEnd::Over),
                () = ahead.fill(wanted, bytes_max) => {}
            }
            match ahead.take_first() {
                Some(Ok(page)) => {
                    failures = 0;
                    wanted = self.publish(session_key, page, &mut ahead, bytes_max);
                }
                Some(Err(Unavailable::Changed)) => {
                    return self.finish(session_key, SessionEnd::Changed);
                }
                Some(Err(Unavailable::Rejected(why))) => {
                    tracing::warn!(why, "replay rejected by NATS");
                    return self.finish(session_key, SessionEnd::Rejected);
                }
                Some(Err(Unavailable::Temporary(why))) => {
                    tracing::warn!(why, failures, "replay interrupted");
                    sleep(BACKOFF.delay(failures, fastrand::f64())).await;
                    failures += 1;
                    let Some(through) = self.progress(session_key) else {
                        return self.finish(session_key, SessionEnd::Changed);
                    };
                    ahead = ReadAhead::new(self.archive.read(&filters, through));
                    continue;
                }
                None => continue,
            }
            let all_taken = async {
                while self.lock().sessions[session_key].unread > 0 {
                    page_taken.notified().await;
                }
            };
            let read_ahead = async {
                loop {
                    ahead.read(bytes_max).await;
                }
            };
            tokio::select! {
                biased;
                () = all_taken => {}
                // Members that have not taken their events in time wait for another session.
                () = sleep(PAGE_MAX) => {}
                () = read_ahead => {}
            }
            if !self.advance(session_key, began) {
                return self.finish(session_key, SessionEnd::Over);
            }
        }
    }

    /// Returns when the session has no members.
    async fn all_left(&self, session_key: usize, page_taken: &Notify) {
        while self.lock().sessions[session_key].members > 0 {
            page_taken.notified().await;
        }
    }

    /// Queues members that did not keep up and admits waiting readers. False if the session is
    /// over.
    fn advance(&self, session_key: usize, began: Instant) -> bool {
        let mut state = self.lock();
        let State {
            readers, sessions, ..
        } = &mut *state;
        for (key, reader) in readers.iter_mut() {
            let Phase::Joined {
                session: joined,
                events,
                ..
            } = &reader.phase
            else {
                continue;
            };
            if *joined == session_key && !events.is_empty() {
                leave(&mut sessions[session_key], &reader.feed, key);
                reader.phase = Phase::Queued;
                self.replays.queue();
                self.queued_notify.notify_one();
            }
        }
        sessions[session_key].events = Vec::new();
        sessions[session_key].unread = 0;
        self.admit(&mut state, session_key);
        let others = self.replays.queued.load(Ordering::Relaxed) > 0;
        state.sessions[session_key].members > 0 && !(others && began.elapsed() > SLICE)
    }

    /// Ends a session. Its members are queued again, or receive the change or the rejection. A
    /// source that rejects one session rejects the next, so queued readers receive the rejection
    /// too.
    fn finish(&self, session_key: usize, end: SessionEnd) {
        let mut wakers = Vec::new();
        {
            let mut state = self.lock();
            let State {
                readers, sessions, ..
            } = &mut *state;
            for (_, reader) in readers.iter_mut() {
                let is_member = matches!(reader.phase, Phase::Joined { session: joined, .. } if joined == session_key);
                let is_queued = matches!(reader.phase, Phase::Queued);
                reader.phase = match end {
                    SessionEnd::Over if is_member => {
                        self.replays.queue();
                        reader.phase = Phase::Queued;
                        continue;
                    }
                    SessionEnd::Changed if is_member => Phase::Changed,
                    SessionEnd::Rejected if is_member => Phase::Rejected,
                    SessionEnd::Rejected if is_queued => {
                        self.replays.unqueue();
                        Phase::Rejected
                    }
                    _ => continue,
                };
                wakers.extend(reader.waker.take());
            }
            sessions.remove(session_key);
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// True if everything after its position is in the window.
    fn reaches_window(&self) -> bool {
        self.feed.lock().window.floor() <= self.through
    }
}

fn leave(session: &mut Session, feed: &Feed, key: usize) {
    session.trie.remove(&feed.filters, key);
    session.members -= 1;
}

#[cfg(test)]
mod tests;
