//! Model of one client: the events it has, and what it has to receive next.
//!
//! Every item that the client receives is compared with the history of its pod: an event is one
//! that was published, in order, without duplicates, and everything skipped in between was reported
//! as a gap with the right count. The model is exact while the client reads the window. After it
//! has read the archive it is looser, because deleted messages need no report.

use std::sync::Arc;

use sidestream::encoding::Framing;
use sidestream::event::{Position, Tier};
use sidestream::feed::{FeedOptions, Gap, GapReason, Outcome, Shedder, Slow, SlowPolicy};
use sidestream::subject::FilterSet;

use super::items::Seen;
use super::pod::{Entry, Kind, Pod};
use super::source::{Fate, Source, fingerprint, lock, payload};

pub(crate) struct Model {
    number: usize,
    pub(crate) pod: usize,
    pub(crate) filters: FilterSet,
    pub(crate) options: Arc<FeedOptions>,
    /// Event id that it would reconnect with.
    pub(crate) position: Position,
    /// Everything up to this sequence number of this epoch was delivered or reported.
    epoch: usize,
    pub(crate) seq: u64,
    /// So was everything before this index of the history.
    pub(crate) next: usize,
    /// Events reported by `Slow` gaps, and not yet matched with the history.
    pub(crate) slow: u64,
    /// Events reported by the `Conflated` gap of this read, and not yet matched.
    pub(crate) conflated: u64,
    /// Indexes of the history that this read skipped.
    pub(crate) skipped_entries: Vec<usize>,
    /// A gap without a count was reported: anything later may follow.
    pub(crate) is_uncertain: bool,
    /// It opened with a position that its pod has not reached yet.
    pub(crate) is_ahead: bool,
    /// It has read the archive since it was last known to be in the window.
    pub(crate) has_replayed: bool,
    /// Last message that cannot be decoded and was reported, and its epoch.
    reported_poison: (usize, u64),
    /// It receives items some time after they were read: the pod may have appended more since.
    pub(crate) is_late: bool,
}

impl Model {
    pub(crate) fn new(
        number: usize,
        (at, pod): (usize, &Pod),
        (filters, options): (FilterSet, Arc<FeedOptions>),
        position: Position,
        outcome: Outcome,
    ) -> Self {
        assert_eq!(
            position.tag, pod.tag,
            "a position belongs to the current epoch"
        );
        let is_live = match outcome {
            Outcome::Live => true,
            Outcome::Gap(gap) => gap.reason != GapReason::Expired,
            Outcome::Window | Outcome::Archive => false,
        };
        if is_live {
            assert_eq!(position.seq, pod.head, "a live start is at the head");
        }
        Self {
            number,
            pod: at,
            filters,
            options,
            position,
            epoch: pod.epoch,
            seq: position.seq,
            next: if is_live {
                pod.history.len()
            } else {
                pod.epoch_place()
            },
            slow: 0,
            conflated: 0,
            skipped_entries: Vec::new(),
            is_uncertain: false,
            is_ahead: position.seq > pod.head,
            has_replayed: false,
            reported_poison: (0, 0),
            is_late: false,
        }
    }

    /// Entries of the history that it has not received.
    pub(crate) fn unreceived<'p>(
        &'p self,
        pod: &'p Pod,
        until: usize,
    ) -> impl Iterator<Item = (usize, &'p Entry)> {
        pod.history[..until]
            .iter()
            .enumerate()
            .skip(self.next)
            .filter(|(_, entry)| match &entry.kind {
                Kind::Event { subject, .. } => {
                    let is_new = entry.epoch != self.epoch || entry.position.seq > self.seq;
                    is_new && self.filters.matches(subject)
                }
                // A gap lies after its position: a client with a later event does not need it.
                Kind::Gap(_) => entry.epoch != self.epoch || entry.position.seq >= self.seq,
                Kind::Begin(_) => entry.epoch != self.epoch || entry.position.seq > self.seq,
            })
    }

    /// Indexes of the history that the rules for slow clients skip; `None` if the model does not
    /// know the content of the window.
    pub(crate) fn expected_skips(
        &self,
        pod: &Pod,
        slow: Option<&Slow>,
        shedder: Option<&Shedder>,
        is_replaying: bool,
        seen: &[Seen],
    ) -> Option<Vec<usize>> {
        let (slow, shedder) = (slow?, shedder?);
        assert!(
            shedder.skipped().all(|(tier, _)| tier != Tier::Critical),
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
        let is_shed_gap = |gap: &&Gap| matches!(gap.reason, GapReason::Slow | GapReason::Conflated);
        let reported: u64 = gaps()
            .filter(is_shed_gap)
            .filter_map(|gap| gap.missed)
            .sum();
        let skipped: u64 = shedder.skipped().map(|(_, count)| count).sum();
        let is_elsewhere = gaps().any(|gap| !is_shed_gap(&gap) || gap.missed.is_none());
        // Nothing is skipped in the archive.
        let is_replaying = self.has_replayed || is_replaying;
        let is_unclear =
            is_replaying || self.is_ahead || self.is_uncertain || self.slow > 0 || is_elsewhere;
        if is_unclear || reported != skipped {
            assert!(
                reported >= skipped,
                "{self}: skipped {skipped} and reported {reported}"
            );
            return None;
        }
        let last = seen.iter().rev().find_map(|seen| match seen {
            Seen::Event { position, .. } => Some(*position),
            Seen::Gap { .. } => None,
        })?;
        let events: Vec<(usize, &str)> = self
            .unreceived(pod, pod.history.len())
            .filter_map(|(place, entry)| match &entry.kind {
                Kind::Event { subject, .. } => Some((place, &**subject)),
                Kind::Gap(_) | Kind::Begin(_) => None,
            })
            .collect();
        let mut expected_skips = Vec::new();
        for (nth, (place, subject)) in events.iter().enumerate() {
            let waiting = (events.len() - nth) as u64;
            let is_newest = || !events[nth + 1..].iter().any(|(_, other)| other == subject);
            let is_skipped = match (slow.policy, self.tier(subject)) {
                (SlowPolicy::Disconnect, _) | (_, Tier::Critical) => false,
                (SlowPolicy::Conflate, _) => !is_newest(),
                (SlowPolicy::Shed, Tier::Telemetry) => waiting as f64 > slow.lag as f64 / 4.0,
                (SlowPolicy::Shed, Tier::Normal) => waiting as f64 > slow.lag as f64 * 3.0 / 4.0,
            };
            if is_skipped {
                expected_skips.push(*place);
            } else if pod.history[*place].position == last {
                break;
            }
        }
        Some(expected_skips)
    }

    fn tier(&self, subject: &str) -> Tier {
        let rule = self
            .options
            .priority
            .iter()
            .find(|(filter, _)| filter.matches(subject));
        rule.map_or(Tier::Normal, |(_, tier)| *tier)
    }

    pub(crate) fn take_event(
        &mut self,
        pod: &Pod,
        text: &str,
        position: Position,
        tier: Option<Tier>,
    ) {
        let place = (self.next..pod.history.len()).find(|place| {
            let entry = &pod.history[*place];
            (entry.epoch == self.epoch || self.is_uncertain)
                && entry.position == position
                && matches!(entry.kind, Kind::Event { .. })
        });
        let source = lock(&pod.source);
        let (subject, content) = match place.map(|place| &pod.history[place].kind) {
            Some(Kind::Event { subject, content }) => (subject.clone(), *content),
            _ => {
                assert!(
                    self.has_replayed,
                    "{self}: {position} is not in the rest of the history"
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
            "{self}: {subject} was not requested"
        );
        assert_eq!(tier.unwrap_or(self.tier(&subject)), self.tier(&subject));
        if let Some(place) = place.filter(|_| self.is_uncertain) {
            (self.epoch, self.seq, self.next) = (pod.history[place].epoch, position.seq - 1, place);
            (self.slow, self.is_uncertain) = (0, false);
        }
        assert!(
            position.seq > self.seq,
            "{self}: {position} is a duplicate or out of order"
        );
        self.skip_to(pod, &source, place.unwrap_or(self.next), position.seq - 1);
        (self.seq, self.position) = (position.seq, position);
        if let Some(place) = place {
            self.next = place + 1;
            self.is_ahead = false;
        }
    }

    pub(crate) fn take_gap(&mut self, pod: &Pod, gap: Gap, position: Position, is_slow: bool) {
        let source = lock(&pod.source);
        if gap.reason == GapReason::Conflated {
            assert!(
                is_slow && position == self.position,
                "{self}: a gap for a slow client does not advance it"
            );
            self.conflated += gap.missed.expect("a count");
            return;
        }
        if gap.reason == GapReason::Slow {
            return self.take_slow(pod, gap, position, is_slow);
        }
        let mut reported = pod
            .history
            .iter()
            .enumerate()
            .skip(self.next)
            .filter(|(_, entry)| match entry.kind {
                Kind::Gap(known) => {
                    (entry.epoch == self.epoch || self.is_uncertain)
                        && known == gap
                        && entry.position.seq == position.seq
                }
                Kind::Begin(known) => {
                    known == gap
                        && (entry.position.tag, entry.position.seq) == (position.tag, position.seq)
                }
                Kind::Event { .. } => false,
            });
        let first = reported.next();
        // The archive's gap has the position of the undecodable message, the window's gap that of
        // the message before it. Of two such messages in a row the two positions are equal.
        let is_archived = gap.reason == GapReason::Upstream
            && self.has_replayed
            && (first.is_none() || !self.is_uncertain)
            && position.seq > self.seq.max(self.poison_reported())
            && source.published.iter().any(|(at, record)| {
                (at.tag, at.seq) == (position.tag, position.seq) && record.is_poison
            });
        // Several epochs may start with the same gap; the next item shows which one it was.
        let is_unclear = (self.is_uncertain || self.has_replayed) && reported.next().is_some();
        match first {
            // A reader of the stream receives it whatever its filters: live, because the buffer does
            // not look at them, and from the archive, because readers share a page.
            _ if is_archived => {
                self.skip_to(pod, &source, self.next, position.seq - 1);
                self.take_poison(position.seq);
                self.seq = position.seq;
            }
            Some((place, entry)) => {
                let begins = entry.epoch != self.epoch;
                if self.is_uncertain || (begins && self.has_replayed) {
                    (self.slow, self.is_uncertain) = (0, false); // Its events are gone with the source.
                } else {
                    let through = if matches!(entry.kind, Kind::Begin(_)) {
                        self.seq
                    } else {
                        position.seq
                    };
                    self.skip_to(pod, &source, place, through);
                }
                if !begins && gap.reason == GapReason::Upstream && !self.is_uncertain {
                    self.take_poison(position.seq + 1);
                }
                self.seq = if begins {
                    position.seq
                } else {
                    self.seq.max(position.seq)
                };
                (self.epoch, self.next) = (entry.epoch, place + 1);
                self.is_ahead &= !begins;
                self.is_uncertain |= is_unclear;
            }
            None if gap.reason == GapReason::Recreated && self.has_replayed => {
                // The archive knew of the change before the tailer.
                let epoch_end = pod.history.iter().position(|one| one.epoch > self.epoch);
                assert!(
                    pod.generation != Some(source.generation)
                        || (self.is_late && epoch_end.is_some()),
                    "{self}: not recreated"
                );
                assert_eq!(position, self.position);
                self.next = self.next.max(epoch_end.unwrap_or(pod.history.len()));
                self.slow = 0;
            }
            None => {
                assert_eq!(
                    gap.reason,
                    GapReason::Expired,
                    "{self}: unexpected {gap:?} at {position}"
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
                self.skip_to(pod, &source, self.next, position.seq);
                self.seq = position.seq;
            }
        }
        self.position = position;
    }

    /// Last message of this epoch that was reported because it cannot be decoded.
    fn poison_reported(&self) -> u64 {
        match self.reported_poison {
            (epoch, reported) if epoch == self.epoch => reported,
            _ => 0,
        }
    }

    /// Takes the report of a message that cannot be decoded.
    fn take_poison(&mut self, seq: u64) {
        let reported = self.poison_reported();
        assert!(
            seq > self.seq && seq > reported,
            "{self}: the message at {seq} is reported twice, or after a later item"
        );
        self.reported_poison = (self.epoch, seq);
    }

    fn take_slow(&mut self, pod: &Pod, gap: Gap, position: Position, is_slow: bool) {
        assert_eq!(
            position, self.position,
            "{self}: a gap for a slow client does not advance it"
        );
        assert_ne!(gap.missed, Some(0), "{self}: {gap:?}");
        let begins = |(_, entry): &(usize, &Entry)| matches!(&entry.kind, Kind::Begin(gap) if gap.missed.is_none());
        // A single epoch is reported as such; of several only the last one is.
        let is_unknown = self
            .unreceived(pod, pod.history.len())
            .filter(begins)
            .count()
            > 1;
        assert!(
            gap.missed.is_some() || is_unknown,
            "{self}: the count of missing events is known"
        );
        if !is_slow
            && pod.is_roomy()
            && self.options.event.is_some()
            && !self.has_replayed
            && !self.is_ahead
        {
            // With these options only the number of events is limited.
            let unreceived = self
                .unreceived(pod, pod.history.len())
                .map(|(_, entry)| match entry.kind {
                    Kind::Event { .. } => 1,
                    Kind::Gap(gap) | Kind::Begin(gap) => gap.missed.unwrap_or_default(),
                });
            let (unreceived, most) = (unreceived.sum::<u64>(), self.options.window.events as u64);
            let reported = self.slow + gap.missed.unwrap_or_default();
            assert!(
                unreceived >= reported + most,
                "{self}: {gap:?} of {unreceived} with a window of {most}"
            );
        }
        self.slow += gap.missed.unwrap_or_default();
        self.is_uncertain |= gap.missed.is_none();
    }

    /// Takes a position without an event: everything up to it was delivered or reported.
    pub(crate) fn take_position(&mut self, pod: &Pod, position: Position) {
        if position == self.position {
            return;
        }
        assert_eq!(position.tag, self.position.tag, "{self}: {position}");
        assert!(
            position.seq > self.position.seq,
            "{self}: {position} is not later"
        );
        if !self.is_uncertain {
            let is_later = |entry: &Entry| {
                let is_gap = matches!(entry.kind, Kind::Gap(_));
                entry.epoch != self.epoch
                    || entry.position.seq > position.seq
                    || (is_gap && entry.position.seq == position.seq)
            };
            let place = (self.next..pod.history.len()).find(|place| is_later(&pod.history[*place]));
            let source = lock(&pod.source);
            self.skip_to(
                pod,
                &source,
                place.unwrap_or(pod.history.len()),
                position.seq,
            );
        }
        (self.position, self.seq) = (position, position.seq);
    }

    /// Skips the entries before `place` and up to `through` at the source, all of which must have
    /// been reported.
    pub(crate) fn skip_to(&mut self, pod: &Pod, source: &Source, place: usize, through: u64) {
        let is_present = pod.generation == Some(source.generation) && self.epoch == pod.epoch;
        let fate = |seq| {
            source
                .records
                .get(&seq)
                .map_or(Fate::Expired, |record| record.fate)
        };
        let (mut missed, mut reported) = (0, self.seq);
        let mut skipped_entries = Vec::new();
        for (at, entry) in self.unreceived(pod, place.max(self.next)) {
            if matches!(entry.kind, Kind::Event { .. }) {
                skipped_entries.push(at);
            }
            match &entry.kind {
                Kind::Event { .. }
                    if self.has_replayed
                        && is_present
                        && fate(entry.position.seq) == Fate::Deleted => {}
                Kind::Event { .. } => missed += 1,
                Kind::Gap(_) if self.has_replayed => {}
                Kind::Gap(gap) => missed += gap.missed.unwrap_or_default(),
                // A reader of the archive receives these expired events as its own gap.
                Kind::Begin(Gap {
                    reason: GapReason::Expired,
                    ..
                }) if self.has_replayed && self.slow == 0 => {}
                Kind::Begin(Gap {
                    reason: GapReason::Expired,
                    missed: expired,
                }) => {
                    missed += expired.unwrap_or_default();
                    reported = entry.position.seq;
                }
                Kind::Begin(gap) => panic!("{self}: {gap:?} was not reported"),
            }
        }
        self.skipped_entries.append(&mut skipped_entries);
        let conflated = missed.saturating_sub(self.slow).min(self.conflated);
        self.conflated -= conflated;
        missed -= conflated;
        if self.is_ahead || self.has_replayed {
            missed = missed.min(self.slow);
            self.slow = missed;
        }
        assert_eq!(
            missed, self.slow,
            "{self}: events missed before {through}, and reported"
        );
        (self.slow, self.seq) = (0, reported);
        if is_present && through > reported {
            let lost = source
                .records
                .range(reported + 1..=through)
                .find(|(seq, record)| {
                    let is_unreceived = record.fate != Fate::Deleted
                        && !record.is_poison
                        && self.filters.matches(&record.subject);
                    is_unreceived && pod.was_skipped(**seq)
                });
            assert!(lost.is_none(), "{self}: lost {lost:?} before {through}");
        }
    }

    /// Asserts that nothing is left to deliver.
    pub(crate) fn assert_has_all(&mut self, pod: &Pod) {
        let source = lock(&pod.source);
        if self.is_uncertain {
            (self.slow, self.is_uncertain, self.next) = (0, false, pod.history.len());
            (self.epoch, self.seq) = (
                pod.epoch,
                pod.skipped_ranges.last().map_or(0, |(_, through)| *through),
            );
            return;
        }
        if self.unreceived(pod, pod.history.len()).next().is_none() && self.slow == 0 {
            return;
        }
        self.skip_to(pod, &source, pod.history.len(), self.seq);
        self.next = pod.history.len();
    }

    /// Asserts that every event before this index of the history was delivered or reported.
    pub(crate) fn assert_has(&self, pod: &Pod, length: usize) {
        if self.has_replayed || self.is_ahead || self.is_uncertain {
            return;
        }
        // A drain waits for events. A gap after the last of them has a position at or after that of
        // the client, whose next connection receives it.
        let missed = self
            .unreceived(pod, length.max(self.next))
            .filter(|(_, entry)| matches!(entry.kind, Kind::Event { .. }))
            .count() as u64;
        assert!(
            missed <= self.slow + self.conflated,
            "{self}: {missed} events before index {length} are missing"
        );
    }

    /// Asserts that nothing is left to deliver, and continues at the end of the history.
    pub(crate) fn assert_is_current(&mut self, pod: &Pod) {
        self.assert_has_all(pod);
        if self.has_replayed {
            (self.has_replayed, self.is_ahead) = (false, true);
        }
        (self.next, self.conflated) = (pod.history.len(), 0);
    }

    fn encode(&self, subject: &str, content: u64, position: Position) -> String {
        debug_assert_eq!(position.fingerprint, Some(fingerprint(content)));
        let name = self
            .options
            .event
            .as_ref()
            .map(|_| subject.split('.').next());
        let (name, payload) = (name.flatten(), payload(content));
        match self.options.framing {
            Framing::Sse => {
                let name = name.map_or(String::new(), |name| format!("event: {name}\n"));
                format!("{name}{}", encode_stored(content, position))
            }
            Framing::Ndjson => {
                let name = name.map_or(String::new(), |name| format!(r#""event":"{name}","#));
                // A payload without a suffix is a number.
                let data = match payload.parse::<u64>() {
                    Ok(number) => number.to_string(),
                    Err(_) => format!("\"{payload}\""),
                };
                let rest = format!(r#"{name}"subject":"{subject}","data":{data}}}"#);
                format!("{{\"id\":\"{position}\",{rest}\n")
            }
            Framing::WebSocket | Framing::GrpcWeb | Framing::Grpc | Framing::LongPoll => {
                unreachable!("no feed of a run has it")
            }
        }
    }
}

impl std::fmt::Display for Model {
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

/// Returns the encoding that counts in lag, whatever the framing and the name.
pub(crate) fn encode_stored(content: u64, position: Position) -> String {
    format!("data: {}\nid: {position}\n\n", payload(content))
}
