//! One client: its cursor, what it knows, and what it must be given or told next.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use sidestream::feed::{
    Cursor, FeedOptions, Gap, GapReason, Outcome, Read, Shedder, Slow, SlowPolicy,
};
use sidestream::sse::{Position, Tier};
use sidestream::subject::FilterSet;

use super::courier::ChanceOutlet;
use super::items::{self, Seen};
use super::pod::{Entry, Kind, Pod};
use super::source::{Fate, Source, fingerprint, lock, payload};

#[derive(Default)]
pub(crate) struct Wakes(AtomicU64);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Wakes {
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

pub(crate) struct Client {
    pub(crate) number: usize,
    pub(crate) pod: usize,
    pub(crate) filters: FilterSet,
    pub(crate) profile: Arc<FeedOptions>,
    pub(crate) cursor: Cursor,
    /// The id that it would come back with.
    pub(crate) position: Position,
    pub(crate) wakes: Arc<Wakes>,
    outlet: Arc<ChanceOutlet>,
    /// Set by a read that found nothing: the wakes until then.
    waits_since: Option<u64>,
    /// It has, or was told of, everything up to this number of this epoch.
    epoch: usize,
    seq: u64,
    /// And everything of the history before this place.
    next: usize,
    /// Missed as `Slow` gaps said, but not yet seen to be missing.
    slow: u64,
    /// Missed as the `Conflated` gap of this read said, but not yet seen to be missing.
    conflated: u64,
    /// Where in the history this read passed something by.
    passed: Vec<usize>,
    /// It was told that an unknown number is missing: anything later may follow.
    is_loose: bool,
    /// It came with a position that its pod has not reached yet.
    is_ahead: bool,
    /// It has read the archive since it was last seen in the window.
    has_replayed: bool,
}

impl Client {
    pub(crate) fn new(
        number: usize,
        (at, pod): (usize, &Pod),
        (filters, profile): (FilterSet, Arc<FeedOptions>),
        cursor: Cursor,
        outcome: Outcome,
    ) -> Self {
        let position = cursor.position();
        let mut client = Self {
            number,
            pod: at,
            filters,
            profile,
            has_replayed: cursor.is_replaying(),
            position,
            cursor,
            wakes: Arc::default(),
            outlet: Arc::default(),
            waits_since: None,
            epoch: pod.epoch,
            seq: position.seq,
            next: pod.epoch_place(),
            slow: 0,
            conflated: 0,
            passed: Vec::new(),
            is_loose: false,
            is_ahead: position.seq > pod.head,
        };
        assert_eq!(
            position.tag, pod.tag,
            "a position is of the present numbers"
        );
        client.cursor.set_sink(client.outlet.clone());
        let is_live = match outcome {
            Outcome::Live => true,
            Outcome::Gap(gap) => gap.reason != GapReason::Expired,
            Outcome::Window | Outcome::Archive => false,
        };
        if is_live {
            assert_eq!(position.seq, pod.head, "what is live begins at the head");
            client.next = pod.history.len();
        }
        client
    }

    /// What of the history it is still owed.
    fn owed<'p>(&'p self, pod: &'p Pod, until: usize) -> impl Iterator<Item = (usize, &'p Entry)> {
        pod.history[..until]
            .iter()
            .enumerate()
            .skip(self.next)
            .filter(|(_, entry)| match &entry.kind {
                Kind::Event { subject, .. } => {
                    let is_new = entry.epoch != self.epoch || entry.position.seq > self.seq;
                    is_new && self.filters.matches(subject)
                }
                // A gap stands behind its position: whoever has what comes behind it needs not be told.
                Kind::Gap(_) => entry.epoch != self.epoch || entry.position.seq >= self.seq,
                Kind::Begin(_) => entry.epoch != self.epoch || entry.position.seq > self.seq,
            })
    }

    /// Takes what it was given past its reading; its cursor does not know of that before it follows.
    pub(crate) fn receive(&mut self, pod: &Pod) {
        for (text, position) in self.outlet.take(self.position.tag) {
            assert!(
                self.waits_since.is_some(),
                "{self}: was handed {position} while it did not wait"
            );
            self.take_event(pod, &text, position, None);
        }
        assert_eq!(
            self.cursor.probe().position(),
            Some(self.position),
            "{self}: where it was handed to"
        );
    }

    fn follow(&mut self) {
        self.outlet.close();
        self.cursor.resync();
        assert_eq!(self.cursor.position(), self.position, "{self}: follows");
    }

    /// Reads once, as one that was slow until now if it was, and fingerprints everything that the read says.
    pub(crate) fn read(
        &mut self,
        pod: &Pod,
        budget: usize,
        slow: Option<&Slow>,
        now: Instant,
    ) -> Poll<Read> {
        self.follow();
        let mut batch = items::batch();
        let was_replaying = self.cursor.is_replaying();
        let waker = Waker::from(self.wakes.clone());
        let mut context = Context::from_waker(&waker);
        let mut relief = slow.map(|slow| Shedder::new(slow, self.cursor.probe().lag(now).events));
        let read = match &mut relief {
            None => self.cursor.poll_read(&mut context, &mut batch, budget),
            Some(relief) => self
                .cursor
                .poll_read_slow(&mut context, &mut batch, budget, relief),
        };
        let seen = items::unfold(&batch);
        let spared = self.spared(pod, slow, relief.as_ref(), &seen);
        self.passed.clear();
        let is_replaying = self.cursor.is_replaying();
        self.has_replayed |= was_replaying || is_replaying;
        self.waits_since = None;
        let events = seen
            .iter()
            .filter(|seen| matches!(seen, Seen::Event { .. }))
            .count();
        assert!(
            self.has_replayed || events <= self.profile.window.events,
            "{self}: {events} events in a window of {}",
            self.profile.window.events
        );
        let mut bytes = 0;
        for seen in &seen {
            assert!(bytes < budget, "{self}: more than the budget");
            match seen {
                Seen::Event {
                    text,
                    position,
                    tier,
                } => {
                    bytes += text.len();
                    self.take_event(pod, text, *position, *tier);
                }
                Seen::Gap { gap, position } => {
                    self.take_gap(pod, *gap, *position, relief.is_some())
                }
            }
        }
        if let Some(spared) = spared {
            assert_eq!(
                self.passed, spared,
                "{self}: passed by, and by the rules of {slow:?}"
            );
        }
        self.conflated = 0;
        assert_eq!(
            self.cursor.position(),
            self.position,
            "{self}: the position is the last item's"
        );
        assert_eq!(
            self.cursor.probe().position(),
            Some(self.position),
            "{self}: seen from outside too"
        );
        if self.has_replayed && !is_replaying && read == Poll::Pending {
            self.assert_has_all(pod);
            (self.has_replayed, self.is_ahead) = (false, true);
            self.next = pod.history.len();
        }
        match read {
            Poll::Ready(Read::Some) => {
                assert!(!batch.items.is_empty(), "{self}: a read brings something")
            }
            Poll::Ready(Read::Ended) => self.assert_has_all(pod),
            Poll::Pending => {
                assert!(
                    batch.items.is_empty(),
                    "{self}: a read that waits brings nothing"
                );
                self.waits_since = Some(self.wakes.count());
                if self.cursor.is_waiting() {
                    self.outlet.open();
                }
                if !is_replaying {
                    self.assert_has_all(pod);
                    assert!(
                        self.cursor.is_caught_up(),
                        "{self}: waits only when caught up"
                    );
                }
            }
        }
        read
    }

    /// Where in the history a slow reader was to be spared something, by the rules; nothing where the model does not
    /// know what was in its window.
    fn spared(
        &self,
        pod: &Pod,
        slow: Option<&Slow>,
        relief: Option<&Shedder>,
        seen: &[Seen],
    ) -> Option<Vec<usize>> {
        let (slow, relief) = (slow?, relief?);
        assert!(
            relief.skipped().all(|(tier, _)| tier != Tier::Critical),
            "{self}: critical events are never skipped"
        );
        let gaps = || {
            seen.iter().filter_map(|seen| {
                if let Seen::Gap { gap, .. } = seen {
                    Some(gap)
                } else {
                    None
                }
            })
        };
        let is_told = |gap: &&Gap| matches!(gap.reason, GapReason::Slow | GapReason::Conflated);
        let told: u64 = gaps().filter(is_told).filter_map(|gap| gap.missed).sum();
        let skipped: u64 = relief.skipped().map(|(_, count)| count).sum();
        let is_elsewhere = gaps().any(|gap| !is_told(&gap) || gap.missed.is_none());
        // From the archive nothing is spared.
        let is_replaying = self.has_replayed || self.cursor.is_replaying();
        let is_unclear =
            is_replaying || self.is_ahead || self.is_loose || self.slow > 0 || is_elsewhere;
        if is_unclear || told != skipped {
            assert!(
                told >= skipped,
                "{self}: skipped {skipped} and told of {told}"
            );
            return None;
        }
        let last = seen.iter().rev().find_map(|seen| match seen {
            Seen::Event { position, .. } => Some(*position),
            Seen::Gap { .. } => None,
        })?;
        let events: Vec<(usize, &str)> = self
            .owed(pod, pod.history.len())
            .filter_map(|(place, entry)| match &entry.kind {
                Kind::Event { subject, .. } => Some((place, &**subject)),
                Kind::Gap(_) | Kind::Begin(_) => None,
            })
            .collect();
        let mut spared = Vec::new();
        for (nth, (place, subject)) in events.iter().enumerate() {
            let waiting = (events.len() - nth) as u64;
            let is_newest = || !events[nth + 1..].iter().any(|(_, other)| other == subject);
            let is_spared = match (slow.policy, self.tier(subject)) {
                (SlowPolicy::Disconnect, _) | (_, Tier::Critical) => false,
                (SlowPolicy::Conflate, _) => !is_newest(),
                (SlowPolicy::Shed, Tier::Telemetry) => waiting as f64 > slow.lag as f64 / 4.0,
                (SlowPolicy::Shed, Tier::Normal) => waiting as f64 > slow.lag as f64 * 3.0 / 4.0,
            };
            if is_spared {
                spared.push(*place);
            } else if pod.history[*place].position == last {
                break;
            }
        }
        Some(spared)
    }

    fn tier(&self, subject: &str) -> Tier {
        let rule = self
            .profile
            .priority
            .iter()
            .find(|(filter, _)| filter.matches(subject));
        rule.map_or(Tier::Normal, |(_, tier)| *tier)
    }

    fn take_event(&mut self, pod: &Pod, text: &str, position: Position, tier: Option<Tier>) {
        let place = (self.next..pod.history.len()).find(|place| {
            let entry = &pod.history[*place];
            (entry.epoch == self.epoch || self.is_loose)
                && entry.position == position
                && matches!(entry.kind, Kind::Event { .. })
        });
        let source = lock(&pod.source);
        let (subject, content) = match place.map(|place| &pod.history[place].kind) {
            Some(Kind::Event { subject, content }) => (subject.clone(), *content),
            _ => {
                assert!(
                    self.has_replayed,
                    "{self}: {position} is not in the history behind its place"
                );
                let record = source.published.get(&position);
                let record =
                    record.unwrap_or_else(|| panic!("{self}: {position} was never published"));
                (record.subject.clone(), record.content)
            }
        };
        let expected = self.encode(&subject, content, position);
        assert_eq!(text, expected, "{self}: one position has one content");
        assert!(
            self.filters.matches(&subject),
            "{self}: {subject} was not asked for"
        );
        assert_eq!(tier.unwrap_or(self.tier(&subject)), self.tier(&subject));
        if let Some(place) = place.filter(|_| self.is_loose) {
            (self.epoch, self.seq, self.next) = (pod.history[place].epoch, position.seq - 1, place);
            (self.slow, self.is_loose) = (0, false);
        }
        assert!(
            position.seq > self.seq,
            "{self}: {position} came twice or too late"
        );
        self.pass(pod, &source, place.unwrap_or(self.next), position.seq - 1);
        (self.seq, self.position) = (position.seq, position);
        if let Some(place) = place {
            self.next = place + 1;
            self.is_ahead = false;
        }
    }

    fn take_gap(&mut self, pod: &Pod, gap: Gap, position: Position, is_slow: bool) {
        let source = lock(&pod.source);
        if gap.reason == GapReason::Conflated {
            assert!(
                is_slow && position == self.position,
                "{self}: a slow reader stays where it is"
            );
            self.conflated += gap.missed.expect("a count");
            return;
        }
        if gap.reason == GapReason::Slow {
            return self.take_slow(pod, gap, position, is_slow);
        }
        let mut told = pod
            .history
            .iter()
            .enumerate()
            .skip(self.next)
            .filter(|(_, entry)| match entry.kind {
                Kind::Gap(known) => {
                    (entry.epoch == self.epoch || self.is_loose)
                        && known == gap
                        && entry.position.seq == position.seq
                }
                Kind::Begin(known) => {
                    known == gap
                        && (entry.position.tag, entry.position.seq) == (position.tag, position.seq)
                }
                Kind::Event { .. } => false,
            });
        let first = told.next();
        // Several beginnings may look the same: which of them it was is seen by what follows.
        let is_unclear = (self.is_loose || self.has_replayed) && told.next().is_some();
        match first {
            Some((place, entry)) => {
                let begins = entry.epoch != self.epoch;
                if self.is_loose || (begins && self.has_replayed) {
                    (self.slow, self.is_loose) = (0, false); // What it was reading is gone with its source.
                } else {
                    let through = if matches!(entry.kind, Kind::Begin(_)) {
                        self.seq
                    } else {
                        position.seq
                    };
                    self.pass(pod, &source, place, through);
                }
                self.seq = if begins {
                    position.seq
                } else {
                    self.seq.max(position.seq)
                };
                (self.epoch, self.next) = (entry.epoch, place + 1);
                self.is_ahead &= !begins;
                self.is_loose |= is_unclear;
            }
            None if gap.reason == GapReason::Recreated && self.has_replayed => {
                // The archive knew before the tail.
                assert!(
                    pod.generation != Some(source.generation),
                    "{self}: not recreated"
                );
                assert_eq!(position, self.position);
                (self.next, self.slow) = (pod.history.len(), 0);
            }
            None => {
                assert_eq!(
                    gap.reason,
                    GapReason::Expired,
                    "{self}: nobody told {gap:?} at {position}"
                );
                assert!(
                    self.has_replayed && position.seq >= self.seq,
                    "{self}: expired at {position}"
                );
                let is_present =
                    pod.generation == Some(source.generation) && self.epoch == pod.epoch;
                if is_present {
                    self.seq = self.seq.max(position.seq.min(source.first_seq - 1));
                }
                self.pass(pod, &source, self.next, position.seq);
                self.seq = position.seq;
            }
        }
        self.position = position;
    }

    fn take_slow(&mut self, pod: &Pod, gap: Gap, position: Position, is_slow: bool) {
        assert_eq!(
            position, self.position,
            "{self}: a slow reader stays where it is"
        );
        assert_ne!(gap.missed, Some(0), "{self}: {gap:?}");
        let begins = |(_, entry): &(usize, &Entry)| matches!(&entry.kind, Kind::Begin(gap) if gap.missed.is_none());
        // One beginning is told as what it is; of several the last is.
        let is_unknown = self.owed(pod, pod.history.len()).filter(begins).count() > 1;
        assert!(
            gap.missed.is_some() || is_unknown,
            "{self}: how many are missing is known"
        );
        if !is_slow
            && pod.is_roomy()
            && self.profile.event.is_some()
            && !self.has_replayed
            && !self.is_ahead
        {
            // Of this profile only the number of events is small.
            let owed = self
                .owed(pod, pod.history.len())
                .map(|(_, entry)| match entry.kind {
                    Kind::Event { .. } => 1,
                    Kind::Gap(gap) | Kind::Begin(gap) => gap.missed.unwrap_or_default(),
                });
            let (owed, most) = (owed.sum::<u64>(), self.profile.window.events as u64);
            let told = self.slow + gap.missed.unwrap_or_default();
            assert!(
                owed >= told + most,
                "{self}: {gap:?} of {owed} with a window of {most}"
            );
        }
        self.slow += gap.missed.unwrap_or_default();
        self.is_loose |= gap.missed.is_none();
    }

    /// Passes by what lies before `place` in the history and up to `through` at the source: it must have been told.
    fn pass(&mut self, pod: &Pod, source: &Source, place: usize, through: u64) {
        let is_present = pod.generation == Some(source.generation) && self.epoch == pod.epoch;
        let fate = |seq| {
            source
                .records
                .get(&seq)
                .map_or(Fate::Expired, |record| record.fate)
        };
        let (mut missed, mut told) = (0, self.seq);
        let mut passed = Vec::new();
        for (at, entry) in self.owed(pod, place.max(self.next)) {
            if matches!(entry.kind, Kind::Event { .. }) {
                passed.push(at);
            }
            match &entry.kind {
                Kind::Event { .. }
                    if self.has_replayed
                        && is_present
                        && fate(entry.position.seq) == Fate::Deleted => {}
                Kind::Event { .. } => missed += 1,
                Kind::Gap(_) if self.has_replayed => {}
                Kind::Gap(gap) => missed += gap.missed.unwrap_or_default(),
                // Who reads the archive is told what expired by it.
                Kind::Begin(Gap {
                    reason: GapReason::Expired,
                    ..
                }) if self.has_replayed && self.slow == 0 => {}
                Kind::Begin(Gap {
                    reason: GapReason::Expired,
                    missed: expired,
                }) => {
                    missed += expired.unwrap_or_default();
                    told = entry.position.seq;
                }
                Kind::Begin(gap) => panic!("{self}: was not told {gap:?}"),
            }
        }
        self.passed.append(&mut passed);
        let conflated = missed.saturating_sub(self.slow).min(self.conflated);
        self.conflated -= conflated;
        missed -= conflated;
        if self.is_ahead || self.has_replayed {
            missed = missed.min(self.slow);
            self.slow = missed;
        }
        assert_eq!(
            missed, self.slow,
            "{self}: events missed before {through}, and as it was told"
        );
        (self.slow, self.seq) = (0, told);
        if is_present && through > told {
            let lost = source
                .records
                .range(told + 1..=through)
                .find(|(seq, record)| {
                    let is_owed = record.fate != Fate::Deleted
                        && !record.is_poison
                        && self.filters.matches(&record.subject);
                    is_owed && pod.passed_by(**seq)
                });
            assert!(lost.is_none(), "{self}: lost {lost:?} before {through}");
        }
    }

    /// Nothing is left that it could be given.
    fn assert_has_all(&mut self, pod: &Pod) {
        let source = lock(&pod.source);
        if self.is_loose {
            (self.slow, self.is_loose, self.next) = (0, false, pod.history.len());
            (self.epoch, self.seq) = (
                pod.epoch,
                pod.holes.last().map_or(0, |(_, through)| *through),
            );
            return;
        }
        if self.owed(pod, pod.history.len()).next().is_none() && self.slow == 0 {
            return;
        }
        self.pass(pod, &source, pod.history.len(), self.seq);
        self.next = pod.history.len();
    }

    /// Whoever waits is woken by what comes, once.
    pub(crate) fn assert_woken(&self, pod: &Pod) {
        let Some(before) = self.waits_since else {
            return;
        };
        let woken = self.wakes.count() - before;
        let is_owed = self.owed(pod, pod.history.len()).next().is_some();
        if self.cursor.is_replaying() {
            return;
        }
        assert!(
            woken > 0 || !is_owed,
            "{self}: waits beside {:?}",
            self.owed(pod, pod.history.len()).next()
        );
        assert!(woken <= 2, "{self}: woken {woken} times");
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.waits_since
            .is_none_or(|before| self.wakes.count() > before)
    }

    /// The lag, exact, for whoever the model knows exactly.
    pub(crate) fn assert_lag(&self, pod: &Pod, now: Instant) {
        if self.has_replayed
            || self.is_ahead
            || self.is_loose
            || self.slow > 0
            || self.cursor.is_replaying()
        {
            return;
        }
        let lag = self.cursor.probe().lag(now);
        let (mut events, mut bytes) = (0, 0);
        for (_, entry) in self.owed(pod, pod.history.len()) {
            if let Kind::Event { subject, content } = &entry.kind {
                events += 1;
                bytes += self.encode(subject, *content, entry.position).len() as u64;
            }
        }
        assert_eq!((lag.events, lag.bytes), (events, bytes), "{self}: lag");
    }

    pub(crate) fn checkpoint(&mut self, pod: &Pod) {
        self.cursor.resync();
        let is_replaying = self.cursor.is_replaying();
        if !is_replaying && self.cursor.is_caught_up() {
            self.assert_has_all(pod);
        }
        let has_all =
            self.owed(pod, pod.history.len()).next().is_none() && self.slow == 0 && !self.is_loose;
        let is_exact = !is_replaying && !self.has_replayed && !self.is_ahead;
        let moved = self.cursor.checkpoint();
        let head_is_later = pod.tag == self.position.tag && pod.head > self.position.seq;
        if is_exact {
            assert_eq!(
                moved,
                has_all && head_is_later,
                "{self}: checkpoint at {}",
                pod.head
            );
        }
        if moved {
            assert!(
                has_all && !is_replaying,
                "{self}: a checkpoint jumped over an event"
            );
            let source = lock(&pod.source);
            self.pass(pod, &source, pod.history.len(), pod.head);
            let head = self.cursor.position();
            assert_eq!((head.tag, head.seq), (pod.tag, pod.head));
            (self.position, self.seq) = (head, head.seq);
        }
    }

    fn encode(&self, subject: &str, content: u64, position: Position) -> String {
        debug_assert_eq!(position.fingerprint, Some(fingerprint(content)));
        let name = match &self.profile.event {
            Some(_) => format!("event: {}\n", subject.split('.').next().unwrap_or_default()),
            None => String::new(),
        };
        format!("{name}data: {}\nid: {position}\n\n", payload(content))
    }
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            number,
            pod,
            filters,
            epoch,
            seq,
            slow,
            ..
        } = self;
        write!(
            f,
            "client {number} of pod {pod} ({filters}) at {epoch}/{seq}"
        )?;
        let replayed = if self.has_replayed {
            ", from the archive"
        } else {
            ""
        };
        write!(f, "{replayed}")?;
        if *slow > 0 {
            write!(f, ", slow by {slow}")
        } else {
            Ok(())
        }
    }
}
