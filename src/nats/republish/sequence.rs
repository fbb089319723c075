//! Loss detection in one feed of republished messages, as a pure function of its sequences.
//!
//! Each message names its sequence and the previous sequence of its subject. The tracker remembers
//! the last sequence of each subject and decides what a message is ([`SequenceStep`]):
//!
//! ```text
//!                        last of subject                    head of feed
//! sequences  ------------------|-----------------------------|------------->
//! message at    Duplicate             Late                   (after head: by its previous)
//! previous at     Next              LateLoss                        Loss
//! ```
//!
//! Events up to the head are already delivered: a loss before the head becomes a gap, a loss after
//! the head is read from the stream. `complete` is a lower bound for every subject, so that a
//! subject whose messages follow each other directly needs no entry.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

/// 65,536 remembered subjects per feed: less than 3 MiB.
pub(super) const SUBJECTS_MAX: usize = 65_536;

/// Progress of a feed, in total and per subject.
#[derive(Debug)]
pub(super) struct SequenceTracker {
    /// Everything up to this sequence was delivered or reported as missing.
    complete: u64,
    /// Last sequence that was delivered, or that is known not to concern the feed.
    head: u64,
    /// Last sequence of each subject, by its hash: 64 bits with a key of this process.
    last: HashMap<u64, u64>,
    hasher: RandomState,
    subjects_max: usize,
}

/// Relation of a message to what the feed has delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SequenceStep {
    /// The next message.
    Next,
    /// Already delivered.
    Duplicate,
    /// Arrived after messages that should have followed it.
    Late,
    /// A message of its subject is missing, after everything that was delivered.
    Loss,
    /// A message of its subject is missing, and later messages were already delivered.
    LateLoss,
}

impl SequenceTracker {
    /// Tracker of a feed that begins after `head`.
    pub(super) fn new(head: u64) -> Self {
        Self {
            complete: head,
            head,
            last: HashMap::new(),
            hasher: RandomState::new(),
            subjects_max: SUBJECTS_MAX,
        }
    }

    pub(super) fn head(&self) -> u64 {
        self.head
    }

    /// Memory of the remembered sequences, in bytes.
    pub(super) fn bytes(&self) -> usize {
        // A table is at most seven eighths full, with one more byte per slot.
        self.last.capacity() * (size_of::<(u64, u64)>() + 1) * 8 / 7
    }

    /// Changes the number of remembered subjects; takes effect with the next new subject.
    pub(super) fn set_subjects_max(&mut self, most: usize) {
        self.subjects_max = most;
    }

    /// Last known sequence of a subject.
    pub(super) fn last_of(&self, subject: &str) -> u64 {
        self.last
            .get(&self.hasher.hash_one(subject))
            .copied()
            .unwrap_or(0)
            .max(self.complete)
    }

    /// Classifies a message of `subject` at `sequence` whose predecessor is `previous`. The stream
    /// does not name a predecessor that it has deleted: a sequence explained that way is not a
    /// loss.
    pub(super) fn classify(&self, subject: &str, sequence: u64, previous: u64) -> SequenceStep {
        let last = self.last_of(subject);
        if sequence <= last {
            SequenceStep::Duplicate
        } else if sequence <= self.head {
            SequenceStep::Late
        } else if previous <= last {
            SequenceStep::Next
        } else if previous <= self.head {
            SequenceStep::LateLoss
        } else {
            SequenceStep::Loss
        }
    }

    /// Records a message as delivered or reported as missing.
    pub(super) fn record(&mut self, subject: &str, sequence: u64) {
        if self.complete == self.head && sequence == self.head + 1 {
            // No sequence is missing in between: the subject needs no entry.
            self.complete = sequence;
        } else {
            self.last.insert(self.hasher.hash_one(subject), sequence);
            self.evict();
        }
        self.head = self.head.max(sequence);
        debug_assert!(self.complete <= self.head, "what is complete was handed on");
    }

    /// No message between the head and this sequence concerns the feed.
    pub(super) fn advance(&mut self, sequence: u64) {
        if self.complete == self.head {
            self.complete = self.complete.max(sequence);
        }
        self.head = self.head.max(sequence);
    }

    /// Evicts the older half of the subjects if there are too many. Everything up to their last
    /// sequence counts as complete, as after a gap.
    fn evict(&mut self) {
        if self.last.len() <= self.subjects_max {
            return;
        }
        let mut numbers: Vec<u64> = self.last.values().copied().collect();
        // Half of what may stay, also after the limit has shrunk.
        let evicted = numbers.len() - self.subjects_max / 2;
        let (_, middle, _) = numbers.select_nth_unstable(evicted - 1);
        self.complete = self.complete.max(*middle);
        self.last.retain(|_, last| *last > self.complete);
        self.last.shrink_to(self.subjects_max);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn previous_sequence_shows_what_is_missing_of_a_subject() {
        let mut tracker = SequenceTracker::new(10);
        assert_eq!(tracker.classify("a", 10, 3), SequenceStep::Duplicate);
        assert_eq!(
            tracker.classify("a", 11, 3),
            SequenceStep::Next,
            "its predecessor is before the start"
        );
        assert_eq!(tracker.classify("a", 15, 12), SequenceStep::Loss);
        tracker.record("a", 12);
        assert_eq!(tracker.classify("a", 15, 12), SequenceStep::Next);
        assert_eq!(
            tracker.classify("a", 15, 0),
            SequenceStep::Next,
            "the stream has deleted its predecessor"
        );
        assert_eq!(
            tracker.classify("b", 13, 11),
            SequenceStep::LateLoss,
            "a message of b is missing before 12 of a"
        );
        assert_eq!(tracker.classify("b", 11, 4), SequenceStep::Late);
        tracker.record("b", 11);
        assert_eq!(tracker.classify("b", 13, 11), SequenceStep::Next);
        tracker.advance(20);
        assert_eq!(
            tracker.classify("c", 22, 19),
            SequenceStep::LateLoss,
            "the skipped sequences may hide a loss"
        );
    }

    #[test]
    fn contiguous_sequences_need_no_memory_and_the_rest_is_bounded() {
        let mut tracker = SequenceTracker {
            subjects_max: 8,
            ..SequenceTracker::new(0)
        };
        for sequence in 1..=100 {
            tracker.record(&sequence.to_string(), sequence);
        }
        assert!(tracker.last.is_empty());
        for sequence in (102..=300).step_by(2) {
            tracker.record(&sequence.to_string(), sequence);
            assert!(tracker.last.len() <= 8);
        }
        assert_eq!(tracker.classify("300", 301, 300), SequenceStep::Next);
    }

    proptest! {
        /// For any loss and disorder, every message is delivered in order or a gap is reported
        /// before it.
        #[test]
        fn every_loss_is_repaired_or_reported(
            subjects in prop::collection::vec(0u8..4, 1..60),
            fate in prop::collection::vec((0u8..10, 0usize..4), 60),
        ) {
            // The stream: sequence and predecessor of every message.
            let mut last = [0u64; 4];
            let stored: Vec<(u8, u64, u64)> = (1u64..).zip(&subjects).map(|(sequence, subject)| {
                (*subject, sequence, std::mem::replace(&mut last[usize::from(*subject)], sequence))
            }).collect();
            // Arrivals: some messages are lost, some arrive twice, some late. At the end, one of
            // each subject.
            let mut arrived: Vec<(usize, (u8, u64, u64))> = Vec::new();
            for (index, (message, (fate, late))) in stored.iter().zip(&fate).enumerate() {
                match fate {
                    0 => {}
                    1 => arrived.extend([(index, *message), (index + late, *message)]),
                    2 => arrived.push((index + late, *message)),
                    _ => arrived.push((index, *message)),
                }
            }
            arrived.sort_by_key(|(index, _)| *index);
            let end = stored.len() as u64;
            let closing = (0u8..4).map(|subject| (subject, end + 1 + u64::from(subject), last[usize::from(subject)]));
            let mut tracker = SequenceTracker::new(0);
            let (mut delivered, mut gaps) = (Vec::new(), 0);
            for (subject, sequence, previous) in arrived.into_iter().map(|(_, message)| message).chain(closing) {
                let name = subject.to_string();
                match tracker.classify(&name, sequence, previous) {
                    SequenceStep::Duplicate => prop_assert!(delivered.contains(&sequence) || gaps > 0),
                    SequenceStep::Late => { gaps += 1; tracker.record(&name, sequence); }
                    step => {
                        if step == SequenceStep::LateLoss { gaps += 1; }
                        if step == SequenceStep::Loss {
                            // Repair: all messages between the head and this one are read. A
                            // message missing before the head in any of their subjects is reported.
                            let head = tracker.head();
                            let is_late = |tracker: &SequenceTracker, of: u8| {
                                let unsure = tracker.last_of(&of.to_string()) + 1..=head;
                                stored.iter().any(|(subject, number, _)| *subject == of && unsure.contains(number))
                            };
                            gaps += usize::from(is_late(&tracker, subject));
                            let between = stored.iter().filter(|(_, number, _)| (head + 1..sequence).contains(number));
                            for (subject, number, _) in between.copied() {
                                gaps += usize::from(is_late(&tracker, subject));
                                delivered.push(number);
                                tracker.record(&subject.to_string(), number);
                            }
                        }
                        delivered.push(sequence);
                        tracker.record(&name, sequence);
                    }
                }
            }
            prop_assert!(delivered.is_sorted_by(|one, two| one < two), "in order, once: {delivered:?}");
            let missing = stored.iter().filter(|(_, sequence, _)| !delivered.contains(sequence)).count();
            prop_assert!(missing == 0 || gaps > 0, "{missing} are missing without a report");
        }
    }
}
