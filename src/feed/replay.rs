//! Replays: readers whose position lies behind the window read the archive together, a page at a time.
//!
//! A replay reads one stretch of a source for everyone who waits for it. Its page is the only memory it has: readers
//! take from it what they want, and the next page is read when all have, or when the slowest has had its time. Who did
//! not keep up waits for another replay, from its own position. There is no buffer per reader.

mod member;
mod slots;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use slab::Slab;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::subject::FilterSet;

use super::Gap;
use super::budget::Budget;
use super::encoded::EncodedEvent;
use super::feed::Feed;
use super::history::{Archive, Page, Unavailable};
use super::trie::SubjectTrie;

pub(super) use member::{ReplayMember, ReplayProgress};
pub use slots::{Config, ReplaySlots};

/// The replays of one source.
#[derive(Debug)]
pub(super) struct ReplayPool {
    replays: Arc<ReplaySlots>,
    archive: Arc<dyn Archive>,
    /// Everything that any reader can ask for.
    reach: FilterSet,
    budget: Arc<Budget>,
    state: Mutex<State>,
    /// Somebody waits.
    wanted: Notify,
}

#[derive(Debug, Default)]
struct State {
    readers: Slab<Reader>,
    runs: Slab<Session>,
    /// How often the numbers of the source have begun again. A run is of one numbering, and so are its readers.
    numbering: u64,
}

/// One reader that is behind the window.
#[derive(Debug)]
struct Reader {
    feed: Arc<Feed>,
    /// What it has, or has no use for, ends here.
    through: u64,
    /// Events that are missing before the page that it reads, and the last of their numbers.
    missing: Option<(u64, Gap)>,
    phase: Phase,
    waker: Option<Waker>,
}

#[derive(Debug)]
enum Phase {
    /// Waits for a replay.
    Queued,
    /// Reads with this run: `next..` of these events of its page.
    Joined {
        run: usize,
        events: Vec<u32>,
        next: usize,
    },
    /// Has reached the window, and holds no replay up while it does not know.
    Reached,
    /// The source is another one now.
    Changed,
    /// The source rejects readings until an operator changes something.
    Rejected,
}

/// Why a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its members have what they need, or wait for another.
    Over,
    /// The source is another one now.
    Changed,
    /// The source rejects readings until an operator changes something.
    Rejected,
}

/// One replay.
#[derive(Debug)]
struct Session {
    numbering: u64,
    interest: SubjectTrie,
    filters: FilterSet,
    /// The page ends here, as does all that was read before it.
    through: u64,
    /// Where the page begins.
    after: u64,
    events: Vec<Arc<EncodedEvent>>,
    members: usize,
    /// Members that have not taken all that they want of the page.
    behind: usize,
    /// Nobody is behind any more.
    taken: Arc<Notify>,
}

/// 10 ms: how long a replay waits for others before it begins. Clients of a drained pod come together and read together.
const GATHER: Duration = Duration::from_millis(10);

/// 1 s: how long one page waits for its slowest reader.
const PAGE_MAX: Duration = Duration::from_secs(1);

/// 5 s: how long a run goes on while readers wait whom it cannot take along.
const SLICE: Duration = Duration::from_secs(5);

/// So many filters are asked for exactly; for more, all that any reader can ask for is read and matched here.
const FILTERS_MAX: usize = 32;

/// The waits after a failed reading: doubled from the first to the last, with chance in it.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

impl ReplayPool {
    pub(super) fn new(
        replays: &Arc<ReplaySlots>,
        archive: Arc<dyn Archive>,
        reach: FilterSet,
        budget: &Arc<Budget>,
    ) -> Arc<Self> {
        let (state, wanted) = (Mutex::default(), Notify::new());
        Arc::new(Self {
            replays: replays.clone(),
            archive,
            reach,
            budget: budget.clone(),
            state,
            wanted,
        })
    }

    pub(super) fn archive(&self) -> &Arc<dyn Archive> {
        &self.archive
    }

    /// A place for a reader that has everything up to `after`; none when too many wait.
    pub(super) fn enter(
        self: &Arc<Self>,
        feed: &Arc<Feed>,
        after: u64,
    ) -> Option<Box<ReplayMember>> {
        let replays = &self.replays;
        let entered =
            replays
                .readers
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |readers| {
                    (readers < replays.readers_max).then_some(readers + 1)
                });
        entered.ok()?;
        replays.queue();
        let reader = Reader {
            feed: feed.clone(),
            through: after,
            missing: None,
            phase: Phase::Queued,
            waker: None,
        };
        let key = self.lock().readers.insert(reader);
        self.wanted.notify_one();
        Some(Box::new(ReplayMember::new(self.clone(), key)))
    }

    /// Serves the readers for ever. To be spawned once.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            self.wanted.notified().await;
            sleep(GATHER).await;
            while self
                .lock()
                .readers
                .iter()
                .any(|(_, reader)| matches!(reader.phase, Phase::Queued))
            {
                let Ok(place) = self.replays.places.clone().acquire_owned().await else {
                    return;
                };
                let Some(run) = self.begin() else { break };
                let replayer = self.clone();
                tokio::spawn(async move {
                    let metrics = &replayer.replays.metrics;
                    metrics.replays_running.inc();
                    let began = Instant::now();
                    replayer.read(run).await;
                    metrics
                        .replay_seconds
                        .observe(began.elapsed().as_secs_f64());
                    metrics.replays_running.dec();
                    drop(place);
                    // Those who were left behind want another.
                    replayer.wanted.notify_one();
                });
            }
        }
    }

    /// Makes a run for all who wait, from the earliest of them on.
    fn begin(&self) -> Option<usize> {
        let mut state = self.lock();
        let State {
            readers,
            runs,
            numbering,
        } = &mut *state;
        let queued = || {
            readers
                .iter()
                .filter(|(_, reader)| matches!(reader.phase, Phase::Queued))
        };
        let through = queued().map(|(_, reader)| reader.through).min()?;
        let asked = FilterSet::new(
            queued()
                .flat_map(|(_, reader)| reader.feed.filters.filters())
                .cloned(),
        );
        let filters = if asked.filters().len() > FILTERS_MAX {
            self.reach.clone()
        } else {
            asked
        };
        let run = runs.insert(Session {
            numbering: *numbering,
            interest: SubjectTrie::default(),
            filters,
            through,
            after: through,
            events: Vec::new(),
            members: 0,
            behind: 0,
            taken: Arc::default(),
        });
        self.take_along(&mut state, run);
        Some(run)
    }

    /// Lets everybody join who waits and needs nothing from before this point of the run.
    fn take_along(&self, state: &mut State, run: usize) {
        let place = &mut state.runs[run];
        if place.numbering != state.numbering {
            return;
        }
        for (key, reader) in &mut state.readers {
            if matches!(reader.phase, Phase::Queued)
                && reader.through >= place.through
                && reader.feed.filters.filters().iter().all(|wanted| {
                    place
                        .filters
                        .filters()
                        .iter()
                        .any(|wide| wide.covers(wanted))
                })
            {
                reader.phase = Phase::Joined {
                    run,
                    events: Vec::new(),
                    next: 0,
                };
                place.interest.insert(&reader.feed.filters, key);
                place.members += 1;
                self.replays.unqueue();
            }
        }
    }

    /// The numbers of the source begin again: what runs is of the old ones.
    pub(super) fn renumber(&self) {
        self.lock().numbering += 1;
    }

    /// How far a run has come; nothing once the numbers have begun again.
    fn standing(&self, run: usize) -> Option<u64> {
        let state = self.lock();
        let place = &state.runs[run];
        (place.numbering == state.numbering).then_some(place.through)
    }

    async fn read(&self, run: usize) {
        let (filters, after, taken) = {
            let state = self.lock();
            let run = &state.runs[run];
            (run.filters.clone(), run.after, run.taken.clone())
        };
        let mut pages = self.archive.read(&filters, after);
        let began = Instant::now();
        let mut failures = 0;
        loop {
            let page = tokio::select! {
                biased;
                () = self.deserted(run, &taken) => return self.end(run, End::Over),
                page = pages.next() => page,
            };
            match page {
                Ok(page) => {
                    failures = 0;
                    self.publish(run, page);
                }
                Err(Unavailable::Changed) => return self.end(run, End::Changed),
                Err(Unavailable::Rejected(why)) => {
                    tracing::warn!(why, "replay rejected by NATS");
                    return self.end(run, End::Rejected);
                }
                Err(Unavailable::Now(why)) => {
                    tracing::warn!(why, failures, "replay interrupted");
                    let wait = BACKOFF
                        .0
                        .saturating_mul(1 << failures.min(6))
                        .min(BACKOFF.1);
                    failures += 1;
                    sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                    let Some(through) = self.standing(run) else {
                        return self.end(run, End::Changed);
                    };
                    pages = self.archive.read(&filters, through);
                    continue;
                }
            }
            let all = async {
                while self.lock().runs[run].behind > 0 {
                    taken.notified().await;
                }
            };
            // Those who have not taken their part in time wait for another run.
            drop(timeout(PAGE_MAX, all).await);
            if !self.go_on(run, began) {
                return self.end(run, End::Over);
            }
        }
    }

    /// Returns when nobody reads with this run any more.
    async fn deserted(&self, run: usize, taken: &Notify) {
        while self.lock().runs[run].members > 0 {
            taken.notified().await;
        }
    }

    /// Hands a page to the members that want something of it.
    fn publish(&self, run: usize, page: Page) {
        self.replays
            .metrics
            .replayed_events_total
            .inc_by(page.events.len() as u64);
        let gap = page.gap();
        let events: Vec<Arc<EncodedEvent>> = page
            .events
            .into_iter()
            .map(|event| EncodedEvent::new(event, &self.budget))
            .collect();
        let mut wakers = Vec::new();
        {
            let mut state = self.lock();
            let State { readers, runs, .. } = &mut *state;
            let place = &mut runs[run];
            let mut found = Vec::new();
            for (number, logged) in (0u32..).zip(&events) {
                place.interest.matches(&logged.event.subject, &mut found);
                for key in found.drain(..) {
                    if let Some(Reader {
                        phase: Phase::Joined { events, next, .. },
                        through,
                        ..
                    }) = readers.get_mut(key)
                        && logged.event.position.seq > *through
                    {
                        if events.is_empty() {
                            place.behind += 1;
                            *next = 0;
                        }
                        events.push(number);
                    }
                }
            }
            place.after = page.after;
            place.through = page.through;
            place.events = events;
            for (key, reader) in readers.iter_mut() {
                let Phase::Joined {
                    run: joined,
                    events,
                    ..
                } = &reader.phase
                else {
                    continue;
                };
                if *joined != run {
                    continue;
                }
                if page.after > reader.through {
                    // It may not have looked since an earlier page.
                    let gap = reader.missing.map_or(gap, |(_, before)| before.and(gap));
                    reader.missing = Some((page.after, gap));
                    reader.through = page.after;
                }
                if events.is_empty() && reader.missing.is_none() {
                    reader.through = reader.through.max(page.through);
                    // Who has nothing to take is woken only if it can go on in the window.
                    if !reader.reaches() {
                        continue;
                    }
                    leave(place, &reader.feed, key);
                    reader.phase = Phase::Reached;
                }
                wakers.extend(reader.waker.take());
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Leaves behind who is behind and takes along who waits. False when the run is over.
    fn go_on(&self, run: usize, began: Instant) -> bool {
        let mut state = self.lock();
        let State { readers, runs, .. } = &mut *state;
        for (key, reader) in readers.iter_mut() {
            let Phase::Joined {
                run: joined,
                events,
                ..
            } = &reader.phase
            else {
                continue;
            };
            if *joined == run && !events.is_empty() {
                leave(&mut runs[run], &reader.feed, key);
                reader.phase = Phase::Queued;
                self.replays.queue();
                self.wanted.notify_one();
            }
        }
        runs[run].events = Vec::new();
        runs[run].behind = 0;
        self.take_along(&mut state, run);
        let others = self.replays.queued.load(Ordering::Relaxed) > 0;
        state.runs[run].members > 0 && !(others && began.elapsed() > SLICE)
    }

    /// Ends a run; its members wait again, or learn that their source has changed or rejects them. A source that rejects
    /// one run rejects the next: those that wait for it learn that too.
    fn end(&self, run: usize, end: End) {
        let mut wakers = Vec::new();
        {
            let mut state = self.lock();
            let State { readers, runs, .. } = &mut *state;
            for (_, reader) in readers.iter_mut() {
                let is_member =
                    matches!(reader.phase, Phase::Joined { run: joined, .. } if joined == run);
                let is_queued = matches!(reader.phase, Phase::Queued);
                reader.phase = match end {
                    End::Over if is_member => {
                        self.replays.queue();
                        reader.phase = Phase::Queued;
                        continue;
                    }
                    End::Changed if is_member => Phase::Changed,
                    End::Rejected if is_member => Phase::Rejected,
                    End::Rejected if is_queued => {
                        self.replays.unqueue();
                        Phase::Rejected
                    }
                    _ => continue,
                };
                wakers.extend(reader.waker.take());
            }
            runs.remove(run);
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// Whether everything after what it has is in the window.
    fn reaches(&self) -> bool {
        self.feed.lock().window.floor() <= self.through
    }
}

fn leave(run: &mut Session, feed: &Feed, key: usize) {
    run.interest.remove(&feed.filters, key);
    run.members -= 1;
}

#[cfg(test)]
mod tests;
